"""SEND → Event, Event → MESSAGE, and nothing else: the table in docs/stomp.md.

Invariant: what a STOMP publisher put into its headers reaches a STOMP subscriber under the same
names, but for those that belong to the frame itself.
"""

from typing import Final

from mesh_core.event import (
    DEFAULT_PRIORITY,
    AttributeValue,
    CloudEventError,
    Event,
    attribute_text,
    check_attributes,
    correlation_bytes,
    correlation_text,
    header_text,
)
from protocols.bindings.headers import has_properties, split_properties
from protocols.bindings.json import STRUCTURED, decode_event, encode_event, is_structured
from protocols.frontend import Mode
from protocols.stomp.codec import Frame, StompError, encode_headers
from protocols.stomp.destinations import destination_of, reply_destination

CE: Final = "cloudEvents_"
CE_SHORT: Final = "ce-"

# Headers with a meaning of their own; all others are the application's.
_FRAME: Final = frozenset(
    [
        "destination",
        "content-length",
        "content-type",
        "receipt",
        "transaction",
        "retain",
        "priority",
        "persistent",
        "expires",
        "correlation-id",
        "reply-to",
        "message-id",
        "subscription",
        "ack",
        "redelivered",
    ]
)


def to_event(frame: Frame, topic: str, reply_to: str | None, publisher: object) -> Event:
    """Return the event that a SEND describes.

    Args:
        frame: a SEND.
        topic: its destination as a topic; "" for a queue.
        reply_to: its `reply-to` as an address.
        publisher: who sent it.

    Raises:
        StompError: a header's value makes no sense, or the CloudEvent is none.
    """
    headers = frame.headers
    content_type = headers.get("content-type")
    attributes: dict[str, AttributeValue] | None = None
    rest: list[tuple[str, str]] = []
    if len(headers) > 1:
        attributes, rest = _split(headers)
    try:
        if is_structured(content_type):
            event = decode_event(frame.body, topic or "-", publisher=publisher)
            event.topic = topic
            event.headers = (*event.headers, *rest)
        else:
            if attributes is not None:
                check_attributes(attributes)
            event = Event(
                topic, frame.body, content_type, attributes, tuple(rest), publisher=publisher
            )
    except CloudEventError as error:
        raise StompError(str(error), "cloudevent") from None
    event.durable = headers.get("persistent") == "true"
    event.retain = headers.get("retain") == "true"
    if rest and has_properties(name for name, _ in rest):
        event.headers, found = split_properties(event.headers)
        event.expires_at = found.expires_at
    if "priority" in headers:
        event.priority = min(_number(headers, "priority"), 9)
    if headers.get("expires", "0") != "0":  # JMS: 0 is never
        event.expires_at = _number(headers, "expires") / 1000
    if "correlation-id" in headers:
        event.correlation_id = correlation_bytes(headers["correlation-id"])
    if reply_to is not None:
        event.reply_to = reply_to
    return event


def _split(
    headers: dict[str, str],
) -> tuple[dict[str, AttributeValue] | None, list[tuple[str, str]]]:
    attributes: dict[str, AttributeValue] = {}
    rest: list[tuple[str, str]] = []
    for name, value in headers.items():
        if name in _FRAME:
            continue
        if name.startswith(CE):
            attributes[name[len(CE) :].lower()] = value
        elif name.startswith(CE_SHORT):
            attributes[name[len(CE_SHORT) :].lower()] = value
        else:
            rest.append((name, value))
    return attributes or None, rest


def _number(headers: dict[str, str], name: str) -> int:
    text = headers[name]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise StompError(f"header {name}: {text[:40]!r} is no number", "header")
    return int(text)


class Form:
    """One of the forms in which events leave: a version, a mode, and how levels are separated.

    The part of a MESSAGE that all subscribers share is cached on the event.
    """

    __slots__ = ("_dots", "_key", "_mode", "_version")

    def __init__(self, version: str, mode: Mode, dots: bool) -> None:
        self._version = version
        self._mode = mode
        self._dots = dots
        self._key = f"stomp{version}-{mode.value}-{'.' if dots else '/'}"

    def common(self, event: Event) -> bytes:
        """Return the rest of a MESSAGE, from behind its own headers to the NUL."""
        common = event.wire.get(self._key)
        if common is None:
            common = event.wire[self._key] = self._encode(event)
        return common

    def _encode(self, event: Event) -> bytes:
        structured = self._mode is Mode.STRUCTURED
        data = encode_event(event) if structured else event.data
        headers = [("destination", destination_of(event, self._dots))]
        content_type = STRUCTURED if structured else event.datacontenttype
        if content_type is not None:
            headers.append(("content-type", content_type))
        headers.append(("content-length", str(len(data))))
        if event.priority != DEFAULT_PRIORITY:
            headers.append(("priority", str(event.priority)))
        if event.durable:
            headers.append(("persistent", "true"))
        if event.retain:
            headers.append(("retain", "true"))
        if event.expires_at is not None:
            headers.append(("expires", str(int(event.expires_at * 1000))))
        if event.reply_to is not None:
            headers.append(("reply-to", reply_destination(event.reply_to, self._dots)))
        if event.correlation_id is not None:
            headers.append(("correlation-id", correlation_text(event.correlation_id)))
        attributes = event.context if self._mode is Mode.BINARY else event.attributes
        if attributes is not None and self._mode is not Mode.RAW and not structured:
            headers += [(CE + name, attribute_text(value)) for name, value in attributes.items()]
        for name, value in event.headers:
            if name and name not in _FRAME:
                headers.append((name, header_text(value)))
        return encode_headers(headers, self._version) + b"\n" + data + b"\0"
