"""Named queues: competing consumers, credit, settlement, redelivery, expiry, limits.

Everything that outlives a connection is a queue; every protocol's prefetch is `Credit`, every
protocol's acknowledgement is `settle`. This file keeps messages in memory; a store that persists
them stands behind the same interface.

States of a delivery, and who moves it:

    READY  --hand-over to a consumer, or get()-->  HELD
    HELD   --settle(ACCEPT)-->  GONE      (the consumer is done with it)
    HELD   --settle(RELEASE)--> READY     (back to the place it had, counted as redelivered)
    HELD   --settle(REJECT)-->  GONE      (refused for good: dead-lettered where that is set up)
    READY  --expiry, purge, overflow-->  GONE

Invariant: a message is HELD by at most one consumer, READY messages are in order of `sequence`,
and a consumer that has credit never waits while a READY message exists.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType

from mesh_core.event import Event
from mesh_core.receipt import ACCEPTED, REFUSED, Receipt, Refusal

Sequence = NewType("Sequence", int)
"""A message's place in its queue; grows with every message that enters."""

UNLIMITED: Final = 1 << 60


class Outcome(Enum):
    """How a consumer settles a delivery."""

    ACCEPT = "accept"
    RELEASE = "release"
    REJECT = "reject"


class State(Enum):
    """Where a delivery stands; see the table at the head of this file."""

    READY = "ready"
    HELD = "held"
    GONE = "gone"


# Module names, because looking a member up in its Enum costs several times as much.
_READY: Final = State.READY
_HELD: Final = State.HELD
_GONE: Final = State.GONE
_RELEASE: Final = Outcome.RELEASE
_REJECT: Final = Outcome.REJECT


class Delivery:
    """One message in one queue, and its hand-overs.

    Attributes:
        queue: the queue it is in.
        event: the message.
        sequence: its place in the queue.
        failures: how often it was handed over and came back; `redelivered` is failures > 0.
        consumer: who holds it; None when it was taken with `get()` or is not held.
        tag: room for the front-end's own name for it (delivery tag, packet id).
    """

    __slots__ = ("consumer", "event", "failures", "queue", "sequence", "state", "tag")

    def __init__(self, queue: "Queue", event: Event, sequence: Sequence) -> None:
        self.queue = queue
        self.event = event
        self.sequence = sequence
        self.failures = 0
        self.consumer: Consumer | None = None
        self.state = _READY
        self.tag = 0

    @property
    def redelivered(self) -> bool:
        """Whether it may have been seen before."""
        return self.failures > 0

    def settle(self, outcome: Outcome) -> bool:
        """Settle it; return False if it was not held (settled before, or released)."""
        return self.queue.settle(self, outcome)


class Credit:
    """How many more deliveries its consumers may hold; several may share one (AMQP channels).

    Attributes:
        available: deliveries that may still be handed over.
        paused: while True nothing is handed over, whatever is available (a full outbox).
    """

    __slots__ = ("available", "consumers", "paused")

    def __init__(self, available: int = UNLIMITED) -> None:
        self.available = available
        self.paused = False
        self.consumers: list[Consumer] = []

    def add(self, amount: int) -> None:
        """Grant `amount` more (negative takes back), and hand over what waits for it."""
        self.available += amount
        if self.available > 0 and not self.paused:
            self._dispatch()

    def pause(self) -> None:
        """Stop hand-overs until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Allow hand-overs again, and hand over what waits."""
        if self.paused:
            self.paused = False
            if self.available > 0:
                self._dispatch()

    def _dispatch(self) -> None:
        consumers = self.consumers
        if len(consumers) == 1:
            consumer = consumers[0]
            consumer.queue.offer_to(consumer)
            return
        for consumer in tuple(consumers):
            consumer.queue.offer_to(consumer)
        if consumers:
            # Who shares credit takes turns at being first.
            consumers.append(consumers.pop(0))


class Consumer:
    """One consumer of one queue.

    Args:
        deliver: called with each `Delivery` handed over; must not raise.
        credit: shared or own; consumers of one `Credit` share its count.
        auto_accept: settle at hand-over (AMQP no-ack, STOMP ack:auto, MQTT QoS 0).
        cancelled: called if the queue ends the consumer (the queue was deleted).
        owner: the connection it belongs to; compared by identity.
    """

    __slots__ = (
        "active",
        "auto_accept",
        "cancelled",
        "credit",
        "deliver",
        "owner",
        "queue",
        "waiting",
    )

    def __init__(
        self,
        deliver: Callable[[Delivery], None],
        credit: Credit | None = None,
        *,
        auto_accept: bool = False,
        cancelled: Callable[[], None] | None = None,
        owner: object | None = None,
    ) -> None:
        self.deliver = deliver
        self.credit = credit if credit is not None else Credit()
        self.auto_accept = auto_accept
        self.cancelled = cancelled
        self.owner = owner
        self.queue: Queue
        self.active = False
        self.waiting = False


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """What a queue was declared with.

    Attributes:
        durable: survives a restart.
        auto_delete: goes when its last consumer has gone.
        exclusive: only its `owner` may use it; it goes with the owner.
        max_length: most READY messages; None for no limit.
        max_bytes: most bytes of READY payloads; None for no limit.
    """

    durable: bool = True
    auto_delete: bool = False
    exclusive: bool = False
    max_length: int | None = None
    max_bytes: int | None = None


