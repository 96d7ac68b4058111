"""Bytes ↔ frames of AMQP 0-9-1 (§2.3.5, §4.2). Sans-IO: no socket, no clock.

Control methods are pamqp's objects. Content (basic.publish; for a client deliver, return, get-ok)
is put together here in one loop over a whole read: method, header and body frames become one
`Content`. The frame header and the frame end are checked before pamqp sees anything, since it can't
tell an incomplete frame from a malformed one. The error of a malformed frame is kept in
`Decoder.error`, so that the frames in front of it are still handled.

Invariant: what is buffered is bounded by the frame size and the body limit; arbitrary bytes raise
nothing.
"""

from typing import Final, NamedTuple, TypeAlias

from pamqp import frame as pamqp_frame
from pamqp.base import Frame

from protocols.amqp091.errors import (
    COMMAND_INVALID,
    FRAME_ERROR,
    PRECONDITION_FAILED,
    SYNTAX_ERROR,
    UNEXPECTED_FRAME,
    AmqpError,
    ChannelError,
)
from protocols.amqp091.properties import short_string, write_short

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_HEARTBEAT = 1, 2, 3, 8
FRAME_END: Final = 0xCE
FRAME_MIN_SIZE: Final = 4096
HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28"
BASIC_RETURN: Final = b"\x00\x3c\x00\x32"
BASIC_DELIVER: Final = b"\x00\x3c\x00\x3c"
BASIC_GET_OK: Final = b"\x00\x3c\x00\x47"
_CONTENT: Final = frozenset((BASIC_PUBLISH, BASIC_RETURN, BASIC_DELIVER, BASIC_GET_OK))
_PUBLISH_CACHE: Final = 1024


class Method(NamedTuple):
    """A control method on a channel."""

    channel: int
    method: Frame


class Heartbeat(NamedTuple):
    """A heartbeat frame (§4.2.7)."""


class Publishing(NamedTuple):
    """The arguments of basic.publish (class basic §1.8.3.7)."""

    exchange: str
    routing_key: str
    mandatory: bool
    immediate: bool


class Content:
    """A method with content, complete.

    Attributes:
        channel: its channel.
        method: the method's payload, class and method id first.
        properties: the properties, flags first, as they came.
        body: the payload.
    """

    __slots__ = ("body", "channel", "method", "properties")

    def __init__(self, channel: int, method: bytes, properties: bytes, body: bytes) -> None:
        self.channel = channel
        self.method = method
        self.properties = properties
        self.body = body


class Failed(NamedTuple):
    """Content whose channel must be closed (its body is too large); it has been skipped."""

    channel: int
    error: ChannelError


Item: TypeAlias = Method | Heartbeat | Content | Failed


class _Partial:
    """Content whose frames have not all come."""

    __slots__ = ("chunks", "method", "missing", "properties", "skip")

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.properties: bytes | None = None
        self.missing = 0
        self.chunks: list[bytes] = []
        self.skip = False


