"""What is spoken over an open WebSocket: CloudEvents, JSON operations, or a carried protocol.

Sans-IO. Each channel has the same verbs: `opened`, `receive`, `timeout`, `shutdown`, `end`.

Invariant: `end` gives everything back (subscriptions, queue deliveries, the carried session), can
be called twice, and nothing is written after it.
"""

import secrets
from collections.abc import Callable
from typing import Final, Protocol

from mesh_core.address import AddressError, check_topic
from mesh_core.event import CloudEventError, Event
from mesh_core.queue import Consumer, Credit, Delivery, Outcome, Queue, QueueError
from mesh_core.receipt import Receipt
from mesh_core.router import Deliver, QueueMismatch, Subscription
from protocols.bindings.json import decode_event, encode_event
from protocols.frontend import Broker, Client, NotAuthorized, SessionContext, SessionFactory
from protocols.outbox import Outbox
from protocols.websocket.codec import (
    BINARY,
    INVALID_DATA,
    NORMAL,
    POLICY_VIOLATION,
    TEXT,
    UNSUPPORTED_DATA,
    Ping,
    Publish,
    Request,
    Settle,
    Subscribe,
    Unsubscribe,
    WebSocketError,
    decode_operation,
    encode_answer,
    encode_frame,
)
from protocols.websocket.translate import plain_data, to_frame

MAX_REQUESTS: Final = 1000
MAX_TIMEOUT: Final = 300.0
PAUSE_BYTES: Final = 1024 * 1024

__all__ = ["NORMAL", "CarriedChannel", "Channel", "EventsChannel", "OperationsChannel"]


class Channel(Protocol):
    """One way of speaking over an open WebSocket."""

    @property
    def closed(self) -> bool:
        """Whether the channel has nothing more to say, so that the WebSocket is to be closed."""
        ...

    def opened(self) -> None:
        """Start sending: the handshake's answer is written."""
        ...

    def receive(self, data: bytes, kind: int) -> None:
        """Take a message, TEXT (valid UTF-8) or BINARY.

        Raises:
            WebSocketError: the peer broke the subprotocol.
        """
        ...

    def timeout(self, now: float) -> float | None:
        """Do what is due; return when to be asked again."""
        ...

    def shutdown(self) -> None:
        """Say goodbye in the channel's own words."""
        ...

    def end(self) -> None:
        """Let go of everything."""
        ...


class EventsChannel:
    """Subprotocol cloudevents.json: every text frame is a CloudEvent, both ways."""

    def __init__(
        self, broker: Broker, client: Client, outbox: Outbox, query: dict[str, list[str]]
    ) -> None:
        """Subscribe to what the query asks for: `subscribe`, `topic`, `retained`.

        Raises:
            WebSocketError: a filter or topic is not legal or not allowed.
        """
        self.closed = False
        self._client = client
        self._outbox = outbox
        self._counters = broker.counters
        self._subscriptions: list[Subscription] = []
        self._retained: dict[str, Event] = {}
        self._topic = query.get("topic", [""])[0]
        try:
            if self._topic:
                check_topic(self._topic)
            for filter in query.get("subscribe", []):
                self._subscriptions.append(client.subscribe(filter, self._deliver, self))
                if query.get("retained", ["false"])[0] == "true":
                    self._retained.update((e.topic, e) for e in client.retained(filter))
        except (AddressError, NotAuthorized) as error:
            self.end()
            raise WebSocketError(str(error), POLICY_VIOLATION) from None

    def merge(self, subscriptions: list[Subscription]) -> Deliver:
        """Deliver once, however many of the filters match."""
        return self._deliver

    def opened(self) -> None:
        for event in self._retained.values():
            self._outbox.offer(to_frame(event))
            self._counters.messages_out += 1
        self._retained.clear()

    def _deliver(self, event: Event) -> None:
        if event.expires_at is not None and event.expired():
            return
        self._counters.messages_out += self._outbox.offer(to_frame(event))

    def receive(self, data: bytes, kind: int) -> None:
        if kind != TEXT:
            raise WebSocketError("cloudevents.json has text frames only", UNSUPPORTED_DATA)
        self._counters.messages_in += 1
        try:
            event = decode_event(data, self._topic, publisher=self)
            receipt = _publish(self._client, event)
        except CloudEventError as error:
            raise WebSocketError(str(error), INVALID_DATA) from None
        except (AddressError, NotAuthorized, QueueMismatch) as error:
            raise WebSocketError(str(error), POLICY_VIOLATION) from None
        if receipt.done:
            self._refused(receipt)
        else:
            receipt.when_done(self._refused)

    def _refused(self, receipt: Receipt) -> None:
        # This subprotocol has no acknowledgement: a refusal can only be told by closing.
        if receipt.refusal is not None and not self.closed:
            self.closed = True
            self._outbox.wake()

    def timeout(self, now: float) -> float | None:
        return None

    def shutdown(self) -> None:
        """There is nothing to say but the close frame."""

    def end(self) -> None:
        self.closed = True
        for subscription in self._subscriptions:
            self._client.unsubscribe(subscription)
        self._subscriptions.clear()


