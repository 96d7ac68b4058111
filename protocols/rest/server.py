"""The HTTP listener: uvicorn's protocol class on a socket and loop of ours.

uvicorn's own server is not used, since it would take over signals and the loop. Its protocol class
gets the bounds that it lacks: how long a request's head may take, and how large it may be.

Invariant: a connection that has not sent a whole request head in time, or sends one that is too
large, is closed; the node's other listeners never notice.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from protocols.frontend import Broker, Counters, Limits
from protocols.rest.app import RestApp
from protocols.rest.deliveries import Deliveries

MAX_HEAD_BYTES: Final = 64 * 1024
KEEP_ALIVE_SECONDS: Final = 75


class _BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on a request's head in time and size."""

    limits: Limits
    counters: Counters
    _head_size = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.counters.opened += 1
        self._head_timer = self.loop.call_later(self.limits.handshake_seconds, self._head_late)
        if len(self.connections) > self.limits.connections:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.counters.closed += 1
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.counters.bytes_in += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_size = 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.handshake_seconds, self._head_late)

    def on_url(self, url: bytes) -> None:
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def _grow(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD_BYTES:
            self.counters.protocol_errors["431"] += 1
            raise ValueError("request head is too large")  # uvicorn answers 400 and closes

    def _head_late(self) -> None:
        self._head_timer = None
        self.counters.protocol_errors["408"] += 1
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class HttpListener:
    """Accepts HTTP connections on one address; the verbs of `protocols.connection.Listener`.

    Attributes:
        name: the settings' name for it.
        host, port: where it is bound; the port asked for until `start`, the real one after.
        counters: what it counts.
    """

    def __init__(
        self,
        broker: Broker,
        host: str,
        port: int,
        ready: Callable[[], bool],
        metrics: Callable[[], bytes],
        ack_timeout: float = 60.0,
    ) -> None:
        self.name = broker.name
        self.host = host
        self.port = port
        self.counters = broker.counters
        self._broker = broker
        self._ready = ready
        self._metrics = metrics
        self._ack_timeout = ack_timeout
        self._state = ServerState()
        self._server: asyncio.AbstractServer | None = None
        self._app: RestApp
        self._deliveries: Deliveries
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bind and accept.

        Raises:
            OSError: the address can't be bound.
        """
        loop = asyncio.get_running_loop()
        self._deliveries = Deliveries(loop.time, self._ack_timeout)
        self._app = RestApp(self._broker, self._deliveries, self._ready, self._metrics)
        config = Config(
            self._app,
            http=_BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        config.load()
        limits, counters = self._broker.limits, self.counters

        def make() -> _BoundedProtocol:
            protocol = _BoundedProtocol(config, self._state, {})
            protocol.limits = limits
            protocol.counters = counters
            return protocol

        server = await loop.create_server(make, self.host, self.port, backlog=4096)
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        self._sweep_later(loop)

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        def sweep() -> None:
            self._deliveries.expire()
            self._sweep_later(loop)

        self._sweep = loop.call_later(1.0, sweep)

    async def stop(self, grace: float) -> None:
        """Stop accepting, end streams, let requests under way finish within `grace` seconds."""
        if self._server is None:
            return
        self._server.close()
        if self._sweep is not None:
            self._sweep.cancel()
        self._app.stopping.set()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=grace)
        for connection in list(self._state.connections):
            connection.transport.abort()
