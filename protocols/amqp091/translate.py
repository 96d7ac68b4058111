"""basic.publish → Event, Event → content, and nothing else: the table in docs/amqp.md.

Invariant: properties that came in over AMQP and go out over AMQP are the very same bytes.
"""

import math
import time
from typing import Final

from mesh_core.address import queue_address, queue_of, swap_topic
from mesh_core.event import (
    DEFAULT_PRIORITY,
    AttributeValue,
    CloudEventError,
    Event,
    HeaderValue,
    check_attributes,
    correlation_bytes,
    correlation_text,
    header_text,
)
from protocols.amqp091.errors import PRECONDITION_FAILED, ChannelError
from protocols.amqp091.exchanges import REPLY_TOPIC
from protocols.amqp091.properties import Properties, decode_properties, encode_properties
from protocols.bindings.headers import has_properties, split_properties
from protocols.bindings.json import STRUCTURED, decode_event, encode_event, is_structured
from protocols.frontend import Mode

CE: Final = "cloudEvents_"
CE_COLON: Final = "cloudEvents:"

_PLAIN_KEY: Final = "amqp091-auto"
_CACHE: Final = 1024

# Properties that no other protocol has: headers elsewhere, themselves again here.
_OWN: Final = {
    "content_encoding": "amqp-content-encoding",
    "message_id": "amqp-message-id",
    "timestamp": "amqp-timestamp",
    "type": "amqp-type",
    "user_id": "amqp-user-id",
    "app_id": "amqp-app-id",
    "cluster_id": "amqp-cluster-id",
}
_OWN_BACK: Final = {header: name for name, header in _OWN.items()}


class Template:
    """What a block of properties means, whatever the body; made once per distinct block."""

    __slots__ = (
        "attributes",
        "content_type",
        "correlation_id",
        "durable",
        "expires_at",
        "expires_in",
        "headers",
        "priority",
        "raw",
        "reply_to",
        "retain",
        "structured",
    )

    def __init__(self, raw: bytes) -> None:
        properties = decode_properties(raw)
        self.raw = raw
        self.content_type = properties.content_type
        self.structured = False
        self.attributes: dict[str, AttributeValue] | None = None
        headers = list((properties.headers or {}).items())
        self.retain = False
        if headers:
            self.retain = dict(headers).get("retain") in (True, "true")
            self.attributes, headers = _split([pair for pair in headers if pair[0] != "retain"])
        self.expires_at: float | None = None
        self.priority = DEFAULT_PRIORITY
        for name, header in _OWN.items():
            value = getattr(properties, name)
            if value is not None:
                headers.append((header, value))
        if has_properties(name for name, _ in headers):
            rest, found = split_properties(headers)
            headers = list(rest)
            self.expires_at = found.expires_at
        self.headers = tuple(headers)
        try:
            self.structured = is_structured(properties.content_type)
            if self.attributes is not None and not self.structured:
                check_attributes(self.attributes)
        except CloudEventError as error:
            raise ChannelError(PRECONDITION_FAILED, str(error)) from None
        self.durable = properties.delivery_mode == 2
        if properties.priority:  # 0 is what AMQP's clients send who give none
            self.priority = min(properties.priority, 9)
        self.correlation_id = (
            None
            if properties.correlation_id is None
            else correlation_bytes(properties.correlation_id)
        )
        self.reply_to = None if properties.reply_to is None else _reply_in(properties.reply_to)
        self.expires_in: float | None = None
        if properties.expiration is not None:
            self.expires_in = _milliseconds(properties.expiration) / 1000


def _split(
    headers: list[tuple[str, HeaderValue]],
) -> tuple[dict[str, AttributeValue] | None, list[tuple[str, HeaderValue]]]:
    """Split CloudEvents attributes off (CloudEvents AMQP binding §3.1)."""
    attributes: dict[str, AttributeValue] = {}
    rest: list[tuple[str, HeaderValue]] = []
    for name, value in headers:
        if not name.startswith((CE, CE_COLON)):
            rest.append((name, value))
        elif isinstance(value, bool | int | str | bytes) or hasattr(value, "tzinfo"):
            attributes[name[len(CE) :]] = value  # type: ignore[assignment]
        else:
            attributes[name[len(CE) :]] = header_text(value)
    return attributes or None, rest


def _milliseconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ChannelError(PRECONDITION_FAILED, f"expiration {text[:40]!r} is no number")
    return int(text)


