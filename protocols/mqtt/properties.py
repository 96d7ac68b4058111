"""The properties of MQTT 5.0: which there are, of which type, allowed where (MQTT 5.0 §2.2.2).

A packet's properties are a dict from identifier to value; the two that may be repeated (user
properties, and subscription identifiers in PUBLISH) have lists for values.

Invariant: `decode_properties` accepts exactly what the table allows; everything else is a
malformed packet (0x81) or a protocol error (0x82), as the specification says for each.
"""

from enum import IntEnum
from typing import Final, TypeAlias

from protocols.mqtt.reasons import MALFORMED, PROTOCOL, MqttError


class Property(IntEnum):
    """Identifiers, by the names of MQTT 5.0 Table 2-4."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


# int, text, binary, list of pairs (user properties), list of int (subscription identifiers)
PropertyValue: TypeAlias = int | str | bytes | list[tuple[str, str]] | list[int]
Properties: TypeAlias = dict[int, PropertyValue]

_BYTE, _TWO, _FOUR, _VARIABLE, _TEXT, _BINARY, _PAIR = range(7)

# Packet types by number, and 0 for the will properties of CONNECT.
WILL: Final = 0
CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(8, 16)

_ACKS: Final = frozenset((PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK))

_P = Property
_TABLE: Final[dict[int, tuple[int, frozenset[int]]]] = {
    _P.PAYLOAD_FORMAT_INDICATOR: (_BYTE, frozenset((PUBLISH, WILL))),
    _P.MESSAGE_EXPIRY_INTERVAL: (_FOUR, frozenset((PUBLISH, WILL))),
    _P.CONTENT_TYPE: (_TEXT, frozenset((PUBLISH, WILL))),
    _P.RESPONSE_TOPIC: (_TEXT, frozenset((PUBLISH, WILL))),
    _P.CORRELATION_DATA: (_BINARY, frozenset((PUBLISH, WILL))),
    _P.SUBSCRIPTION_IDENTIFIER: (_VARIABLE, frozenset((PUBLISH, SUBSCRIBE))),
    _P.SESSION_EXPIRY_INTERVAL: (_FOUR, frozenset((CONNECT, CONNACK, DISCONNECT))),
    _P.ASSIGNED_CLIENT_IDENTIFIER: (_TEXT, frozenset((CONNACK,))),
    _P.SERVER_KEEP_ALIVE: (_TWO, frozenset((CONNACK,))),
    _P.AUTHENTICATION_METHOD: (_TEXT, frozenset((CONNECT, CONNACK, AUTH))),
    _P.AUTHENTICATION_DATA: (_BINARY, frozenset((CONNECT, CONNACK, AUTH))),
    _P.REQUEST_PROBLEM_INFORMATION: (_BYTE, frozenset((CONNECT,))),
    _P.WILL_DELAY_INTERVAL: (_FOUR, frozenset((WILL,))),
    _P.REQUEST_RESPONSE_INFORMATION: (_BYTE, frozenset((CONNECT,))),
    _P.RESPONSE_INFORMATION: (_TEXT, frozenset((CONNACK,))),
    _P.SERVER_REFERENCE: (_TEXT, frozenset((CONNACK, DISCONNECT))),
    _P.REASON_STRING: (_TEXT, _ACKS | {CONNACK, DISCONNECT, AUTH}),
    _P.RECEIVE_MAXIMUM: (_TWO, frozenset((CONNECT, CONNACK))),
    _P.TOPIC_ALIAS_MAXIMUM: (_TWO, frozenset((CONNECT, CONNACK))),
    _P.TOPIC_ALIAS: (_TWO, frozenset((PUBLISH,))),
    _P.MAXIMUM_QOS: (_BYTE, frozenset((CONNACK,))),
    _P.RETAIN_AVAILABLE: (_BYTE, frozenset((CONNACK,))),
    _P.USER_PROPERTY: (
        _PAIR,
        _ACKS | {WILL, CONNECT, CONNACK, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, AUTH},
    ),
    _P.MAXIMUM_PACKET_SIZE: (_FOUR, frozenset((CONNECT, CONNACK))),
    _P.WILDCARD_SUBSCRIPTION_AVAILABLE: (_BYTE, frozenset((CONNACK,))),
    _P.SUBSCRIPTION_IDENTIFIER_AVAILABLE: (_BYTE, frozenset((CONNACK,))),
    _P.SHARED_SUBSCRIPTION_AVAILABLE: (_BYTE, frozenset((CONNACK,))),
}

_NOT_ZERO: Final = frozenset(
    (_P.RECEIVE_MAXIMUM, _P.MAXIMUM_PACKET_SIZE, _P.SUBSCRIPTION_IDENTIFIER)
)


def read_variable(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a variable byte integer and the index behind it (MQTT 5.0 §1.5.5).

    Raises:
        MqttError: it is cut off, or longer than four bytes.
    """
    value = shift = 0
    while True:
        if at >= end:
            raise MqttError("variable byte integer is cut off", MALFORMED)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 21:
            raise MqttError("variable byte integer has more than four bytes", MALFORMED)


