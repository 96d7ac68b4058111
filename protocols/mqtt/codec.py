"""Bytes ↔ packets of MQTT 3.1, 3.1.1 and 5.0. Sans-IO: no socket, no clock.

`Decoder.feed` parses every complete packet of a read in one loop over one buffer; only the tail of
an incomplete packet is carried over, and a packet that announces more than the limit is refused
from its header alone. The error of a malformed packet is kept in `Decoder.error`, so that the
packets in front of it are still handled.

Invariant: for every packet p and version v, decode(encode(p, v)) == p; arbitrary bytes raise
nothing.
"""

from collections.abc import Callable
from typing import Final

from mesh_core.address import AddressError, check_topic
from protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Ack,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Ping,
    Publish,
    Suback,
    Subscribe,
    Unsubscribe,
    Will,
)
from protocols.mqtt.properties import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    WILL,
    Properties,
    Property,
    decode_properties,
    encode_properties,
    read_binary,
    read_text,
    read_variable,
    write_binary,
    write_text,
    write_variable,
)
from protocols.mqtt.reasons import (
    BAD_CLIENT_ID,
    MALFORMED,
    PACKET_TOO_LARGE,
    PROTOCOL,
    TOPIC_INVALID,
    UNSUPPORTED_VERSION,
    MqttError,
)

MAX_PACKET: Final = 268_435_455
TOPIC_CACHE: Final = 4096
"""Topics whose bytes need no second check; per decoder, emptied when full."""

PINGREQ_BYTES: Final = b"\xc0\x00"
PINGRESP_BYTES: Final = b"\xd0\x00"


