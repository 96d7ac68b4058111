"""One channel: publishing, confirms, consuming, acknowledging, and what its methods declare.

Sans-IO. The connection (`protocols.amqp091.session`) hands it methods and contents; what a method
does stands in one table, `HANDLERS`.

Invariant: every delivery that is not auto-acknowledged is in `_unacked` under its delivery tag
until it is settled, tags grow by one; in confirm mode every basic.publish is answered once, after
its receipt is done.
"""

import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pamqp import commands
from pamqp.base import Frame

from mesh_core.address import AddressError
from mesh_core.event import Event
from mesh_core.queue import UNLIMITED, Consumer, Credit, Delivery, Outcome, Queue, QueueError
from mesh_core.receipt import REFUSED, Receipt, Refusal
from mesh_core.router import QueueMismatch
from protocols.amqp091 import errors
from protocols.amqp091.codec import (
    BASIC_DELIVER,
    BASIC_GET_OK,
    BASIC_RETURN,
    Content,
    Publishing,
    encode_content,
    encode_method,
    method_frame,
)
from protocols.amqp091.errors import NAMES, AmqpError, ChannelError
from protocols.amqp091.exchanges import REPLY_TOPIC
from protocols.amqp091.properties import write_short
from protocols.amqp091.translate import to_event, to_properties
from protocols.frontend import Mode, NotAuthorized

if TYPE_CHECKING:
    from protocols.amqp091.session import AmqpSession

log = logging.getLogger("meshgate.amqp")

PAUSE_BYTES: Final = 1024 * 1024
"""A queue stops handing over while so much waits to be written."""

ADDRESS_CACHE: Final = 1024
"""Topics whose exchange and routing key a consumer keeps encoded."""


class ChannelConsumer:
    """A consumer on a channel, and its basic.deliver ready but for the delivery tag."""

    __slots__ = ("_heads", "_version", "channel", "consumer", "mode", "no_ack", "tag")

    def __init__(self, channel: "Channel", tag: str, no_ack: bool, mode: Mode) -> None:
        self.channel = channel
        self.tag = tag
        self.no_ack = no_ack
        self.mode = mode
        self.consumer: Consumer
        self._heads: dict[str, tuple[bytes, bytes]] = {}
        self._version = -1

    def deliver(self, delivery: Delivery) -> None:
        """Send a basic.deliver: the hot path of a consumer."""
        channel = self.channel
        event = delivery.event
        channel.last_tag = tag = channel.last_tag + 1
        if not self.no_ack:
            channel.unacked[tag] = delivery
        exchanges = channel.connection.exchanges
        if self._version != exchanges.version or len(self._heads) >= ADDRESS_CACHE:
            self._heads.clear()
            self._version = exchanges.version
        # A message sent straight to a queue has no topic; its address is always the queue's.
        found = self._heads.get(event.topic)
        if found is None:
            found = self._heads[event.topic] = self._head(event)
        content = channel.content(event, self.mode)
        redelivered = b"\1" if delivery.failures else b"\0"
        method = found[0] + tag.to_bytes(8, "big") + redelivered + found[1]
        outbox = channel.outbox
        chunks = outbox.chunks
        if not chunks:
            outbox.wake()
        chunks.append(method)
        chunks.append(content)
        outbox.size += len(method) + len(content)
        channel.counters.messages_out += 1
        if outbox.size > PAUSE_BYTES:
            credit = self.consumer.credit
            if not credit.paused:
                credit.pause()
                outbox.when_drained(credit.resume)

    def _head(self, event: Event) -> tuple[bytes, bytes]:
        exchange, key = self.channel.connection.exchanges.address_of(event)
        tag = write_short(self.tag)
        address = write_short(exchange) + write_short(key)
        size = 4 + len(tag) + 9 + len(address)
        number = self.channel.number.to_bytes(2, "big")
        head = b"\x01" + number + size.to_bytes(4, "big") + BASIC_DELIVER + tag
        return head, address + b"\xce"

    def cancelled(self) -> None:
        """Tell the client that its queue is gone (consumer_cancel_notify)."""
        self.channel.consumers.pop(self.tag, None)
        self.channel.say(commands.Basic.Cancel(self.tag, True))


