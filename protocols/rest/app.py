"""The ASGI application: reads a request, lets `protocols.rest.session` act, sends the answer.

Written against ASGI itself: on the routes that carry messages a framework costs more than the work.

Invariant: a body is refused by its length before it is read, and never grows beyond the limit;
every error is a problem (RFC 9457) and counted; our own errors are logged, never shown.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec

from mesh_core.address import AddressError
from mesh_core.queue import QueueError
from mesh_core.router import QueueMismatch
from protocols.frontend import Broker, Client, Credentials, NotAuthorized
from protocols.rest.codec import HttpError, Query, Response, Route, parse_path, problem
from protocols.rest.deliveries import Deliveries
from protocols.rest.openapi import document
from protocols.rest.session import HANDLERS, Exchange
from protocols.rest.stream import EventStream
from protocols.rest.translate import RawHeaders

log = logging.getLogger("meshgate.rest")

# ASGI's own types are Any by definition.
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEARTBEAT_SECONDS: Final = 15.0
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


class RestApp:
    """The application of one HTTP listener.

    Attributes:
        stopping: set when streams are to end.
    """

    def __init__(
        self,
        broker: Broker,
        deliveries: Deliveries,
        ready: Callable[[], bool],
        metrics: Callable[[], bytes],
    ) -> None:
        self._broker = broker
        self._deliveries = deliveries
        self._ready = ready
        self._metrics = metrics
        self.stopping = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3.0, HTTP)."""
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope, receive, send)
        except HttpError as error:
            self._broker.counters.protocol_errors[str(error.reason)] += 1
            response = problem(error.status, str(error))
            response.headers += error.headers
        except (AddressError, QueueError) as error:
            self._broker.counters.protocol_errors["400"] += 1
            response = problem(HTTPStatus.BAD_REQUEST, str(error))
        except QueueMismatch as error:
            self._broker.counters.protocol_errors["409"] += 1
            response = problem(HTTPStatus.CONFLICT, str(error))
        except NotAuthorized as error:
            self._broker.counters.protocol_errors["403"] += 1
            response = problem(HTTPStatus.FORBIDDEN, str(error))
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            response = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "see the node's log")
        if response is not None:
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status.value,
                    "headers": response.raw_headers(),
                }
            )
            await send({"type": "http.response.body", "body": response.body})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        method: str = scope["method"]
        route = parse_path(scope["raw_path"], method)
        known = self._page(route)
        if known is not None:
            return known
        headers: RawHeaders = scope["headers"]
        query = Query(scope["query_string"])
        client = await self._client(scope, headers)
        if route.kind == "events":
            await self._stream(client, query, receive, send)
            return None
        body = await self._body(headers, receive) if method in ("POST", "PUT") else b""
        exchange = Exchange(
            self._broker,
            client,
            self._deliveries,
            route,
            query,
            headers,
            body,
            lambda: _gone(receive),
        )
        return await HANDLERS[route.kind, method](exchange)

    def _page(self, route: Route) -> Response | None:
        """Return what needs no login: health, metrics, the API's description."""
        if route.kind == "healthz":
            return Response(HTTPStatus.OK, b"ok\n", "text/plain")
        if route.kind == "readyz":
            if self._ready():
                return Response(HTTPStatus.OK, b"ready\n", "text/plain")
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "starting or stopping")
        if route.kind == "metrics":
            return Response(HTTPStatus.OK, self._metrics(), _PROMETHEUS)
        if route.kind == "openapi.json":
            return Response(HTTPStatus.OK, msgspec.json.encode(document()), "application/json")
        return None

    async def _client(self, scope: Scope, headers: RawHeaders) -> Client:
        peer = scope.get("client")
        username, password = _basic(dict(headers).get(b"authorization"))
        credentials = Credentials(self._broker.name, peer[0] if peer else "", username, password)
        done: asyncio.Future[Client | None] = asyncio.get_running_loop().create_future()

        def decided(client: Client | None) -> None:
            if not done.done():
                done.set_result(client)

        self._broker.authenticate(credentials, decided)
        client = await done
        if client is None:
            challenge = (("WWW-Authenticate", 'Basic realm="meshgate", charset="UTF-8"'),)
            raise HttpError(HTTPStatus.UNAUTHORIZED, "log in", challenge)
        return client

    async def _body(self, headers: RawHeaders, receive: Receive) -> bytes:
        limit = self._broker.limits.message_bytes
        length = dict(headers).get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise HttpError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"body of {int(length)} bytes, more than {limit}",
                (("Connection", "close"),),
            )
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._broker.limits.handshake_seconds) as patience:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HttpError(HTTPStatus.BAD_REQUEST, "the body did not arrive")
                    chunk: bytes = message.get("body", b"")
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > limit:
                        raise HttpError(
                            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                            f"body of more than {limit} bytes",
                            (("Connection", "close"),),
                        )
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                    if len(chunk) > 16_384:  # Whoever sends at a fair rate may go on.
                        loop = asyncio.get_running_loop()
                        patience.reschedule(loop.time() + self._broker.limits.handshake_seconds)
        except TimeoutError:
            raise HttpError(
                HTTPStatus.REQUEST_TIMEOUT, "the body took too long", (("Connection", "close"),)
            ) from None

    async def _stream(self, client: Client, query: Query, receive: Receive, send: Send) -> None:
        filters = query.all("filter")
        if not filters:
            raise HttpError(HTTPStatus.BAD_REQUEST, "name at least one filter=")
        broker = self._broker
        stream = EventStream(client, broker.counters, broker.limits.outbox_bytes)
        gone: asyncio.Future[None] | None = None
        try:
            stream.follow(filters, retained=query.flag("retained"))
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b": meshgate\n\n", "more_body": True})
            gone = asyncio.ensure_future(self._ended(receive))
            while not gone.done():
                following = asyncio.ensure_future(stream.next(HEARTBEAT_SECONDS))
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    break
                body = following.result()
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            stream.end()
            if gone is not None:
                gone.cancel()

    async def _ended(self, receive: Receive) -> None:
        """Return when the reader has gone, or the node stops."""
        stopping = asyncio.ensure_future(self.stopping.wait())
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({stopping, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            leaving.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _basic(header: bytes | None) -> tuple[str | None, bytes | None]:
    """Return user name and password of Basic authentication (RFC 7617), or None for none."""
    if header is None:
        return None, None
    scheme, _, encoded = header.partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            username, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
            return username.decode(), password if colon else None
    return "", None
