"""The state machine of one MQTT peer, 3.1.1 and 5.0. Sans-IO; see `protocols.frontend.Session`.

    CONNECTING      --CONNECT-->        AUTHENTICATING
    AUTHENTICATING  --identity-->       CONNECTED       (CONNACK 0)
    AUTHENTICATING  --refusal-->        CLOSED          (CONNACK with the reason)
    CONNECTED       --DISCONNECT-->     CLOSED          (no will, unless it asks for it)
    any             --error, time-->    CLOSED          (5.0: DISCONNECT with the reason)

What a packet does in CONNECTED stands in one table, `_HANDLERS`. Subscriptions and what is sent
to the peer are in `protocols.mqtt.outgoing`. Sessions end with their connection for now: CONNACK
says so (session present 0, Session Expiry Interval 0).

Invariant: a publisher's QoS 1 or 2 message is acknowledged only when its receipt is done, and a
QoS 2 packet identifier is published once until PUBREL.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Final

from mesh_core.address import QUEUE_PREFIX, AddressError
from mesh_core.receipt import REFUSED, Receipt, Refusal
from protocols.frontend import Broker, Client, Credentials, NotAuthorized, SessionContext
from protocols.mqtt import reasons
from protocols.mqtt.codec import PINGRESP_BYTES, Decoder, encode, encode_ack
from protocols.mqtt.outgoing import Outgoing
from protocols.mqtt.packets import (
    V5,
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
    DISCONNECT,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    Properties,
    Property,
)
from protocols.mqtt.reasons import MqttError
from protocols.mqtt.translate import to_event

RECEIVE_MAXIMUM: Final = 4096
"""Unacknowledged QoS 1 and 2 messages that we take from one peer."""

TOPIC_ALIAS_MAXIMUM: Final = 64
PACKET_OVERHEAD: Final = 1024 * 1024
"""What a packet may have beside its payload (topic, properties), in bytes."""


class State(Enum):
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    CONNECTED = "connected"
    CLOSED = "closed"


class Registry:
    """The connected sessions of a node by client identifier, for takeover ([MQTT-3.1.4-3])."""

    def __init__(self) -> None:
        self.sessions: dict[str, MqttSession] = {}


class MqttSession:
    """One MQTT peer."""

    __slots__ = (
        "_acked",
        "_aliases",
        "_broker",
        "_client",
        "_clock",
        "_context",
        "_decoder",
        "_early",
        "_keep_alive",
        "_last_heard",
        "_outbox",
        "_received",
        "_registry",
        "_started",
        "_state",
        "_unacknowledged",
        "_version",
        "_will",
        "client_id",
        "closed",
        "outgoing",
    )

    def __init__(self, broker: Broker, registry: Registry, context: SessionContext) -> None:
        self._broker = broker
        self._registry = registry
        self._context = context
        self._outbox = context.outbox
        self._clock = context.clock
        self._decoder = Decoder(broker.limits.message_bytes + PACKET_OVERHEAD)
        self._state = State.CONNECTING
        self._started = context.clock()
        self._last_heard = self._started
        self._keep_alive = 0.0
        self._version = 0
        self._client: Client
        self._will: Will | None = None
        self._early: list[Packet] = []
        self._aliases: dict[int, str] = {}
        # QoS 2 packet identifiers between PUBLISH and PUBREL.
        self._received: set[int] = set()
        self._unacknowledged = 0
        self.client_id = ""
        self.closed = False
        self.outgoing: Outgoing

    # -- the verbs -------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the peer sent."""
        self._last_heard = self._clock()
        for packet in self._decoder.feed(data):
            if self.closed:
                return
            try:
                self._packet(packet)
            except MqttError as error:
                self._fail(error)
        if self._decoder.error is not None and not self.closed:
            self._fail(self._decoder.error)

    def timeout(self, now: float) -> float | None:
        """Close a peer that does not connect in time, or is silent for 1.5 keep alives."""
        if self.closed:
            return None
        if self._state is not State.CONNECTED:
            deadline = self._started + self._broker.limits.handshake_seconds
            if now < deadline:
                return deadline
            self._count("handshake-timeout")
            self._close()
            return None
        if not self._keep_alive:
            return None
        deadline = self._last_heard + 1.5 * self._keep_alive  # [MQTT-3.1.2-22]
        if now < deadline:
            return deadline
        self._fail(MqttError("keep alive timeout", reasons.KEEP_ALIVE_TIMEOUT))
        return None

    def shutdown(self) -> None:
        """Say that the server shuts down (5.0), and close."""
        self._disconnect(reasons.SHUTTING_DOWN)

    def lost(self) -> None:
        """Publish the will, if there is one left, and end all subscriptions."""
        self.closed = True
        self._let_go()
        self._state = State.CLOSED
        will, self._will = self._will, None
        if will is not None:  # [MQTT-3.1.2-8]
            self._publish_will(will)

    # -- connecting ------------------------------------------------------------------------

    def _packet(self, packet: Packet) -> None:
        state = self._state
        if state is State.CONNECTED:
            if isinstance(packet, Publish):
                self._publish(packet)
                return
            handler = _HANDLERS.get(type(packet))
            if handler is None:  # [MQTT-3.1.0-2]
                raise MqttError(f"{type(packet).__name__} from a client", reasons.PROTOCOL)
            handler(self, packet)
        elif state is State.CONNECTING:
            if not isinstance(packet, Connect):  # [MQTT-3.1.0-1]
                raise MqttError(f"{type(packet).__name__} before CONNECT", reasons.PROTOCOL)
            self._connect(packet)
        elif state is State.AUTHENTICATING:
            # Clients may send before CONNACK (§3.1.4); bounded by what one packet may be.
            if len(self._early) >= 1000:
                raise MqttError("too much before CONNACK", reasons.QUOTA_EXCEEDED)
            self._early.append(packet)

    def _connect(self, packet: Connect) -> None:
        self._version = packet.version
        self._state = State.AUTHENTICATING
        properties = packet.properties or {}
        if Property.AUTHENTICATION_METHOD in properties:  # §4.12
            self._refuse(reasons.BAD_AUTHENTICATION_METHOD)
            return
        if Property.AUTHENTICATION_DATA in properties:
            raise MqttError("authentication data without a method", reasons.PROTOCOL)
        if packet.will is not None and packet.will.topic.startswith("$"):
            self._refuse(reasons.TOPIC_INVALID)
            return
        credentials = Credentials(
            self._broker.name,
            self._context.address,
            packet.username,
            packet.password,
            packet.client_id or None,
        )
        self._broker.authenticate(credentials, lambda client: self._decided(packet, client))

    def _decided(self, packet: Connect, client: Client | None) -> None:
        if self.closed or self._state is not State.AUTHENTICATING:
            return
        if client is None:
            given = packet.username is not None
            self._refuse(reasons.BAD_CREDENTIALS if given else reasons.NOT_AUTHORIZED)
            return
        self._client = client
        properties = packet.properties or {}
        answer: Properties = {}
        self.client_id = packet.client_id
        if not self.client_id:
            self.client_id = f"auto-{secrets.token_hex(8)}"
            answer[Property.ASSIGNED_CLIENT_IDENTIFIER] = self.client_id  # [MQTT-3.2.2-16]
        previous = self._registry.sessions.get(self.client_id)
        if previous is not None:  # [MQTT-3.1.4-3]
            previous.taken_over()
        self._registry.sessions[self.client_id] = self
        self._state = State.CONNECTED
        self._keep_alive = float(packet.keep_alive)
        self._will = packet.will
        self.outgoing = Outgoing(self._broker, client, self._outbox, packet, self)
        if self._version == V5:
            answer[Property.RECEIVE_MAXIMUM] = RECEIVE_MAXIMUM
            answer[Property.TOPIC_ALIAS_MAXIMUM] = TOPIC_ALIAS_MAXIMUM
            answer[Property.MAXIMUM_PACKET_SIZE] = (
                self._broker.limits.message_bytes + PACKET_OVERHEAD
            )
            if properties.get(Property.SESSION_EXPIRY_INTERVAL):
                answer[Property.SESSION_EXPIRY_INTERVAL] = 0
        self._write(Connack(properties=answer))
        early, self._early = self._early, []
        for one in early:
            if not self.closed:
                self._packet(one)

    def _refuse(self, reason: int) -> None:
        if self._version != V5:
            reason = reasons.RETURN_CODES.get(reason, 2)
        self._count(f"0x{reason:02x}")
        self._write(Connack(reason=reason))
        self._close()

    def taken_over(self) -> None:
        """End because another connection came with the same client identifier."""
        self._disconnect(reasons.TAKEN_OVER)

    # -- publishing ------------------------------------------------------------------------

    def _publish(self, packet: Publish) -> None:
        # The hot path of a publisher: as few calls per message as the checks allow.
        self._broker.counters.messages_in += 1
        if packet.properties is not None:
            self._resolve_alias(packet)
        topic = packet.topic
        if not topic:
            raise MqttError("no topic and no alias", reasons.PROTOCOL)
        if topic[0] == "$" and (topic.startswith(("$SYS", "$share")) or topic == "$queue/"):
            self._acknowledge(packet, reasons.TOPIC_INVALID)
            return
        if len(packet.payload) > self._broker.limits.message_bytes:
            raise MqttError("payload over the limit", reasons.PACKET_TOO_LARGE)
        qos = packet.qos
        if qos == 2:
            if packet.packet_id in self._received:  # A retransmission: it has been published.
                self._outbox.write(encode_ack(PUBREC, packet.packet_id, self._version))
                return
            self._received.add(packet.packet_id)
        if topic[0] == "$" and topic.startswith(QUEUE_PREFIX):
            receipt = self._send(packet, topic[len(QUEUE_PREFIX) :])
        else:
            event = to_event(packet, self._version, self)
            if packet.retain and not packet.payload:  # [MQTT-3.3.1-6], [MQTT-3.3.1-10]
                event.retain = False
                self._clear_retained(topic)
            receipt = self._client.publish(event)
        if qos == 0:
            return
        if receipt.done:
            self._settled(packet, receipt)
        else:
            self._unacknowledged += 1
            if self._unacknowledged > RECEIVE_MAXIMUM:  # [MQTT-3.3.4-7]
                raise MqttError("receive maximum exceeded", reasons.RECEIVE_MAXIMUM_EXCEEDED)
            receipt.when_done(lambda done: self._settled_later(packet, done))

    def _resolve_alias(self, packet: Publish) -> None:
        properties = packet.properties
        if properties is None:
            return
        if Property.SUBSCRIPTION_IDENTIFIER in properties:  # [MQTT-3.3.4-6]
            raise MqttError("subscription identifier from a client", reasons.PROTOCOL)
        alias = properties.pop(Property.TOPIC_ALIAS, None)
        if alias is not None:
            assert isinstance(alias, int)
            if not 1 <= alias <= TOPIC_ALIAS_MAXIMUM:  # [MQTT-3.3.2-8], [MQTT-3.3.2-9]
                raise MqttError(f"topic alias {alias}", reasons.TOPIC_ALIAS_INVALID)
            if packet.topic:
                self._aliases[alias] = packet.topic
            else:
                topic = self._aliases.get(alias)
                if topic is None:
                    raise MqttError(f"topic alias {alias} is unknown", reasons.PROTOCOL)
                packet.topic = topic
        response = properties.get(Property.RESPONSE_TOPIC)
        if isinstance(response, str) and ("+" in response or "#" in response):  # [MQTT-3.3.2-14]
            raise MqttError("wildcard in the response topic", reasons.PROTOCOL)

    def _send(self, packet: Publish, queue: str) -> Receipt:
        """Publish straight to `queue`, which is made if it does not exist."""
        packet.topic, packet.frame, packet.retain = "", None, False
        event = to_event(packet, self._version, self)
        event.queue = queue
        try:
            return self._client.send(event, create=True)
        except AddressError:
            return REFUSED[Refusal.NO_SUCH_QUEUE]

    def _clear_retained(self, topic: str) -> None:
        # Who may not publish is told so when it does.
        with suppress(NotAuthorized):
            self._client.clear_retained(topic)

    def _settled_later(self, packet: Publish, receipt: Receipt) -> None:
        self._unacknowledged -= 1
        if not self.closed:
            self._settled(packet, receipt)

    def _settled(self, packet: Publish, receipt: Receipt) -> None:
        reason = 0
        if receipt.refusal is not None:
            reason = reasons.OF_REFUSAL[receipt.refusal]
            if self._version != V5 and receipt.refusal is not Refusal.NOT_AUTHORIZED:
                # 3.1.1 can't refuse; no acknowledgement lets the client try again later.
                self._received.discard(packet.packet_id)
                self._count("refused")
                self._close()
                return
        elif not receipt.routed:
            reason = reasons.NO_MATCHING_SUBSCRIBERS
        self._acknowledge(packet, reason)

    def _acknowledge(self, packet: Publish, reason: int) -> None:
        if packet.qos == 0:
            return
        kind = PUBACK
        if packet.qos == 2:
            kind = PUBREC
            if reason >= 0x80:  # The identifier is free again (§4.3.3).
                self._received.discard(packet.packet_id)
        self._outbox.write(encode_ack(kind, packet.packet_id, self._version, reason))

    def _publish_will(self, will: Will) -> None:
        event = to_event(will, self._version, self)
        if will.retain and not will.payload:
            event.retain = False
            self._clear_retained(will.topic)
        self._client.publish(event)

    # -- the other packets -----------------------------------------------------------------

    def _ack(self, packet: Packet) -> None:
        assert isinstance(packet, Ack)
        kind = packet.type
        if kind == PUBREL:
            known = packet.packet_id in self._received
            self._received.discard(packet.packet_id)
            reason = 0 if known else reasons.PACKET_ID_NOT_FOUND
            self._outbox.write(encode_ack(PUBCOMP, packet.packet_id, self._version, reason))
        else:
            self.outgoing.acknowledged(packet)

    def _subscribe(self, packet: Packet) -> None:
        assert isinstance(packet, Subscribe)
        granted = self.outgoing.subscribe(packet)
        if self._version != V5:
            granted = [code if code < 0x80 else 0x80 for code in granted]
        self._write(Suback(SUBACK, packet.packet_id, granted))
        self.outgoing.send_retained()

    def _unsubscribe(self, packet: Packet) -> None:
        assert isinstance(packet, Unsubscribe)
        reasons_ = self.outgoing.unsubscribe(packet)
        if self._version != V5:
            self._write(Suback(UNSUBACK, packet.packet_id, []))
        else:
            self._write(Suback(UNSUBACK, packet.packet_id, reasons_))

    def _ping(self, packet: Packet) -> None:
        self._outbox.write(PINGRESP_BYTES)

    def _goodbye(self, packet: Packet) -> None:
        assert isinstance(packet, Disconnect)
        if packet.type != DISCONNECT:  # AUTH without enhanced authentication under way
            raise MqttError("AUTH", reasons.PROTOCOL)
        if packet.reason != reasons.WITH_WILL:  # [MQTT-3.14.4-3]
            self._will = None
        self._close()

    # -- ending ----------------------------------------------------------------------------

    def _fail(self, error: MqttError) -> None:
        self._count(f"0x{error.code:02x}")
        if self._state is State.CONNECTED:
            self._disconnect(error.code)
        elif self._state is State.AUTHENTICATING:
            self._close()
        else:
            if error.code == reasons.UNSUPPORTED_VERSION:
                # [MQTT-3.1.2-2]; in 3.1.1's words, which every client understands.
                self._outbox.write(encode(Connack(reason=1), 4))
            elif error.code == reasons.BAD_CLIENT_ID:
                self._outbox.write(encode(Connack(reason=2), 4))
            self._close()

    def _disconnect(self, reason: int) -> None:
        if self._version == V5 and self._state is State.CONNECTED and not self.closed:
            self._write(Disconnect(DISCONNECT, reason))
        self._close()

    def _close(self) -> None:
        self.closed = True
        self._let_go()
        self._outbox.wake()

    def _let_go(self) -> None:
        """Give up the subscriptions and the client identifier; the will is for `lost`."""
        if self._state is State.CONNECTED:
            if self._registry.sessions.get(self.client_id) is self:
                del self._registry.sessions[self.client_id]
            self.outgoing.end()

    def _write(self, packet: Packet) -> None:
        self._outbox.write(encode(packet, self._version))

    def _count(self, reason: str) -> None:
        self._broker.counters.protocol_errors[reason] += 1


_HANDLERS: Final[dict[type, Callable[[MqttSession, Packet], None]]] = {
    Ack: MqttSession._ack,
    Subscribe: MqttSession._subscribe,
    Unsubscribe: MqttSession._unsubscribe,
    Ping: MqttSession._ping,
    Disconnect: MqttSession._goodbye,
}