class Channel:
    """An open channel.

    Attributes:
        number: 1 to channel-max.
        connection: its connection.
        closing: whether we have sent channel.close and wait for close-ok.
        consumers: by tag.
        unacked: deliveries by delivery tag.
        last_tag: the last delivery tag given out.
    """

    __slots__ = (
        "_confirmed",
        "_content_keys",
        "_global_credit",
        "_last_queue",
        "_pending",
        "_prefetch",
        "_published",
        "closing",
        "confirming",
        "connection",
        "consumers",
        "counters",
        "last_tag",
        "number",
        "outbox",
        "unacked",
    )

    def __init__(self, connection: "AmqpSession", number: int) -> None:
        self.connection = connection
        self.number = number
        self.outbox = connection.outbox
        self.counters = connection.counters
        self.closing = False
        self.confirming = False
        self.consumers: dict[str, ChannelConsumer] = {}
        self.unacked: dict[int, Delivery] = {}
        self.last_tag = 0
        self._prefetch = 0
        self._global_credit: Credit | None = None
        self._last_queue = ""
        # Confirm mode: publishes so far, those not final, those final but not yet confirmed.
        self._published = 0
        self._pending: dict[int, None] = {}
        self._confirmed = 0
        self._content_keys = {
            mode: f"amqp091-{number}-{connection.frame_max}-{mode.value}" for mode in Mode
        }

    # -- saying ----------------------------------------------------------------------------

    def say(self, method: Frame) -> None:
        """Send a control method."""
        self.outbox.write(encode_method(self.number, method))

    def content(self, event: Event, mode: Mode) -> bytes:
        """Return the event's content frames for this channel, encoded once per event."""
        key = self._content_keys[mode]
        content = event.wire.get(key)
        if content is None:
            properties, body = to_properties(event, mode)
            content = encode_content(self.number, self.connection.frame_max, properties, body)
            if event.expires_at is None:
                event.wire[key] = content
        return content

    # -- publishing ------------------------------------------------------------------------

    def publish(self, content: Content) -> None:
        """Take a basic.publish with its content.

        Raises:
            AmqpError: a mistake that closes the channel or the connection.
        """
        connection = self.connection
        arguments = connection.decoder.publishing(content.method)
        self.counters.messages_in += 1
        if arguments.immediate:
            raise AmqpError(errors.NOT_IMPLEMENTED, "immediate=true", 0x3C0028)
        receipt = self._route(arguments, content)
        if arguments.mandatory and not receipt.routed and receipt.done:
            self._return(arguments, content)
        if self.confirming:
            self._published += 1
            if not receipt.done or receipt.refusal is not None:
                self._confirm_later(self._published, arguments, receipt)
        elif receipt.refusal is Refusal.NOT_AUTHORIZED:
            text = f"not allowed to publish to {arguments.exchange!r} {arguments.routing_key!r}"
            raise ChannelError(errors.ACCESS_REFUSED, text, 0x3C0028)

    def _route(self, arguments: Publishing, content: Content) -> Receipt:
        connection = self.connection
        template = connection.templates.get(content.properties)
        key = arguments.routing_key
        if not arguments.exchange:
            if connection.client.queue(key) is not None:
                event = to_event(template, "", content.body, connection)
                event.queue = key
                event.retain = False
                return connection.client.send(event)
            if not key.startswith(REPLY_TOPIC):
                return REFUSED_UNROUTED
            exchange = connection.exchanges.get("amq.topic")
            key = key[len(REPLY_TOPIC) :]
        else:
            exchange = connection.exchanges.get(arguments.exchange)
        if exchange is None:
            text = f"no exchange {arguments.exchange!r} in vhost '/'"
            raise ChannelError(errors.NOT_FOUND, text, 0x3C0028)
        if exchange.internal:
            text = f"exchange {exchange.name!r} is internal"
            raise ChannelError(errors.ACCESS_REFUSED, text, 0x3C0028)
        topic = connection.topics.get((exchange.name, key))
        if topic is None:
            try:
                topic = exchange.topic_of(key)
            except AddressError as error:
                raise ChannelError(errors.PRECONDITION_FAILED, str(error), 0x3C0028) from None
            connection.remember(exchange.name, key, topic)
        event = to_event(template, topic, content.body, connection)
        if event.retain and not event.data:
            event.retain = False
            connection.client.clear_retained(topic)
        return connection.client.publish(event)

    def _return(self, arguments: Publishing, content: Content) -> None:
        payload = (
            BASIC_RETURN
            + errors.NO_ROUTE.to_bytes(2, "big")
            + write_short(NAMES[errors.NO_ROUTE])
            + write_short(arguments.exchange)
            + write_short(arguments.routing_key)
        )
        self.outbox.write(method_frame(self.number, payload))
        frame_max = self.connection.frame_max
        self.outbox.write(encode_content(self.number, frame_max, content.properties, content.body))

    # -- confirms --------------------------------------------------------------------------

    def _confirm_later(self, number: int, arguments: Publishing, receipt: Receipt) -> None:
        """Answer a publish by itself: it is not final yet, or it was refused."""
        if receipt.done and receipt.refusal is Refusal.NO_SUCH_QUEUE:
            return  # Unroutable is acknowledged, as RabbitMQ documents it.
        self._pending[number] = None

        def settle(done: Receipt) -> None:
            del self._pending[number]
            if self.closing or self.connection.closed:
                return
            if done.refusal is None:
                self.say(commands.Basic.Ack(number, False))
            elif done.refusal is Refusal.NOT_AUTHORIZED:
                text = f"not allowed to publish to {arguments.exchange!r}"
                self.connection.close_channel(self, ChannelError(errors.ACCESS_REFUSED, text))
            else:
                log.info("refused a publish: %s", done.refusal.value)
                self.say(commands.Basic.Nack(number, False, False))

        self.flush_confirms(number - 1)
        self._confirmed = number
        receipt.when_done(settle)

    def flush_confirms(self, up_to: int | None = None) -> None:
        """Acknowledge what has become final since the last call, all at once."""
        last = self._published if up_to is None else up_to
        if not self.confirming or last <= self._confirmed:
            return
        if not self._pending:
            self.say(commands.Basic.Ack(last, last > self._confirmed + 1))
        else:  # `multiple` would acknowledge the ones that are still under way.
            for number in range(self._confirmed + 1, last + 1):
                self.say(commands.Basic.Ack(number, False))
        self._confirmed = last

    def confirm_select(self, method: Frame) -> None:
        assert isinstance(method, commands.Confirm.Select)
        self.confirming = True
        if not method.nowait:
            self.say(commands.Confirm.SelectOk())

    # -- consuming -------------------------------------------------------------------------

    def qos(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Qos)
        count = method.prefetch_count or 0
        if method.prefetch_size:
            raise AmqpError(errors.NOT_IMPLEMENTED, "prefetch_size")
        if method.global_:  # RabbitMQ's meaning: shared by all consumers of the channel
            held = len(self.unacked)
            self._global_credit = Credit((count or UNLIMITED) - held) if count else None
        else:
            self._prefetch = count
        self.say(commands.Basic.QosOk())

    def consume(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Consume)
        connection = self.connection
        queue = self.queue(method.queue)
        tag = method.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
        if tag in self.consumers:
            raise AmqpError(errors.NOT_ALLOWED, f"consumer tag {tag!r} is in use", 0x3C0014)
        if sum(len(c.consumers) for c in connection.channels.values()) >= (
            connection.broker.limits.subscriptions
        ):
            raise ChannelError(errors.RESOURCE_LOCKED, "too many consumers", 0x3C0014)
        mode = (method.arguments or {}).get("x-mode", connection.broker.mode.value)
        if mode not in Mode._value2member_map_:
            raise ChannelError(errors.PRECONDITION_FAILED, f"x-mode {mode!r} is unknown", 0x3C0014)
        no_ack = bool(method.no_ack)
        one = ChannelConsumer(self, tag, no_ack, Mode(mode))
        credit = Credit()
        if not no_ack:
            credit = self._global_credit or Credit(self._prefetch or UNLIMITED)
        one.consumer = Consumer(
            one.deliver,
            credit,
            auto_accept=no_ack,
            cancelled=one.cancelled,
            owner=connection,
        )
        was_paused = credit.paused
        credit.pause()  # Nothing may be delivered in front of consume-ok.
        try:
            connection.client.consume(queue, one.consumer, exclusive=bool(method.exclusive))
        except QueueError as error:
            raise ChannelError(errors.ACCESS_REFUSED, str(error), 0x3C0014) from None
        else:
            self.consumers[tag] = one
            if not method.nowait:
                self.say(commands.Basic.ConsumeOk(tag))
        finally:
            if not was_paused:
                credit.resume()

    def cancel(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Cancel)
        one = self.consumers.pop(method.consumer_tag or "", None)
        if one is not None and one.consumer.active:
            one.consumer.queue.cancel(one.consumer)
        if not method.nowait:
            self.say(commands.Basic.CancelOk(method.consumer_tag))

    def get(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Get)
        queue = self.queue(method.queue)
        delivery = self.connection.client.get(queue)
        if delivery is None:
            self.say(commands.Basic.GetEmpty())
            return
        self.last_tag = tag = self.last_tag + 1
        exchange, key = self.connection.exchanges.address_of(delivery.event)
        payload = (
            BASIC_GET_OK
            + tag.to_bytes(8, "big")
            + (b"\1" if delivery.redelivered else b"\0")
            + write_short(exchange)
            + write_short(key)
            + len(queue).to_bytes(4, "big")
        )
        self.outbox.write(method_frame(self.number, payload))
        self.outbox.write(self.content(delivery.event, self.connection.broker.mode))
        self.counters.messages_out += 1
        if method.no_ack:
            delivery.settle(Outcome.ACCEPT)
        else:
            self.unacked[tag] = delivery

    # -- acknowledging ---------------------------------------------------------------------

    def ack(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Ack)
        self._settle(method.delivery_tag or 0, bool(method.multiple), Outcome.ACCEPT)

    def nack(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Nack)
        outcome = Outcome.RELEASE if method.requeue else Outcome.REJECT
        self._settle(method.delivery_tag or 0, bool(method.multiple), outcome)

    def reject(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Reject)
        outcome = Outcome.RELEASE if method.requeue else Outcome.REJECT
        self._settle(method.delivery_tag or 0, False, outcome)

    def _settle(self, tag: int, multiple: bool, outcome: Outcome) -> None:
        unacked = self.unacked
        if not multiple:
            delivery = unacked.pop(tag, None)
            if delivery is None:
                raise ChannelError(errors.PRECONDITION_FAILED, f"unknown delivery tag {tag}")
            delivery.settle(outcome)
            return
        if tag and tag not in unacked and (not unacked or tag > self.last_tag):
            raise ChannelError(errors.PRECONDITION_FAILED, f"unknown delivery tag {tag}")
        taken = [unacked.pop(t) for t in [t for t in unacked if not tag or t <= tag]]
        if outcome is Outcome.RELEASE:
            _release(taken)
        else:
            for delivery in taken:
                delivery.settle(outcome)

    def recover(self, method: Frame) -> None:
        assert isinstance(method, commands.Basic.Recover)
        taken = list(self.unacked.values())
        self.unacked.clear()
        _release(taken)
        self.say(commands.Basic.RecoverOk())

    def flow(self, method: Frame) -> None:
        assert isinstance(method, commands.Channel.Flow)
        for one in self.consumers.values():
            if method.active:
                one.consumer.credit.resume()
            else:
                one.consumer.credit.pause()
        self.say(commands.Channel.FlowOk(method.active))

    # -- shared ----------------------------------------------------------------------------

    def queue(self, name: str | None) -> Queue:
        """Return the queue `name`, or the last one declared on this channel for "".

        Raises:
            ChannelError: 404 if there is none, 405 if it is exclusive to another connection.
        """
        name = name or self._last_queue
        if not name:
            raise ChannelError(errors.NOT_FOUND, "no queue has been declared on this channel")
        queue = self.connection.client.queue(name)
        if queue is None:
            raise ChannelError(errors.NOT_FOUND, f"no queue {name!r} in vhost '/'")
        if queue.options.exclusive and queue.owner is not self.connection:
            text = f"queue {name!r} is exclusive to another connection"
            raise ChannelError(errors.RESOURCE_LOCKED, text)
        return queue

    def declared(self, name: str) -> None:
        """Remember the queue that "" stands for from now on."""
        self._last_queue = name

    def end(self) -> None:
        """End the consumers and give back what is not acknowledged, in order."""
        self.closing = True
        for one in self.consumers.values():
            one.consumer.credit.pause()
        taken = list(self.unacked.values())
        self.unacked.clear()
        consumers = list(self.consumers.values())
        self.consumers.clear()
        _release(taken)
        for one in consumers:
            if one.consumer.active:
                one.consumer.queue.cancel(one.consumer)


