"""PUBLISH ↔ Event: the CloudEvents MQTT binding, and the mapping of MQTT 5.0's properties.

Nothing else: no sessions, no subscriptions. See the tables in docs/mqtt.md.

Invariant: an event that came in as PUBLISH leaves as PUBLISH of the same version with the same
topic, payload and properties, but for the expiry, which counts down.
"""

import math
import time
from typing import Final

from mesh_core.address import AddressError
from mesh_core.event import (
    AttributeValue,
    CloudEventError,
    Event,
    Headers,
    attribute_text,
    check_attributes,
    header_text,
)
from protocols.bindings.headers import (
    CORRELATION,
    EXPIRES,
    REPLY_TO,
    has_properties,
    property_headers,
    split_properties,
)
from protocols.bindings.json import STRUCTURED, decode_event, encode_event, is_structured
from protocols.frontend import Mode
from protocols.mqtt.codec import encode_publish
from protocols.mqtt.packets import V5, Publish, Will
from protocols.mqtt.properties import Properties, Property, encode_properties, write_variable

PAYLOAD_FORMAT: Final = "mqtt-payload-format"
"""The header in which the payload format indicator crosses other protocols."""

_CARRIED: Final = frozenset((EXPIRES, REPLY_TO, CORRELATION))
_MAX_TEXT: Final = 65_535
_AUTO_V4: Final = "mqtt4-auto-0"
_AUTO_V5: Final = "mqtt5-auto-0"


def to_event(packet: Publish | Will, version: int, publisher: object) -> Event:
    """Return the event that a PUBLISH, or a will, describes.

    The topic must be the real one: an alias has been resolved, ``$queue/`` been taken off.

    Args:
        packet: what was published.
        version: the protocol version of the connection.
        publisher: who published it.
    """
    properties = packet.properties
    if properties is None:
        data = packet.payload
        # MQTT 3.1.1 has no content type: CloudEvents there are structured by definition
        # (CloudEvents MQTT binding §3), so the payload itself has to tell.
        if version != V5 and data[:1] == b"{" and b'"specversion"' in data:
            structured = _structured(packet, publisher)
            if structured is not None:
                return structured
        qos = packet.qos
        event = Event(
            packet.topic,
            data,
            durable=qos > 0,
            retain=packet.retain,
            publisher=publisher,
            qos=qos,
        )
        if isinstance(packet, Publish) and packet.frame is not None:
            # What came in is what goes out, so that plain telemetry is never encoded.
            event.wire[_AUTO_V5 if version == V5 else _AUTO_V4] = packet.frame
        return event
    return _from_properties(packet, properties, publisher)


def _structured(packet: Publish | Will, publisher: object) -> Event | None:
    try:
        event = decode_event(packet.payload, packet.topic, publisher=publisher)
    except (CloudEventError, AddressError):
        return None
    event.qos = packet.qos
    event.durable = packet.qos > 0
    event.retain = packet.retain
    return event


def _from_properties(packet: Publish | Will, properties: Properties, publisher: object) -> Event:
    content_type = properties.get(Property.CONTENT_TYPE)
    assert content_type is None or isinstance(content_type, str)
    event: Event | None = None
    try:
        if is_structured(content_type):
            event = _structured(packet, publisher)
    except CloudEventError:
        event = None  # Another event format: a plain message for those who can read it.
    pairs = properties.get(Property.USER_PROPERTY, [])
    headers: Headers = tuple(pairs)  # type: ignore[arg-type]
    if event is None:
        attributes, headers = _attributes(headers)
        event = Event(
            packet.topic,
            packet.payload,
            content_type,
            attributes,
            headers,
            durable=packet.qos > 0,
            retain=packet.retain,
            publisher=publisher,
            qos=packet.qos,
        )
    elif headers:
        event.headers = headers
    if has_properties(name for name, _ in event.headers):
        event.headers, found = split_properties(event.headers)
        event.priority = found.priority
    expiry = properties.get(Property.MESSAGE_EXPIRY_INTERVAL)
    if isinstance(expiry, int):
        event.expires_at = time.time() + expiry
    reply_to = properties.get(Property.RESPONSE_TOPIC)
    if isinstance(reply_to, str):
        event.reply_to = reply_to
    correlation = properties.get(Property.CORRELATION_DATA)
    if isinstance(correlation, bytes):
        event.correlation_id = correlation
    if Property.PAYLOAD_FORMAT_INDICATOR in properties:
        indicator = properties[Property.PAYLOAD_FORMAT_INDICATOR]
        event.headers = (*event.headers, (PAYLOAD_FORMAT, str(indicator)))
    return event


def _attributes(headers: Headers) -> tuple[dict[str, AttributeValue] | None, Headers]:
    """Split CloudEvents attributes from the application's own user properties.

    Source: CloudEvents MQTT binding §3.1 (binary mode: user properties by attribute name).
    """
    if not any(name == "specversion" for name, _ in headers):
        return None, headers
    attributes: dict[str, AttributeValue] = {}
    rest: list[tuple[str, str]] = []
    for name, value in headers:
        assert isinstance(value, str)
        if name.isascii() and name.isalnum() and name == name.lower() and name not in attributes:
            attributes[name] = value
        else:
            rest.append((name, value))
    try:
        check_attributes(attributes)
    except CloudEventError:
        return None, headers
    return attributes, tuple(rest)


