"""What a STOMP session owes its peer: subscriptions, unacknowledged messages, retained values.

A `/topic/` subscription with `ack:auto` takes events as they are published. Everything else
consumes from a queue: `/queue/` names it, and a `/topic/` subscription that acknowledges gets an
exclusive one of its own, so that acknowledgement, redelivery and prefetch are the queue's.

Invariant: every delivery that is not auto-acknowledged is in `_held` under its `message-id` until
it is settled; ids grow and are never used twice in a session.
"""

import secrets
from typing import Final

from mesh_core.event import Event
from mesh_core.queue import Consumer, Credit, Delivery, Outcome, Queue, QueueOptions
from mesh_core.router import Subscription
from protocols.frontend import Broker, Client, Mode
from protocols.outbox import Outbox
from protocols.stomp.codec import V10, V12, StompError, encode_headers
from protocols.stomp.destinations import Destination
from protocols.stomp.translate import Form

PREFETCH: Final = 100
"""Unacknowledged messages of a subscription that names no `prefetch-count`."""

PAUSE_BYTES: Final = 1024 * 1024
"""A queue stops handing over while so much waits to be written."""

ACK_MODES: Final = ("auto", "client", "client-individual")

_FORMS: dict[tuple[str, Mode, bool], Form] = {}


def _form(version: str, mode: Mode, dots: bool) -> Form:
    key = (version, mode, dots)
    if key not in _FORMS:
        _FORMS[key] = Form(version, mode, dots)
    return _FORMS[key]


class Subscribed:
    """One subscription."""

    __slots__ = (
        "ack",
        "consumer",
        "filter",
        "form",
        "id",
        "own_queue",
        "owner",
        "prefix",
        "retained",
        "topic",
    )

    def __init__(
        self, owner: "Subscriptions", id: str, ack: str, form: Form, prefix: bytes
    ) -> None:
        self.owner = owner
        self.id = id
        self.ack = ack
        self.form = form
        self.prefix = prefix
        self.filter = ""
        self.topic: Subscription | None = None
        self.consumer: Consumer | None = None
        self.own_queue: Queue | None = None
        self.retained: list[Event] = []

    def deliver(self, event: Event) -> None:
        """Take an event as it is published: the hot path, with `Outbox.offer` written out."""
        owner = self.owner
        outbox = owner.outbox
        if outbox.size > outbox.limit or owner.ended:
            outbox.dropped += 1
            return
        if event.expires_at is not None and event.expired():
            return
        common = self.form.common(event)
        owner.last_id = number = owner.last_id + 1
        head = self.prefix + b"%d\n" % number
        chunks = outbox.chunks
        if not chunks:
            outbox.wake()
        chunks.append(head)
        chunks.append(common)
        outbox.size += len(head) + len(common)
        owner.counters.messages_out += 1

    def take(self, delivery: Delivery) -> None:
        """Take a delivery from a queue."""
        self.owner.take(delivery, self)