def write_variable(value: int) -> bytes:
    """Return a variable byte integer, 0 to 268,435,455 (MQTT 5.0 §1.5.5)."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    return bytes(
        (value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21)
    )


def read_binary(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Return binary data and the index behind it (MQTT 5.0 §1.5.6)."""
    start = at + 2
    if start > end:
        raise MqttError("length is cut off", MALFORMED)
    stop = start + (data[at] << 8 | data[at + 1])
    if stop > end:
        raise MqttError("string or binary data is cut off", MALFORMED)
    return data[start:stop], stop


def read_text(data: bytes, at: int, end: int) -> tuple[str, int]:
    """Return a UTF-8 string and the index behind it (MQTT 5.0 §1.5.4).

    Raises:
        MqttError: cut off, no UTF-8 [MQTT-1.5.4-1], or with U+0000 [MQTT-1.5.4-2].
    """
    raw, at = read_binary(data, at, end)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise MqttError("string is not UTF-8", MALFORMED) from None  # [MQTT-1.5.4-1]
    if "\0" in text:
        raise MqttError("string holds U+0000", MALFORMED)  # [MQTT-1.5.4-2]
    return text, at


def write_text(text: str) -> bytes:
    """Return a UTF-8 string (MQTT 5.0 §1.5.4), at most 65,535 bytes of it."""
    return write_binary(text.encode())


def write_binary(data: bytes) -> bytes:
    """Return binary data (MQTT 5.0 §1.5.6).

    Raises:
        ValueError: it has more than 65,535 bytes.
    """
    if len(data) > 0xFFFF:
        raise ValueError(f"{len(data)} bytes do not fit a two byte length")
    return len(data).to_bytes(2, "big") + data


def decode_properties(
    data: bytes, at: int, end: int, packet: int, *, many_identifiers: bool = False
) -> tuple[Properties, int]:
    """Return a packet's properties and the index behind them.

    Args:
        data: the packet.
        at: where the property length stands.
        end: where the packet ends.
        packet: its type, or WILL.
        many_identifiers: whether Subscription Identifier may be repeated (PUBLISH from a server).

    Raises:
        MqttError: malformed, or a property that is unknown, repeated, or not allowed here.
    """
    length, at = read_variable(data, at, end)
    stop = at + length
    if stop > end:
        raise MqttError("properties are cut off", MALFORMED)
    found: Properties = {}
    while at < stop:
        identifier, at = read_variable(data, at, stop)
        entry = _TABLE.get(identifier)
        if entry is None or packet not in entry[1]:
            raise MqttError(f"property 0x{identifier:02X} is not allowed here", MALFORMED)
        kind = entry[0]
        if kind == _PAIR:
            name, at = read_text(data, at, stop)
            text, at = read_text(data, at, stop)
            pairs = found.setdefault(identifier, [])
            pairs.append((name, text))  # type: ignore[union-attr, arg-type]
            continue
        value: int | str | bytes
        if kind == _TEXT:
            value, at = read_text(data, at, stop)
        elif kind == _BINARY:
            value, at = read_binary(data, at, stop)
        elif kind == _VARIABLE:
            value, at = read_variable(data, at, stop)
        else:
            size = (1, 2, 4)[kind]
            if at + size > stop:
                raise MqttError("property is cut off", MALFORMED)
            value = int.from_bytes(data[at : at + size], "big")
            at += size
        if identifier in _NOT_ZERO and value == 0:
            raise MqttError(f"property 0x{identifier:02X} is 0", PROTOCOL)
        if kind == _BYTE and isinstance(value, int) and value > 1:
            raise MqttError(f"property 0x{identifier:02X} is neither 0 nor 1", PROTOCOL)
        if identifier == Property.SUBSCRIPTION_IDENTIFIER and many_identifiers:
            numbers = found.setdefault(identifier, [])
            numbers.append(value)  # type: ignore[union-attr, arg-type]
        elif identifier in found:
            raise MqttError(f"property 0x{identifier:02X} is repeated", PROTOCOL)
        else:
            found[identifier] = value
    return found, stop


def encode_properties(properties: Properties | None) -> bytes:
    """Return properties with their length in front."""
    if not properties:
        return b"\0"
    parts: list[bytes] = []
    for identifier, value in properties.items():
        head = bytes((identifier,))
        kind = _TABLE[identifier][0]
        if isinstance(value, list):
            for item in value:
                if isinstance(item, tuple):
                    parts += (head, write_text(item[0]), write_text(item[1]))
                else:
                    parts += (head, write_variable(item))
        elif isinstance(value, str):
            parts += (head, write_text(value))
        elif isinstance(value, bytes):
            parts += (head, write_binary(value))
        elif kind == _VARIABLE:
            parts += (head, write_variable(value))
        else:
            parts += (head, value.to_bytes((1, 2, 4)[kind], "big"))
    block = b"".join(parts)
    return write_variable(len(block)) + block
