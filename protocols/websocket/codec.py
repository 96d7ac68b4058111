"""The JSON operations of subprotocol `meshgate.v1` ↔ typed messages, and outgoing frames.

Handshake and incoming frames are the `websockets` package's; what is here is what it has no fast
path for (a server's unmasked frames, the same for every peer) and our own vocabulary, which
docs/asyncapi.yaml describes.

Invariant: every message type here stands in docs/asyncapi.yaml and the other way round.
"""

from typing import Final, Literal, TypeAlias

import msgspec

from protocols.frontend import ProtocolError

TEXT: Final = 0x81
BINARY: Final = 0x82

# RFC 6455 §7.4.1
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED_DATA: Final = 1003
INVALID_DATA: Final = 1007
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011


class WebSocketError(ProtocolError):
    """The peer broke its subprotocol; `reason` is the close code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


def encode_frame(first: int, data: bytes) -> bytes:
    """Return an unmasked, unfragmented frame (RFC 6455 §5.2).

    Args:
        first: TEXT or BINARY: the opcode, with FIN.
        data: the payload.
    """
    size = len(data)
    if size < 126:
        return bytes((first, size)) + data
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + data
    return bytes((first, 127)) + size.to_bytes(8, "big") + data


class Subscribe(msgspec.Struct, tag="subscribe", tag_field="op"):
    """Receive events under the name `id`: from a filter, or from a queue."""

    id: str
    filter: str | None = None
    queue: str | None = None
    retained: bool = False
    credit: int = 100
    ack: bool = True


class Unsubscribe(msgspec.Struct, tag="unsubscribe", tag_field="op"):
    """End subscription `id`."""

    id: str


class Publish(msgspec.Struct, tag="publish", tag_field="op"):
    """Publish to a topic or a queue: a CloudEvent (`event`), or plain `data`."""

    topic: str | None = None
    queue: str | None = None
    event: msgspec.Raw = msgspec.Raw(b"")
    data: msgspec.Raw = msgspec.Raw(b"")
    datacontenttype: str | None = None
    id: str | None = None


class Settle(msgspec.Struct, tag="settle", tag_field="op"):
    """Settle a delivery from a queue."""

    delivery: int
    outcome: Literal["accept", "release", "reject"] = "accept"
    id: str | None = None


class Request(msgspec.Struct, tag="request", tag_field="op"):
    """Publish, and wait `timeout` seconds for one answer."""

    id: str
    topic: str
    event: msgspec.Raw = msgspec.Raw(b"")
    data: msgspec.Raw = msgspec.Raw(b"")
    datacontenttype: str | None = None
    timeout: float = 5.0


class Ping(msgspec.Struct, tag="ping", tag_field="op"):
    """Ask for a pong."""

    id: str | None = None


Operation: TypeAlias = Subscribe | Unsubscribe | Publish | Settle | Request | Ping

OPERATIONS: Final = ("subscribe", "unsubscribe", "publish", "settle", "request", "ping")
ANSWERS: Final = ("ok", "error", "event", "reply", "pong", "end")

_decoder: Final[msgspec.json.Decoder[Operation]] = msgspec.json.Decoder(Operation)
_encoder: Final = msgspec.json.Encoder()


def decode_operation(text: bytes) -> Operation:
    """Return the operation that a text frame holds.

    Raises:
        WebSocketError: it is none.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WebSocketError(f"not an operation: {error}", POLICY_VIOLATION) from None


def encode_answer(op: str, **members: object) -> bytes:
    """Return an answer as JSON; members that are None are left out."""
    given = {name: value for name, value in members.items() if value is not None}
    return _encoder.encode({"op": op, **given})
