"""What an MQTT session owes its peer: subscriptions, in-flight messages, retained values.

Sans-IO like the session it belongs to.

QoS 1: PUBLISH → PUBACK. QoS 2: PUBLISH → PUBREC → PUBREL → PUBCOMP. At most `window` of them are
in flight; the others wait, bounded by the outbox's limit, and are dropped and counted beyond it.

Invariant: a packet identifier is in `_in_flight` from PUBLISH until its last acknowledgement, and
never in it twice; deliveries from queues are settled when the peer has acknowledged them, and
released when it is lost.
"""

from collections import deque
from typing import Final

from mesh_core.address import QUEUE_PREFIX, AddressError, check_filter
from mesh_core.event import Event
from mesh_core.queue import Consumer, Credit, Delivery, Outcome, Queue, QueueOptions
from mesh_core.router import Deliver, QueueMismatch, Subscription
from protocols.frontend import Broker, Client, Mode, NotAuthorized
from protocols.mqtt import reasons
from protocols.mqtt.codec import encode_ack
from protocols.mqtt.packets import V5, Ack, Connect, Subscribe, Unsubscribe
from protocols.mqtt.properties import PUBACK, PUBCOMP, PUBREC, PUBREL, Property
from protocols.mqtt.reasons import MqttError
from protocols.mqtt.translate import Form
from protocols.outbox import Outbox

WINDOW: Final = 1024
"""Most messages in flight to a peer, whatever Receive Maximum it names."""

SHARE: Final = "$share/"
NO_LOCAL: Final = 0x04
RETAIN_AS_PUBLISHED: Final = 0x08

_FORMS: Final = {(version, mode): Form(version, mode) for version in (3, 4, V5) for mode in Mode}


class Waiting:
    """A QoS 1 or 2 message that has no packet identifier yet."""

    __slots__ = ("delivery", "event", "granted", "qos", "retain")

    def __init__(
        self, event: Event, qos: int, retain: bool, granted: "Granted", delivery: Delivery | None
    ) -> None:
        self.event = event
        self.qos = qos
        self.retain = retain
        self.granted = granted
        self.delivery = delivery


class Granted:
    """One subscription as it was granted, or several overlapping ones as one.

    Attributes:
        filter: as the client wrote it.
        qos: granted, 0 to 2.
        options: the options byte of SUBSCRIBE.
        identifiers: Subscription Identifiers, at most one unless merged.
    """

    __slots__ = ("consumer", "filter", "form", "identifiers", "options", "outgoing", "qos", "topic")

    def __init__(
        self,
        outgoing: "Outgoing",
        filter: str,
        options: int,
        identifiers: tuple[int, ...],
        form: Form,
    ) -> None:
        self.outgoing = outgoing
        self.filter = filter
        self.options = options
        self.qos = options & 3
        self.identifiers = identifiers
        self.form = form
        self.topic: Subscription | None = None
        self.consumer: Consumer | None = None

    @property
    def is_simple(self) -> bool:
        """Whether every QoS 0 PUBLISH for it is the same as for any other such subscriber."""
        return not (self.qos or self.identifiers or self.options & (NO_LOCAL | RETAIN_AS_PUBLISHED))

    def deliver(self, event: Event) -> None:
        """Take an event as it is published."""
        if self.options & NO_LOCAL and event.publisher is self.outgoing.publisher:
            return  # [MQTT-3.8.3-3]
        qos = self.qos if self.qos < event.qos else event.qos  # [MQTT-3.8.4-8]
        retain = event.retain and bool(self.options & RETAIN_AS_PUBLISHED)  # [MQTT-3.3.1-12/13]
        self.outgoing.send(event, qos, retain, self)

    def take(self, delivery: Delivery) -> None:
        """Take a delivery from a queue."""
        self.outgoing.take(delivery, self)


