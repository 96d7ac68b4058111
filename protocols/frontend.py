"""What every protocol front-end is given and what it implements: the contract between them.

Given: a `Broker` (authentication, limits, counters), and per authenticated peer a `Client`, the
only way to the router. Implemented: `Session`, the sans-IO state machine of one peer. The socket
side (`protocols.connection`) is shared.

Invariant: no session holds a `Router`. Whatever a peer does to topics and queues goes through its
`Client`, which asks the authorizer first, so that no front-end can forget the question. An
authorizer that raises means no.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

from mesh_core.address import check_filter, queue_address
from mesh_core.event import Event
from mesh_core.queue import Consumer, Delivery, Queue, QueueOptions
from mesh_core.receipt import REFUSED, Receipt, Refusal
from mesh_core.router import Binding, Deliver, Owner, Predicate, Router, Subscription
from protocols.outbox import Outbox

log = logging.getLogger("meshgate")


class ProtocolError(Exception):
    """The peer broke its protocol; each package derives its own with the code to answer with.

    Attributes:
        reason: the code or word that the protocol prescribes, for the answer and the counter.
    """

    def __init__(self, message: str, reason: int | str) -> None:
        super().__init__(message)
        self.reason = reason


class NotAuthorized(Exception):
    """The client may not do that. The text names the action and the address."""


class Action(Enum):
    """What an authorizer is asked about."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    CONSUME = "consume"
    CONFIGURE = "configure"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer presented.

    Attributes:
        protocol: the listener's name (`mqtt`, `amqp`, …).
        address: the peer's IP address; "" for a peer without one.
        username: None if it named nobody.
        password: None if it gave none.
        client_id: the protocol's own client identifier, if it has one.
    """

    protocol: str
    address: str
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    client_id: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is: `user` is None for an anonymous one."""

    user: str | None = None


Authenticated: TypeAlias = Callable[[Identity | None], None]


class Authenticator(Protocol):
    """Decides who a peer is."""

    def authenticate(self, credentials: Credentials, done: Authenticated) -> None:
        """Call `done` with the identity, or with None for a refusal; at once or later."""
        ...


class Authorizer(Protocol):
    """Decides what a client may do."""

    def allows(self, client: "Client", action: Action, address: str) -> bool:
        """Tell whether `client` may do `action` on a topic, filter or ``$queue/<name>``."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold for every connection of a listener.

    Attributes:
        message_bytes: largest payload accepted, in bytes.
        outbox_bytes: what may wait for a slow peer, in bytes.
        handshake_seconds: how long a peer may take until it is authenticated.
        connections: most connections of the listener at a time.
        subscriptions: most subscriptions (and consumers) of one connection.
    """

    message_bytes: int = 16 * 1024 * 1024
    outbox_bytes: int = 16 * 1024 * 1024
    handshake_seconds: float = 10.0
    connections: int = 100_000
    subscriptions: int = 10_000


class Mode(Enum):
    """In which form events leave: see "Plain in, plain out" in docs/architecture.md."""

    AUTO = "auto"
    RAW = "raw"
    BINARY = "binary"
    STRUCTURED = "structured"