class Decoder:
    """Turns a peer's bytes into packets.

    Attributes:
        version: 3, 4 or 5; set by the CONNECT that is decoded, or by the caller (a client).
        error: the first malformed packet's error; nothing is decoded after it.
    """

    __slots__ = ("_chunks", "_from_server", "_limit", "_missing", "_topics", "error", "version")

    def __init__(
        self, limit: int = MAX_PACKET, version: int = 0, *, from_server: bool = False
    ) -> None:
        """Make a decoder that refuses packets of more than `limit` bytes."""
        self.version = version
        self.error: MqttError | None = None
        self._limit = limit
        self._from_server = from_server
        self._chunks: list[bytes] = []
        self._missing = 0
        self._topics: dict[bytes, str] = {}

    def feed(self, data: bytes) -> list[Packet]:
        """Return the packets that `data` completes; never raises (see `error`)."""
        packets: list[Packet] = []
        if self.error is not None:
            return packets
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return packets
            data = b"".join(self._chunks)
            self._chunks = []
        try:
            self._decode(data, packets)
        except MqttError as error:
            self.error = error
        return packets

    def _decode(self, data: bytes, packets: list[Packet]) -> None:
        # One loop, PUBLISH written out: a call per packet would cost a third more.
        at = 0
        end = len(data)
        topics = self._topics
        is_v5 = self.version == V5
        while end - at >= 2:
            first = data[at]
            length = data[at + 1]
            body = at + 2
            if length > 0x7F:
                size = _length(data, at + 1, end)
                if size is None:
                    self._missing = 1
                    break
                length, body = size
            stop = body + length
            if stop > end or stop - at > self._limit:
                if stop - at > self._limit:  # [MQTT-3.1.2-24] and our own bound
                    raise MqttError(
                        f"packet of {stop - at} bytes, more than {self._limit}", PACKET_TOO_LARGE
                    )
                self._check_first(first)
                self._missing = stop - end
                break
            if first & 0xF0 != 0x30:
                packets.append(self._control(first, data, body, stop))
                is_v5 = self.version == V5
                at = stop
                continue
            if self.version == 0:
                raise MqttError("PUBLISH before CONNECT", PROTOCOL)  # [MQTT-3.1.0-1]
            start = body + 2
            if start > stop:
                raise MqttError("PUBLISH is cut off", MALFORMED)
            payload_at = start + (data[body] << 8 | data[body + 1])
            if payload_at > stop:
                raise MqttError("topic is cut off", MALFORMED)
            raw = data[start:payload_at]
            topic = topics.get(raw)
            if topic is None:
                topic = self._topic(raw, is_v5)
            qos = first >> 1 & 3
            packet_id = 0
            if qos:
                if qos == 3:
                    raise MqttError("QoS 3", MALFORMED)  # [MQTT-3.3.1-4]
                if payload_at + 2 > stop:
                    raise MqttError("packet identifier is cut off", MALFORMED)
                packet_id = data[payload_at] << 8 | data[payload_at + 1]
                payload_at += 2
                if not packet_id:
                    raise MqttError("packet identifier is 0", PROTOCOL)  # [MQTT-2.2.1-3]
            elif first & 8:
                raise MqttError("DUP at QoS 0", MALFORMED)  # [MQTT-3.3.1-2]
            properties: Properties | None = None
            if is_v5:
                if payload_at < stop and data[payload_at] == 0:
                    payload_at += 1
                else:
                    properties, payload_at = decode_properties(
                        data, payload_at, stop, PUBLISH, many_identifiers=self._from_server
                    )
            packets.append(
                Publish(
                    topic,
                    data[payload_at:stop],
                    qos,
                    first & 1 == 1,
                    first & 8 == 8,
                    packet_id,
                    properties,
                    # At QoS 0 without retain and properties, what came in is what goes out.
                    data[at:stop] if first == 0x30 and properties is None else None,
                )
            )
            at = stop
        else:
            self._missing = 1
        if at < end:
            self._check_first(data[at])
            self._chunks = [data[at:] if at else data]

    def _topic(self, raw: bytes, is_v5: bool) -> str:
        if not raw:
            if is_v5:  # An alias stands for it; the session knows.
                return ""
            raise MqttError("empty topic", MALFORMED)  # [MQTT-4.7.3-1]
        try:
            topic = raw.decode()
        except UnicodeDecodeError:
            raise MqttError("topic is not UTF-8", MALFORMED) from None  # [MQTT-1.5.4-1]
        try:
            check_topic(topic)  # [MQTT-3.3.2-2], [MQTT-1.5.4-2]
        except AddressError as error:
            raise MqttError(str(error), TOPIC_INVALID if is_v5 else MALFORMED) from None
        if len(self._topics) >= TOPIC_CACHE:
            self._topics.clear()
        self._topics[raw] = topic
        return topic

    def _check_first(self, first: int) -> None:
        """Refuse a packet by its first byte, before its body has come."""
        kind = first >> 4
        if kind == PUBLISH:
            if self.version == 0:
                raise MqttError("PUBLISH before CONNECT", PROTOCOL)
            return
        if kind == 0 or (kind == AUTH and self.version not in (0, V5)):
            raise MqttError(f"packet type {kind}", MALFORMED)
        if first & 0x0F != (2 if kind in (PUBREL, SUBSCRIBE, UNSUBSCRIBE) else 0):
            raise MqttError(
                f"flags {first & 0x0F} of packet type {kind}", MALFORMED
            )  # [MQTT-2.1.3-1]
        if self.version == 0 and kind != CONNECT:
            raise MqttError(f"packet type {kind} before CONNECT", PROTOCOL)  # [MQTT-3.1.0-1]

    def _control(self, first: int, data: bytes, at: int, stop: int) -> Packet:
        self._check_first(first)
        kind = first >> 4
        if kind == CONNECT:
            packet = _connect(data, at, stop)
            self.version = packet.version
            return packet
        decode = _DECODERS[kind]
        return decode(kind, data, at, stop, self.version)


def _length(data: bytes, at: int, end: int) -> tuple[int, int] | None:
    """Return the remaining length and the index behind it, or None if it is not all there."""
    value = shift = 0
    for i in range(at, min(end, at + 4)):
        byte = data[i]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, i + 1
        shift += 7
    if end - at >= 4:
        raise MqttError("remaining length has more than four bytes", MALFORMED)
    return None