REFUSED_UNROUTED: Final = REFUSED[Refusal.NO_SUCH_QUEUE]


def _release(deliveries: list[Delivery]) -> None:
    queues: dict[Queue, list[Delivery]] = {}
    for delivery in deliveries:
        queues.setdefault(delivery.queue, []).append(delivery)
    for queue, taken in queues.items():
        queue.release_all(taken)


def handle(channel: Channel, method: Frame) -> bool:
    """Let `channel` do what `method` asks; return False if the table does not know it.

    Raises:
        AmqpError: a mistake that closes the channel or the connection.
    """
    handler = HANDLERS.get(type(method))
    if handler is None:
        return False
    try:
        handler(channel, method)
    except NotAuthorized as error:
        raise ChannelError(errors.ACCESS_REFUSED, str(error), method.index) from None
    except QueueMismatch as error:
        code = errors.RESOURCE_LOCKED if "exclusive" in str(error) else errors.PRECONDITION_FAILED
        raise ChannelError(code, str(error), method.index) from None
    except AddressError as error:
        raise ChannelError(errors.PRECONDITION_FAILED, str(error), method.index) from None
    except ChannelError as error:
        error.method = error.method or method.index
        raise
    return True


HANDLERS: Final[dict[type, Callable[[Channel, Frame], None]]] = {
    commands.Confirm.Select: Channel.confirm_select,
    commands.Basic.Qos: Channel.qos,
    commands.Basic.Consume: Channel.consume,
    commands.Basic.Cancel: Channel.cancel,
    commands.Basic.Get: Channel.get,
    commands.Basic.Ack: Channel.ack,
    commands.Basic.Nack: Channel.nack,
    commands.Basic.Reject: Channel.reject,
    commands.Basic.Recover: Channel.recover,
    commands.Basic.RecoverAsync: Channel.recover,
    commands.Channel.Flow: Channel.flow,
}
