"""Retained values: the last retained event of each topic, looked up by filter.

In memory here; a store that persists them stands behind the same interface.

Invariant: a topic has at most one value, and an expired one is never returned.
"""

from mesh_core.event import Event
from mesh_core.matcher import TopicTree


class RetainedValues:
    """The retained event of each topic."""

    __slots__ = ("_values", "limit")

    def __init__(self, limit: int = 1_000_000) -> None:
        """Make an empty set that holds at most `limit` topics."""
        self._values: TopicTree[Event] = TopicTree()
        self.limit = limit

    def __len__(self) -> int:
        """Return how many topics have a value, expired ones that nobody has asked for included."""
        return len(self._values)

    def put(self, event: Event) -> bool:
        """Make `event` its topic's value; return False if `limit` topics have one already."""
        if len(self._values) >= self.limit and self._values.get(event.topic) is None:
            return False
        self._values.put(event.topic, event)
        return True

    def clear(self, topic: str) -> bool:
        """Remove the topic's value; return whether there was one."""
        return self._values.pop(topic) is not None

    def get(self, topic: str) -> Event | None:
        """Return the topic's value, or None."""
        event = self._values.get(topic)
        if event is not None and event.expired():
            self._values.pop(topic)
            return None
        return event

    def match(self, filter: str) -> list[Event]:
        """Return the values of all topics that `filter` matches, in no particular order."""
        events = (self.get(topic) for topic in self._values.match(filter))
        return [event for event in events if event is not None]