def _reply_in(text: str) -> str:
    if text.startswith(REPLY_TOPIC) and len(text) > len(REPLY_TOPIC):
        return swap_topic(text[len(REPLY_TOPIC) :])
    return queue_address(text)


def _reply_out(address: str) -> str:
    queue = queue_of(address)
    return queue if queue is not None else REPLY_TOPIC + swap_topic(address)


class Templates:
    """The templates of one connection, by raw properties; bounded."""

    __slots__ = ("_by_raw",)

    def __init__(self) -> None:
        self._by_raw: dict[bytes, Template] = {}

    def get(self, raw: bytes) -> Template:
        """Return the template of encoded properties.

        Raises:
            AmqpError: malformed.
            ChannelError: a value makes no sense.
        """
        template = self._by_raw.get(raw)
        if template is None:
            template = Template(raw)
            if len(self._by_raw) >= _CACHE:
                self._by_raw.clear()
            self._by_raw[raw] = template
        return template


def to_event(template: Template, topic: str, body: bytes, publisher: object) -> Event:
    """Return the event that a basic.publish with these properties describes.

    Raises:
        ChannelError: it announces a structured CloudEvent that its body is not.
    """
    expires_at = template.expires_at
    if template.expires_in is not None:
        expires_at = time.time() + template.expires_in
    if template.structured:
        try:
            event = decode_event(body, topic or "-", publisher=publisher)
        except CloudEventError as error:
            raise ChannelError(PRECONDITION_FAILED, str(error)) from None
        event.topic = topic
        event.headers = (*event.headers, *template.headers)
        event.durable = template.durable
        event.correlation_id = template.correlation_id or event.correlation_id
        event.reply_to = template.reply_to or event.reply_to
        event.expires_at = expires_at or event.expires_at
        return event
    event = Event(
        topic,
        body,
        template.content_type,
        template.attributes,
        template.headers,
        template.durable,
        template.retain,
        template.priority,
        expires_at,
        template.reply_to,
        template.correlation_id,
        None,
        publisher,
    )
    if not template.retain:
        event.wire[_PLAIN_KEY] = template.raw
    return event


def to_properties(event: Event, mode: Mode) -> tuple[bytes, bytes]:
    """Return encoded properties and the body in which `event` leaves; cached on the event."""
    if mode is Mode.STRUCTURED:
        key = "amqp091-structured"
        body = encode_event(event)
    else:
        key = f"amqp091-{mode.value}" if mode is not Mode.AUTO else _PLAIN_KEY
        body = event.data
    raw = event.wire.get(key)
    if raw is None:
        raw = encode_properties(_properties(event, mode))
        if event.expires_at is None:
            event.wire[key] = raw
    return raw, body


def _properties(event: Event, mode: Mode) -> Properties:
    structured = mode is Mode.STRUCTURED
    found = Properties(content_type=STRUCTURED if structured else event.datacontenttype)
    headers: dict[str, HeaderValue] = {}
    attributes = event.context if mode is Mode.BINARY else event.attributes
    if attributes is not None and not structured and mode is not Mode.RAW:
        headers.update((CE + name, value) for name, value in attributes.items())
    for name, value in event.headers:
        own = _OWN_BACK.get(name)
        if own is None or getattr(found, own) is not None or not _set(found, own, value):
            # AMQP's tables have no repeats: a header that comes again becomes a list.
            if name not in headers:
                headers[name] = value
            else:
                earlier = headers[name]
                headers[name] = [*earlier, value] if isinstance(earlier, list) else [earlier, value]
    if event.retain:
        headers["retain"] = True
    found.headers = headers or None
    found.delivery_mode = 2 if event.durable else None
    if event.priority != DEFAULT_PRIORITY:
        found.priority = event.priority
    if event.correlation_id is not None:
        found.correlation_id = correlation_text(event.correlation_id)
    if event.reply_to is not None:
        found.reply_to = _reply_out(event.reply_to)
    if event.expires_at is not None:
        found.expiration = str(max(0, math.ceil((event.expires_at - time.time()) * 1000)))
    return found


def _set(found: Properties, name: str, value: HeaderValue) -> bool:
    if name == "timestamp":
        text = header_text(value)
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            return False
        found.timestamp = int(text)
        return True
    setattr(found, name, header_text(value))
    return True