class Decoder:
    """Turns a peer's bytes into methods and contents.

    Attributes:
        frame_max: largest frame, in bytes, header and end included.
        error: the first malformed frame's error; nothing is decoded after it.
        wrong_header: whether the error is a wrong protocol header (§2.2.4: answer with ours).
    """

    __slots__ = (
        "_body_limit",
        "_chunks",
        "_expect_header",
        "_missing",
        "_partial",
        "_publishings",
        "error",
        "frame_max",
        "wrong_header",
    )

    def __init__(self, body_limit: int, frame_max: int, *, from_client: bool = True) -> None:
        """Make a decoder that refuses bodies of more than `body_limit` bytes."""
        self.error: AmqpError | None = None
        self.wrong_header = False
        self.frame_max = frame_max
        self._body_limit = body_limit
        self._expect_header = from_client
        self._chunks: list[bytes] = []
        self._missing = 0
        self._partial: dict[int, _Partial] = {}
        self._publishings: dict[bytes, Publishing] = {}

    def feed(self, data: bytes) -> list[Item]:
        """Return what `data` completes; never raises (see `error`)."""
        items: list[Item] = []
        if self.error is not None:
            return items
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return items
            data = b"".join(self._chunks)
            self._chunks = []
        try:
            at = 0
            if self._expect_header:
                if data[:8] != PROTOCOL_HEADER:
                    if PROTOCOL_HEADER.startswith(data[:8]):
                        self._keep(data, 8 - len(data))
                        return items
                    self.wrong_header = True
                    raise AmqpError(FRAME_ERROR, "wrong protocol header")
                self._expect_header = False
                at = 8
            self._decode(data, at, items)
        except AmqpError as error:
            self.error = error
        return items

    def _keep(self, data: bytes, missing: int) -> None:
        if data:
            self._chunks = [data]
            self._missing = missing

    def _decode(self, data: bytes, at: int, items: list[Item]) -> None:
        # One loop over the read; a method, its header and a body in one frame make no object but
        # the Content.
        end = len(data)
        partials = self._partial
        frame_max = self.frame_max
        while end - at >= 7:
            kind = data[at]
            channel = data[at + 1] << 8 | data[at + 2]
            size = data[at + 3] << 24 | data[at + 4] << 16 | data[at + 5] << 8 | data[at + 6]
            if size > frame_max - 8:
                raise AmqpError(FRAME_ERROR, f"frame of {size} bytes, more than {frame_max - 8}")
            start = at + 7
            stop = start + size
            if stop >= end:
                self._keep(data[at:], stop + 1 - end)
                return
            if data[stop] != FRAME_END:
                raise AmqpError(FRAME_ERROR, "no frame end")  # §4.2.3
            if kind == FRAME_METHOD:
                if channel in partials:
                    raise AmqpError(UNEXPECTED_FRAME, "method inside content")
                if data[start : start + 4] in _CONTENT:
                    if not channel:
                        raise AmqpError(COMMAND_INVALID, "content on channel 0")
                    partials[channel] = _Partial(data[start:stop])
                else:
                    items.append(Method(channel, self._method(data[at : stop + 1])))
            elif kind == FRAME_HEADER:
                partial = partials.get(channel)
                if partial is None or partial.properties is not None:
                    raise AmqpError(UNEXPECTED_FRAME, "content header without a method")
                if size < 14 or data[start : start + 2] != partial.method[:2]:
                    raise AmqpError(FRAME_ERROR, "content header of another class")
                body_size = int.from_bytes(data[start + 4 : start + 12], "big")
                partial.properties = data[start + 12 : stop]
                partial.missing = body_size
                if body_size > self._body_limit:
                    self._too_large(channel, partial, items)
                if not body_size:
                    del partials[channel]
                    items.append(Content(channel, partial.method, partial.properties, b""))
            elif kind == FRAME_BODY:
                partial = partials.get(channel)
                if partial is None or partial.properties is None:
                    raise AmqpError(UNEXPECTED_FRAME, "content body without a header")
                partial.missing -= size
                if partial.missing < 0:
                    raise AmqpError(FRAME_ERROR, "content body is longer than announced")
                if partial.missing == 0:
                    del partials[channel]
                    if not partial.skip:
                        body = data[start:stop]
                        if partial.chunks:
                            partial.chunks.append(body)
                            body = b"".join(partial.chunks)
                        items.append(Content(channel, partial.method, partial.properties, body))
                elif not partial.skip:
                    partial.chunks.append(data[start:stop])
            elif kind == FRAME_HEARTBEAT:
                if channel or size:
                    raise AmqpError(FRAME_ERROR, "heartbeat with a channel or a payload")  # §4.2.7
                items.append(Heartbeat())
            else:
                raise AmqpError(FRAME_ERROR, f"frame type {kind}")  # §4.2.3
            at = stop + 1
        self._keep(data[at:] if at else data, 7 - (end - at))

    def _too_large(self, channel: int, partial: _Partial, items: list[Item]) -> None:
        text = f"body of {partial.missing} bytes, more than {self._body_limit}"
        partial.skip = True
        items.append(Failed(channel, ChannelError(PRECONDITION_FAILED, text)))

    @property
    def greeted(self) -> bool:
        """Whether the protocol header has come."""
        return not self._expect_header

    @staticmethod
    def _method(frame: bytes) -> Frame:
        try:
            _, _, method = pamqp_frame.unmarshal(frame)
        except Exception as error:  # noqa: BLE001 - pamqp raises whatever its unpacking meets
            raise AmqpError(SYNTAX_ERROR, f"malformed method: {error}") from None
        if not isinstance(method, Frame):
            raise AmqpError(SYNTAX_ERROR, "malformed method")
        return method

    def publishing(self, method: bytes) -> Publishing:
        """Return the arguments of a basic.publish; cached, since publishers repeat themselves.

        Raises:
            AmqpError: malformed.
        """
        found = self._publishings.get(method)
        if found is None:
            exchange, at = short_string(method, 6)
            routing_key, at = short_string(method, at)
            if at + 1 != len(method):
                raise AmqpError(SYNTAX_ERROR, "basic.publish is too long or cut off")
            found = Publishing(exchange, routing_key, bool(method[at] & 1), bool(method[at] & 2))
            if len(self._publishings) >= _PUBLISH_CACHE:
                self._publishings.clear()
            self._publishings[method] = found
        return found

    def forget(self, channel: int) -> None:
        """Drop content under way on a channel that was closed."""
        self._partial.pop(channel, None)


def method_frame(channel: int, payload: bytes) -> bytes:
    """Return a method frame around an encoded method."""
    return (
        b"\x01" + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + b"\xce"
    )


def encode_method(channel: int, method: Frame) -> bytes:
    """Return a control method's frame."""
    return pamqp_frame.marshal(method, channel)


def encode_publish(exchange: str, routing_key: str, mandatory: bool = False) -> bytes:
    """Return the payload of basic.publish."""
    flags = b"\x01" if mandatory else b"\x00"
    return BASIC_PUBLISH + b"\0\0" + write_short(exchange) + write_short(routing_key) + flags


def encode_declare_ok(channel: int, queue: str, messages: int, consumers: int) -> bytes:
    """Return queue.declare-ok; pamqp refuses names that are legal here."""
    payload = b"\x00\x32\x00\x0b" + write_short(queue)
    return method_frame(
        channel, payload + messages.to_bytes(4, "big") + consumers.to_bytes(4, "big")
    )


def encode_content(channel: int, frame_max: int, properties: bytes, body: bytes) -> bytes:
    """Return content header and body frames (§4.2.6).

    Args:
        channel: the channel.
        frame_max: largest frame, in bytes.
        properties: encoded, flags first.
        body: the payload.
    """
    number = channel.to_bytes(2, "big")
    parts = [
        b"\x02",
        number,
        (12 + len(properties)).to_bytes(4, "big"),
        b"\x00\x3c\x00\x00",
        len(body).to_bytes(8, "big"),
        properties,
        b"\xce",
    ]
    most = frame_max - 8
    for at in range(0, len(body), most):
        chunk = body[at : at + most] if len(body) > most else body
        parts += (b"\x03", number, len(chunk).to_bytes(4, "big"), chunk, b"\xce")
    return b"".join(parts)
