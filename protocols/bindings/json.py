"""Events as structured CloudEvents in JSON: one, and batches (CloudEvents 1.0 JSON Event Format).

The delivery properties travel as extension attributes with the reserved prefix `mesh`
(`meshtopic`, `meshreplyto`, …) and are read back on the way in, so that what a subscriber
received can be published again as it is.

Invariant: `decode_event(encode_event(event))` gives the same data, content type, attributes (in
their canonical text where JSON has no type for them), headers and delivery properties.
"""

import base64
from datetime import UTC, datetime
from typing import Final

import msgspec

from mesh_core.address import AddressError, check_queue_name, check_topic
from mesh_core.event import (
    DEFAULT_PRIORITY,
    AttributeValue,
    CloudEventError,
    Event,
    Headers,
    HeaderValue,
    attribute_text,
    check_attributes,
    correlation_bytes,
    correlation_text,
    parse_timestamp,
    timestamp_text,
)

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

WIRE_KEY: Final = "json"
"""Where an event keeps its JSON encoding."""

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder()
_raw: Final = msgspec.json.Decoder(msgspec.Raw)


def is_json(content_type: str) -> bool:
    """Tell whether a media type is JSON (§3.1 of the JSON format: subtype json or +json)."""
    media = content_type.partition(";")[0].strip().lower()
    return media.endswith(("/json", "+json"))


def is_structured(content_type: str | None) -> bool:
    """Tell whether a media type announces one structured CloudEvent in JSON.

    Raises:
        CloudEventError: it announces a structured CloudEvent in another format.
    """
    if content_type is None or content_type[:23].lower() != "application/cloudevents":
        return False
    media = content_type.partition(";")[0].strip().lower()
    if media == STRUCTURED:
        return True
    if media == BATCH:
        return False
    raise CloudEventError(f"content type {content_type!r}: only the JSON event format is read")


def encode_event(event: Event) -> bytes:
    """Return `event` as a structured CloudEvent; encoded once per event."""
    wire = event.wire.get(WIRE_KEY)
    if wire is None:
        wire = event.wire[WIRE_KEY] = _encoder.encode(event_object(event))
    return wire


def event_object(event: Event) -> dict[str, object]:
    """Return the JSON object of `event`, for callers that add members of their own."""
    members: dict[str, object] = {
        name: value if isinstance(value, bool | int) else attribute_text(value)
        for name, value in event.context.items()
    }
    if event.topic:
        members["meshtopic"] = event.topic
    if event.queue is not None:
        members["meshqueue"] = event.queue
    if event.reply_to is not None:
        members["meshreplyto"] = event.reply_to
    if event.correlation_id is not None:
        members["meshcorrelation"] = correlation_text(event.correlation_id)
    if event.priority != DEFAULT_PRIORITY:
        members["meshpriority"] = event.priority
    if event.expires_at is not None:
        members["meshexpires"] = timestamp_text(datetime.fromtimestamp(event.expires_at, UTC))
    if event.retain:
        members["meshretain"] = True
    if event.headers:
        members["meshheaders"] = _encoder.encode(_plain_headers(event.headers)).decode()
    _put_data(members, event.data, event.datacontenttype)
    return members


def _plain_headers(headers: Headers) -> list[list[HeaderValue]]:
    return [[name, _plain_value(value)] for name, value in headers]


def _plain_value(value: HeaderValue) -> HeaderValue:
    if isinstance(value, bytes | datetime):
        return attribute_text(value)
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain_value(item) for name, item in value.items()}
    return value


def _put_data(members: dict[str, object], data: bytes, content_type: str | None) -> None:
    """Set `datacontenttype` and `data` or `data_base64` (§3.1.1).

    Without a content type, data is JSON by definition. A payload that is not gets `text/plain`
    if it is UTF-8, so that a browser sees text; otherwise it travels as base64.
    """
    if content_type is not None:
        members["datacontenttype"] = content_type
    if not data:
        return
    if content_type is None or is_json(content_type):
        try:
            data.decode()
            members["data"] = _raw.decode(data)
            return
        except (msgspec.DecodeError, UnicodeDecodeError):
            if content_type is not None:
                members["data_base64"] = base64.b64encode(data).decode()
                return
    if content_type is None or _is_text(content_type):
        try:
            members["data"] = data.decode()
            members.setdefault("datacontenttype", "text/plain")
            return
        except UnicodeDecodeError:
            pass
    members["data_base64"] = base64.b64encode(data).decode()


