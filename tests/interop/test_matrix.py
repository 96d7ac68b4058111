"""Publisher × subscriber, every protocol, two independent clients for each where two exist.

A cell checks topic, data, content type, headers and CloudEvents attributes. What a protocol has
no place for is left out there and nowhere else: MQTT 3.1.1 has neither headers nor content type
for plain messages, and a WebSocket client publishes CloudEvents only.
"""

import uuid
from collections.abc import Iterator

import pytest

from tests.interop.clients import CLIENTS, Client, Loop
from tests.interop.messages import MESSAGES, Message, Received, text

# curl is no Python package; a missing one fails, it is not skipped.
NAMES = [
    pytest.param(name, marks=pytest.mark.peers) if name.endswith("curl") else name
    for name in CLIENTS
]


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.stop()


def connected(addresses: dict[str, str], loop: Loop) -> dict[str, Client]:
    clients = {}
    for name, (listener, make) in CLIENTS.items():
        clients[name] = make(addresses[listener], loop)
        clients[name].connect()
    return clients


@pytest.fixture(scope="module")
def publishers(shared_node: dict[str, str], loop: Loop) -> Iterator[dict[str, Client]]:
    clients = connected(shared_node, loop)
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture(scope="module")
def subscribers(shared_node: dict[str, str], loop: Loop) -> Iterator[dict[str, Client]]:
    clients = connected(shared_node, loop)
    for client in clients.values():
        client.subscribe("interop/+/Ü.x")
    yield clients
    for client in clients.values():
        client.close()


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("subscriber", NAMES)
@pytest.mark.parametrize("publisher", NAMES)
def test_cell(
    publishers: dict[str, Client],
    subscribers: dict[str, Client],
    publisher: str,
    subscriber: str,
    kind: str,
) -> None:
    topic = f"interop/{uuid.uuid4().hex}/Ü.x"
    sender, taker, message = publishers[publisher], subscribers[subscriber], MESSAGES[kind]
    sender.publish(topic, message)
    received = taker.receive(topic)
    assert received.data == message.data
    check_metadata(sender, taker, message, received)


def check_metadata(sender: Client, taker: Client, message: Message, received: Received) -> None:
    structured = type(taker).__name__ in ("WebSockets", "Httpx", "Curl")
    if message.attributes is not None:
        assert received.content_type == message.content_type
        assert received.attributes is not None
        expected = {name: text(value) for name, value in message.attributes.items()}
        seen = {name: text(value) for name, value in received.attributes.items()}
        assert seen == expected
        return
    if type(sender).__name__ == "WebSockets":
        assert received.attributes is not None
        assert received.attributes["source"] == "/ws"
    elif structured:
        assert received.attributes is not None
        for name in ("id", "source", "type", "time"):
            assert received.attributes[name], name
        assert received.attributes["type"] == "io.meshgate.message"
    else:
        assert received.attributes is None
    if sender.carries_headers and (taker.carries_headers or received.attributes is not None):
        assert received.content_type == message.content_type
        ours = {k: v for k, v in received.headers.items() if not k.startswith("amqp-")}
        assert ours == message.headers
    elif not sender.carries_headers:
        assert received.headers == {}