class QueueError(Exception):
    """A queue can't do what was asked: exclusive use, for one. The text names the queue."""


class Queue:
    """A named buffer that hands each message to one of its consumers.

    Made by `mesh_core.router.Router.declare`, never directly outside of tests.
    """

    __slots__ = (
        "_bytes",
        "_consumers",
        "_dispatching",
        "_exclusive_consumer",
        "_next_sequence",
        "_on_unused",
        "_ready",
        "_waiting",
        "deleted",
        "dropped",
        "expired",
        "name",
        "options",
        "owner",
        "published",
        "rejected",
        "unsettled",
    )

    def __init__(
        self,
        name: str,
        options: QueueOptions,
        owner: object | None = None,
        on_unused: Callable[["Queue"], object] | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.owner = owner
        self.deleted = False
        self.published = 0
        self.expired = 0
        self.rejected = 0
        self.dropped = 0
        self.unsettled = 0
        self._on_unused = on_unused
        self._ready: deque[Delivery] = deque()
        self._bytes = 0
        self._consumers: dict[Consumer, None] = {}
        self._exclusive_consumer: Consumer | None = None
        # Consumers that had credit when last looked at, in turn.
        self._waiting: deque[Consumer] = deque()
        self._next_sequence = 1
        self._dispatching = False

    def __len__(self) -> int:
        """Return how many messages are READY."""
        return len(self._ready)

    def __bool__(self) -> bool:
        """Return True: an empty queue is a queue, and `if queue` asks whether there is one."""
        return True

    def __repr__(self) -> str:
        return f"<Queue {self.name!r} {len(self._ready)} ready, {self.unsettled} unsettled>"

    @property
    def consumers(self) -> int:
        """How many consumers it has."""
        return len(self._consumers)

    @property
    def bytes(self) -> int:
        """Bytes of the payloads that are READY."""
        return self._bytes

    def enqueue(self, event: Event) -> Receipt:
        """Take `event`: hand it over if a consumer has credit, else keep it.

        Returns:
            A receipt; refused with QUEUE_FULL if a limit of the queue is reached.
        """
        options = self.options
        ready = self._ready
        if options.max_length is not None or options.max_bytes is not None:
            if self._over_limit(event) and not (
                self._drop_expired() and not self._over_limit(event)
            ):
                self.dropped += 1
                return REFUSED[Refusal.QUEUE_FULL]
        delivery = Delivery(self, event, Sequence(self._next_sequence))
        self._next_sequence += 1
        self.published += 1
        if not ready and not self._dispatching:
            consumer = self._next_consumer()
            if consumer is not None:
                if event.expires_at is not None and event.expired():
                    self.expired += 1
                    delivery.state = _GONE
                    return ACCEPTED
                self._hand_over(delivery, consumer)
                return ACCEPTED
        ready.append(delivery)
        self._bytes += len(event.data)
        return ACCEPTED

    def _over_limit(self, event: Event) -> bool:
        options = self.options
        if options.max_length is not None and len(self._ready) >= options.max_length:
            return True
        return options.max_bytes is not None and self._bytes + len(event.data) > options.max_bytes

    def consume(self, consumer: Consumer, *, exclusive: bool = False) -> None:
        """Add `consumer`, and hand it what waits, up to its credit.

        Raises:
            QueueError: another consumer is exclusive, or `exclusive` is asked while there are
                others (AMQP 0-9-1 basic.consume "exclusive").
        """
        if self._exclusive_consumer is not None:
            raise QueueError(f"queue {self.name!r} has an exclusive consumer")
        if exclusive:
            if self._consumers:
                raise QueueError(f"queue {self.name!r} already has consumers")
            self._exclusive_consumer = consumer
        consumer.queue = self
        consumer.active = True
        self._consumers[consumer] = None
        consumer.credit.consumers.append(consumer)
        self.offer_to(consumer)

    def cancel(self, consumer: Consumer) -> None:
        """Remove `consumer`; what it holds stays held until it is settled."""
        if not consumer.active:
            return
        self._detach(consumer)
        if self.options.auto_delete and not self._consumers and self._on_unused is not None:
            self._on_unused(self)

    def _detach(self, consumer: Consumer) -> None:
        consumer.active = False
        del self._consumers[consumer]
        consumer.credit.consumers.remove(consumer)
        if consumer.waiting:
            self._waiting.remove(consumer)
            consumer.waiting = False
        if self._exclusive_consumer is consumer:
            self._exclusive_consumer = None

    def get(self) -> Delivery | None:
        """Take the first message without being a consumer; it is held until settled."""
        delivery = self._take(time.time())
        if delivery is not None:
            delivery.state = _HELD
            self.unsettled += 1
        return delivery

    def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Settle a held delivery; return False if it is not held (any more)."""
        if delivery.state is not _HELD:
            return False
        self.unsettled -= 1
        consumer = delivery.consumer
        delivery.consumer = None
        if outcome is _RELEASE and not self.deleted:
            delivery.state = _READY
            delivery.failures += 1
            self._put_back(delivery)
        else:
            delivery.state = _GONE
            self.rejected += outcome is _REJECT
        if consumer is not None:
            consumer.credit.add(1)
        if self._ready:
            self._dispatch()
        return True

    def release_all(self, deliveries: Iterable[Delivery]) -> None:
        """Put back what a lost connection held, in order, before anything is handed over again."""
        self._dispatching, before = True, self._dispatching
        try:
            for delivery in sorted(deliveries, key=_by_sequence, reverse=True):
                self.settle(delivery, Outcome.RELEASE)
        finally:
            self._dispatching = before
        self._dispatch()

    def purge(self) -> int:
        """Drop what is READY; return how many messages that were."""
        count = len(self._ready)
        for delivery in self._ready:
            delivery.state = _GONE
        self._ready.clear()
        self._bytes = 0
        return count

    def delete(self) -> int:
        """End the queue: purge it and cancel its consumers; return how many messages went."""
        self.deleted = True
        count = self.purge()
        for consumer in tuple(self._consumers):
            self._detach(consumer)
            if consumer.cancelled is not None:
                consumer.cancelled()
        return count

    def offer_to(self, consumer: Consumer) -> None:
        """Note that `consumer` may have credit again, and hand over what waits."""
        if not consumer.waiting and consumer.active:
            consumer.waiting = True
            self._waiting.append(consumer)
        if self._ready:
            self._dispatch()

    def _next_consumer(self) -> Consumer | None:
        waiting = self._waiting
        while waiting:
            consumer = waiting[0]
            credit = consumer.credit
            if credit.available > 0 and not credit.paused:
                if len(waiting) > 1:
                    waiting.rotate(-1)
                return consumer
            waiting.popleft()
            consumer.waiting = False
        return None

    def _dispatch(self) -> None:
        # A consumer that settles within deliver() comes back here: the outer call goes on.
        if self._dispatching:
            return
        self._dispatching = True
        try:
            ready = self._ready
            now = time.time() if ready else 0.0
            while ready:
                consumer = self._next_consumer()
                if consumer is None:
                    return
                delivery = self._take(now)
                if delivery is None:
                    return
                self._hand_over(delivery, consumer)
        finally:
            self._dispatching = False

    def _take(self, now: float) -> Delivery | None:
        ready = self._ready
        while ready:
            delivery = ready.popleft()
            event = delivery.event
            self._bytes -= len(event.data)
            if event.expires_at is None or now < event.expires_at:
                return delivery
            delivery.state = _GONE
            self.expired += 1
        return None

    def _hand_over(self, delivery: Delivery, consumer: Consumer) -> None:
        if consumer.auto_accept:
            delivery.state = _GONE
        else:
            delivery.state = _HELD
            delivery.consumer = consumer
            consumer.credit.available -= 1
            self.unsettled += 1
        consumer.deliver(delivery)

    def _put_back(self, delivery: Delivery) -> None:
        ready = self._ready
        self._bytes += len(delivery.event.data)
        place = 0
        for waiting in ready:
            if waiting.sequence > delivery.sequence:
                break
            place += 1
        ready.insert(place, delivery)

    def _drop_expired(self) -> bool:
        """Drop what has expired at the head, where `_take` would drop it; tell if anything went."""
        before = self.expired
        delivery = self._take(time.time())
        if delivery is not None:
            self._ready.appendleft(delivery)
            self._bytes += len(delivery.event.data)
        return self.expired > before


def _by_sequence(delivery: Delivery) -> int:
    return delivery.sequence