def _is_text(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media.startswith("text/") or media.endswith(("/xml", "+xml", "/javascript", "/yaml"))


class _Envelope(msgspec.Struct):
    """Splits `data` off undecoded, so that JSON data keeps its publisher's bytes."""

    data: msgspec.Raw = msgspec.Raw(b"")


_envelope: Final = msgspec.json.Decoder(_Envelope)


def decode_event(
    body: bytes, topic: str = "", *, queue: str | None = None, publisher: object | None = None
) -> Event:
    """Return the event that a structured CloudEvent describes.

    Args:
        body: one JSON object.
        topic: where it was published; "" to take `meshtopic` (or `meshqueue`).
        queue: the queue it was sent to, instead of a topic.
        publisher: who published it.

    Raises:
        CloudEventError: not a JSON object, or not a CloudEvent 1.0.
        AddressError: `meshtopic` or `meshqueue` is needed and not legal; needed and missing.
    """
    try:
        members = _decoder.decode(body)
        if not isinstance(members, dict):
            raise CloudEventError("a structured CloudEvent is a JSON object")
        data = bytes(_envelope.decode(body).data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CloudEventError(f"not JSON: {error}") from None
    return _event(members, data, topic, queue, publisher)


def decode_batch(body: bytes, topic: str = "", *, publisher: object | None = None) -> list[Event]:
    """Return the events of a batch (§4 of the JSON format); arguments and errors as `decode_event`.

    Raises:
        CloudEventError: not a JSON array of CloudEvents.
        AddressError: see `decode_event`.
    """
    try:
        items = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise CloudEventError(f"not a JSON array: {error}") from None
    return [decode_event(bytes(item), topic, publisher=publisher) for item in items]


def encode_batch(events: list[Event]) -> bytes:
    """Return `events` as one batch."""
    return b"[" + b",".join(map(encode_event, events)) + b"]"


def _event(
    members: dict[str, object],
    raw_data: bytes,
    topic: str,
    queue: str | None,
    publisher: object | None,
) -> Event:
    content_type = members.pop("datacontenttype", None)
    if content_type is not None and not isinstance(content_type, str):
        raise CloudEventError("datacontenttype must be a string")
    data = _data(members, raw_data, content_type)
    mesh_topic = _text(members, "meshtopic")
    mesh_queue = _text(members, "meshqueue")
    correlation = _text(members, "meshcorrelation")
    priority = members.pop("meshpriority", DEFAULT_PRIORITY)
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 9:
        raise CloudEventError(f"meshpriority {priority!r} is not 0 to 9")
    retain = members.pop("meshretain", False)
    if not isinstance(retain, bool):
        raise CloudEventError(f"meshretain {retain!r} is not true or false")
    expires = _text(members, "meshexpires")
    reply_to = _text(members, "meshreplyto")
    headers = _headers(_text(members, "meshheaders"))
    attributes: dict[str, AttributeValue] = {}
    for name, value in members.items():
        if value is None:
            continue
        if not isinstance(value, bool | int | str):
            raise CloudEventError(f"attribute {name} has a {type(value).__name__} for a value")
        attributes[name] = value
    check_attributes(attributes)
    if not topic and queue is None:
        if mesh_topic is not None:
            topic = check_topic(mesh_topic)
        elif mesh_queue is not None:
            queue = check_queue_name(mesh_queue)
        else:
            raise AddressError("no topic: give one, or set meshtopic or meshqueue in the event")
    try:
        expires_at = None if expires is None else parse_timestamp(expires).timestamp()
    except ValueError as error:
        raise CloudEventError(f"meshexpires: {error}") from None
    return Event(
        topic,
        data,
        content_type,
        attributes,
        headers,
        retain=retain,
        priority=priority,
        expires_at=expires_at,
        reply_to=reply_to,
        correlation_id=None if correlation is None else correlation_bytes(correlation),
        queue=queue,
        publisher=publisher,
    )


def _text(members: dict[str, object], name: str) -> str | None:
    value = members.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise CloudEventError(f"{name} must be a string")
    return value


def _data(members: dict[str, object], raw: bytes, content_type: str | None) -> bytes:
    value = members.pop("data", None)
    encoded = members.pop("data_base64", None)
    if encoded is not None:
        if value is not None or not isinstance(encoded, str):
            raise CloudEventError("data_base64 must be a string, and excludes data")
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError:
            raise CloudEventError("data_base64 is not base64") from None
    if not raw or value is None:
        return b""
    if isinstance(value, str) and content_type is not None and not is_json(content_type):
        return value.encode()
    return raw


def _headers(text: str | None) -> Headers:
    if text is None:
        return ()
    try:
        pairs = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CloudEventError(f"meshheaders is not JSON: {error}") from None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise CloudEventError("meshheaders must be a JSON text of [[name, value], …]")
    return tuple((pair[0], pair[1]) for pair in pairs)
