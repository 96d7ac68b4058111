"""The state machine of one WebSocket peer. Sans-IO; see `protocols.frontend.Session`.

    HANDSHAKE      --request-->   AUTHENTICATING   (/events; carried protocols log in themselves)
    AUTHENTICATING --identity-->  OPEN             (101)
    AUTHENTICATING --refusal-->   CLOSED           (401)
    OPEN           --close-->     CLOSED           (close frame answered)

Framing is `websockets.server.ServerProtocol`; this adds the paths, keepalive, the UTF-8 check of
text, and the channel of the chosen subprotocol (`protocols.websocket.channels`). There is no
permessage-deflate, so no frame is larger than it looks.

Invariant: outgoing events are whole frames appended to the outbox between those that
`ServerProtocol` makes, and none is sent after a close frame.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.exceptions import NegotiationError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import CLOSED as WS_CLOSED
from websockets.protocol import OPEN as WS_OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from protocols.frontend import (
    Broker,
    Client,
    Credentials,
    SessionContext,
    SessionFactory,
)
from protocols.websocket.channels import CarriedChannel, Channel, EventsChannel, OperationsChannel
from protocols.websocket.codec import (
    BINARY,
    GOING_AWAY,
    INTERNAL_ERROR,
    INVALID_DATA,
    TEXT,
    WebSocketError,
)

EVENTS: Final = "/events"
CLOUDEVENTS: Final = "cloudevents.json"
OPERATIONS: Final = "meshgate.v1"
PING_SECONDS: Final = 20.0
PONG_SECONDS: Final = 20.0
CLOSE_SECONDS: Final = 5.0


class Carried(NamedTuple):
    """Another protocol over WebSocket.

    Attributes:
        subprotocols: those it accepts; a client must offer one of them.
        make_session: makes the protocol's own session.
        text: whether its frames may be text.
    """

    subprotocols: tuple[str, ...]
    make_session: SessionFactory
    text: bool


class State(Enum):
    HANDSHAKE = "handshake"
    AUTHENTICATING = "authenticating"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class WebSocketSession:
    """One WebSocket peer."""

    __slots__ = (
        "_acceptable",
        "_broker",
        "_carried",
        "_channel",
        "_clock",
        "_context",
        "_deadline",
        "_fragments",
        "_last_heard",
        "_opcode",
        "_outbox",
        "_pinged",
        "_protocol",
        "_request",
        "_state",
        "closed",
    )

    def __init__(
        self, broker: Broker, carried: Mapping[str, Carried], context: SessionContext
    ) -> None:
        self._broker = broker
        self._carried = carried
        self._context = context
        self._outbox = context.outbox
        self._clock = context.clock
        self._protocol = ServerProtocol(
            select_subprotocol=lambda _, offered: self._select(offered),
            max_size=broker.limits.message_bytes + 65_536,
        )
        self._acceptable: tuple[str, ...] = ()
        self._channel: Channel | None = None
        self._request: Request
        self._fragments: list[bytes] = []
        self._opcode = Opcode.TEXT
        self._last_heard = context.clock()
        self._deadline = self._last_heard + broker.limits.handshake_seconds
        self._pinged = False
        self._state = State.HANDSHAKE
        self.closed = False

    # -- the verbs -------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the peer sent."""
        self._last_heard = self._clock()
        self._pinged = False
        protocol = self._protocol
        protocol.receive_data(data)
        if protocol.handshake_exc is not None and self._state is State.HANDSHAKE:
            self._count("handshake")
        for event in protocol.events_received():
            if self._state is State.HANDSHAKE and isinstance(event, Request):
                self._handshake(event)
            elif isinstance(event, Frame) and self._state is State.OPEN:
                self._frame(event)
        self._drain()

    def timeout(self, now: float) -> float | None:
        """Close a peer that does not open in time or does not answer pings; ping it."""
        if self.closed:
            return None
        if self._state in (State.HANDSHAKE, State.AUTHENTICATING):
            if now >= self._deadline:
                self._count("handshake-timeout")
                self._close()
            return self._deadline
        if self._state is State.CLOSING:
            if now >= self._deadline:
                self._close()
            return self._deadline
        silent = now - self._last_heard
        if self._pinged and silent >= PING_SECONDS + PONG_SECONDS:
            self._fail(INTERNAL_ERROR, "no pong", "pong-timeout")
        elif not self._pinged and silent >= PING_SECONDS:
            self._pinged = True
            self._protocol.send_ping(b"")
            self._drain()
        channel_next = self._channel.timeout(now) if self._channel is not None else None
        self._channel_closed()
        return min(now + PING_SECONDS / 4, channel_next or now + PING_SECONDS)

    def shutdown(self) -> None:
        """Say that the server goes away (1001), and close."""
        if self._state is State.OPEN:
            if self._channel is not None:
                self._channel.shutdown()
            self._fail(GOING_AWAY, "server is shutting down", None)
        self._close()

    def lost(self) -> None:
        """End the channel."""
        self.closed = True
        self._let_go()
        self._state = State.CLOSED

    # -- handshake -------------------------------------------------------------------------

    def _select(self, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """Choose a subprotocol; `/events` speaks cloudevents.json if none is offered."""
        for name in offered:
            if name in self._acceptable:
                return name
        if not offered and CLOUDEVENTS in self._acceptable:
            return None
        raise NegotiationError(f"offer one of the subprotocols {', '.join(self._acceptable)}")

    def _handshake(self, request: Request) -> None:
        path = unquote(urlsplit(request.path).path)
        self._request = request
        if path == EVENTS:
            self._acceptable = (CLOUDEVENTS, OPERATIONS)
            self._state = State.AUTHENTICATING
            username, password = _basic(request.headers.get("Authorization"))
            credentials = Credentials(self._broker.name, self._context.address, username, password)
            self._broker.authenticate(credentials, self._decided)
            return
        carried = self._carried.get(path)
        if carried is None:
            known = ", ".join((EVENTS, *self._carried))
            self._reject(HTTPStatus.NOT_FOUND, f"No WebSocket here; there is {known}.\n")
            return
        self._acceptable = carried.subprotocols
        if self._accept():
            context = self._context
            self._channel = CarriedChannel(carried.make_session, context, text=carried.text)

    def _decided(self, client: Client | None) -> None:
        if self.closed or self._state is not State.AUTHENTICATING:
            return
        if client is None:
            response = self._protocol.reject(HTTPStatus.UNAUTHORIZED, "Log in.\n")
            response.headers["WWW-Authenticate"] = 'Basic realm="meshgate", charset="UTF-8"'
            self._protocol.send_response(response)
            self._drain()
            self._close()
            return
        query = parse_qs(urlsplit(self._request.path).query, keep_blank_values=True)
        response = self._protocol.accept(self._request)
        operations = self._protocol.subprotocol == OPERATIONS
        channel: Channel
        try:
            if operations:
                channel = OperationsChannel(self._broker, client, self._outbox, self._clock)
            else:
                channel = EventsChannel(self._broker, client, self._outbox, query)
        except WebSocketError as error:
            self._reject(HTTPStatus.BAD_REQUEST, f"{error}\n")
            return
        self._protocol.send_response(response)
        self._drain()
        if self._protocol.state is not WS_OPEN:
            channel.end()
            self._count("handshake")
            self._close()
            return
        self._channel = channel
        self._state = State.OPEN
        channel.opened()

    def _accept(self) -> bool:
        self._protocol.send_response(self._protocol.accept(self._request))
        self._drain()
        if self._protocol.state is not WS_OPEN:
            self._count("handshake")
            self._close()
            return False
        self._state = State.OPEN
        return True

    def _reject(self, status: HTTPStatus, text: str) -> None:
        self._count(str(status.value))
        self._protocol.send_response(self._protocol.reject(status, text))
        self._drain()
        self._close()

    # -- frames ----------------------------------------------------------------------------

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if not frame.fin:
                self._opcode = opcode
                self._fragments = [bytes(frame.data)]
                return
            data = bytes(frame.data)
        elif opcode is Opcode.CONT:
            self._fragments.append(bytes(frame.data))
            if not frame.fin:
                return
            opcode = self._opcode
            data = b"".join(self._fragments)
            self._fragments = []
        else:  # Ping, pong and close are answered by ServerProtocol.
            return
        channel = self._channel
        if channel is None:
            return
        try:
            if opcode is Opcode.TEXT:
                _check_utf8(data)
            channel.receive(data, TEXT if opcode is Opcode.TEXT else BINARY)
        except WebSocketError as error:
            self._fail(error.code, str(error), str(error.code))
        self._channel_closed()

    def _channel_closed(self) -> None:
        if self._channel is not None and self._channel.closed and self._state is State.OPEN:
            self._let_go()
            self._protocol.send_close(1000)
            self._closing()

    # -- ending ----------------------------------------------------------------------------

    def _fail(self, code: int, reason: str, count: str | None) -> None:
        if count is not None:
            self._count(count)
        self._let_go()
        if self._protocol.state is WS_OPEN:
            self._protocol.fail(code, reason.encode()[:120].decode(errors="ignore"))
        self._closing()

    def _closing(self) -> None:
        if self._state is State.OPEN:
            self._state = State.CLOSING
            self._deadline = self._clock() + CLOSE_SECONDS
        self._drain()

    def _drain(self) -> None:
        protocol = self._protocol
        for chunk in protocol.data_to_send():
            if chunk:
                self._outbox.write(chunk)
            else:  # The end of the stream (RFC 6455 §7.1.1).
                self.closed = True
        if protocol.parser_exc is not None or protocol.state is WS_CLOSED:
            if protocol.parser_exc is not None and self._state is State.OPEN:
                code = protocol.close_sent.code if protocol.close_sent is not None else 1002
                self._count(str(code))
            self.closed = True
        if self.closed:
            self._close()

    def _close(self) -> None:
        self.closed = True
        self._let_go()
        self._state = State.CLOSED
        self._outbox.wake()

    def _let_go(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.end()

    def _count(self, reason: str) -> None:
        self._broker.counters.protocol_errors[reason] += 1


def _check_utf8(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        raise WebSocketError("text is not UTF-8", INVALID_DATA) from None  # RFC 6455 §8.1


def _basic(header: str | None) -> tuple[str | None, bytes | None]:
    """Return user name and password of Basic authentication (RFC 7617), or None for none."""
    if header is None:
        return None, None
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", None
    try:
        username, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
        return username.decode(), password if colon else None
    except (binascii.Error, UnicodeDecodeError):
        return "", None
