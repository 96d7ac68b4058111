"""Bytes ↔ frames of STOMP 1.0 to 1.2. Sans-IO: no socket, no clock.

`Decoder.feed` parses every complete frame of a read in one loop. Publishers repeat their header
blocks, so parsed blocks are kept in a bounded cache from raw bytes to (command, headers); the
headers of a frame are shared with the cache and must not be changed. The error of a malformed
frame is kept in `Decoder.error`, so that the frames in front of it are still handled.

Invariant: decode(encode(frame)) gives the frame back in every version; arbitrary bytes raise
nothing, and what is buffered is bounded by the header and body limits.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from protocols.frontend import ProtocolError

MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256
BLOCK_CACHE: Final = 1024
"""Header blocks kept parsed; per decoder, emptied when full."""

V10, V11, V12 = "1.0", "1.1", "1.2"

_UNESCAPED: Final = {
    V11: {"\\n": "\n", "\\c": ":", "\\\\": "\\"},
    V12: {"\\n": "\n", "\\c": ":", "\\\\": "\\", "\\r": "\r"},
}
_ESCAPES: Final = {
    V11: str.maketrans({"\\": "\\\\", "\n": "\\n", ":": "\\c"}),
    V12: str.maketrans({"\\": "\\\\", "\n": "\\n", ":": "\\c", "\r": "\\r"}),
}
_BODY_ALLOWED: Final = frozenset(("SEND", "MESSAGE", "ERROR"))


class StompError(ProtocolError):
    """The peer broke the protocol; the text goes into the ERROR frame's `message`."""


class Frame(NamedTuple):
    """One frame. Of a repeated header the first counts (STOMP 1.2 "Repeated Header Entries")."""

    command: str
    headers: dict[str, str]
    body: bytes = b""


