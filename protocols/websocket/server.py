"""The WebSocket listener: makes a session for each connection. Everything else is shared.

Invariant: what is carried is handed in; this package knows neither MQTT nor STOMP.
"""

from collections.abc import Mapping

from protocols.connection import Flusher, Listener
from protocols.frontend import Broker, Session, SessionContext
from protocols.websocket.session import Carried, WebSocketSession

__all__ = ["Carried", "listener"]


def listener(
    broker: Broker, host: str, port: int, flusher: Flusher, carried: Mapping[str, Carried]
) -> Listener:
    """Return a listener for WebSocket on `host`:`port`, not started yet.

    Args:
        broker: the listener's.
        host, port: where to bind.
        flusher: the node's.
        carried: other protocols by path, `/mqtt` for one.
    """

    def make(context: SessionContext) -> Session:
        return WebSocketSession(broker, carried, context)

    return Listener(broker.name, host, port, make, broker.limits, broker.counters, flusher)
