"""The state machine of one AMQP 0-9-1 connection. Sans-IO; see `protocols.frontend.Session`.

    HEADER   --protocol header-->  START_OK   (connection.start)
    START_OK --start-ok-->         AUTHENTICATING
    AUTHENTICATING --identity-->   TUNE_OK    (connection.tune)
    TUNE_OK  --tune-ok-->          OPEN
    OPEN     --open-->             OPENED     (connection.open-ok)
    any      --error-->            CLOSING    (connection.close; waits for close-ok)
    any      --close-->            CLOSED     (connection.close-ok)

Source: AMQP 0-9-1 §2.2.4 and class connection. Channels are in `protocols.amqp091.channel`.

Invariant: a soft error closes its channel only, a hard one the connection, each with the code that
the specification prescribes and the class and method that caused it.
"""

from collections import Counter
from enum import Enum
from typing import Final

from pamqp import commands, decode
from pamqp.base import Frame
from pamqp.common import FieldTable

from mesh_core.queue import Queue
from protocols.amqp091 import declarations as declarations  # registers its handlers
from protocols.amqp091 import errors
from protocols.amqp091.channel import Channel, handle
from protocols.amqp091.codec import (
    BASIC_PUBLISH,
    FRAME_MIN_SIZE,
    HEARTBEAT,
    PROTOCOL_HEADER,
    Content,
    Decoder,
    Failed,
    Heartbeat,
    Item,
    Method,
    encode_method,
)
from protocols.amqp091.errors import AmqpError, ChannelError
from protocols.amqp091.exchanges import Exchanges
from protocols.amqp091.translate import Templates
from protocols.frontend import Broker, Client, Credentials, SessionContext

FRAME_MAX: Final = 131_072
CHANNEL_MAX: Final = 2047
HEARTBEAT_SECONDS: Final = 60
CLOSE_OK_SECONDS: Final = 5.0
TOPIC_CACHE: Final = 4096
MECHANISMS: Final = "PLAIN AMQPLAIN"
CAPABILITIES: Final = (
    "publisher_confirms",
    "basic.nack",
    "consumer_cancel_notify",
    "authentication_failure_close",
    "per_consumer_qos",
)


class State(Enum):
    HEADER = "header"
    START_OK = "start-ok"
    AUTHENTICATING = "authenticating"
    TUNE_OK = "tune-ok"
    OPEN = "open"
    OPENED = "opened"
    CLOSING = "closing"
    CLOSED = "closed"