class Subscriptions:
    """The outgoing half of a connected session.

    Attributes:
        last_id: the last `message-id` given out.
        ended: whether the session is over.
    """

    __slots__ = (
        "_broker",
        "_by_id",
        "_client",
        "_dots",
        "_held",
        "_session",
        "_temporary",
        "_version",
        "counters",
        "ended",
        "last_id",
        "outbox",
    )

    def __init__(
        self,
        broker: Broker,
        client: Client,
        outbox: Outbox,
        version: str,
        dots: bool,
        session: object,
    ) -> None:
        self._broker = broker
        self._client = client
        self._version = version
        self._dots = dots
        self._session = session
        self._by_id: dict[str, Subscribed] = {}
        self._held: dict[int, tuple[Delivery, Subscribed]] = {}
        self._temporary: dict[str, str] = {}
        self.outbox = outbox
        self.counters = broker.counters
        self.last_id = 0
        self.ended = False

    def subscribe(self, id: str, destination: Destination, headers: dict[str, str]) -> None:
        """Subscribe; raises what `Client` raises, and StompError for the headers."""
        if id in self._by_id:
            raise StompError(f"subscription {id!r} exists", "subscription")
        if len(self._by_id) >= self._broker.limits.subscriptions:
            raise StompError("too many subscriptions", "subscription")
        ack = headers.get("ack", "auto")
        if ack not in ACK_MODES:
            raise StompError(f"ack {ack[:40]!r} is none of {', '.join(ACK_MODES)}", "header")
        name = headers.get("mode", self._broker.mode.value)
        if name not in Mode._value2member_map_:
            raise StompError(f"mode {name[:40]!r} is unknown", "header")
        line = (
            b""
            if self._version == V10 and "id" not in headers
            else encode_headers([("subscription", id)], self._version)
        )
        form = _form(self._version, Mode(name), self._dots)
        one = Subscribed(self, id, ack, form, b"MESSAGE\n" + line + b"message-id:")
        credit = Credit(_prefetch(headers)) if ack != "auto" else Credit()
        if destination.topic:
            one.filter = destination.topic
            if ack == "auto":
                one.topic = self._client.subscribe(destination.topic, one.deliver)
            else:
                options = QueueOptions(durable=False, auto_delete=True, exclusive=True)
                name = f"stomp-{secrets.token_hex(12)}"
                one.own_queue = self._client.declare(name, options, self._session)
                self._client.bind(one.own_queue, destination.topic)
                self._consume(one, one.own_queue, credit)
            if headers.get("retained") == "true":
                one.retained = self._client.retained(destination.topic)
        elif destination.temporary:
            self._consume(
                one,
                self._client.declare(self.temporary(destination.temporary), None, self._session),
                credit,
            )
        else:
            self._consume(one, self._client.declare(destination.queue), credit)
        self._by_id[id] = one

    def _consume(self, one: Subscribed, queue: Queue, credit: Credit) -> None:
        one.consumer = Consumer(
            one.take, credit, auto_accept=one.ack == "auto", owner=self._session
        )
        # Deliveries may come before this returns; the subscription must be known by then.
        self._client.consume(queue, one.consumer)

    def send_retained(self, id: str) -> None:
        """Send the retained values that SUBSCRIBE asked for with `retained:true`."""
        one = self._by_id.get(id)
        if one is not None:
            events, one.retained = one.retained, []
            for event in events:
                one.deliver(event)

    def unsubscribe(self, id: str) -> None:
        """End a subscription; what it holds stays acknowledgeable (STOMP 1.2 "UNSUBSCRIBE")."""
        one = self._by_id.pop(id, None)
        if one is None:
            raise StompError(f"no subscription {id[:80]!r}", "subscription")
        self._end(one)

    def _end(self, one: Subscribed) -> None:
        if one.topic is not None:
            self._client.unsubscribe(one.topic)
        if one.consumer is not None and one.consumer.active:
            one.consumer.queue.cancel(one.consumer)

    def temporary(self, name: str) -> str:
        """Return the real name of this connection's `/temp-queue/<name>`, made if need be."""
        real = self._temporary.get(name)
        if real is None:
            real = self._temporary[name] = f"stomp-temp-{secrets.token_hex(12)}"
            options = QueueOptions(durable=False, exclusive=True)
            self._client.declare(real, options, self._session)
        return real

    def reply_queue(self, name: str) -> str:
        """Return the queue behind `reply-to:/temp-queue/<name>`, subscribed to on first use.

        The subscription's id is the destination, as RabbitMQ's users know it.
        """
        id = f"/temp-queue/{name}"
        real = self.temporary(name)
        queue = self._client.queue(real)
        if id not in self._by_id and queue is not None and not queue.consumers:
            self.subscribe(id, Destination(temporary=name), {"id": id})
        return real

    # -- deliveries from queues ------------------------------------------------------------

    def take(self, delivery: Delivery, one: Subscribed) -> None:
        """Send what a queue handed over."""
        if self.ended:
            return
        event = delivery.event
        common = one.form.common(event)
        self.last_id = number = self.last_id + 1
        head = one.prefix + b"%d\n" % number
        if one.ack != "auto":
            self._held[number] = (delivery, one)
            if self._version == V12:
                head += b"ack:%d\n" % number
        if delivery.redelivered:
            head += b"redelivered:true\n"
        outbox = self.outbox
        outbox.write(head + common)
        self.counters.messages_out += 1
        if outbox.size > PAUSE_BYTES and one.consumer is not None:
            credit = one.consumer.credit
            if not credit.paused:
                credit.pause()
                outbox.when_drained(credit.resume)

    def acknowledge(self, id: str, *, accepted: bool, headers: dict[str, str]) -> None:
        """Settle a message, or all up to it where the subscription's mode is `client`."""
        number = int(id) if id.isascii() and id.isdigit() and len(id) < 16 else -1
        held = self._held.get(number)
        if held is None:
            raise StompError(f"no message {id[:80]!r} to acknowledge", "ack")
        one = held[1]
        if accepted:
            outcome = Outcome.ACCEPT
        elif headers.get("requeue") == "false":
            outcome = Outcome.REJECT
        else:
            outcome = Outcome.RELEASE
        numbers = [number]
        if one.ack == "client":  # Cumulative ("SUBSCRIBE ack Header").
            numbers = [n for n, (_, owner) in self._held.items() if owner is one and n <= number]
        deliveries = [self._held.pop(n)[0] for n in numbers]
        for delivery in deliveries if outcome is not Outcome.RELEASE else reversed(deliveries):
            delivery.settle(outcome)

    def end(self) -> None:
        """End every subscription and give deliveries back, in order."""
        if self.ended:
            return
        self.ended = True
        for one in self._by_id.values():
            if one.consumer is not None:
                one.consumer.credit.pause()
        queues: dict[Queue, list[Delivery]] = {}
        for delivery, _ in self._held.values():
            queues.setdefault(delivery.queue, []).append(delivery)
        self._held.clear()
        for queue, deliveries in queues.items():
            queue.release_all(deliveries)
        for one in self._by_id.values():
            self._end(one)
        self._by_id.clear()
        for name in self._temporary.values():
            temporary = self._client.queue(name)
            if temporary is not None:
                self._client.delete(temporary)


def _prefetch(headers: dict[str, str]) -> int:
    text = headers.get("prefetch-count") or headers.get("activemq.prefetchSize")
    if text is None:
        return PREFETCH
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0 and len(text) < 9):
        raise StompError(f"prefetch-count {text[:40]!r} is no positive number", "header")
    return int(text)
