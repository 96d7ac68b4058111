"""What one request does. No ASGI, no sockets; waiting is asyncio's.

A request has no state machine: it is authenticated, it asks the core, it is answered. The table
`HANDLERS` says by path and method which function that is.

Invariant: 2xx for a publish means that its receipt is done and accepted; a client that goes away
while it waits for a pull or a reply leaves nothing behind and loses nothing.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec

from mesh_core.address import check_filter
from mesh_core.event import Event
from mesh_core.queue import Consumer, Credit, Delivery, Outcome, Queue
from mesh_core.receipt import Receipt
from protocols.bindings.json import BATCH, event_object
from protocols.frontend import Broker, Client, Mode
from protocols.rest.codec import STATUS_OF_REFUSAL, HttpError, Query, Response, Route
from protocols.rest.deliveries import Deliveries
from protocols.rest.translate import RawHeaders, to_events, to_response

MAX_PULL: Final = 1000
MAX_WAIT: Final = 60.0
MAX_TIMEOUT: Final = 300.0


@dataclass(slots=True)
class Exchange:
    """One request, and what it may use.

    Attributes:
        gone: resolves when the client has gone away.
    """

    broker: Broker
    client: Client
    deliveries: Deliveries
    route: Route
    query: Query
    headers: RawHeaders
    body: bytes
    gone: Callable[[], Awaitable[None]]


async def publish(exchange: Exchange) -> Response:
    """POST /topics/{topic}: publish one event, or a batch."""
    return await _publish(exchange, retain=False)


async def put_retained(exchange: Exchange) -> Response:
    """PUT /topics/{topic}: publish, and keep as the topic's retained value."""
    return await _publish(exchange, retain=True)


async def _publish(exchange: Exchange, *, retain: bool) -> Response:
    route, client = exchange.route, exchange.client
    events = to_events(exchange.headers, exchange.body, route.topic, None, exchange)
    if retain and len(events) != 1:
        raise HttpError(HTTPStatus.BAD_REQUEST, "a retained value is one event")
    routed = False
    receipts: list[Receipt] = []
    for event in events:
        event.retain = retain
        receipts.append(client.publish(event))
    for receipt in receipts:
        await final(receipt)
        routed = routed or receipt.routed
    exchange.broker.counters.messages_in += len(events)
    return Response(headers=[("mesh-routed", "true" if routed else "false")])


async def final(receipt: Receipt) -> None:
    """Wait until `receipt` is done.

    Raises:
        HttpError: it was refused.
    """
    if not receipt.done:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(_: Receipt) -> None:
            if not waiter.done():
                waiter.set_result(None)

        receipt.when_done(wake)
        await waiter
    if receipt.refusal is not None:
        raise HttpError(STATUS_OF_REFUSAL[receipt.refusal], receipt.refusal.value)


async def get_retained(exchange: Exchange) -> Response:
    """GET /topics/{topic}: the retained value."""
    topic = exchange.route.topic
    events = exchange.client.retained(topic)
    if not events:
        raise HttpError(HTTPStatus.NOT_FOUND, f"topic {topic!r} has no retained value")
    exchange.broker.counters.messages_out += 1
    return to_response(events[0], mode_of(exchange))


def mode_of(exchange: Exchange) -> Mode:
    """Return the mode that the query asks for, else the listener's."""
    name = exchange.query.text("mode", exchange.broker.mode.value)
    try:
        return Mode(name)
    except ValueError:
        known = ", ".join(mode.value for mode in Mode)
        raise HttpError(HTTPStatus.BAD_REQUEST, f"mode={name!r} is none of {known}") from None


async def delete_retained(exchange: Exchange) -> Response:
    """DELETE /topics/{topic}: clear the retained value."""
    topic = exchange.route.topic
    if not exchange.client.clear_retained(topic):
        raise HttpError(HTTPStatus.NOT_FOUND, f"topic {topic!r} has no retained value")
    return Response()


async def request(exchange: Exchange) -> Response:
    """POST /requests/{topic}: publish, and answer with the first reply, or 504."""
    timeout = exchange.query.number("timeout", 5.0, 0.001, MAX_TIMEOUT)
    topic, client = exchange.route.topic, exchange.client
    events = to_events(exchange.headers, exchange.body, topic, None, exchange)
    if len(events) != 1:
        raise HttpError(HTTPStatus.BAD_REQUEST, "a request is one event")
    event = events[0]
    token = secrets.token_hex(12)
    event.reply_to = f"$reply/{token}"
    if event.correlation_id is None:
        event.correlation_id = token.encode()
    reply: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    def replied(answer: Event) -> None:
        if not reply.done():
            reply.set_result(answer)

    subscription = client.subscribe(event.reply_to, replied)
    try:
        receipt = client.publish(event)
        await final(receipt)
        exchange.broker.counters.messages_in += 1
        if not receipt.routed:
            raise HttpError(HTTPStatus.GATEWAY_TIMEOUT, f"nobody listens on {topic!r}")
        if not await _first(reply, exchange, timeout):
            raise HttpError(
                HTTPStatus.GATEWAY_TIMEOUT, f"no reply on {topic!r} in {timeout:g} seconds"
            )
        return to_response(reply.result(), mode_of(exchange))
    finally:
        client.unsubscribe(subscription)


