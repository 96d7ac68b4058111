"""The control packets of MQTT as objects (MQTT 5.0 §3, MQTT 3.1.1 §3). Plain data, no behaviour.

Both versions share the classes; `properties` is None in 3.1.1 and when there are none.
"""

from dataclasses import dataclass
from typing import NewType, TypeAlias

from protocols.mqtt.properties import Properties

PacketId = NewType("PacketId", int)
"""1 to 65,535 (MQTT 5.0 §2.2.1)."""

V31, V311, V5 = 3, 4, 5
"""Protocol versions by their number in CONNECT."""


class Publish:
    """PUBLISH (§3.3). `frame` is the packet's own bytes where it was received, else None."""

    __slots__ = ("dup", "frame", "packet_id", "payload", "properties", "qos", "retain", "topic")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties | None = None,
        frame: bytes | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.properties = properties
        self.frame = frame

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Publish) and all(
            getattr(self, name) == getattr(other, name)
            for name in self.__slots__
            if name != "frame"
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Publish({self.topic!r}, {self.payload!r}, qos={self.qos}, retain={self.retain}, "
            f"dup={self.dup}, packet_id={self.packet_id}, properties={self.properties})"
        )


@dataclass(slots=True)
class Will:
    """The will in a CONNECT (§3.1.2.5)."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties | None = None


@dataclass(slots=True)
class Connect:
    """CONNECT (§3.1)."""

    client_id: str
    version: int = V5
    clean_start: bool = True
    keep_alive: int = 60
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None
    properties: Properties | None = None


@dataclass(slots=True)
class Connack:
    """CONNACK (§3.2)."""

    session_present: bool = False
    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Ack:
    """PUBACK, PUBREC, PUBREL or PUBCOMP (§3.4–3.7), by `type`."""

    type: int
    packet_id: int
    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Subscribe:
    """SUBSCRIBE (§3.8): (filter, options byte) in order."""

    packet_id: int
    filters: list[tuple[str, int]]
    properties: Properties | None = None


@dataclass(slots=True)
class Suback:
    """SUBACK or UNSUBACK (§3.9, §3.11), by `type`: a reason per filter."""

    type: int
    packet_id: int
    reasons: list[int]
    properties: Properties | None = None


@dataclass(slots=True)
class Unsubscribe:
    """UNSUBSCRIBE (§3.10)."""

    packet_id: int
    filters: list[str]
    properties: Properties | None = None


@dataclass(slots=True)
class Ping:
    """PINGREQ or PINGRESP (§3.12, §3.13), by `type`."""

    type: int


@dataclass(slots=True)
class Disconnect:
    """DISCONNECT or AUTH (§3.14, §3.15), by `type`."""

    type: int
    reason: int = 0
    properties: Properties | None = None


Packet: TypeAlias = (
    Publish | Connect | Connack | Ack | Subscribe | Suback | Unsubscribe | Ping | Disconnect
)
