"""Destinations of STOMP ↔ topics and queues; the table stands in docs/stomp.md.

Invariant: `destination_of(event)` names a destination that SEND takes to the same place.
"""

from typing import Final, NamedTuple

from mesh_core.address import (
    AddressError,
    check_queue_name,
    check_topic,
    queue_of,
    swap_filter,
    swap_topic,
)
from mesh_core.event import Event

TOPIC: Final = "/topic/"
QUEUE: Final = "/queue/"
EXCHANGE: Final = "/exchange/"
TEMP_QUEUE: Final = "/temp-queue/"
ROOT_EXCHANGE: Final = "amq.topic"


class Destination(NamedTuple):
    """Where a frame goes: a topic (or filter), a queue, or a queue of this connection only."""

    topic: str = ""
    queue: str = ""
    temporary: str = ""


def parse(destination: str, *, dots: bool, pattern: bool) -> Destination:
    """Return what `destination` stands for.

    Args:
        destination: the header's value.
        dots: whether `.` separates levels (and `/` stands for a dot), as JMS users write it.
        pattern: whether wildcards are allowed (SUBSCRIBE).

    Raises:
        AddressError: it is none of the known forms, or not a legal topic or queue name.
    """
    if destination.startswith(TOPIC):
        return Destination(topic=_topic(destination[len(TOPIC) :], dots, pattern))
    if destination.startswith(QUEUE):
        return Destination(queue=check_queue_name(destination[len(QUEUE) :]))
    if destination.startswith(TEMP_QUEUE):
        return Destination(temporary=check_queue_name(destination[len(TEMP_QUEUE) :]))
    if destination.startswith(EXCHANGE):
        exchange, _, key = destination[len(EXCHANGE) :].partition("/")
        key = _topic(key, True, pattern) if key else ""
        if exchange == ROOT_EXCHANGE:
            return Destination(topic=key or ROOT_EXCHANGE)
        return Destination(topic=check_topic(f"{exchange}/{key}" if key else exchange))
    if destination and destination[0] != "/":
        return Destination(queue=check_queue_name(destination))
    raise AddressError(
        f"destination {destination!r}: use {TOPIC}, {QUEUE}, {TEMP_QUEUE} or {EXCHANGE}"
    )


def _topic(text: str, dots: bool, pattern: bool) -> str:
    if not pattern:
        return check_topic(swap_topic(text) if dots else text)
    if not dots:
        return text.replace("*", "+")
    filter = swap_filter(text)
    if ">" in filter:  # ActiveMQ's name for what is `#` here
        filter = "/".join("#" if level == ">" else level for level in filter.split("/"))
    return filter


def destination_of(event: Event, dots: bool) -> str:
    """Return the `destination` of a MESSAGE."""
    if event.topic:
        return TOPIC + (swap_topic(event.topic) if dots else event.topic)
    return QUEUE + (event.queue or "")


def reply_destination(address: str, dots: bool) -> str:
    """Return a reply address as a destination."""
    queue = queue_of(address)
    if queue is not None:
        return QUEUE + queue
    return TOPIC + (swap_topic(address) if dots else address)
