"""Exchanges: names for subtrees of the topic space, shared by all AMQP connections of a node.

Exchange `orders` and routing key `eu.new` are topic `orders/eu/new`; `amq.topic` is the root. What
an exchange's type decides is only which filter a binding stands for.

Invariant: `topic_of` and `address_of` are inverse for every topic whose first level names a
declared exchange, and for all others by way of `amq.topic`.
"""

from dataclasses import dataclass, field
from typing import Final

from mesh_core.address import AddressError, check_topic, swap_filter, swap_topic
from mesh_core.event import Event, HeaderValue
from mesh_core.queue import Queue
from mesh_core.router import Predicate

ROOT: Final = "amq.topic"
TYPES: Final = ("direct", "fanout", "topic", "headers")
PREDECLARED: Final = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    ROOT: "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}
REPLY_TOPIC: Final = "/topics/"
"""Prefix of a reply address that is a topic; see docs/amqp.md."""


@dataclass(eq=False, slots=True)
class Exchange:
    """A declared exchange.

    Attributes:
        name, type, durable, auto_delete, internal: as declared.
        bound: its bindings, as (queue, filter, key of the router's binding).
    """

    name: str
    type: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    bound: list[tuple[Queue, str, object]] = field(default_factory=list)

    def topic_of(self, routing_key: str) -> str:
        """Return the topic that publishing with `routing_key` goes to.

        Raises:
            AddressError: the key holds a wildcard, and the exchange's type looks at keys.
        """
        try:
            if self.name == ROOT:
                return check_topic(swap_topic(routing_key)) if routing_key else ROOT
            if "*" in routing_key:
                raise AddressError(f"routing key {routing_key!r} holds a wildcard")
            return check_topic(
                f"{self.name}/{swap_topic(routing_key)}" if routing_key else self.name
            )
        except AddressError:
            if self.type in ("fanout", "headers"):  # Their keys mean nothing.
                return self.name
            raise

    def filter_of(self, routing_key: str) -> str:
        """Return the filter that a binding with `routing_key` stands for (§3.1.3).

        Raises:
            AddressError: the key makes no legal filter.
        """
        if self.type in ("fanout", "headers"):
            return f"{self.name}/#"
        if self.type == "direct":
            return self.topic_of(routing_key)
        pattern = swap_filter(routing_key)
        if self.name == ROOT:
            return pattern or ROOT
        return f"{self.name}/{pattern}" if pattern else self.name

    def predicate_of(self, arguments: dict[str, HeaderValue]) -> Predicate | None:
        """Return what a binding's arguments demand of the headers (§3.1.3.4)."""
        return headers_predicate(arguments) if self.type == "headers" else None


def headers_predicate(arguments: dict[str, HeaderValue]) -> Predicate:
    """Return the predicate of a headers binding: `x-match` all, any, all-with-x or any-with-x."""
    match = str(arguments.get("x-match", "all"))
    with_x = match.endswith("-with-x")
    wanted = {
        name: value
        for name, value in arguments.items()
        if name != "x-match" and (with_x or not name.startswith("x-"))
    }
    every = match.startswith("all")

    def holds(event: Event) -> bool:
        headers = dict(event.headers)
        hits = (
            name in headers and (value is None or headers[name] == value)
            for name, value in wanted.items()
        )
        return all(hits) if every else any(hits)

    return holds


class Exchanges:
    """The exchanges of a node by name.

    Attributes:
        version: changes whenever an exchange comes or goes, for caches of `address_of`.
    """

    def __init__(self) -> None:
        self._by_name = {name: Exchange(name, type) for name, type in PREDECLARED.items()}
        self.version = 0

    def get(self, name: str) -> Exchange | None:
        """Return the exchange `name`, or None."""
        return self._by_name.get(name)

    def add(self, exchange: Exchange) -> None:
        """Add a declared exchange.

        Raises:
            AddressError: its name can't be part of a topic.
        """
        check_topic(exchange.name)
        self._by_name[exchange.name] = exchange
        self.version += 1

    def remove(self, exchange: Exchange) -> None:
        """Remove an exchange."""
        if self._by_name.pop(exchange.name, None) is not None:
            self.version += 1

    def address_of(self, event: Event) -> tuple[str, str]:
        """Return exchange and routing key as a consumer sees them."""
        topic = event.topic
        if not topic:
            return "", event.queue or ""
        first, slash, rest = topic.partition("/")
        if first in self._by_name:
            if first == ROOT and not slash:
                return ROOT, ""
            if first != ROOT:
                return first, swap_topic(rest)
        return ROOT, swap_topic(topic)
