"""Server-Sent Events: what GET /events sends (WHATWG HTML §9.2).

Sans-IO but for an asyncio event to wake the writer: events are encoded as they are published, and
the writer takes all that has gathered in one piece.

Invariant: what waits for a slow reader is bounded; beyond the limit events are dropped and counted.
"""

import asyncio

from mesh_core.event import Event
from mesh_core.router import Deliver, Subscription
from protocols.bindings.json import encode_event
from protocols.frontend import Client, Counters

HEARTBEAT = b": \n\n"
_KEY = "sse"


def encode(event: Event) -> bytes:
    """Return an event as an SSE message: `id` and `data`, the structured CloudEvent."""
    message = event.wire.get(_KEY)
    if message is None:
        data = encode_event(event)
        if b"\n" in data or b"\r" in data:  # JSON data keeps its publisher's line ends.
            lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            data = lines.replace(b"\n", b"\ndata:")
        id = str(event.context["id"])
        # A line end or NUL in the id would break the message, or be ignored.
        head = f"id:{id}\n".encode() if id.isprintable() else b""
        message = event.wire[_KEY] = head + b"data:" + data + b"\n\n"
    return message


class EventStream:
    """One reader of GET /events.

    Attributes:
        dropped: events dropped because the reader was too slow.
    """

    def __init__(self, client: Client, counters: Counters, limit: int) -> None:
        self.dropped = 0
        self._client = client
        self._counters = counters
        self._limit = limit
        self._size = 0
        self._waiting: list[bytes] = []
        self._news = asyncio.Event()
        self._subscriptions: list[Subscription] = []

    def follow(self, filters: list[str], *, retained: bool) -> None:
        """Subscribe to each filter; raises what `Client.subscribe` raises."""
        first: dict[str, Event] = {}
        for filter in filters:
            self._subscriptions.append(self._client.subscribe(filter, self.deliver, self))
            if retained:
                first.update((event.topic, event) for event in self._client.retained(filter))
        for event in first.values():
            self.deliver(event)

    def merge(self, subscriptions: list[Subscription]) -> Deliver:
        """Deliver once, however many of the filters match."""
        return self.deliver

    def deliver(self, event: Event) -> None:
        """Take an event as it is published."""
        if event.expires_at is not None and event.expired():
            return
        message = encode(event)
        if self._size > self._limit:
            self.dropped += 1
            self._counters.dropped += 1
            return
        if not self._waiting:
            self._news.set()
        self._waiting.append(message)
        self._size += len(message)
        self._counters.messages_out += 1

    async def next(self, heartbeat: float) -> bytes:
        """Return what has gathered; a heartbeat after `heartbeat` seconds of nothing."""
        try:
            async with asyncio.timeout(heartbeat):
                await self._news.wait()
        except TimeoutError:
            return HEARTBEAT
        self._news.clear()
        waiting, self._waiting = self._waiting, []
        self._size = 0
        return b"".join(waiting)

    def end(self) -> None:
        """End the subscriptions."""
        for subscription in self._subscriptions:
            self._client.unsubscribe(subscription)
        self._subscriptions.clear()
