"""Frames ↔ events: structured CloudEvents both ways, and the plain data of `meshgate.v1`.

Invariant: an event's text frame is the same bytes for every subscriber, encoded once.
"""

import msgspec

from mesh_core.event import Event
from protocols.bindings.json import encode_event, is_json
from protocols.websocket.codec import TEXT, encode_frame

FRAME_KEY = "ws-text"


def to_frame(event: Event) -> bytes:
    """Return the text frame of an event."""
    frame = event.wire.get(FRAME_KEY)
    if frame is None:
        frame = event.wire[FRAME_KEY] = encode_frame(TEXT, encode_event(event))
    return frame


def plain_data(raw: bytes, content_type: str | None) -> tuple[bytes, str | None]:
    """Return payload and content type of plain `data` in an operation.

    A JSON string is text, unless the content type says JSON; any other JSON value is itself.
    """
    if raw[:1] == b'"' and not (content_type is not None and is_json(content_type)):
        text: str = msgspec.json.decode(raw, type=str)
        return text.encode(), content_type or "text/plain"
    return raw, content_type or ("application/json" if raw else None)
