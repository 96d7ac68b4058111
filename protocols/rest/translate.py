"""HTTP message ↔ Event: the CloudEvents HTTP binding, and the `Mesh-` headers.

Nothing else. See the tables in docs/rest.md.

Invariant: in binary mode every attribute comes back as its canonical text, whatever characters it
has (CloudEvents HTTP binding §3.1.3).
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from mesh_core.event import (
    AttributeValue,
    CloudEventError,
    Event,
    HeaderValue,
    attribute_text,
    check_attributes,
    header_text,
)
from protocols.bindings.headers import (
    http_decode,
    http_encode,
    property_headers,
    split_properties,
)
from protocols.bindings.json import (
    BATCH,
    STRUCTURED,
    decode_batch,
    decode_event,
    encode_event,
    is_structured,
)
from protocols.frontend import Mode
from protocols.rest.codec import HttpError, Response

RawHeaders = Iterable[tuple[bytes, bytes]]

_NOT_THE_APPLICATIONS: Final = (b"x-forwarded-", b"x-real-ip")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")


def to_events(
    headers: RawHeaders, body: bytes, topic: str, queue: str | None, publisher: object
) -> list[Event]:
    """Return the event, or the batch of events, that a request publishes.

    Args:
        headers: names in lower case, as ASGI has them.
        body: the request's body.
        topic: where to; "" for a queue.
        queue: the queue's name, instead of a topic.
        publisher: who publishes.

    Raises:
        HttpError: 400 for a CloudEvent that is none, 415 for a format that is not read.
    """
    content_type: str | None = None
    attributes: dict[str, AttributeValue] = {}
    application: list[tuple[str, HeaderValue]] = []
    try:
        for raw_name, raw_value in headers:
            if raw_name == b"content-type":
                content_type = raw_value.decode("latin-1").strip() or None
            elif raw_name.startswith(b"ce-"):
                name = raw_name[3:].decode("latin-1")
                attributes[name] = http_decode(raw_value.decode("latin-1"))
            elif raw_name.startswith((b"mesh-", b"x-")) and not raw_name.startswith(
                _NOT_THE_APPLICATIONS
            ):
                application.append((raw_name.decode("latin-1"), raw_value.decode("latin-1")))
        return _events(content_type, attributes, application, body, topic, queue, publisher)
    except CloudEventError as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, str(error)) from None


def _events(
    content_type: str | None,
    attributes: dict[str, AttributeValue],
    application: list[tuple[str, HeaderValue]],
    body: bytes,
    topic: str,
    queue: str | None,
    publisher: object,
) -> list[Event]:
    media = "" if content_type is None else content_type.partition(";")[0].strip().lower()
    if media == BATCH:
        if queue is not None:
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a queue takes one event a request")
        events = decode_batch(body, topic, publisher=publisher)
    elif media.startswith("application/cloudevents"):
        try:
            is_structured(content_type)
        except CloudEventError as error:
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from None
        events = [decode_event(body, topic, queue=queue, publisher=publisher)]
    else:
        if attributes:
            check_attributes(attributes)
        event = Event(topic, body, content_type, attributes or None, queue=queue)
        event.publisher = publisher
        events = [event]
    if application:
        rest, found = split_properties(application)
        for event in events:
            event.headers = (*event.headers, *rest)
            event.expires_at = found.expires_at or event.expires_at
            event.reply_to = found.reply_to or event.reply_to
            event.correlation_id = found.correlation_id or event.correlation_id
            event.priority = found.priority
    return events


def to_response(event: Event, mode: Mode) -> Response:
    """Return an event as an HTTP response: plain as it is, a CloudEvent in binary mode."""
    headers = [("mesh-topic", http_encode(event.topic))] if event.topic else []
    headers += [(name, http_encode(value)) for name, value in property_headers(event, frozenset())]
    if mode is Mode.STRUCTURED:
        return Response(HTTPStatus.OK, encode_event(event), STRUCTURED, headers)
    attributes = event.context if mode is Mode.BINARY else event.attributes
    if attributes is not None and mode is not Mode.RAW:
        headers += [
            (f"ce-{name}", http_encode(attribute_text(value))) for name, value in attributes.items()
        ]
    taken = {name for name, _ in headers} | {"content-type", "content-length", "connection"}
    for name, value in event.headers:
        if _TOKEN.match(name) and name.lower() not in taken:
            headers.append((name, _field_value(header_text(value))))
    content_type = event.datacontenttype
    if content_type is not None and _field_value(content_type) != content_type:
        content_type = None
    return Response(HTTPStatus.OK, event.data, content_type, headers)


def _field_value(text: str) -> str:
    """Return `text` as it is if it is printable ASCII, else percent-encoded."""
    return text if text.isascii() and text.isprintable() else http_encode(text)