def _publish(client: Client, event: Event) -> Receipt:
    if event.queue is not None:
        event.retain = False
        return client.send(event, create=True)
    if event.retain and not event.data:
        event.retain = False
        client.clear_retained(event.topic)
    return client.publish(event)


class CarriedChannel:
    """MQTT or STOMP over WebSocket: bytes to the protocol's own session, and back."""

    def __init__(
        self, make_session: SessionFactory, context: SessionContext, *, text: bool
    ) -> None:
        outer = context.outbox
        inner = Outbox(outer.limit)
        outer.carry(inner, self._wrap)
        self._text = text
        self._session = make_session(SessionContext(inner, context.address, context.clock))
        self._ended = False

    @property
    def closed(self) -> bool:
        return self._session.closed

    def _wrap(self, data: bytes) -> bytes:
        """Make one message of a loop turn's bytes: text if STOMP has only text in it."""
        if self._text:
            try:
                data.decode()
                return encode_frame(TEXT, data)
            except UnicodeDecodeError:
                pass
        return encode_frame(BINARY, data)

    def opened(self) -> None:
        """The session speaks when it is spoken to."""

    def receive(self, data: bytes, kind: int) -> None:
        if kind == TEXT and not self._text:  # [MQTT-6.0.0-1]
            raise WebSocketError("binary frames only", UNSUPPORTED_DATA)
        self._session.receive(data)

    def timeout(self, now: float) -> float | None:
        return self._session.timeout(now)

    def shutdown(self) -> None:
        self._session.shutdown()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._session.lost()


class _Consuming:
    """A subscription of `meshgate.v1`."""

    __slots__ = ("_channel", "consumer", "id", "prefix", "subscription")

    def __init__(self, channel: "OperationsChannel", id: str) -> None:
        self._channel = channel
        self.id = id
        # `event` is the last member, so that the event's own bytes can follow.
        self.prefix = encode_answer("event", subscription=id)[:-1]
        self.subscription: Subscription | None = None
        self.consumer: Consumer | None = None

    def deliver(self, event: Event) -> None:
        if event.expires_at is None or not event.expired():
            self._channel.send_event(self.prefix + b',"event":' + encode_event(event) + b"}")

    def take(self, delivery: Delivery) -> None:
        self._channel.take(delivery, self)


