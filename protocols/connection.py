"""The socket side, the same for every byte-stream protocol: feeds a session, drains its outbox.

It knows no protocol. One `Flusher` per event loop collects the connections that have something to
say and lets each write once per loop turn, however many events it was handed.

Invariant: a session's `lost` is called exactly once, after which nothing reaches it from here; what
it wrote before it closed is sent before the socket is closed.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from protocols.frontend import Counters, Limits, Session, SessionContext, SessionFactory
from protocols.outbox import Outbox

log = logging.getLogger("meshgate.connection")

WRITE_HIGH_WATER: Final = 1024 * 1024
"""Bytes the transport may buffer before the outbox has to wait."""

CLOSE_GRACE: Final = 5.0
"""Seconds a peer has to read what was said before it is cut off."""


class Flusher:
    """Lets connections write once per loop turn."""

    __slots__ = ("_loop", "_pending")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: list[Connection] = []

    def add(self, connection: "Connection") -> None:
        """Let `connection` flush at the end of this loop turn."""
        if not self._pending:
            self._loop.call_soon(self._run)
        self._pending.append(connection)

    def _run(self) -> None:
        pending, self._pending = self._pending, []
        for connection in pending:
            connection.flush()


class Connection(asyncio.Protocol):
    """One peer's socket and its session."""

    __slots__ = (
        "_clock",
        "_counters",
        "_flusher",
        "_limits",
        "_listener",
        "_loop",
        "_make_session",
        "_paused",
        "_scheduled",
        "_timer",
        "_transport",
        "outbox",
        "session",
    )

    def __init__(
        self,
        listener: "Listener",
        loop: asyncio.AbstractEventLoop,
        flusher: Flusher,
        make_session: SessionFactory,
        limits: Limits,
        counters: Counters,
    ) -> None:
        self._listener = listener
        self._loop = loop
        self._clock: Callable[[], float] = loop.time
        self._flusher = flusher
        self._make_session = make_session
        self._limits = limits
        self._counters = counters
        self._paused = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self.outbox = Outbox(limits.outbox_bytes, self.wake)
        self.session: Session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        self._counters.opened += 1
        self.session = self._make_session(SessionContext(self.outbox, address, self._clock))
        if not self._listener.admit(self):
            self._transport.abort()
            return
        self._on_timer()

    def data_received(self, data: bytes) -> None:
        self._counters.bytes_in += len(data)
        if not self.session.closed:
            self.session.receive(data)
            self._wake_if_closed()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._counters.closed += 1
        self._listener.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.session.lost()
        self._counters.dropped += self.outbox.lost

    def wake(self) -> None:
        """Flush at the end of this loop turn."""
        if not self._scheduled:
            self._scheduled = True
            self._flusher.add(self)

    def flush(self) -> None:
        """Write all that waits, unless the peer is slow; close if the session has closed."""
        self._scheduled = False
        transport = self._transport
        if transport.is_closing():
            self.outbox.take()
            return
        outbox = self.outbox
        if self._paused and not self.session.closed:
            # resume_writing() comes back here; a peer that never reads does not grow for ever.
            if outbox.owed > 2 * outbox.limit:
                log.info("closing %s: it does not read what it asked for", self.peer)
                self._counters.protocol_errors["slow-peer"] += 1
                transport.abort()
            return
        if outbox.pending:
            data = outbox.take()
            self._counters.bytes_out += len(data)
            transport.write(data)
        if self.session.closed:
            self._close()
        elif not self._paused:
            outbox.drained()

    def _close(self) -> None:
        # close() waits for the peer to read the goodbye; a peer that does not is cut off.
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(CLOSE_GRACE, self._transport.abort)

    @property
    def peer(self) -> str:
        """Its address and port, for logs."""
        peer = self._transport.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "peer"

    def abort(self) -> None:
        """Close without ceremony."""
        self._transport.abort()

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock()
        deadline = self.session.timeout(now)
        self._wake_if_closed()
        if deadline is not None:
            self._timer = self._loop.call_later(max(0.0, deadline - now), self._on_timer)

    def _wake_if_closed(self) -> None:
        if self.session.closed:
            self.wake()


class Listener:
    """Accepts a protocol's connections on one address.

    Attributes:
        name: the settings' name for it.
        host, port: where it is bound; the port asked for until `start`, the real one after.
        counters: what it counts.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        make_session: SessionFactory,
        limits: Limits,
        counters: Counters,
        flusher: Flusher,
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.counters = counters
        self.limits = limits
        self.flusher = flusher
        self.make_session = make_session
        self.connections: set[Connection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._stopping = False
        self._empty = asyncio.Event()

    async def start(self) -> None:
        """Bind and accept.

        Raises:
            OSError: the address can't be bound.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: self.connection(loop), self.host, self.port, backlog=4096
        )
        self._server = server
        self.port = server.sockets[0].getsockname()[1]

    def connection(self, loop: asyncio.AbstractEventLoop) -> Connection:
        """Make the protocol object of a new connection."""
        return Connection(self, loop, self.flusher, self.make_session, self.limits, self.counters)

    def admit(self, connection: Connection) -> bool:
        """Count `connection` in; False if the listener is full or stopping."""
        if self._stopping or len(self.connections) >= self.limits.connections:
            return False
        self.connections.add(connection)
        return True

    def discard(self, connection: Connection) -> None:
        """Count `connection` out."""
        self.connections.discard(connection)
        if self._stopping and not self.connections:
            self._empty.set()

    async def stop(self, grace: float) -> None:
        """Stop accepting, let every session say goodbye, and wait `grace` seconds for the peers."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        if not self.connections:
            return
        for connection in tuple(self.connections):
            connection.session.shutdown()
            connection.wake()
        try:
            await asyncio.wait_for(self._empty.wait(), grace)
        except TimeoutError:
            for connection in tuple(self.connections):
                connection.abort()