def _connect(data: bytes, at: int, stop: int) -> Connect:
    name, at = read_text(data, at, stop)
    if at + 4 > stop:
        raise MqttError("CONNECT is cut off", MALFORMED)
    version = data[at]
    if (name, version) not in (("MQTT", V5), ("MQTT", V311), ("MQIsdp", V31)):
        # [MQTT-3.1.2-1], [MQTT-3.1.2-2]
        raise MqttError(f"protocol {name!r} version {version}", UNSUPPORTED_VERSION)
    flags = data[at + 1]
    keep_alive = data[at + 2] << 8 | data[at + 3]
    at += 4
    if flags & 1:
        raise MqttError("reserved flag of CONNECT", MALFORMED)  # [MQTT-3.1.2-3]
    properties: Properties | None = None
    if version == V5:
        properties, at = decode_properties(data, at, stop, CONNECT)
    client_id, at = read_text(data, at, stop)
    if not client_id and version != V5 and not flags & 2:
        raise MqttError("empty client identifier with a session to keep", BAD_CLIENT_ID)
    will: Will | None = None
    if flags & 4:
        will, at = _will(data, at, stop, flags, version)
    elif flags & 0x38:
        raise MqttError("will QoS or retain without a will", MALFORMED)  # [MQTT-3.1.2-11]
    username: str | None = None
    password: bytes | None = None
    if flags & 0x80:
        username, at = read_text(data, at, stop)
    if flags & 0x40:
        if version != V5 and username is None:
            raise MqttError("password without user name", MALFORMED)  # 3.1.1 [MQTT-3.1.2-22]
        password, at = read_binary(data, at, stop)
    if at != stop:
        raise MqttError("CONNECT is longer than its fields", MALFORMED)
    return Connect(
        client_id,
        version,
        bool(flags & 2),
        keep_alive,
        will,
        username,
        password,
        properties or None,
    )


def _will(data: bytes, at: int, stop: int, flags: int, version: int) -> tuple[Will, int]:
    qos = flags >> 3 & 3
    if qos == 3:
        raise MqttError("will QoS 3", MALFORMED)  # [MQTT-3.1.2-12]
    properties: Properties | None = None
    if version == V5:
        properties, at = decode_properties(data, at, stop, WILL)
    topic, at = read_text(data, at, stop)
    payload, at = read_binary(data, at, stop)
    try:
        check_topic(topic)
    except AddressError as error:
        raise MqttError(str(error), TOPIC_INVALID if version == V5 else MALFORMED) from None
    return Will(topic, payload, qos, bool(flags & 0x20), properties or None), at


def _connack(kind: int, data: bytes, at: int, stop: int, version: int) -> Packet:
    if at + 2 > stop or data[at] > 1:
        raise MqttError("CONNACK", MALFORMED)
    properties: Properties | None = None
    present, reason = data[at] == 1, data[at + 1]
    at += 2
    if version == V5:
        properties, at = decode_properties(data, at, stop, CONNACK)
    if at != stop:
        raise MqttError("CONNACK is longer than its fields", MALFORMED)
    return Connack(present, reason, properties or None)


def _packet_id(data: bytes, at: int, stop: int) -> tuple[int, int]:
    if at + 2 > stop:
        raise MqttError("packet identifier is cut off", MALFORMED)
    packet_id = data[at] << 8 | data[at + 1]
    if not packet_id:
        raise MqttError("packet identifier is 0", PROTOCOL)  # [MQTT-2.2.1-3]
    return packet_id, at + 2


def _ack(kind: int, data: bytes, at: int, stop: int, version: int) -> Packet:
    packet_id, at = _packet_id(data, at, stop)
    reason = 0
    properties: Properties | None = None
    if version == V5 and at < stop:
        reason = data[at]
        at += 1
        if at < stop:
            properties, at = decode_properties(data, at, stop, kind)
    if at != stop:
        raise MqttError("acknowledgement is longer than its fields", MALFORMED)
    return Ack(kind, packet_id, reason, properties or None)