class Outgoing:
    """The outgoing half of a connected session."""

    __slots__ = (
        "_broker",
        "_client",
        "_counters",
        "_credit",
        "_form",
        "_granted",
        "_in_flight",
        "_max_packet",
        "_mode",
        "_next_id",
        "_outbox",
        "_retained",
        "_version",
        "_waiting",
        "_waiting_bytes",
        "_window",
        "ended",
        "publisher",
    )

    def __init__(
        self, broker: Broker, client: Client, outbox: Outbox, connect: Connect, publisher: object
    ) -> None:
        properties = connect.properties or {}
        self._broker = broker
        self._counters = broker.counters
        self._client = client
        self._outbox = outbox
        self._version = connect.version
        self._mode = broker.mode
        self._form = _FORMS[connect.version, broker.mode]
        self.publisher = publisher
        self.ended = False
        maximum = properties.get(Property.RECEIVE_MAXIMUM, 65_535)
        size = properties.get(Property.MAXIMUM_PACKET_SIZE, 1 << 30)
        assert isinstance(maximum, int) and isinstance(size, int)
        self._window = min(maximum, WINDOW)
        self._max_packet = size
        self._credit = Credit(self._window)
        self._granted: dict[str, Granted] = {}
        self._in_flight: dict[int, Delivery | None] = {}
        self._next_id = 1
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._retained: list[tuple[Event, Granted]] = []

    # -- subscriptions ---------------------------------------------------------------------

    def subscribe(self, packet: Subscribe) -> list[int]:
        """Subscribe to each filter; return the reason code for each (§3.9.3)."""
        properties = packet.properties or {}
        identifier = properties.get(Property.SUBSCRIPTION_IDENTIFIER)
        identifiers = (identifier,) if isinstance(identifier, int) else ()
        form = self._form
        for name, value in properties.get(Property.USER_PROPERTY, []):  # type: ignore[union-attr, misc, str-unpack]
            if name == "mode" and value in Mode._value2member_map_:
                form = _FORMS[self._version, Mode(value)]
        return [
            self._subscribe(Granted(self, filter, options, identifiers, form))
            for filter, options in packet.filters
        ]

    def _subscribe(self, granted: Granted) -> int:
        filter = granted.filter
        old = self._granted.get(filter)
        if old is None and len(self._granted) >= self._broker.limits.subscriptions:
            return reasons.QUOTA_EXCEEDED
        try:
            if filter.startswith(SHARE):
                if granted.options & NO_LOCAL:  # [MQTT-3.8.3-4]
                    raise MqttError("no local on a shared subscription", reasons.PROTOCOL)
                self._end(old)
                self._share(granted)
            elif filter.startswith(QUEUE_PREFIX):
                self._end(old)
                queue = self._client.declare(filter[len(QUEUE_PREFIX) :])
                self._consume(granted, queue)
            else:
                self._check(filter)
                self._follow(granted, old)
        except AddressError:
            return reasons.FILTER_INVALID
        except (NotAuthorized, QueueMismatch):
            return reasons.NOT_AUTHORIZED
        self._granted[filter] = granted
        return granted.qos

    @staticmethod
    def _check(filter: str) -> None:
        check_filter(filter)
        if "#" in filter[:-1]:  # [MQTT-4.7.1-1]
            raise AddressError(f"filter {filter!r}: # must be the last level")

    def _follow(self, granted: Granted, old: Granted | None) -> None:
        deliver: Deliver = granted.deliver
        if granted.is_simple:
            deliver = self.deliver_simple if granted.form is self._form else granted.deliver
        granted.topic = self._client.subscribe(granted.filter, deliver, self)
        self._end(old)  # [MQTT-3.8.4-3]: replaced, and nothing is missed in between
        handling = granted.options >> 4 & 3
        if handling == 0 or (handling == 1 and old is None):  # [MQTT-3.3.1-9..11]
            retained = self._client.retained(granted.filter)
            self._retained += [(event, granted) for event in retained]

    def _share(self, granted: Granted) -> None:
        """Consume from the queue of a share group (§4.8.2).

        The queue has the group's name; a second filter under the same name is a group of its own
        in MQTT, so it gets a queue of its own, named `group/filter`.
        """
        group, slash, filter = granted.filter[len(SHARE) :].partition("/")
        if not group or not slash or "+" in group or "#" in group:  # [MQTT-4.8.2-1], [-2]
            raise AddressError(f"{granted.filter!r} is no shared subscription")
        self._check(filter)
        queue = self._client.queue(group)
        if queue is not None:
            bound = [binding.filter for binding in self._client.bindings(queue)]
            if bound and filter not in bound:
                group = f"{group}/{filter}"
                queue = self._client.queue(group)
        if queue is None:
            options = QueueOptions(durable=False, auto_delete=True)
            queue = self._client.declare(group, options)
        if all(binding.filter != filter for binding in self._client.bindings(queue)):
            self._client.bind(queue, filter)
        self._consume(granted, queue)

    def _consume(self, granted: Granted, queue: Queue) -> None:
        consumer = Consumer(
            granted.take,
            self._credit if granted.qos else Credit(),
            auto_accept=granted.qos == 0,
            owner=self,
        )
        granted.consumer = consumer
        self._client.consume(queue, consumer)

    def unsubscribe(self, packet: Unsubscribe) -> list[int]:
        """End each subscription; return the reason code for each (§3.11.3)."""
        codes: list[int] = []
        for filter in packet.filters:
            granted = self._granted.pop(filter, None)
            self._end(granted)
            codes.append(0 if granted is not None else reasons.NO_SUBSCRIPTION_EXISTED)
        return codes

    def _end(self, granted: Granted | None) -> None:
        if granted is None:
            return
        if granted.topic is not None:
            self._client.unsubscribe(granted.topic)
        if granted.consumer is not None and granted.consumer.active:
            granted.consumer.queue.cancel(granted.consumer)

    def send_retained(self) -> None:
        """Send the retained values that the last SUBSCRIBE asked for."""
        retained, self._retained = self._retained, []
        for event, granted in retained:
            self.send(event, min(granted.qos, event.qos), True, granted)

    def merge(self, subscriptions: list[Subscription]) -> Deliver:
        """Deliver once for overlapping subscriptions: highest QoS, all identifiers (§3.3.4)."""
        mine = [g for g in self._granted.values() if g.topic in subscriptions]
        if all(granted.is_simple and granted.form is self._form for granted in mine):
            return self.deliver_simple
        options = max(granted.qos for granted in mine)
        options |= NO_LOCAL if all(g.options & NO_LOCAL for g in mine) else 0
        if any(g.options & RETAIN_AS_PUBLISHED for g in mine):
            options |= RETAIN_AS_PUBLISHED
        identifiers = tuple(i for granted in mine for i in granted.identifiers)
        return Granted(self, "", options, identifiers, mine[0].form).deliver

    # -- sending ---------------------------------------------------------------------------

    def deliver_simple(self, event: Event) -> None:
        """Deliver at QoS 0: the hot path of a subscriber, with `Outbox.offer` written out."""
        frame = event.wire.get(self._form.frame_key)
        if frame is None:
            frame = self._form.frame(event)
            if frame is None:
                return
        if len(frame) > self._max_packet:  # [MQTT-3.1.2-24]
            return
        outbox = self._outbox
        if outbox.size > outbox.limit:
            outbox.dropped += 1
            return
        if not outbox.chunks:
            outbox.wake()
        outbox.chunks.append(frame)
        outbox.size += len(frame)
        self._counters.messages_out += 1

    def send(
        self,
        event: Event,
        qos: int,
        retain: bool,
        granted: Granted,
        delivery: Delivery | None = None,
    ) -> None:
        """Send a PUBLISH, or let it wait for a packet identifier."""
        if self.ended:
            return
        if qos == 0:
            if retain or granted.identifiers:
                frame = granted.form.frame_with(event, 0, 0, retain, False, granted.identifiers)
            else:
                frame = granted.form.frame(event)
            if frame is not None and len(frame) <= self._max_packet:
                self._counters.messages_out += self._outbox.offer(frame)
            return
        if self._waiting or len(self._in_flight) >= self._window:
            if delivery is None and self._waiting_bytes > self._outbox.limit:
                self._outbox.dropped += 1
                return
            self._waiting.append(Waiting(event, qos, retain, granted, delivery))
            self._waiting_bytes += len(event.data) + 256
            return
        self._transmit(event, qos, retain, granted, delivery)

    def _transmit(
        self, event: Event, qos: int, retain: bool, granted: Granted, delivery: Delivery | None
    ) -> None:
        in_flight = self._in_flight
        packet_id = self._next_id
        while packet_id in in_flight:
            packet_id = packet_id % 65_535 + 1
        frame = granted.form.frame_with(event, qos, packet_id, retain, False, granted.identifiers)
        if frame is None or len(frame) > self._max_packet:
            if delivery is not None:
                delivery.settle(Outcome.REJECT)
            return
        self._next_id = packet_id % 65_535 + 1
        in_flight[packet_id] = delivery
        self._counters.messages_out += 1
        self._outbox.write(frame)

    def take(self, delivery: Delivery, granted: Granted) -> None:
        """Send what a queue handed over."""
        event = delivery.event
        qos = min(granted.qos, max(event.qos, 1)) if granted.qos else 0
        self.send(event, qos, False, granted, delivery if granted.qos else None)

    def acknowledged(self, packet: Ack) -> None:
        """Take a PUBACK, PUBREC or PUBCOMP (§4.3)."""
        packet_id, kind = packet.packet_id, packet.type
        if packet_id not in self._in_flight:
            if kind == PUBREC:
                reason = reasons.PACKET_ID_NOT_FOUND
                self._outbox.write(encode_ack(PUBREL, packet_id, self._version, reason))
            return
        if kind == PUBREC and packet.reason < 0x80:
            # What the peer has is its own from here on; only the identifier is still in use.
            delivery = self._in_flight[packet_id]
            if delivery is not None:
                delivery.settle(Outcome.ACCEPT)
                self._in_flight[packet_id] = None
            self._outbox.write(encode_ack(PUBREL, packet_id, self._version))
            return
        if kind not in (PUBACK, PUBREC, PUBCOMP):
            raise MqttError(f"packet type {kind}", reasons.PROTOCOL)
        delivery = self._in_flight.pop(packet_id)
        if delivery is not None:
            delivery.settle(Outcome.ACCEPT if packet.reason < 0x80 else Outcome.REJECT)
        while self._waiting and len(self._in_flight) < self._window:
            one = self._waiting.popleft()
            self._waiting_bytes -= len(one.event.data) + 256
            self._transmit(one.event, one.qos, one.retain, one.granted, one.delivery)

    def end(self) -> None:
        """End every subscription and give queue deliveries back, in order."""
        if self.ended:
            return
        self.ended = True
        held = [d for d in self._in_flight.values() if d is not None]
        held += [one.delivery for one in self._waiting if one.delivery is not None]
        self._in_flight.clear()
        self._waiting.clear()
        queues: dict[Queue, list[Delivery]] = {}
        for delivery in held:
            queues.setdefault(delivery.queue, []).append(delivery)
        consumers = [g.consumer for g in self._granted.values() if g.consumer is not None]
        for consumer in consumers:
            consumer.credit.pause()
        for queue, deliveries in queues.items():
            queue.release_all(deliveries)
        for granted in self._granted.values():
            self._end(granted)
        self._granted.clear()
