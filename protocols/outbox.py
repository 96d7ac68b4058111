"""The outbox: bounds what a connection owes its peer, and batches it into one write a loop turn.

A session appends encoded chunks; whoever owns the socket takes them all at once. Sans-IO: it
knows no transport, only a `wake` to call when it stops being empty.

Invariant: `size` is the sum of the chunks' lengths. Transient deliveries go through `offer`, which
drops and counts above `limit`; what the protocol owes (answers, deliveries that hold credit) goes
through `write`, which never drops: its senders are bounded by credit, or by the connection, which
ends a peer that lets the outbox grow beyond twice the limit.
"""

from collections.abc import Callable
from typing import Final

DEFAULT_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that may wait for a slow peer before transient deliveries to it are dropped."""


def _nobody() -> None:
    """Stand in for `wake` in tests that drive a session without a connection."""


class Outbox:
    """What waits to be written to one peer.

    Attributes:
        chunks: encoded packets, in order. Hot code may append to it directly, as `offer` does.
        size: bytes in `chunks`.
        limit: bytes above which `offer` drops.
        dropped: transient deliveries dropped so far.
        wake: called when the outbox was empty and no longer is.
    """

    __slots__ = ("_drained", "_inner", "_wrap", "chunks", "dropped", "limit", "size", "wake")

    def __init__(self, limit: int = DEFAULT_LIMIT, wake: Callable[[], None] = _nobody) -> None:
        """Make an empty outbox with `limit` bytes."""
        self.chunks: list[bytes] = []
        self.size = 0
        self.limit = limit
        self.dropped = 0
        self.wake = wake
        self._drained: list[Callable[[], None]] = []
        self._inner: Outbox | None = None
        self._wrap: Callable[[bytes], bytes]

    def carry(self, inner: "Outbox", wrap: Callable[[bytes], bytes]) -> None:
        """Send what is in `inner` as well, as one chunk that `wrap` makes of it per write."""
        self._inner = inner
        self._wrap = wrap
        inner.wake = self.wake

    @property
    def pending(self) -> bool:
        """Whether there is anything to take."""
        return bool(self.chunks) or (self._inner is not None and bool(self._inner.chunks))

    @property
    def owed(self) -> int:
        """Bytes that wait, carried ones included."""
        return self.size + (self._inner.size if self._inner is not None else 0)

    @property
    def lost(self) -> int:
        """Deliveries dropped, carried ones included."""
        return self.dropped + (self._inner.dropped if self._inner is not None else 0)

    def write(self, chunk: bytes) -> None:
        """Append what must not be dropped."""
        if not self.chunks:
            self.wake()
        self.chunks.append(chunk)
        self.size += len(chunk)

    def offer(self, chunk: bytes) -> bool:
        """Append a transient delivery; drop and count it, and return False, above the limit."""
        if self.size > self.limit:
            self.dropped += 1
            return False
        if not self.chunks:
            self.wake()
        self.chunks.append(chunk)
        self.size += len(chunk)
        return True

    def take(self) -> bytes:
        """Return all chunks as one, and be empty."""
        chunks = self.chunks
        inner = self._inner
        if inner is not None and inner.chunks:
            chunks.append(self._wrap(inner.take()))
        self.chunks = []
        self.size = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once after the next write to the peer went through."""
        self._drained.append(callback)

    def drained(self) -> None:
        """Run the callbacks of `when_drained`; for the owner of the socket."""
        if self._drained:
            callbacks, self._drained = self._drained, []
            for callback in callbacks:
                callback()
        if self._inner is not None:
            self._inner.drained()
