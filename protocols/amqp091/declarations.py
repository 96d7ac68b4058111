"""What channels declare: exchanges, queues and bindings (classes exchange and queue).

The handlers register themselves in the channel's table at import.

Invariant: a declaration that differs from what exists is refused with 406, never taken silently.
"""

import logging
import secrets
from typing import Final

from pamqp import commands
from pamqp.base import Frame

from mesh_core.event import HeaderValue
from mesh_core.queue import QueueOptions
from protocols.amqp091 import errors
from protocols.amqp091.channel import HANDLERS, Channel
from protocols.amqp091.codec import encode_declare_ok
from protocols.amqp091.errors import AmqpError, ChannelError
from protocols.amqp091.exchanges import TYPES, Exchange
from protocols.amqp091.properties import plain_table

log = logging.getLogger("meshgate.amqp")

_KNOWN_ARGUMENTS: Final = frozenset(
    ("x-queue-type", "x-max-length", "x-max-length-bytes", "x-overflow")
)


def exchange_declare(channel: Channel, method: Frame) -> None:
    assert isinstance(method, commands.Exchange.Declare)
    exchanges = channel.connection.exchanges
    name = method.exchange or ""
    existing = exchanges.get(name)
    if method.passive:
        if existing is None and name:
            raise ChannelError(errors.NOT_FOUND, f"no exchange {name!r} in vhost '/'")
    elif existing is not None:
        if (existing.type, existing.durable, existing.auto_delete, existing.internal) != (
            method.exchange_type,
            bool(method.durable),
            bool(method.auto_delete),
            bool(method.internal),
        ):
            text = f"exchange {name!r} exists with other properties (type {existing.type!r})"
            raise ChannelError(errors.PRECONDITION_FAILED, text)
    else:
        if not name or name.startswith("amq."):
            raise ChannelError(errors.ACCESS_REFUSED, f"exchange name {name!r} is reserved")
        if method.exchange_type not in TYPES:
            text = f"exchange type {method.exchange_type!r} is unknown"
            raise AmqpError(errors.COMMAND_INVALID, text, method.index)
        exchanges.add(
            Exchange(
                name,
                method.exchange_type,
                bool(method.durable),
                bool(method.auto_delete),
                bool(method.internal),
            )
        )
    if not method.nowait:
        channel.say(commands.Exchange.DeclareOk())


def exchange_delete(channel: Channel, method: Frame) -> None:
    assert isinstance(method, commands.Exchange.Delete)
    exchanges = channel.connection.exchanges
    exchange = exchanges.get(method.exchange or "")
    if exchange is not None:
        if exchange.name.startswith("amq."):
            raise ChannelError(errors.ACCESS_REFUSED, f"{exchange.name!r} can't be deleted")
        _forget_deleted(exchange)
        if method.if_unused and exchange.bound:
            raise ChannelError(errors.PRECONDITION_FAILED, f"{exchange.name!r} is in use")
        for queue, filter, key in exchange.bound:
            channel.connection.client.unbind(queue, filter, key)
        exchanges.remove(exchange)
        channel.connection.topics.clear()
    if not method.nowait:
        channel.say(commands.Exchange.DeleteOk())


def queue_declare(channel: Channel, method: Frame) -> None:
    assert isinstance(method, commands.Queue.Declare)
    connection = channel.connection
    name = method.queue or ""
    if method.passive:
        queue = channel.queue(name)
    else:
        exclusive = bool(method.exclusive)
        arguments = plain_table(method.arguments)
        options = QueueOptions(
            durable=bool(method.durable),
            auto_delete=bool(method.auto_delete),
            exclusive=exclusive,
            max_length=_limit(arguments, "x-max-length"),
            max_bytes=_limit(arguments, "x-max-length-bytes"),
        )
        if not name:
            name = f"amq.gen-{secrets.token_urlsafe(16)}"
        elif name.startswith("amq.") and connection.client.queue(name) is None:
            raise ChannelError(errors.ACCESS_REFUSED, f"queue name {name!r} is reserved")
        unknown = [argument for argument in arguments if argument not in _KNOWN_ARGUMENTS]
        if unknown:
            log.info("queue %r: arguments without effect yet: %s", name, ", ".join(unknown))
        queue = connection.client.declare(name, options, connection)
        if exclusive:
            connection.exclusive[name] = queue
    channel.declared(queue.name)
    if not method.nowait:
        ok = encode_declare_ok(channel.number, queue.name, len(queue), queue.consumers)
        channel.outbox.write(ok)


