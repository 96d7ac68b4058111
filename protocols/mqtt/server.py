"""The MQTT listener: makes a session for each connection. Everything else is shared.

Invariant: all listeners of a node that speak MQTT (TCP, WebSocket) share one `Registry`, so that a
client identifier is connected once, wherever it comes in.
"""

from protocols.connection import Flusher, Listener
from protocols.frontend import Broker, Session, SessionContext, SessionFactory
from protocols.mqtt.session import MqttSession, Registry


def session_factory(broker: Broker, registry: Registry) -> SessionFactory:
    """Return what makes the sessions of a listener, or of `/mqtt` over WebSocket."""

    def make(context: SessionContext) -> Session:
        return MqttSession(broker, registry, context)

    return make


def listener(
    broker: Broker, host: str, port: int, flusher: Flusher, registry: Registry
) -> Listener:
    """Return a listener for MQTT over TCP on `host`:`port`, not started yet."""
    make = session_factory(broker, registry)
    return Listener(broker.name, host, port, make, broker.limits, broker.counters, flusher)