class AmqpSession:
    """One AMQP 0-9-1 connection.

    Attributes:
        exchanges: the node's.
        channels: the open ones, by number.
        exclusive: the queues that go with this connection, by name.
        frame_max: negotiated, in bytes.
        topics: topics by exchange and routing key, so that a publisher's are checked once.
    """

    __slots__ = (
        "_clock",
        "_closing_since",
        "_context",
        "_heartbeat",
        "_last_heard",
        "_product",
        "_started",
        "_state",
        "broker",
        "channels",
        "client",
        "closed",
        "counters",
        "decoder",
        "exchanges",
        "exclusive",
        "frame_max",
        "outbox",
        "templates",
        "topics",
    )

    def __init__(self, broker: Broker, exchanges: Exchanges, context: SessionContext) -> None:
        self.broker = broker
        self.exchanges = exchanges
        self.counters = broker.counters
        self.outbox = context.outbox
        self.decoder = Decoder(broker.limits.message_bytes, FRAME_MAX)
        self.templates = Templates()
        self.topics: dict[tuple[str, str], str] = {}
        self.channels: dict[int, Channel] = {}
        self.exclusive: dict[str, Queue] = {}
        self.frame_max = FRAME_MAX
        self.client: Client
        self.closed = False
        self._context = context
        self._clock = context.clock
        self._started = self._last_heard = context.clock()
        self._closing_since = 0.0
        self._heartbeat = 0
        self._state = State.HEADER

    # -- the verbs -------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the peer sent."""
        self._last_heard = self._clock()
        decoder = self.decoder
        items = decoder.feed(data)
        if self._state is State.HEADER and decoder.error is None:
            self._greet()
        touched: dict[Channel, None] = {}
        for item in items:
            if self.closed:
                return
            if type(item) is Content and self._state is State.OPENED:
                channel = self.channels.get(item.channel)
                if channel is not None and not channel.closing:
                    self._content(channel, item)
                    if channel.confirming:
                        touched[channel] = None
                    continue
            try:
                self._item(item)
            except ChannelError as error:
                self._channel_error(item, error)
            except AmqpError as error:
                self._fail(error, getattr(item, "channel", 0))
        for channel in touched:
            if not channel.closing and not self.closed:
                channel.flush_confirms()
        if decoder.error is not None and not self.closed:
            if decoder.wrong_header:  # §2.2.4: answer with the header we speak, and close.
                self.outbox.write(PROTOCOL_HEADER)
                self._count(decoder.error)
                self._close()
            else:
                self._fail(decoder.error, 0)

    def timeout(self, now: float) -> float | None:
        """Close a peer that does not open in time or whose heartbeats stop; beat ourselves."""
        if self.closed:
            return None
        if self._state is State.CLOSING:
            deadline = self._closing_since + CLOSE_OK_SECONDS
            if now >= deadline:
                self._close()
            return deadline
        if self._state is not State.OPENED:
            deadline = self._started + self.broker.limits.handshake_seconds
            if now >= deadline:
                self.counters.protocol_errors["handshake-timeout"] += 1
                self._close()
            return deadline
        if not self._heartbeat:
            return now + 1.0
        # §4.2.7: a peer that is silent for two intervals is gone.
        if now - self._last_heard >= 2 * self._heartbeat:
            self.counters.protocol_errors["heartbeat"] += 1
            self._close()
            return None
        self.outbox.write(HEARTBEAT)
        return now + self._heartbeat / 2

    def shutdown(self) -> None:
        """Say that the server shuts down, and close."""
        if self._state is State.OPENED:
            error = AmqpError(errors.CONNECTION_FORCED, "node is shutting down")
            self.outbox.write(encode_method(0, _close_method(error)))
        self._close()

    def lost(self) -> None:
        """End the channels; what was not acknowledged goes back to its queues."""
        self.closed = True
        self._let_go()

    # -- connecting ------------------------------------------------------------------------

    def _greet(self) -> None:
        if not self.decoder.greeted:
            return
        self._state = State.START_OK
        properties: FieldTable = {
            "product": "meshgate",
            "version": "0.1",
            "platform": "Python",
            "capabilities": dict.fromkeys(CAPABILITIES, True),
        }
        self._say(commands.Connection.Start(0, 9, properties, MECHANISMS, "en_US"))

    def _item(self, item: Item) -> None:
        if isinstance(item, Heartbeat):
            return
        if self._state is State.CLOSING:
            if isinstance(item, Method) and isinstance(
                item.method, commands.Connection.Close | commands.Connection.CloseOk
            ):
                self._close()
            return
        if isinstance(item, Method):
            if item.channel == 0:
                self._connection_method(item.method)
            else:
                self._channel_method(item.channel, item.method)
        elif isinstance(item, Failed):
            channel = self.channels.get(item.channel)
            if channel is not None and not channel.closing:
                raise item.error
        elif self._state is not State.OPENED or item.channel not in self.channels:
            raise AmqpError(errors.CHANNEL_ERROR, f"content on closed channel {item.channel}")

    def _connection_method(self, method: Frame) -> None:
        if isinstance(method, commands.Connection.Close):
            self._say(commands.Connection.CloseOk())
            self._close()
        elif self._state is State.START_OK and isinstance(method, commands.Connection.StartOk):
            self._authenticate(method)
        elif self._state is State.TUNE_OK and isinstance(method, commands.Connection.TuneOk):
            self._tune(method)
        elif self._state is State.OPEN and isinstance(method, commands.Connection.Open):
            if (method.virtual_host or "/") != "/":
                text = f"vhost {method.virtual_host!r} not found"
                raise AmqpError(errors.NOT_ALLOWED, text, method.index)
            self._state = State.OPENED
            self._say(commands.Connection.OpenOk())
        else:
            text = f"{method.name} in state {self._state.value}"
            raise AmqpError(errors.COMMAND_INVALID, text, method.index)

    def _authenticate(self, method: commands.Connection.StartOk) -> None:
        username, password = _credentials(method)
        self._state = State.AUTHENTICATING
        credentials = Credentials(self.broker.name, self._context.address, username, password, None)
        self.broker.authenticate(credentials, self._decided)

    def _decided(self, client: Client | None) -> None:
        if self.closed or self._state is not State.AUTHENTICATING:
            return
        if client is None:
            self._fail(AmqpError(errors.ACCESS_REFUSED, "login was refused"), 0)
            return
        self.client = client
        self._state = State.TUNE_OK
        self._say(commands.Connection.Tune(CHANNEL_MAX, FRAME_MAX, HEARTBEAT_SECONDS))

    def _tune(self, method: commands.Connection.TuneOk) -> None:
        frame_max = method.frame_max or FRAME_MAX
        if not FRAME_MIN_SIZE <= frame_max <= FRAME_MAX:
            text = f"frame_max {frame_max}, not {FRAME_MIN_SIZE} to {FRAME_MAX}"
            raise AmqpError(errors.NOT_ALLOWED, text, method.index)
        self.frame_max = frame_max
        self.decoder.frame_max = frame_max
        self._heartbeat = method.heartbeat or 0
        self._state = State.OPEN

    # -- channels --------------------------------------------------------------------------

    def _channel_method(self, number: int, method: Frame) -> None:
        if self._state is not State.OPENED:
            text = f"{method.name} in state {self._state.value}"
            raise AmqpError(errors.COMMAND_INVALID, text, method.index)
        channel = self.channels.get(number)
        if channel is None:
            if not isinstance(method, commands.Channel.Open):
                if isinstance(method, commands.Channel.CloseOk):
                    return
                text = f"{method.name} on closed channel {number}"
                raise AmqpError(errors.CHANNEL_ERROR, text, method.index)
            if number > CHANNEL_MAX:
                text = f"channel {number}, more than {CHANNEL_MAX}"
                raise AmqpError(errors.NOT_ALLOWED, text, method.index)
            self.channels[number] = channel = Channel(self, number)
            channel.say(commands.Channel.OpenOk())
        elif isinstance(method, commands.Channel.CloseOk):
            if channel.closing:
                del self.channels[number]
        elif isinstance(method, commands.Channel.Close):
            if not channel.closing:
                channel.flush_confirms()
                channel.end()
            del self.channels[number]
            channel.say(commands.Channel.CloseOk())
        elif channel.closing:
            return
        elif isinstance(method, commands.Channel.Open):
            text = f"channel {number} is open already"
            raise AmqpError(errors.CHANNEL_ERROR, text, method.index)
        else:
            channel.flush_confirms()
            if not handle(channel, method):
                raise AmqpError(errors.NOT_IMPLEMENTED, method.name, method.index)

    def _content(self, channel: Channel, content: Content) -> None:
        try:
            if content.method[:4] != BASIC_PUBLISH:
                raise AmqpError(errors.COMMAND_INVALID, "content that only a server sends")
            channel.publish(content)
        except ChannelError as error:
            self.close_channel(channel, error)
        except AmqpError as error:
            self._fail(error, channel.number)

    def _channel_error(self, item: Item, error: ChannelError) -> None:
        channel = self.channels.get(getattr(item, "channel", 0))
        if channel is None:
            self._fail(error, 0)
        else:
            self.close_channel(channel, error)

    def close_channel(self, channel: Channel, error: ChannelError) -> None:
        """Close a channel for the peer's mistake; frames on it are skipped until close-ok."""
        self._count(error)
        channel.flush_confirms()
        channel.end()
        self.decoder.forget(channel.number)
        class_id, method_id = error.method >> 16, error.method & 0xFFFF
        channel.say(commands.Channel.Close(error.code, error.reply_text, class_id, method_id))

    def remember(self, exchange: str, key: str, topic: str) -> None:
        """Keep a checked topic for the next publish with this exchange and routing key."""
        if len(self.topics) >= TOPIC_CACHE:
            self.topics.clear()
        self.topics[exchange, key] = topic

    # -- ending ----------------------------------------------------------------------------

    def _fail(self, error: AmqpError, channel: int) -> None:
        self._count(error)
        if self._state in (State.HEADER, State.CLOSING):
            self._close()
            return
        self.outbox.write(encode_method(0, _close_method(error)))
        self._let_go()
        self._state = State.CLOSING
        self._closing_since = self._clock()
        if self.decoder.error is not None:
            self._close()  # Nothing after a malformed frame can be read, close-ok included.

    def _close(self) -> None:
        self.closed = True
        self._let_go()
        self._state = State.CLOSED
        self.outbox.wake()

    def _let_go(self) -> None:
        for channel in self.channels.values():
            channel.end()
        self.channels.clear()
        exclusive, self.exclusive = self.exclusive, {}
        for queue in exclusive.values():
            if not queue.deleted:
                self.client.delete(queue)

    def _say(self, method: Frame) -> None:
        self.outbox.write(encode_method(0, method))

    def _count(self, error: AmqpError) -> None:
        counts: Counter[str] = self.counters.protocol_errors
        counts[str(error.code)] += 1


def _close_method(error: AmqpError) -> commands.Connection.Close:
    return commands.Connection.Close(
        error.code, error.reply_text, error.method >> 16, error.method & 0xFFFF
    )


def _credentials(method: commands.Connection.StartOk) -> tuple[str | None, bytes | None]:
    """Return user name and password of a SASL response (PLAIN: RFC 4616)."""
    response: object = method.response
    raw = response.encode() if isinstance(response, str) else bytes(response or b"")  # type: ignore[call-overload]
    try:
        if method.mechanism == "PLAIN":
            parts = raw.split(b"\0")
            if len(parts) != 3:
                raise AmqpError(errors.SYNTAX_ERROR, "PLAIN response has no three parts")
            return parts[1].decode(), parts[2]
        if method.mechanism == "AMQPLAIN":
            _, table = decode.field_table(len(raw).to_bytes(4, "big") + raw)
            return str(table.get("LOGIN", "")), str(table.get("PASSWORD", "")).encode()
    except ValueError:
        raise AmqpError(errors.SYNTAX_ERROR, "SASL response is malformed") from None
    text = f"mechanism {method.mechanism!r}: {MECHANISMS}"
    raise AmqpError(errors.ACCESS_REFUSED, text, method.index)