def _limit(arguments: dict[str, HeaderValue], name: str) -> int | None:
    """Return a limit; only `reject-publish` can refuse so far, so others have no effect."""
    value = arguments.get(name)
    if value is None or arguments.get("x-overflow") != "reject-publish":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ChannelError(errors.PRECONDITION_FAILED, f"{name} must be a number from 0")
    return value


def queue_bind(channel: Channel, method: Frame) -> None:
    assert isinstance(method, commands.Queue.Bind)
    queue = channel.queue(method.queue)
    exchange = _bindable(channel, method.exchange)
    routing_key = method.routing_key or ""
    arguments = plain_table(method.arguments)
    filter = exchange.filter_of(routing_key)
    key = _key(exchange, routing_key, arguments)
    channel.connection.client.bind(queue, filter, exchange.predicate_of(arguments), key)
    if (queue, filter, key) not in exchange.bound:
        exchange.bound.append((queue, filter, key))
    if not method.nowait:
        channel.say(commands.Queue.BindOk())


def queue_unbind(channel: Channel, method: Frame) -> None:
    assert isinstance(method, commands.Queue.Unbind)
    connection = channel.connection
    name = method.queue or ""
    if connection.client.queue(name) is not None and connection.exchanges.get(method.exchange):
        queue = channel.queue(name)
        exchange = _bindable(channel, method.exchange)
        routing_key = method.routing_key or ""
        filter = exchange.filter_of(routing_key)
        key = _key(exchange, routing_key, plain_table(method.arguments))
        connection.client.unbind(queue, filter, key)
        if (queue, filter, key) in exchange.bound:
            exchange.bound.remove((queue, filter, key))
        _forget_deleted(exchange)
        if exchange.auto_delete and not exchange.bound:
            connection.exchanges.remove(exchange)
    channel.say(commands.Queue.UnbindOk())


def _bindable(channel: Channel, name: str | None) -> Exchange:
    if not name:
        raise ChannelError(errors.ACCESS_REFUSED, "the default exchange can't be bound")
    exchange = channel.connection.exchanges.get(name)
    if exchange is None:
        raise ChannelError(errors.NOT_FOUND, f"no exchange {name!r} in vhost '/'")
    return exchange


def _key(exchange: Exchange, routing_key: str, arguments: dict[str, HeaderValue]) -> object:
    return ("amqp091", exchange.name, routing_key, repr(sorted(arguments.items())))


def _forget_deleted(exchange: Exchange) -> None:
    exchange.bound = [one for one in exchange.bound if not one[0].deleted]


def queue_purge(channel: Channel, method: Frame) -> None:
    assert isinstance(method, commands.Queue.Purge)
    count = channel.connection.client.purge(channel.queue(method.queue))
    if not method.nowait:
        channel.say(commands.Queue.PurgeOk(count))


def queue_delete(channel: Channel, method: Frame) -> None:
    assert isinstance(method, commands.Queue.Delete)
    count = 0
    name = method.queue or ""
    if not name or channel.connection.client.queue(name) is not None:
        queue = channel.queue(name)
        if method.if_unused and queue.consumers:
            raise ChannelError(errors.PRECONDITION_FAILED, f"queue {queue.name!r} is in use")
        if method.if_empty and len(queue):
            raise ChannelError(errors.PRECONDITION_FAILED, f"queue {queue.name!r} is not empty")
        channel.connection.exclusive.pop(queue.name, None)
        count = channel.connection.client.delete(queue)
    if not method.nowait:
        channel.say(commands.Queue.DeleteOk(count))


HANDLERS.update(
    {
        commands.Exchange.Declare: exchange_declare,
        commands.Exchange.Delete: exchange_delete,
        commands.Queue.Declare: queue_declare,
        commands.Queue.Bind: queue_bind,
        commands.Queue.Unbind: queue_unbind,
        commands.Queue.Purge: queue_purge,
        commands.Queue.Delete: queue_delete,
    }
)
