"""The router: publish, subscribe, bind, queues, retained values. The hot path of everything.

It knows no protocol, no connection and no permissions (`protocols.frontend.Client` asks before it
calls). One event loop, one thread.

Invariant: between two publishes to a topic, its cached `Route` equals what the matcher would say:
whoever changes a filter's subscriptions forgets exactly the routes of the topics it matches.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, Protocol, TypeAlias

from mesh_core.address import check_filter, check_queue_name
from mesh_core.event import Event
from mesh_core.matcher import Matcher, TopicTree
from mesh_core.queue import Queue, QueueOptions
from mesh_core.receipt import ACCEPTED, REFUSED, UNROUTED, Receipt, Refusal, combined
from mesh_core.retained import RetainedValues

Deliver: TypeAlias = Callable[[Event], None]
"""Takes an event; never raises, never blocks, and drops (and counts) when its peer is too slow."""

Predicate: TypeAlias = Callable[[Event], bool]

ROUTE_CACHE: Final = 65_536
"""Topics whose subscribers are kept ready; about 1 KiB each."""


class Owner(Protocol):
    """Several subscriptions of one owner that match one topic make one delivery."""

    def merge(self, subscriptions: "list[Subscription]") -> Deliver:
        """Return what delivers one event for all of `subscriptions` (two or more, all matching).

        Called when a route is made, not per event; predicates are applied by the callee.
        """
        ...


class Subscription:
    """One transient subscription: events that match are handed to `deliver` as they are published.

    Attributes:
        filter: the topic filter.
        deliver: called with each event.
        owner: if set, overlapping subscriptions of the same owner are merged.
        predicate: if set, only events for which it is True are delivered.
    """

    __slots__ = ("deliver", "filter", "owner", "predicate")

    def __init__(
        self,
        filter: str,
        deliver: Deliver,
        owner: Owner | None = None,
        predicate: Predicate | None = None,
    ) -> None:
        self.filter = filter
        self.deliver = deliver
        self.owner = owner
        self.predicate = predicate


class Binding:
    """A queue's interest in a filter; a queue takes an event once however many of its bindings match.

    Attributes:
        filter: the topic filter.
        queue: where matching events go.
        predicate: if set, only events for which it is True.
        key: tells bindings with the same filter apart (AMQP exchange and arguments).
    """

    __slots__ = ("filter", "key", "predicate", "queue")

    def __init__(
        self, filter: str, queue: Queue, predicate: Predicate | None = None, key: object = None
    ) -> None:
        self.filter = filter
        self.queue = queue
        self.predicate = predicate
        self.key = key


class Route:
    """Where the events of one topic go, shaped for the loop in `Router.publish`.

    Attributes:
        deliver: one callable per transient delivery.
        queues: the queues, each with the predicates of which one must hold; () for always.
        receipt: what a publisher gets when there are no queues.
    """

    __slots__ = ("deliver", "queues", "receipt")

    def __init__(
        self,
        deliver: tuple[Deliver, ...],
        queues: tuple[tuple[Queue, tuple[Predicate, ...]], ...],
    ) -> None:
        self.deliver = deliver
        self.queues = queues
        self.receipt = ACCEPTED if deliver else UNROUTED


class QueueMismatch(Exception):
    """A queue exists already, with other options or another owner. The text says which."""


class Router:
    """Connects publishers with subscriptions and queues.

    Attributes:
        retained: the retained values.
        queues: the queues by name; change them through `declare` and `delete` only.
        published: events published so far.
        unrouted: events of those that nobody wanted.
    """

    __slots__ = (
        "_bindings",
        "_matcher",
        "_route_cache",
        "_routes",
        "_topics",
        "published",
        "queues",
        "retained",
        "unrouted",
    )

    def __init__(self, route_cache: int = ROUTE_CACHE) -> None:
        """Make an empty router that keeps the routes of `route_cache` topics ready."""
        self.retained = RetainedValues()
        self.queues: dict[str, Queue] = {}
        self.published = 0
        self.unrouted = 0
        self._matcher: Matcher[Subscription | Binding] = Matcher()
        self._bindings: dict[Queue, list[Binding]] = {}
        # The dict alone serves publish(); the tree finds the topics that a new filter touches.
        self._routes: dict[str, Route] = {}
        self._topics: TopicTree[Route] = TopicTree()
        self._route_cache = route_cache

    # -- publishing ------------------------------------------------------------------------

    def publish(self, event: Event) -> Receipt:
        """Deliver `event` to everyone whose filter matches its topic.

        The topic must have passed `mesh_core.address.check_topic`. Transient subscribers have
        been called when this returns; queues have taken the event when the receipt is done.
        A retained event becomes its topic's value (also one with empty data: clearing is
        `retained.clear`).

        Returns:
            The receipt: UNROUTED if nothing matched.
        """
        self.published += 1
        route = self._routes.get(event.topic)
        if route is None:
            route = self._resolve(event.topic)
        if event.retain:
            self.retained.put(event)
        for deliver in route.deliver:
            deliver(event)
        if route.queues:
            return self._enqueue(route, event)
        if not route.deliver:
            self.unrouted += 1
        return route.receipt

    def _enqueue(self, route: Route, event: Event) -> Receipt:
        queues = route.queues
        if len(queues) == 1 and not queues[0][1]:
            return queues[0][0].enqueue(event)
        receipts: list[Receipt] = []
        for queue, predicates in queues:
            if not predicates or any(predicate(event) for predicate in predicates):
                receipts.append(queue.enqueue(event))
        if receipts:
            return receipts[0] if len(receipts) == 1 else combined(receipts)
        if not route.deliver:
            self.unrouted += 1
        return route.receipt

    def send(self, event: Event) -> Receipt:
        """Put `event` straight into the queue that `event.queue` names.

        Returns:
            The queue's receipt; refused with NO_SUCH_QUEUE if there is none of that name.
        """
        self.published += 1
        queue = self.queues.get(event.queue or "")
        if queue is None:
            self.unrouted += 1
            return REFUSED[Refusal.NO_SUCH_QUEUE]
        return queue.enqueue(event)

    # -- interest --------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Start delivering to `subscription`.

        Raises:
            AddressError: its filter is not one.
        """
        check_filter(subscription.filter)
        if self._matcher.add(subscription.filter, subscription):
            self._forget(subscription.filter)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop delivering to `subscription`; nothing happens if it was not subscribed."""
        if self._matcher.remove(subscription.filter, subscription):
            self._forget(subscription.filter)

    def bind(
        self, queue: Queue, filter: str, predicate: Predicate | None = None, key: object = None
    ) -> None:
        """Let events that match `filter` go to `queue`; the same (filter, key) replaces.

        Raises:
            AddressError: `filter` is not one.
        """
        check_filter(filter)
        self.unbind(queue, filter, key)
        binding = Binding(filter, queue, predicate, key)
        self._bindings.setdefault(queue, []).append(binding)
        self._matcher.add(filter, binding)
        self._forget(filter)

    def unbind(self, queue: Queue, filter: str, key: object = None) -> bool:
        """Undo `bind`; return False if there was no such binding."""
        bindings = self._bindings.get(queue, [])
        for binding in bindings:
            if binding.filter == filter and binding.key == key:
                bindings.remove(binding)
                self._matcher.remove(filter, binding)
                self._forget(filter)
                return True
        return False

    def bindings(self, queue: Queue) -> tuple[Binding, ...]:
        """Return the queue's bindings, oldest first."""
        return tuple(self._bindings.get(queue, ()))

    # -- queues ----------------------------------------------------------------------------

    def declare(
        self, name: str, options: QueueOptions | None = None, owner: object | None = None
    ) -> Queue:
        """Return the queue `name`, made if it does not exist.

        Args:
            name: 1 to 255 bytes.
            options: what it must have been declared with; None takes it as it is, or makes a
                durable one.
            owner: who an exclusive queue belongs to.

        Raises:
            AddressError: `name` is no queue name.
            QueueMismatch: it exists with other options, or exclusively for another owner.
        """
        queue = self.queues.get(name)
        if queue is not None:
            if queue.options.exclusive and queue.owner is not owner:
                raise QueueMismatch(f"queue {name!r} is exclusive to another connection")
            if options is not None and options != queue.options:
                raise QueueMismatch(
                    f"queue {name!r} exists with {queue.options}, not with {options}"
                )
            return queue
        check_queue_name(name)
        queue = Queue(name, options or QueueOptions(), owner, self.delete)
        self.queues[name] = queue
        return queue

    def delete(self, queue: Queue) -> int:
        """Delete `queue` with its bindings and consumers; return how many messages went."""
        if self.queues.get(queue.name) is queue:
            del self.queues[queue.name]
        for binding in self._bindings.pop(queue, ()):
            self._matcher.remove(binding.filter, binding)
            self._forget(binding.filter)
        return queue.delete()

    # -- routes ----------------------------------------------------------------------------

    def _resolve(self, topic: str) -> Route:
        route = _route(self._matcher.match(topic))
        routes = self._routes
        if len(routes) >= self._route_cache:
            for old in list(islice(routes, self._route_cache // 8 + 1)):
                del routes[old]
                self._topics.pop(old)
        routes[topic] = route
        self._topics.put(topic, route)
        return route

    def _forget(self, filter: str) -> None:
        for topic in self._topics.match(filter):
            del self._routes[topic]
            self._topics.pop(topic)


def _route(matched: Iterable[Subscription | Binding]) -> Route:
    deliver: list[Deliver] = []
    owned: dict[Owner, list[Subscription]] = {}
    queues: dict[Queue, list[Predicate] | None] = {}
    for entry in matched:
        if isinstance(entry, Binding):
            if entry.predicate is None:
                queues[entry.queue] = None
            else:
                predicates = queues.setdefault(entry.queue, [])
                if predicates is not None:
                    predicates.append(entry.predicate)
        elif entry.owner is None:
            deliver.append(_filtered(entry))
        else:
            owned.setdefault(entry.owner, []).append(entry)
    for owner, subscriptions in owned.items():
        if len(subscriptions) == 1:
            deliver.append(_filtered(subscriptions[0]))
        else:
            deliver.append(owner.merge(subscriptions))
    return Route(
        tuple(deliver),
        tuple((queue, tuple(predicates or ())) for queue, predicates in queues.items()),
    )


def _filtered(subscription: Subscription) -> Deliver:
    predicate = subscription.predicate
    deliver = subscription.deliver
    if predicate is None:
        return deliver

    def deliver_if(event: Event) -> None:
        if predicate(event):
            deliver(event)

    return deliver_if
