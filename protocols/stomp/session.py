"""The state machine of one STOMP peer. Sans-IO; see `protocols.frontend.Session`.

    CONNECTING      --CONNECT, STOMP--> AUTHENTICATING
    AUTHENTICATING  --identity-->       CONNECTED       (CONNECTED)
    AUTHENTICATING  --refusal-->        CLOSED          (ERROR)
    CONNECTED       --DISCONNECT-->     CLOSED          (RECEIPT if asked for)
    any             --error, time-->    CLOSED          (ERROR, with receipt-id if there is one)

What a command does in CONNECTED stands in one table, `_COMMANDS`. Subscriptions are in
`protocols.stomp.subscriptions`.

Invariant: a RECEIPT for SEND is sent only when the router's receipt is done; after an ERROR
nothing more is sent.
"""

import secrets
from collections.abc import Callable
from enum import Enum
from typing import Final

from mesh_core.address import AddressError, queue_address
from mesh_core.event import Event
from mesh_core.queue import QueueError
from mesh_core.receipt import Receipt
from mesh_core.router import QueueMismatch
from protocols.frontend import Broker, Client, Credentials, NotAuthorized, SessionContext
from protocols.stomp.codec import V10, V11, V12, Decoder, Frame, StompError, encode
from protocols.stomp.destinations import Destination, parse
from protocols.stomp.subscriptions import Subscriptions
from protocols.stomp.translate import to_event

SERVER: Final = "meshgate"
HEART_BEAT: Final = 1000
"""Shortest heart-beat we offer and ask for, in milliseconds."""

GRACE: Final = 2.0
"""A peer is silent for so many of its heart-beats before it counts as lost ("Heart-beating")."""

MAX_TRANSACTIONS: Final = 16
MAX_TRANSACTION_FRAMES: Final = 10_000
DESTINATION_CACHE: Final = 4096


class State(Enum):
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    CONNECTED = "connected"
    CLOSED = "closed"


