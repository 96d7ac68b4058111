"""The STOMP listener: makes a session for each connection. Everything else is shared.

Invariant: sessions over TCP and over WebSocket are made by the same factory.
"""

from protocols.connection import Flusher, Listener
from protocols.frontend import Broker, Session, SessionContext, SessionFactory
from protocols.stomp.session import StompSession


def session_factory(broker: Broker, *, dots: bool = True) -> SessionFactory:
    """Return what makes the sessions of a listener, or of `/stomp` over WebSocket.

    Args:
        broker: the listener's.
        dots: whether `.` separates levels in destinations.
    """

    def make(context: SessionContext) -> Session:
        return StompSession(broker, context, dots=dots)

    return make


def listener(
    broker: Broker, host: str, port: int, flusher: Flusher, *, dots: bool = True
) -> Listener:
    """Return a listener for STOMP over TCP on `host`:`port`, not started yet."""
    make = session_factory(broker, dots=dots)
    return Listener(broker.name, host, port, make, broker.limits, broker.counters, flusher)
