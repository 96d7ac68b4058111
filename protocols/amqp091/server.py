"""The AMQP 0-9-1 listener: makes a session for each connection. Everything else is shared.

Invariant: all AMQP listeners of a node share one `Exchanges`.
"""

from protocols.amqp091.exchanges import Exchanges
from protocols.amqp091.session import AmqpSession
from protocols.connection import Flusher, Listener
from protocols.frontend import Broker, Session, SessionContext, SessionFactory


def session_factory(broker: Broker, exchanges: Exchanges) -> SessionFactory:
    """Return what makes the sessions of a listener."""

    def make(context: SessionContext) -> Session:
        return AmqpSession(broker, exchanges, context)

    return make


def listener(
    broker: Broker, host: str, port: int, flusher: Flusher, exchanges: Exchanges
) -> Listener:
    """Return a listener for AMQP 0-9-1 on `host`:`port`, not started yet."""
    make = session_factory(broker, exchanges)
    return Listener(broker.name, host, port, make, broker.limits, broker.counters, flusher)