def _subscribe(kind: int, data: bytes, at: int, stop: int, version: int) -> Packet:
    packet_id, at = _packet_id(data, at, stop)
    properties: Properties | None = None
    if version == V5:
        properties, at = decode_properties(data, at, stop, SUBSCRIBE)
    filters: list[tuple[str, int]] = []
    while at < stop:
        filter, at = read_text(data, at, stop)
        if at >= stop:
            raise MqttError("subscription options are cut off", MALFORMED)
        options = data[at]
        at += 1
        reserved = 0xC0 if version == V5 else 0xFC
        if options & reserved or options & 3 == 3:  # [MQTT-3.8.3-5], 3.1.1 [MQTT-3-8.3-4]
            raise MqttError(f"subscription options 0x{options:02X}", MALFORMED)
        if options & 0x30 == 0x30:
            raise MqttError("retain handling 3", PROTOCOL)
        filters.append((filter, options))
    if not filters:
        raise MqttError("SUBSCRIBE without a filter", PROTOCOL)  # [MQTT-3.8.3-2]
    return Subscribe(packet_id, filters, properties or None)


def _unsubscribe(kind: int, data: bytes, at: int, stop: int, version: int) -> Packet:
    packet_id, at = _packet_id(data, at, stop)
    properties: Properties | None = None
    if version == V5:
        properties, at = decode_properties(data, at, stop, UNSUBSCRIBE)
    filters: list[str] = []
    while at < stop:
        filter, at = read_text(data, at, stop)
        filters.append(filter)
    if not filters:
        raise MqttError("UNSUBSCRIBE without a filter", PROTOCOL)  # [MQTT-3.10.3-2]
    return Unsubscribe(packet_id, filters, properties or None)


def _suback(kind: int, data: bytes, at: int, stop: int, version: int) -> Packet:
    packet_id, at = _packet_id(data, at, stop)
    properties: Properties | None = None
    if version == V5:
        properties, at = decode_properties(data, at, stop, kind)
    return Suback(kind, packet_id, list(data[at:stop]), properties or None)


def _ping(kind: int, data: bytes, at: int, stop: int, version: int) -> Packet:
    if at != stop:
        raise MqttError("PINGREQ or PINGRESP with a body", MALFORMED)
    return Ping(kind)


def _disconnect(kind: int, data: bytes, at: int, stop: int, version: int) -> Packet:
    reason = 0
    properties: Properties | None = None
    if at < stop and version == V5:
        reason = data[at]
        at += 1
        if at < stop:
            properties, at = decode_properties(data, at, stop, kind)
    if at != stop:
        raise MqttError("DISCONNECT or AUTH is longer than its fields", MALFORMED)
    return Disconnect(kind, reason, properties or None)


_DECODERS: Final[dict[int, Callable[[int, bytes, int, int, int], Packet]]] = {
    CONNACK: _connack,
    PUBACK: _ack,
    PUBREC: _ack,
    PUBREL: _ack,
    PUBCOMP: _ack,
    SUBSCRIBE: _subscribe,
    SUBACK: _suback,
    UNSUBSCRIBE: _unsubscribe,
    UNSUBACK: _suback,
    PINGREQ: _ping,
    PINGRESP: _ping,
    DISCONNECT: _disconnect,
    AUTH: _disconnect,
}


def encode_publish(
    topic: bytes,
    payload: bytes,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 0,
    properties: bytes = b"",
) -> bytes:
    """Return a PUBLISH.

    Args:
        topic: in UTF-8.
        payload: the application message.
        qos, retain, dup: the flags.
        packet_id: for QoS 1 and 2.
        properties: encoded, with their length; b"" for MQTT 3.1.1.
    """
    size = len(topic)
    head = size.to_bytes(2, "big") + topic
    if qos:
        head += packet_id.to_bytes(2, "big")
    length = len(head) + len(properties) + len(payload)
    first = 0x30 | dup << 3 | qos << 1 | retain
    if length < 0x80:
        return bytes((first, length)) + head + properties + payload
    return bytes((first,)) + write_variable(length) + head + properties + payload