async def _first(future: "asyncio.Future[Event]", exchange: Exchange, seconds: float) -> bool:
    """Wait for `future`, the client's leaving, or `seconds`; tell if it was the first."""
    gone = asyncio.ensure_future(exchange.gone())
    either: list[asyncio.Future[Any]] = [future, gone]
    try:
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    return future.done()


async def enqueue(exchange: Exchange) -> Response:
    """POST /queues/{queue}: put an event into a queue, made if it does not exist."""
    name = exchange.route.queue
    [event] = to_events(exchange.headers, exchange.body, "", name, exchange)
    event.retain = False
    await final(exchange.client.send(event, create=True))
    exchange.broker.counters.messages_in += 1
    return Response()


class Declaration(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /queues/{queue}."""

    filters: list[str] = []


async def declare(exchange: Exchange) -> Response:
    """PUT /queues/{queue}: make a queue, and bind it to the filters in the body."""
    client = exchange.client
    try:
        body = msgspec.json.decode(exchange.body or b"{}", type=Declaration)
    except msgspec.DecodeError as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"body: {error}") from None
    for filter in body.filters:
        check_filter(filter)
    queue = client.declare(exchange.route.queue)
    bound = {binding.filter for binding in client.bindings(queue)}
    for filter in body.filters:
        if filter not in bound:
            client.bind(queue, filter)
    return Response()


async def delete_queue(exchange: Exchange) -> Response:
    """DELETE /queues/{queue}: delete a queue with what is in it."""
    exchange.client.delete(_queue(exchange))
    return Response()


def _queue(exchange: Exchange) -> Queue:
    queue = exchange.client.queue(exchange.route.queue)
    if queue is None:
        raise HttpError(HTTPStatus.NOT_FOUND, f"no queue {exchange.route.queue!r}")
    return queue


async def pull(exchange: Exchange) -> Response:
    """GET /queues/{queue}: up to `max` messages, waiting `wait` seconds for the first."""
    most = int(exchange.query.number("max", 1, 1, MAX_PULL))
    wait = exchange.query.number("wait", 0, 0, MAX_WAIT)
    queue = _queue(exchange)
    taken: list[Delivery] = []
    while len(taken) < most:
        delivery = exchange.client.get(queue)
        if delivery is None:
            break
        taken.append(delivery)
    if not taken and wait:
        taken = await _wait_for_some(exchange, queue, most, wait)
    exchange.broker.counters.messages_out += len(taken)
    events: list[dict[str, object]] = []
    for delivery in taken:
        members = event_object(delivery.event)
        members["meshdelivery"] = exchange.deliveries.hold(delivery)
        if delivery.redelivered:
            members["meshredelivered"] = True
        events.append(members)
    return Response(HTTPStatus.OK, msgspec.json.encode(events), BATCH)


async def _wait_for_some(
    exchange: Exchange, queue: Queue, most: int, wait: float
) -> list[Delivery]:
    taken: list[Delivery] = []
    some: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    def take(delivery: Delivery) -> None:
        taken.append(delivery)
        if not some.done():
            some.set_result(delivery.event)

    consumer = Consumer(take, Credit(most), owner=exchange)
    exchange.client.consume(queue, consumer)
    kept = False
    try:
        await _first(some, exchange, wait)
        kept = some.done()
    finally:
        queue.cancel(consumer)
        if not kept:
            queue.release_all(taken)
    return taken


async def settle(exchange: Exchange) -> Response:
    """DELETE /queues/{queue}/deliveries/{delivery}: acknowledge, or `outcome=release|reject`."""
    name = exchange.query.text("outcome", "accept")
    try:
        outcome = Outcome(name)
    except ValueError:
        detail = f"outcome={name!r} is none of accept, release, reject"
        raise HttpError(HTTPStatus.BAD_REQUEST, detail) from None
    route = exchange.route
    if not exchange.deliveries.settle(route.queue, route.delivery, outcome):
        detail = f"no delivery {route.delivery!r} of queue {route.queue!r}: settled, or too late"
        raise HttpError(HTTPStatus.NOT_FOUND, detail)
    return Response()


Handler: TypeAlias = Callable[[Exchange], Awaitable[Response]]

HANDLERS: Final[dict[tuple[str, str], Handler]] = {
    ("topic", "POST"): publish,
    ("topic", "PUT"): put_retained,
    ("topic", "GET"): get_retained,
    ("topic", "DELETE"): delete_retained,
    ("request", "POST"): request,
    ("queue", "POST"): enqueue,
    ("queue", "GET"): pull,
    ("queue", "PUT"): declare,
    ("queue", "DELETE"): delete_queue,
    ("delivery", "DELETE"): settle,
}