class Decoder:
    """Turns a peer's bytes into frames.

    Attributes:
        error: the first malformed frame's error; nothing is decoded after it.
        version: decides how headers are unescaped; set it once it is negotiated.
    """

    __slots__ = ("_blocks", "_chunks", "_limit", "_missing", "_size", "_version", "error")

    def __init__(self, body_limit: int, version: str = V12) -> None:
        """Make a decoder that refuses bodies of more than `body_limit` bytes."""
        self.error: StompError | None = None
        self._version = version
        self._limit = body_limit
        self._chunks: list[bytes] = []
        self._size = 0
        # Bytes still missing for the frame under way; -1: up to the next NUL.
        self._missing = 0
        self._blocks: dict[bytes, tuple[str, dict[str, str], int]] = {}

    @property
    def version(self) -> str:
        return self._version

    @version.setter
    def version(self, version: str) -> None:
        self._version = version
        self._blocks.clear()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes; never raises (see `error`)."""
        frames: list[Frame] = []
        if self.error is not None:
            return frames
        try:
            if self._chunks:
                self._chunks.append(data)
                self._size += len(data)
                if self._missing < 0:
                    if b"\0" not in data:
                        if self._size > self._limit + MAX_HEADER_BYTES:
                            raise StompError("body is too large", "too-large")
                        return frames
                elif self._size < self._missing:
                    return frames
                data = b"".join(self._chunks)
                self._chunks = []
            self._decode(data, frames)
        except StompError as error:
            self.error = error
        return frames

    def _decode(self, data: bytes, frames: list[Frame]) -> None:
        at = 0
        end = len(data)
        blocks = self._blocks
        self._missing = 0
        while at < end:
            first = data[at]
            if first == 10 or first == 13:  # Heart-beats, and EOLs behind a frame.
                at += 1
                continue
            stop = data.find(b"\n\n", at)
            # `\r` is legal inside a 1.0 or 1.1 value, so only look where it could matter.
            if stop < 0 or data.find(b"\r\n", at, stop + 1) >= 0:
                found = self._find_end(data, at)
                if found is None:
                    if end - at > MAX_HEADER_BYTES:
                        raise StompError("headers are too large", "too-large")
                    break
                stop, body_at = found
            else:
                body_at = stop + 2
            raw = data[at:stop]
            block = blocks.get(raw)
            if block is None:
                block = self._block(raw)
            command, headers, length = block
            if length >= 0:
                body_end = body_at + length
                if body_end >= end:
                    self._missing = body_end + 1 - at
                    break
                if data[body_end] != 0:
                    raise StompError("no NUL behind the body that content-length gives", "frame")
            else:
                body_end = data.find(b"\0", body_at)
                if body_end < 0:
                    if end - body_at > self._limit:
                        raise StompError("body is too large", "too-large")
                    self._missing = -1
                    break
                if body_end - body_at > self._limit:
                    raise StompError("body is too large", "too-large")
            if body_end > body_at and command not in _BODY_ALLOWED:
                raise StompError(f"{command} with a body", "frame")  # "Body"
            frames.append(Frame(command, headers, data[body_at:body_end]))
            at = body_end + 1
        if at < end:
            self._chunks = [data[at:] if at else data]
            self._size = end - at

    @staticmethod
    def _find_end(data: bytes, at: int) -> tuple[int, int] | None:
        """Find the empty line of a header block whose lines may end in CR LF (STOMP 1.2 "EOL")."""
        while True:
            line_end = data.find(b"\n", at)
            if line_end < 0:
                return None
            following = data[line_end + 1 : line_end + 3]
            if following[:1] == b"\n":
                return line_end, line_end + 2
            if following == b"\r\n":
                return line_end, line_end + 3
            at = line_end + 1

    def _block(self, raw: bytes) -> tuple[str, dict[str, str], int]:
        if len(raw) > MAX_HEADER_BYTES:
            raise StompError("headers are too large", "too-large")
        try:
            lines = raw.decode().split("\n")
        except UnicodeDecodeError:
            raise StompError("headers are not UTF-8", "encoding") from None
        command = lines[0].removesuffix("\r")
        if len(lines) > MAX_HEADERS + 1:
            raise StompError(f"more than {MAX_HEADERS} headers", "too-large")
        escaped = self._version != V10 and command not in ("CONNECT", "CONNECTED", "STOMP")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            line = line.removesuffix("\r")
            name, colon, value = line.partition(":")
            if not colon or not name:
                raise StompError(f"header line {line[:80]!r} has no name or no colon", "frame")
            if escaped:
                # A colon in a value that is not escaped is let pass: many senders forget it.
                if "\\" in line:
                    name, value = self._unescape(name), self._unescape(value)
            elif self._version == V10:
                name, value = name.strip(), value.strip()
            headers.setdefault(name, value)
        block = (command, headers, self._content_length(headers))
        if len(self._blocks) >= BLOCK_CACHE:
            self._blocks.clear()
        self._blocks[raw] = block
        return block

    def _content_length(self, headers: dict[str, str]) -> int:
        text = headers.get("content-length")
        if text is None:
            return -1
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            raise StompError(f"content-length {text[:20]!r} is no number", "frame")
        if int(text) > self._limit:
            raise StompError(f"body of {text} bytes, more than {self._limit}", "too-large")
        return int(text)

    def _unescape(self, text: str) -> str:
        """Undo the escapes of "Value Encoding"; an undefined one is fatal, as it prescribes."""
        known = _UNESCAPED[self._version]
        parts: list[str] = []
        at = 0
        while True:
            mark = text.find("\\", at)
            if mark < 0:
                parts.append(text[at:])
                return "".join(parts)
            escape = text[mark : mark + 2]
            if escape not in known:
                raise StompError(f"undefined escape {escape!r} in a header", "frame")
            parts += (text[at:mark], known[escape])
            at = mark + 2


def encode_headers(headers: Iterable[tuple[str, str]], version: str) -> bytes:
    """Return header lines, escaped as `version` says ("Value Encoding")."""
    lines: list[str] = []
    if version == V10:
        for name, value in headers:
            # 1.0 has no escapes: what would break the frame becomes a space.
            name = name.replace("\n", " ").replace(":", " ")
            lines.append(f"{name}:{value}".replace("\n", " ") + "\n")
    else:
        table = _ESCAPES[version]
        for name, value in headers:
            lines.append(f"{name.translate(table)}:{value.translate(table)}\n")
    # NUL ends a frame in every parser that does not know better.
    return "".join(lines).replace("\0", "").encode(errors="replace")


def encode(frame: Frame, version: str) -> bytes:
    """Return a frame's bytes; `content-length` is added where there is a body.

    CONNECT and CONNECTED are not escaped ("Value Encoding").
    """
    plain = frame.command in ("CONNECT", "CONNECTED", "STOMP")
    headers = dict(frame.headers)
    if frame.body:
        headers["content-length"] = str(len(frame.body))
    if plain:
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items()).encode()
    else:
        lines = encode_headers(headers.items(), version)
    return frame.command.encode() + b"\n" + lines + b"\n" + frame.body + b"\0"