class StompSession:
    """One STOMP peer."""

    __slots__ = (
        "_beat_every",
        "_beat_next",
        "_broker",
        "_client",
        "_clock",
        "_context",
        "_decoder",
        "_destinations",
        "_dots",
        "_early",
        "_expect_every",
        "_last_heard",
        "_outbox",
        "_started",
        "_state",
        "_subscriptions",
        "_transaction_bytes",
        "_transactions",
        "_version",
        "closed",
    )

    def __init__(self, broker: Broker, context: SessionContext, *, dots: bool = True) -> None:
        self._broker = broker
        self._context = context
        self._outbox = context.outbox
        self._clock = context.clock
        self._dots = dots
        self._decoder = Decoder(broker.limits.message_bytes)
        self._state = State.CONNECTING
        self._started = self._last_heard = context.clock()
        self._beat_every = self._expect_every = 0.0
        self._beat_next = 0.0
        self._version = V10
        self._client: Client
        self._subscriptions: Subscriptions
        self._early: list[Frame] = []
        self._transactions: dict[str, list[Frame]] = {}
        self._transaction_bytes = 0
        self._destinations: dict[str, Destination] = {}
        self.closed = False

    # -- the verbs -------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the peer sent."""
        self._last_heard = self._clock()
        for frame in self._decoder.feed(data):
            if self.closed:
                return
            self._frame(frame)
        if self._decoder.error is not None and not self.closed:
            self._error(self._decoder.error, None)

    def timeout(self, now: float) -> float | None:
        """Close a peer that does not connect in time or has stopped beating; beat ourselves."""
        if self.closed:
            return None
        if self._state is not State.CONNECTED:
            deadline = self._started + self._broker.limits.handshake_seconds
            if now >= deadline:
                self._error(StompError("CONNECT took too long", "handshake-timeout"), None)
            return deadline
        # Looks in every second, so that a beat negotiated later is not missed.
        next_look = now + 1.0
        if self._expect_every:
            deadline = self._last_heard + GRACE * self._expect_every
            if now >= deadline:
                self._error(StompError("no heart-beat", "heart-beat"), None)
                return None
            next_look = min(next_look, deadline)
        if self._beat_every:
            if now >= self._beat_next:
                self._outbox.write(b"\n")
                self._beat_next = now + self._beat_every
            next_look = min(next_look, self._beat_next)
        return next_look

    def shutdown(self) -> None:
        """Say that the server shuts down, and close."""
        if not self.closed and self._state is State.CONNECTED:
            self._say("ERROR", {"message": "server is shutting down"})
        self._close()

    def lost(self) -> None:
        """End all subscriptions; what was not acknowledged goes back to its queues."""
        self.closed = True
        self._let_go()

    # -- connecting ------------------------------------------------------------------------

    def _frame(self, frame: Frame) -> None:
        state = self._state
        try:
            if state is State.CONNECTED:
                if frame.command == "SEND" and "transaction" not in frame.headers:
                    self._send(frame)
                    return
                handler = _COMMANDS.get(frame.command)
                if handler is None:
                    raise StompError(f"unknown command {frame.command[:40]!r}", "command")
                handler(self, frame)
            elif state is State.CONNECTING:
                if frame.command not in ("CONNECT", "STOMP"):
                    raise StompError(f"{frame.command[:40]!r} before CONNECT", "order")
                self._connect(frame)
            else:
                if len(self._early) >= 1000:
                    raise StompError("too much before CONNECTED", "order")
                self._early.append(frame)
        except StompError as error:
            self._error(error, frame)
        except AddressError as error:
            self._error(StompError(str(error), "destination"), frame)
        except NotAuthorized as error:
            self._error(StompError(str(error), "not-authorized"), frame)
        except (QueueMismatch, QueueError) as error:
            self._error(StompError(str(error), "queue"), frame)

    def _connect(self, frame: Frame) -> None:
        headers = frame.headers
        offered = headers.get("accept-version", V10).split(",")
        version = next((v for v in (V12, V11, V10) if v in map(str.strip, offered)), None)
        if version is None:
            # "Protocol Negotiation": name what we speak.
            raise StompError("supported protocol versions are 1.0,1.1,1.2", "version")
        self._version = version
        beats = headers.get("heart-beat", "0,0").split(",")
        if len(beats) != 2 or not all(b.isascii() and b.isdigit() and len(b) < 10 for b in beats):
            raise StompError("heart-beat must be two numbers", "header")
        self._state = State.AUTHENTICATING
        credentials = Credentials(
            self._broker.name,
            self._context.address,
            headers.get("login"),
            headers["passcode"].encode() if "passcode" in headers else None,
            headers.get("client-id"),
        )
        can, wants = int(beats[0]), int(beats[1])
        self._broker.authenticate(credentials, lambda client: self._decided(client, can, wants))

    def _decided(self, client: Client | None, can: int, wants: int) -> None:
        if self.closed or self._state is not State.AUTHENTICATING:
            return
        if client is None:
            self._error(StompError("access refused: wrong login or passcode", "login"), None)
            return
        self._client = client
        self._decoder.version = self._version
        self._state = State.CONNECTED
        self._subscriptions = Subscriptions(
            self._broker, client, self._outbox, self._version, self._dots, self
        )
        headers = {
            "version": self._version,
            "session": secrets.token_hex(8),
            "server": SERVER,
            "heart-beat": f"{HEART_BEAT},{HEART_BEAT}",
        }
        self._outbox.write(encode(Frame("CONNECTED", headers), self._version))
        # "Heart-beating": each direction at the slower of what one can and the other wants.
        self._expect_every = max(can, HEART_BEAT) / 1000 if can else 0.0
        self._beat_every = max(wants, HEART_BEAT) / 1000 if wants else 0.0
        self._beat_next = self._clock() + self._beat_every
        early, self._early = self._early, []
        for frame in early:
            if not self.closed:
                self._frame(frame)

    # -- publishing ------------------------------------------------------------------------

    def _send(self, frame: Frame) -> None:
        headers = frame.headers
        text = headers.get("destination")
        if text is None:
            raise StompError("SEND without destination", "header")
        destination = self._destinations.get(text)
        if destination is None:
            destination = parse(text, dots=self._dots, pattern=False)
            if len(self._destinations) >= DESTINATION_CACHE:
                self._destinations.clear()
            self._destinations[text] = destination
        self._broker.counters.messages_in += 1
        reply_to = headers.get("reply-to")
        if reply_to is not None:
            reply_to = self._reply_address(reply_to)
        event = to_event(frame, destination.topic, reply_to, self)
        receipt = self._publish(event, destination)
        wanted = headers.get("receipt")
        if receipt.done:
            if wanted is not None or receipt.refusal is not None:
                self._published(frame, receipt)
        else:
            receipt.when_done(lambda done: self._published(frame, done))

    def _publish(self, event: Event, destination: Destination) -> Receipt:
        if event.topic:
            if event.retain and not event.data:
                event.retain = False
                self._client.clear_retained(event.topic)
            return self._client.publish(event)
        event.retain = False
        event.queue = destination.queue or self._subscriptions.temporary(destination.temporary)
        return self._client.send(event, create=True)

    def _published(self, frame: Frame, receipt: Receipt) -> None:
        if self.closed:
            return
        if receipt.refusal is not None:
            where = frame.headers.get("destination", "")
            reason = receipt.refusal
            self._error(StompError(f"{where}: {reason.value}", reason.name.lower()), frame)
        else:
            self._receipt(frame)

    def _reply_address(self, text: str) -> str:
        destination = parse(text, dots=self._dots, pattern=False)
        if destination.topic:
            return destination.topic
        if destination.temporary:
            return queue_address(self._subscriptions.reply_queue(destination.temporary))
        return queue_address(destination.queue)

    # -- the other commands ----------------------------------------------------------------

    def _subscribe(self, frame: Frame) -> None:
        text = frame.headers.get("destination")
        if text is None:
            raise StompError("SUBSCRIBE without destination", "header")
        id = frame.headers.get("id")
        if id is None:
            if self._version != V10:
                raise StompError("SUBSCRIBE without id", "header")
            id = text
        destination = parse(text, dots=self._dots, pattern=True)
        self._subscriptions.subscribe(id, destination, frame.headers)
        self._receipt(frame)
        self._subscriptions.send_retained(id)

    def _unsubscribe(self, frame: Frame) -> None:
        id = frame.headers.get("id")
        if id is None and self._version == V10:
            id = frame.headers.get("destination")
        if id is None:
            raise StompError("UNSUBSCRIBE without id", "header")
        self._subscriptions.unsubscribe(id)
        self._receipt(frame)

    def _ack(self, frame: Frame) -> None:
        if self._in_transaction(frame):
            return
        name = "id" if self._version == V12 else "message-id"
        id = frame.headers.get(name)
        if id is None:
            raise StompError(f"{frame.command} without {name}", "header")
        if self._version == V11 and "subscription" not in frame.headers:
            raise StompError(f"{frame.command} without subscription", "header")
        self._subscriptions.acknowledge(id, accepted=frame.command == "ACK", headers=frame.headers)
        self._receipt(frame)

    def _begin(self, frame: Frame) -> None:
        name = self._transaction_name(frame)
        if name in self._transactions:
            raise StompError(f"transaction {name!r} has begun already", "transaction")
        if len(self._transactions) >= MAX_TRANSACTIONS:
            raise StompError(f"more than {MAX_TRANSACTIONS} transactions", "transaction")
        self._transactions[name] = []
        self._receipt(frame)

    def _commit(self, frame: Frame) -> None:
        for one in self._taken(frame):
            headers = {k: v for k, v in one.headers.items() if k not in ("transaction", "receipt")}
            self._frame(one._replace(headers=headers))
            if self.closed:
                return
        self._receipt(frame)

    def _abort(self, frame: Frame) -> None:
        self._taken(frame)
        self._receipt(frame)

    def _taken(self, frame: Frame) -> list[Frame]:
        name = self._transaction_name(frame)
        frames = self._transactions.pop(name, None)
        if frames is None:
            raise StompError(f"transaction {name!r} has not begun", "transaction")
        self._transaction_bytes -= sum(len(one.body) for one in frames)
        return frames

    @staticmethod
    def _transaction_name(frame: Frame) -> str:
        name = frame.headers.get("transaction")
        if not name:
            raise StompError(f"{frame.command} without transaction", "header")
        return name

    def _in_transaction(self, frame: Frame) -> bool:
        name = frame.headers.get("transaction")
        if name is None:
            return False
        frames = self._transactions.get(name)
        if frames is None:
            raise StompError(f"transaction {name!r} has not begun", "transaction")
        self._transaction_bytes += len(frame.body)
        over = self._transaction_bytes > self._broker.limits.message_bytes
        if over or len(frames) >= MAX_TRANSACTION_FRAMES:
            raise StompError(f"transaction {name!r} is too large", "too-large")
        frames.append(frame)
        self._receipt(frame)
        return True

    def _send_in_transaction(self, frame: Frame) -> None:
        if "destination" not in frame.headers:
            raise StompError("SEND without destination", "header")
        if not self._in_transaction(frame):
            self._send(frame)

    def _goodbye(self, frame: Frame) -> None:
        self._receipt(frame)
        self._close()

    # -- ending ----------------------------------------------------------------------------

    def _receipt(self, frame: Frame) -> None:
        id = frame.headers.get("receipt")
        if id is not None:
            self._say("RECEIPT", {"receipt-id": id})

    def _error(self, error: StompError, frame: Frame | None) -> None:
        self._broker.counters.protocol_errors[str(error.reason)] += 1
        headers = {"message": str(error)}
        if error.reason == "version":
            headers["version"] = "1.0,1.1,1.2"
        if frame is not None and "receipt" in frame.headers:
            headers["receipt-id"] = frame.headers["receipt"]
        self._say("ERROR", headers)
        self._close()

    def _say(self, command: str, headers: dict[str, str]) -> None:
        self._outbox.write(encode(Frame(command, headers), self._version))

    def _close(self) -> None:
        self.closed = True
        self._let_go()
        self._outbox.wake()

    def _let_go(self) -> None:
        if self._state is State.CONNECTED:
            self._subscriptions.end()
        self._state = State.CLOSED


_COMMANDS: Final[dict[str, Callable[[StompSession, Frame], None]]] = {
    "SEND": StompSession._send_in_transaction,
    "SUBSCRIBE": StompSession._subscribe,
    "UNSUBSCRIBE": StompSession._unsubscribe,
    "ACK": StompSession._ack,
    "NACK": StompSession._ack,
    "BEGIN": StompSession._begin,
    "COMMIT": StompSession._commit,
    "ABORT": StompSession._abort,
    "DISCONNECT": StompSession._goodbye,
}