class Form:
    """One of the forms in which events leave: a protocol version and a mode.

    Frames are cached on the event, so that a fan-out encodes once per form and QoS.
    """

    __slots__ = ("_heads", "_tail", "frame_key", "mode", "version")

    def __init__(self, version: int, mode: Mode) -> None:
        self.version = version
        self.mode = mode
        name = f"mqtt{5 if version == V5 else 4}-{mode.value}"
        self.frame_key = f"{name}-0"
        self._heads = ("", f"{name}-1", f"{name}-2")
        self._tail = f"{name}-tail"

    def frame(self, event: Event) -> bytes | None:
        """Return the PUBLISH at QoS 0 without retain, cached; None if the event has expired."""
        frame = event.wire.get(self.frame_key)
        if frame is None:
            encoded = self._body(event, ())
            if encoded is None:
                return None
            topic = topic_of(event).encode()
            frame = encode_publish(topic, encoded[1], properties=encoded[0])
            if event.expires_at is None:
                event.wire[self.frame_key] = frame
        return frame

    def frame_with(
        self,
        event: Event,
        qos: int,
        packet_id: int,
        retain: bool = False,
        dup: bool = False,
        identifiers: tuple[int, ...] = (),
    ) -> bytes | None:
        """Return any PUBLISH; None if the event has expired. Its parts are cached if they can be."""
        if qos and not (retain or dup or identifiers) and event.expires_at is None:
            tail = event.wire.get(self._tail)
            head = event.wire.get(self._heads[qos])
            if tail is None or head is None:
                encoded = self._body(event, ())
                if encoded is None:
                    return None
                tail = encoded[0] + encoded[1]
                topic = topic_of(event).encode()
                head = (
                    bytes((0x30 | qos << 1,))
                    + write_variable(4 + len(topic) + len(tail))
                    + len(topic).to_bytes(2, "big")
                    + topic
                )
                event.wire[self._tail] = tail
                event.wire[self._heads[qos]] = head
            return head + packet_id.to_bytes(2, "big") + tail
        encoded = self._body(event, identifiers)
        if encoded is None:
            return None
        properties, payload = encoded
        topic = topic_of(event).encode()
        return encode_publish(topic, payload, qos, retain, dup, packet_id, properties)

    def _body(self, event: Event, identifiers: tuple[int, ...]) -> tuple[bytes, bytes] | None:
        """Return encoded properties and payload; None if the event has expired."""
        seconds = -1
        if event.expires_at is not None:
            seconds = math.ceil(event.expires_at - time.time())
            if seconds <= 0:
                return None
        mode = self.mode
        if self.version != V5:
            if mode is Mode.RAW or (mode is Mode.AUTO and event.attributes is None):
                return b"", event.data
            return b"", encode_event(event)
        if mode is Mode.STRUCTURED:
            properties: Properties = {Property.CONTENT_TYPE: STRUCTURED}
            payload = encode_event(event)
        else:
            properties = _properties(event, mode)
            payload = event.data
        if seconds > 0:
            properties[Property.MESSAGE_EXPIRY_INTERVAL] = min(seconds, 0xFFFF_FFFF)
        if identifiers:
            properties[Property.SUBSCRIPTION_IDENTIFIER] = list(identifiers)
        return encode_properties(properties), payload


def topic_of(event: Event) -> str:
    """Return the topic that a subscriber sees: ``$queue/<name>`` for one sent to a queue."""
    return event.topic or f"$queue/{event.queue}"


def _properties(event: Event, mode: Mode) -> Properties:
    properties: Properties = {}
    if event.datacontenttype is not None and _fits(event.datacontenttype):
        properties[Property.CONTENT_TYPE] = event.datacontenttype
    if event.reply_to is not None and _fits(event.reply_to):
        properties[Property.RESPONSE_TOPIC] = event.reply_to
    if event.correlation_id is not None and len(event.correlation_id) <= _MAX_TEXT:
        properties[Property.CORRELATION_DATA] = event.correlation_id
    pairs: list[tuple[str, str]] = []
    attributes = event.context if mode is Mode.BINARY else event.attributes
    if attributes is not None and mode is not Mode.RAW:
        pairs += [(name, attribute_text(value)) for name, value in attributes.items()]
    for name, value in event.headers:
        text = header_text(value)
        if name == PAYLOAD_FORMAT and text in ("0", "1"):
            properties[Property.PAYLOAD_FORMAT_INDICATOR] = int(text)
        else:
            pairs.append((name, text))
    pairs += property_headers(event, _CARRIED)
    pairs = [pair for pair in pairs if _fits(pair[0]) and _fits(pair[1])]
    if pairs:
        properties[Property.USER_PROPERTY] = pairs
    return properties


def _fits(text: str) -> bool:
    """Tell whether MQTT can carry `text` as a UTF-8 string (MQTT 5.0 §1.5.4)."""
    if "\0" in text:
        return False
    return len(text) * 4 <= _MAX_TEXT or len(text.encode(errors="replace")) <= _MAX_TEXT