class OperationsChannel:
    """Subprotocol meshgate.v1: JSON operations on a live connection (docs/asyncapi.yaml)."""

    def __init__(
        self, broker: Broker, client: Client, outbox: Outbox, clock: Callable[[], float]
    ) -> None:
        self.closed = False
        self._limits = broker.limits
        self._counters = broker.counters
        self._client = client
        self._outbox = outbox
        self._clock = clock
        self._by_id: dict[str, _Consuming] = {}
        self._held: dict[int, Delivery] = {}
        self._last_delivery = 0
        # Requests under way: id → (reply subscription, when it is too late)
        self._requests: dict[str, tuple[Subscription, float]] = {}

    def opened(self) -> None:
        """The client speaks first."""

    def receive(self, data: bytes, kind: int) -> None:
        if kind != TEXT:
            raise WebSocketError("meshgate.v1 has text frames only", UNSUPPORTED_DATA)
        operation = decode_operation(data)
        try:
            match operation:
                case Publish():
                    self._publish(operation)
                case Subscribe():
                    self._subscribe(operation)
                case Unsubscribe():
                    self._unsubscribe(operation)
                case Settle():
                    self._settle(operation)
                case Request():
                    self._request(operation)
                case Ping():
                    self._say(encode_answer("pong", id=operation.id))
        except NotAuthorized as error:
            self._error(operation.id, "not-authorized", str(error))
        except (AddressError, CloudEventError, QueueMismatch, QueueError, ValueError) as error:
            self._error(operation.id, "bad-request", str(error))

    def _say(self, text: bytes) -> None:
        self._outbox.write(encode_frame(TEXT, text))

    def _error(self, id: str | None, reason: str, message: str) -> None:
        self._counters.protocol_errors[reason] += 1
        self._say(encode_answer("error", id=id, reason=reason, message=message))

    def send_event(self, text: bytes) -> None:
        """Send a transient delivery."""
        self._counters.messages_out += self._outbox.offer(encode_frame(TEXT, text))

    # -- publishing ------------------------------------------------------------------------

    def _event(self, operation: Publish | Request, topic: str, queue: str | None) -> Event:
        raw = bytes(operation.event)
        if raw:
            return decode_event(raw, topic, queue=queue, publisher=self)
        data, content_type = plain_data(bytes(operation.data), operation.datacontenttype)
        return Event(topic, data, content_type, queue=queue, publisher=self)

    def _publish(self, operation: Publish) -> None:
        self._counters.messages_in += 1
        topic = check_topic(operation.topic) if operation.topic is not None else ""
        if not topic and operation.queue is None and not bytes(operation.event):
            raise AddressError("publish needs a topic or a queue")
        event = self._event(operation, topic, operation.queue)
        receipt = _publish(self._client, event)
        if operation.id is None and receipt.done and receipt.refusal is None:
            return

        def answer(done: Receipt) -> None:
            if self.closed:
                return
            if done.refusal is not None:
                reason = done.refusal.name.lower().replace("_", "-")
                self._error(operation.id, reason, done.refusal.value)
            elif operation.id is not None:
                self._say(encode_answer("ok", id=operation.id, routed=done.routed))

        receipt.when_done(answer)

    def _request(self, operation: Request) -> None:
        check_topic(operation.topic)
        if operation.id in self._requests:
            raise ValueError(f"request {operation.id!r} is under way")
        if len(self._requests) >= MAX_REQUESTS:
            raise ValueError(f"more than {MAX_REQUESTS} requests under way")
        if not 0 < operation.timeout <= MAX_TIMEOUT:
            raise ValueError(f"timeout must be above 0 and at most {MAX_TIMEOUT:g} seconds")
        event = self._event(operation, operation.topic, None)
        event.reply_to = f"$reply/{secrets.token_hex(12)}"
        event.correlation_id = operation.id.encode()
        reply = self._client.subscribe(event.reply_to, lambda e: self._replied(operation.id, e))
        self._requests[operation.id] = (reply, self._clock() + operation.timeout)
        receipt = self._client.publish(event)
        if receipt.done and (receipt.refusal is not None or not receipt.routed):
            self._forget_request(operation.id)
            reason = "no-responder" if receipt.refusal is None else "refused"
            self._error(operation.id, reason, f"nobody answers {operation.topic!r}")

    def _replied(self, id: str, event: Event) -> None:
        if self._forget_request(id):
            head = encode_answer("reply", id=id)[:-1]
            self._say(head + b',"event":' + encode_event(event) + b"}")

    def _forget_request(self, id: str) -> bool:
        found = self._requests.pop(id, None)
        if found is not None:
            self._client.unsubscribe(found[0])
        return found is not None

    # -- subscribing -----------------------------------------------------------------------

    def _subscribe(self, operation: Subscribe) -> None:
        if operation.id in self._by_id:
            raise ValueError(f"subscription {operation.id!r} exists")
        if len(self._by_id) >= self._limits.subscriptions:
            raise ValueError("too many subscriptions")
        one = _Consuming(self, operation.id)
        if (operation.filter is None) == (operation.queue is None):
            raise ValueError("subscribe needs a filter or a queue")
        if operation.filter is not None:
            one.subscription = self._client.subscribe(operation.filter, one.deliver)
            self._by_id[operation.id] = one
            self._say(encode_answer("ok", id=operation.id))
            if operation.retained:
                for event in self._client.retained(operation.filter):
                    one.deliver(event)
            return
        if not 0 < operation.credit <= 100_000:
            raise ValueError("credit must be 1 to 100000")
        queue = self._client.declare(operation.queue or "")
        credit = Credit(operation.credit) if operation.ack else Credit()
        credit.pause()  # Nothing in front of the answer.
        one.consumer = Consumer(
            one.take,
            credit,
            auto_accept=not operation.ack,
            cancelled=lambda: self._ended(operation.id),
            owner=self,
        )
        self._client.consume(queue, one.consumer)
        self._by_id[operation.id] = one
        self._say(encode_answer("ok", id=operation.id))
        credit.resume()

    def _ended(self, id: str) -> None:
        self._by_id.pop(id, None)
        self._say(encode_answer("end", subscription=id))

    def take(self, delivery: Delivery, one: _Consuming) -> None:
        """Send what a queue handed over."""
        text = one.prefix
        consumer = one.consumer
        assert consumer is not None
        if not consumer.auto_accept:
            self._last_delivery += 1
            self._held[self._last_delivery] = delivery
            text += b',"delivery":%d' % self._last_delivery
        if delivery.redelivered:
            text += b',"redelivered":true'
        self._say(text + b',"event":' + encode_event(delivery.event) + b"}")
        self._counters.messages_out += 1
        if self._outbox.size > PAUSE_BYTES and not consumer.credit.paused:
            consumer.credit.pause()
            self._outbox.when_drained(consumer.credit.resume)

    def _settle(self, operation: Settle) -> None:
        delivery = self._held.pop(operation.delivery, None)
        if delivery is None:
            raise ValueError(f"no delivery {operation.delivery} to settle")
        delivery.settle(Outcome(operation.outcome))
        if operation.id is not None:
            self._say(encode_answer("ok", id=operation.id))

    def _unsubscribe(self, operation: Unsubscribe) -> None:
        one = self._by_id.pop(operation.id, None)
        if one is None:
            raise ValueError(f"no subscription {operation.id!r}")
        self._end(one)
        self._say(encode_answer("ok", id=operation.id))

    def _end(self, one: _Consuming) -> None:
        if one.subscription is not None:
            self._client.unsubscribe(one.subscription)
        if one.consumer is not None and one.consumer.active:
            one.consumer.queue.cancel(one.consumer)

    # -- time and end ----------------------------------------------------------------------

    def timeout(self, now: float) -> float | None:
        for id in [id for id, (_, late) in self._requests.items() if now >= late]:
            self._forget_request(id)
            self._error(id, "timeout", "no answer in time")
        # Looks often enough for a request made in the meantime.
        return now + 0.25

    def shutdown(self) -> None:
        """There is nothing to say but the close frame."""

    def end(self) -> None:
        if self.closed:
            return
        self.closed = True
        for id in list(self._requests):
            self._forget_request(id)
        for one in self._by_id.values():
            if one.consumer is not None:
                one.consumer.credit.pause()
        queues: dict[Queue, list[Delivery]] = {}
        for delivery in self._held.values():
            queues.setdefault(delivery.queue, []).append(delivery)
        self._held.clear()
        for queue, deliveries in queues.items():
            queue.release_all(deliveries)
        for one in self._by_id.values():
            self._end(one)
        self._by_id.clear()
