"""Content properties and field tables of AMQP 0-9-1 (§4.2.5, §4.2.6, class basic).

Tables are decoded by pamqp; they are encoded here, since pamqp narrows doubles and refuses bytes.

Invariant: decode_properties(encode_properties(p)) == p for every property that is set.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from pamqp import decode

from mesh_core.event import HeaderValue
from protocols.amqp091.errors import SYNTAX_ERROR, AmqpError


@dataclass(slots=True)
class Properties:
    """The properties of class basic, in the order of their flags; None where not given."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, HeaderValue] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


_NAMES: Final = tuple(field.name for field in fields(Properties))
_OCTETS: Final = frozenset(("delivery_mode", "priority"))


def short_string(data: bytes, at: int) -> tuple[str, int]:
    """Return a short string and the index behind it (§4.2.5.3).

    Raises:
        AmqpError: it is cut off or no UTF-8.
    """
    if at >= len(data):
        raise AmqpError(SYNTAX_ERROR, "short string is cut off")
    stop = at + 1 + data[at]
    if stop > len(data):
        raise AmqpError(SYNTAX_ERROR, "short string is cut off")
    try:
        return data[at + 1 : stop].decode(), stop
    except UnicodeDecodeError:
        raise AmqpError(SYNTAX_ERROR, "short string is not UTF-8") from None


def write_short(text: str) -> bytes:
    """Return a short string; what is longer than 255 bytes is cut at a character."""
    raw = text.encode(errors="replace")
    if len(raw) > 255:
        raw = raw[:255].decode(errors="ignore").encode()
    return bytes((len(raw),)) + raw


def decode_properties(data: bytes) -> Properties:
    """Return the properties from their flags on (§4.2.6.1).

    Raises:
        AmqpError: malformed.
    """
    found = Properties()
    if len(data) < 2:
        raise AmqpError(SYNTAX_ERROR, "property flags are cut off")
    flags = data[0] << 8 | data[1]
    if flags & 0x03:
        raise AmqpError(SYNTAX_ERROR, "unknown property flags")
    at = 2
    for i, name in enumerate(_NAMES):
        if not flags & 0x8000 >> i:
            continue
        if name == "headers":
            found.headers, at = _table(data, at)
        elif name in _OCTETS:
            if at >= len(data):
                raise AmqpError(SYNTAX_ERROR, f"{name} is cut off")
            setattr(found, name, data[at])
            at += 1
        elif name == "timestamp":
            if at + 8 > len(data):
                raise AmqpError(SYNTAX_ERROR, "timestamp is cut off")
            found.timestamp = int.from_bytes(data[at : at + 8], "big")
            at += 8
        else:
            text, at = short_string(data, at)
            setattr(found, name, text)
    if at != len(data):
        raise AmqpError(SYNTAX_ERROR, "content header is longer than its properties")
    return found


def _table(data: bytes, at: int) -> tuple[dict[str, HeaderValue], int]:
    try:
        size, table = decode.field_table(data[at:])
    except (ValueError, KeyError, IndexError, struct.error, OverflowError, RecursionError) as error:
        raise AmqpError(SYNTAX_ERROR, f"field table: {error}") from None
    return plain_table(table), at + size


def plain_table(table: Mapping[str, object] | None) -> dict[str, HeaderValue]:
    """Return a table that pamqp decoded in the types that events have."""
    return {name: _plain(value) for name, value in (table or {}).items()}


def _plain(value: object) -> HeaderValue:
    """Return a decoded field value in the types that events have."""
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str | bytes | datetime):
        return value
    return str(value)


def encode_properties(properties: Properties) -> bytes:
    """Return properties, flags first (§4.2.6.1); strings are cut to 255 bytes."""
    flags = 0
    parts: list[bytes] = []
    for i, name in enumerate(_NAMES):
        value = getattr(properties, name)
        if value is None:
            continue
        flags |= 0x8000 >> i
        if name == "headers":
            parts.append(encode_table(value))
        elif name in _OCTETS:
            parts.append(bytes((value,)))
        elif name == "timestamp":
            parts.append(value.to_bytes(8, "big"))
        else:
            parts.append(write_short(value))
    return flags.to_bytes(2, "big") + b"".join(parts)


def encode_table(table: dict[str, HeaderValue]) -> bytes:
    """Return a field table (§4.2.5.5, with RabbitMQ's type letters)."""
    body = b"".join(write_short(name) + _field(value) for name, value in table.items())
    return len(body).to_bytes(4, "big") + body


def _field(value: HeaderValue) -> bytes:
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t\1" if value else b"t\0"
    if isinstance(value, str):
        raw = value.encode(errors="replace")
        return b"S" + len(raw).to_bytes(4, "big") + raw
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return b"I" + value.to_bytes(4, "big", signed=True)
        if -(2**63) <= value < 2**63:
            return b"l" + value.to_bytes(8, "big", signed=True)
        return _field(str(value))
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"x" + len(value).to_bytes(4, "big") + value
    if isinstance(value, datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return b"T" + max(0, int(moment.timestamp())).to_bytes(8, "big")
    if isinstance(value, list):
        items = b"".join(map(_field, value))
        return b"A" + len(items).to_bytes(4, "big") + items
    return b"F" + encode_table(value)