def encode_ack(kind: int, packet_id: int, version: int, reason: int = 0) -> bytes:
    """Return a PUBACK, PUBREC, PUBREL or PUBCOMP; the reason is left out where it is 0 or 3.1.1."""
    first = kind << 4 | (2 if kind == PUBREL else 0)
    if reason and version == V5:
        return bytes((first, 3, packet_id >> 8, packet_id & 0xFF, reason))
    return bytes((first, 2, packet_id >> 8, packet_id & 0xFF))


def encode(packet: Packet, version: int) -> bytes:
    """Return any packet's bytes in protocol `version` (3, 4 or 5).

    Raises:
        ValueError: a field is too long for its length field.
    """
    if isinstance(packet, Publish):
        return encode_publish(
            packet.topic.encode(),
            packet.payload,
            packet.qos,
            packet.retain,
            packet.dup,
            packet.packet_id,
            encode_properties(packet.properties) if version == V5 else b"",
        )
    if isinstance(packet, Connect):
        return _frame(CONNECT << 4, _connect_body(packet))
    if isinstance(packet, Ping):
        return bytes((packet.type << 4, 0))
    properties = encode_properties(packet.properties) if version == V5 else b""
    if isinstance(packet, Connack):
        return _frame(CONNACK << 4, bytes((packet.session_present, packet.reason)) + properties)
    if isinstance(packet, Disconnect):
        if version != V5 or not (packet.reason or packet.properties):
            return bytes((packet.type << 4, 0))
        if not packet.properties:
            return bytes((packet.type << 4, 1, packet.reason))
        return _frame(packet.type << 4, bytes((packet.reason,)) + properties)
    if isinstance(packet, Ack):
        if not packet.properties:
            return encode_ack(packet.type, packet.packet_id, version, packet.reason)
        first = packet.type << 4 | (2 if packet.type == PUBREL else 0)
        reason = bytes((packet.reason,)) if version == V5 else b""
        return _frame(first, packet.packet_id.to_bytes(2, "big") + reason + properties)
    head = packet.packet_id.to_bytes(2, "big") + properties
    if isinstance(packet, Subscribe):
        parts = [write_text(filter) + bytes((options,)) for filter, options in packet.filters]
        return _frame(SUBSCRIBE << 4 | 2, head + b"".join(parts))
    if isinstance(packet, Unsubscribe):
        return _frame(UNSUBSCRIBE << 4 | 2, head + b"".join(map(write_text, packet.filters)))
    return _frame(packet.type << 4, head + bytes(packet.reasons))


def _frame(first: int, body: bytes) -> bytes:
    return bytes((first,)) + write_variable(len(body)) + body


def _connect_body(packet: Connect) -> bytes:
    name = "MQIsdp" if packet.version == V31 else "MQTT"
    will = packet.will
    flags = packet.clean_start << 1
    if will is not None:
        flags |= 4 | will.qos << 3 | will.retain << 5
    flags |= (packet.username is not None) << 7 | (packet.password is not None) << 6
    parts = [
        write_text(name),
        bytes((packet.version, flags)),
        packet.keep_alive.to_bytes(2, "big"),
    ]
    is_v5 = packet.version == V5
    if is_v5:
        parts.append(encode_properties(packet.properties))
    parts.append(write_text(packet.client_id))
    if will is not None:
        if is_v5:
            parts.append(encode_properties(will.properties))
        parts += (write_text(will.topic), write_binary(will.payload))
    if packet.username is not None:
        parts.append(write_text(packet.username))
    if packet.password is not None:
        parts.append(write_binary(packet.password))
    return b"".join(parts)


__all__ = [
    "MAX_PACKET",
    "PINGREQ_BYTES",
    "PINGRESP_BYTES",
    "Decoder",
    "Property",
    "encode",
    "encode_ack",
    "encode_publish",
    "read_variable",
]