class Counters:
    """Plain integers of one listener, read by /metrics.

    Attributes:
        opened, closed: connections.
        messages_in, messages_out: events published by and delivered to its peers.
        bytes_in, bytes_out: bytes read and written.
        dropped: transient deliveries dropped because a peer was too slow.
        refused: logins refused.
        protocol_errors: by the reason that was answered.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "closed",
        "dropped",
        "messages_in",
        "messages_out",
        "opened",
        "protocol_errors",
        "refused",
    )

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.messages_in = 0
        self.messages_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.dropped = 0
        self.refused = 0
        self.protocol_errors: Counter[str] = Counter()


class Client:
    """One authenticated peer's way to the router.

    Attributes:
        publish: `Router.publish` for this client: one call, no detour while there is no
            authorizer. The event's topic must have passed `check_topic`; a client that may not
            publish there gets a receipt refused with NOT_AUTHORIZED.
        identity: who it is.
        id: its own name for itself, for logs and rules; "" if it gave none.
        protocol: the listener's name.
        address: its IP address.
    """

    __slots__ = ("_authorizer", "_router", "address", "id", "identity", "protocol", "publish")

    def __init__(
        self,
        router: Router,
        authorizer: Authorizer | None,
        identity: Identity,
        credentials: Credentials,
    ) -> None:
        self._router = router
        self._authorizer = authorizer
        self.identity = identity
        self.id = credentials.client_id or ""
        self.protocol = credentials.protocol
        self.address = credentials.address
        self.publish: Callable[[Event], Receipt] = (
            router.publish if authorizer is None else self._checked_publish
        )

    def _checked_publish(self, event: Event) -> Receipt:
        if not self.may(Action.PUBLISH, event.topic):
            return REFUSED[Refusal.NOT_AUTHORIZED]
        return self._router.publish(event)

    def may(self, action: Action, address: str) -> bool:
        """Tell whether this client may do `action` on `address`."""
        if self._authorizer is None:
            return True
        try:
            return self._authorizer.allows(self, action, address)
        except Exception:
            log.exception("authorizer failed on %s %s: refused", action.value, address)
            return False

    def require(self, action: Action, address: str) -> None:
        """Do nothing if this client may do `action` on `address`.

        Raises:
            NotAuthorized: it may not.
        """
        if not self.may(action, address):
            raise NotAuthorized(f"not authorized to {action.value} {address}")

    def send(self, event: Event, *, create: bool = False) -> Receipt:
        """Put `event` straight into the queue `event.queue`.

        Args:
            event: with a queue.
            create: make the queue if there is none; otherwise that is a refusal.

        Raises:
            AddressError: the queue must be made and its name is none.
        """
        name = event.queue or ""
        if not self.may(Action.PUBLISH, queue_address(name)):
            return REFUSED[Refusal.NOT_AUTHORIZED]
        if create and name not in self._router.queues:
            if not self.may(Action.CONFIGURE, queue_address(name)):
                return REFUSED[Refusal.NOT_AUTHORIZED]
            self._router.declare(name)
        return self._router.send(event)

    def subscribe(
        self,
        filter: str,
        deliver: Deliver,
        owner: Owner | None = None,
        predicate: Predicate | None = None,
    ) -> Subscription:
        """Subscribe `deliver` to `filter`; see `mesh_core.router.Subscription`.

        Raises:
            AddressError: `filter` is no filter.
            NotAuthorized: the client may not subscribe to it.
        """
        check_filter(filter)
        self.require(Action.SUBSCRIBE, filter)
        subscription = Subscription(filter, deliver, owner, predicate)
        self._router.subscribe(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End `subscription`."""
        self._router.unsubscribe(subscription)

    def retained(self, filter: str) -> list[Event]:
        """Return the retained values of the topics that match `filter` and may be read."""
        events = self._router.retained.match(filter)
        if self._authorizer is None:
            return events
        return [event for event in events if self.may(Action.SUBSCRIBE, event.topic)]

    def clear_retained(self, topic: str) -> bool:
        """Remove the topic's retained value; return whether there was one.

        Raises:
            NotAuthorized: the client may not publish to it.
        """
        self.require(Action.PUBLISH, topic)
        return self._router.retained.clear(topic)

    def queue(self, name: str) -> Queue | None:
        """Return the queue `name` if it exists."""
        return self._router.queues.get(name)

    def declare(
        self, name: str, options: QueueOptions | None = None, owner: object | None = None
    ) -> Queue:
        """Return the queue `name`, made if it does not exist; see `Router.declare`.

        Raises:
            AddressError: `name` is no queue name.
            QueueMismatch: it exists with other options, or exclusively for another owner.
            NotAuthorized: it does not exist and the client may not configure it.
        """
        if name not in self._router.queues:
            self.require(Action.CONFIGURE, queue_address(name))
        return self._router.declare(name, options, owner)

    def delete(self, queue: Queue) -> int:
        """Delete `queue`; return how many messages went.

        Raises:
            NotAuthorized: the client may not configure it.
        """
        self.require(Action.CONFIGURE, queue_address(queue.name))
        return self._router.delete(queue)

    def purge(self, queue: Queue) -> int:
        """Drop what is ready in `queue`; return how many messages went.

        Raises:
            NotAuthorized: the client may not configure it.
        """
        self.require(Action.CONFIGURE, queue_address(queue.name))
        return queue.purge()

    def bind(
        self, queue: Queue, filter: str, predicate: Predicate | None = None, key: object = None
    ) -> None:
        """Bind `queue` to `filter`; see `Router.bind`.

        Raises:
            AddressError: `filter` is no filter.
            NotAuthorized: the client may not configure the queue or subscribe to the filter.
        """
        check_filter(filter)
        self.require(Action.CONFIGURE, queue_address(queue.name))
        self.require(Action.SUBSCRIBE, filter)
        self._router.bind(queue, filter, predicate, key)

    def unbind(self, queue: Queue, filter: str, key: object = None) -> bool:
        """Undo `bind`; return False if there was no such binding.

        Raises:
            NotAuthorized: the client may not configure the queue.
        """
        self.require(Action.CONFIGURE, queue_address(queue.name))
        return self._router.unbind(queue, filter, key)

    def bindings(self, queue: Queue) -> tuple[Binding, ...]:
        """Return the queue's bindings, oldest first."""
        return self._router.bindings(queue)

    def consume(self, queue: Queue, consumer: Consumer, *, exclusive: bool = False) -> None:
        """Add `consumer` to `queue`; see `mesh_core.queue.Queue.consume`.

        Raises:
            QueueError: exclusive use stands in the way.
            NotAuthorized: the client may not consume from it.
        """
        self.require(Action.CONSUME, queue_address(queue.name))
        queue.consume(consumer, exclusive=exclusive)

    def get(self, queue: Queue) -> Delivery | None:
        """Take one message from `queue`, or None if it is empty.

        Raises:
            NotAuthorized: the client may not consume from it.
        """
        self.require(Action.CONSUME, queue_address(queue.name))
        return queue.get()


class Broker:
    """What a node hands to each of its front-ends.

    Attributes:
        name: the listener's name, for credentials, logs and metrics.
        limits: the bounds of its connections.
        counters: where it counts.
        mode: in which form events leave unless the subscription says otherwise.
    """

    __slots__ = ("_authenticator", "_authorizer", "_router", "counters", "limits", "mode", "name")

    def __init__(
        self,
        name: str,
        router: Router,
        authenticator: Authenticator,
        authorizer: Authorizer | None = None,
        limits: Limits | None = None,
        mode: Mode = Mode.AUTO,
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self.counters = Counters()
        self.mode = mode
        self._router = router
        self._authenticator = authenticator
        self._authorizer = authorizer

    def authenticate(self, credentials: Credentials, done: Callable[[Client | None], None]) -> None:
        """Call `done` with a `Client`, or with None for a refusal; at once or later.

        The session must be able to hear from its peer, and to be lost, in between.
        """

        def decided(identity: Identity | None) -> None:
            if identity is None:
                self.counters.refused += 1
                done(None)
            else:
                done(Client(self._router, self._authorizer, identity, credentials))

        try:
            self._authenticator.authenticate(credentials, decided)
        except Exception:
            log.exception("authenticator failed for %s: refused", credentials.address)
            decided(None)


class Session(Protocol):
    """The state machine of one peer: bytes in, calls on its `Client`, bytes out to its outbox.

    Sans-IO: no socket, no loop; the clock is handed in. Whoever drives it calls these verbs, then
    takes what is in the outbox, and closes the socket once `closed` is True and the outbox is
    empty.
    """

    closed: bool
    """Whether nothing more will be read or said."""

    def receive(self, data: bytes) -> None:
        """Take what the peer sent. Never raises: a peer's mistake is answered and closes."""
        ...

    def timeout(self, now: float) -> float | None:
        """Do what is due at `now` (the clock's seconds).

        Called once at the start, and again at the moment it returns (None: not again). A session
        whose deadline moves later in the meantime just answers the new one when asked.
        """
        ...

    def shutdown(self) -> None:
        """Say goodbye in the protocol's words because the node stops, then be `closed`."""
        ...

    def lost(self) -> None:
        """Let go of everything: the connection is gone. Called exactly once, always last."""
        ...


SessionFactory: TypeAlias = Callable[["SessionContext"], Session]


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What a session is made with.

    Attributes:
        outbox: where it writes.
        address: the peer's IP address; "" if it has none.
        clock: returns seconds that only grow.
    """

    outbox: Outbox
    address: str
    clock: Callable[[], float]
