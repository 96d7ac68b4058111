"""What only a mesh of protocols can do: compete, fan out, ask and answer across them."""

import json
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import paho.mqtt.client as paho
import pika
import pytest
import stomp
import websockets.sync.client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.interop.clients import CLIENTS, WAIT, Client, Loop
from tests.interop.messages import Message


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.stop()


@pytest.fixture
def client(shared_node: dict[str, str], loop: Loop) -> Iterator[Callable[[str], Client]]:
    """Make connected stock clients by name; all are closed at the end."""
    made: list[Client] = []

    def make(name: str) -> Client:
        listener, kind = CLIENTS[name]
        one = kind(shared_node[listener], loop)
        one.connect()
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def http(shared_node: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{shared_node['http']}", timeout=WAIT) as http:
        yield http


class Mqtt:
    """A paho MQTT 5 client that keeps whole messages."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.got: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.done: queue.Queue[int] = queue.Queue()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.on_connect = lambda *args: self.done.put(1)
        self.client.on_subscribe = lambda *args: self.done.put(1)
        self.client.on_message = lambda client, userdata, message: self.got.put(message)
        self.client.connect(host, int(port))
        self.client.loop_start()
        self.done.get(timeout=WAIT)

    def subscribe(self, filter: str, options: SubscribeOptions | None = None) -> None:
        self.client.subscribe(filter, options=options or SubscribeOptions(qos=1))
        self.done.get(timeout=WAIT)

    def publish(self, topic: str, data: bytes, retain: bool = False, **properties: Any) -> None:
        given = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(given, name, value)
        self.client.publish(topic, data, 1, retain, given).wait_for_publish(WAIT)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def mqtt(shared_node: dict[str, str]) -> Iterator[Callable[[], Mqtt]]:
    made: list[Mqtt] = []

    def make() -> Mqtt:
        made.append(Mqtt(shared_node["mqtt"]))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Stomp(stomp.ConnectionListener):
    """A stomp.py client that keeps whole frames, or hands them to `answer`."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.got: queue.Queue[Any] = queue.Queue()
        self.receipts: queue.Queue[str] = queue.Queue()
        self.answer: Callable[[Any], None] | None = None
        self.connection = stomp.Connection12([(host, int(port))], auto_decode=False)
        self.connection.set_listener("", self)
        self.connection.connect("guest", "guest", wait=True)

    def on_receipt(self, frame: Any) -> None:
        self.receipts.put(frame.headers["receipt-id"])

    def on_message(self, frame: Any) -> None:
        if self.answer is not None:
            self.answer(frame)
        self.got.put(frame)

    def subscribe(self, destination: str, ack: str = "auto", **headers: str) -> None:
        receipt = uuid.uuid4().hex
        self.connection.subscribe(destination, "1", ack, {"receipt": receipt, **headers})
        assert self.receipts.get(timeout=WAIT) == receipt


@pytest.fixture
def stomp_client(shared_node: dict[str, str]) -> Iterator[Callable[[], Stomp]]:
    made: list[Stomp] = []

    def make() -> Stomp:
        made.append(Stomp(shared_node["stomp"]))
        return made[-1]

    yield make
    for one in made:
        one.connection.disconnect()


class Amqp:
    """A pika connection with a consumer in a thread; `answer` may publish on its channel."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.connection = pika.BlockingConnection(pika.ConnectionParameters(host, int(port)))
        self.channel = self.connection.channel()
        self.got: queue.Queue[tuple[Any, Any, bytes]] = queue.Queue()
        self.answer: Callable[[Any, Any, bytes], None] | None = None
        self.thread: threading.Thread | None = None

    def consume(self, name: str, pattern: str | None = None, prefetch: int = 0) -> str:
        exclusive = not name
        name = self.channel.queue_declare(
            name, exclusive=exclusive, durable=not exclusive
        ).method.queue
        if pattern is not None:
            self.channel.queue_bind(name, "amq.topic", pattern)
        self.channel.basic_qos(prefetch_count=prefetch)
        self.channel.basic_consume(name, self.on_message)
        self.thread = threading.Thread(target=self.channel.start_consuming, daemon=True)
        self.thread.start()
        return name

    def on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if self.answer is not None:
            self.answer(method, properties, body)
        channel.basic_ack(method.delivery_tag)
        self.got.put((method, properties, body))

    def close(self) -> None:
        if self.thread is not None:
            self.connection.add_callback_threadsafe(self.channel.stop_consuming)
            self.thread.join(WAIT)
        self.connection.close()


@pytest.fixture
def amqp(shared_node: dict[str, str]) -> Iterator[Callable[[], Amqp]]:
    made: list[Amqp] = []

    def make() -> Amqp:
        made.append(Amqp(shared_node["amqp"]))
        return made[-1]

    yield make
    for one in made:
        one.close()


def unique() -> str:
    return uuid.uuid4().hex


def test_fan_out(client: Callable[[str], Client]) -> None:
    """Three of every stock client hear one message each."""
    base = f"fan/{unique()}"
    everyone = [client(name) for name in CLIENTS for _ in range(3)]
    for one in everyone:
        one.subscribe(f"{base}/#")
    client("mqtt:paho").publish(f"{base}/x", Message(b"hello", "text/plain"))
    for one in everyone:
        assert one.receive(f"{base}/x").data == b"hello"
    for one in everyone:
        assert one.arrived.empty()


@pytest.mark.parametrize("name", CLIENTS)
def test_wildcards(client: Callable[[str], Client], name: str) -> None:
    """`+` is one level, in each protocol's own spelling; what does not match stays away."""
    base = f"wild/{unique()}"
    taker, sender = client(name), client("stomp:stomp.py")
    taker.subscribe(f"{base}/+/c")
    for topic in ("a/c", "a/b/c", "c", "b/c", "b/d"):
        sender.publish(f"{base}/{topic}", Message(topic.encode()))
    assert taker.receive(f"{base}/a/c").data == b"a/c"
    assert taker.receive(f"{base}/b/c").data == b"b/c"
    assert taker.arrived.empty()


def test_a_hash_in_the_middle(amqp: Callable[[], Amqp], http: httpx.Client) -> None:
    base, consumer = unique(), amqp()
    consumer.consume("", f"{base}.#.z")
    for topic in ("z", "a/z", "a/b/z", "a/b"):
        assert http.post(f"/topics/{base}/{topic}", content=topic).is_success
    seen = [consumer.got.get(timeout=WAIT)[2] for _ in range(3)]
    assert seen == [b"z", b"a/z", b"a/b/z"]
    assert consumer.got.empty()


def test_an_amqp_exchange_is_a_subtree(amqp: Callable[[], Amqp], http: httpx.Client) -> None:
    name, consumer, publisher = f"orders{unique()}", amqp(), amqp()
    publisher.channel.exchange_declare(name, "direct")
    consumer.channel.exchange_declare(name, "direct")
    own = consumer.channel.queue_declare("", exclusive=True).method.queue
    consumer.channel.queue_bind(own, name, "eu.new")
    consumer.channel.basic_consume(own, consumer.on_message)
    consumer.thread = threading.Thread(target=consumer.channel.start_consuming, daemon=True)
    publisher.channel.basic_publish(name, "eu.new", b"from amqp")
    consumer.thread.start()
    method, _, body = consumer.got.get(timeout=WAIT)
    assert (method.exchange, method.routing_key, body) == (name, "eu.new", b"from amqp")
    assert http.post(f"/topics/{name}/eu/new", content=b"from http").is_success
    method, _, body = consumer.got.get(timeout=WAIT)
    assert (method.exchange, method.routing_key, body) == (name, "eu.new", b"from http")


def test_stomp_and_amqp_compete_for_one_queue(
    amqp: Callable[[], Amqp],
    stomp_client: Callable[[], Stomp],
    mqtt: Callable[[], Mqtt],
    http: httpx.Client,
) -> None:
    """Messages from four protocols, two consumers, each message to one of them."""
    name = f"jobs-{unique()}"
    listener, consumer = stomp_client(), amqp()
    listener.subscribe(f"/queue/{name}", "client-individual", **{"prefetch-count": "1"})
    listener.answer = lambda frame: listener.connection.ack(frame.headers["ack"])
    consumer.consume(name, prefetch=1)
    sender, by_mqtt, by_stomp = amqp(), mqtt(), stomp_client()
    sent = set()
    for n in range(25):
        for how in ("http", "amqp", "mqtt", "stomp"):
            data = f"{how}-{n}"
            sent.add(data)
            if how == "http":
                assert http.post(f"/queues/{name}", content=data).is_success
            elif how == "amqp":
                sender.channel.basic_publish("", name, data)
            elif how == "mqtt":
                by_mqtt.publish(f"$queue/{name}", data.encode())
            else:
                by_stomp.connection.send(f"/queue/{name}", data)
    by_amqp: list[str] = []
    by_listener: list[str] = []
    while len(by_amqp) + len(by_listener) < len(sent):
        try:
            by_listener.append(listener.got.get(timeout=0.05).body.decode())
        except queue.Empty:
            by_amqp.append(consumer.got.get(timeout=WAIT)[2].decode())
    assert by_amqp and by_listener
    assert sorted(by_amqp + by_listener) == sorted(sent)


def test_a_share_group_is_a_queue(
    mqtt: Callable[[], Mqtt], amqp: Callable[[], Amqp], http: httpx.Client
) -> None:
    """Two MQTT members and an AMQP consumer share the messages of one filter."""
    base, group = unique(), f"group-{unique()}"
    members = [mqtt(), mqtt()]
    for member in members:
        member.subscribe(f"$share/{group}/{base}/+")
    consumer = amqp()
    consumer.channel.queue_declare(group, passive=True)
    consumer.channel.basic_consume(group, consumer.on_message)
    consumer.thread = threading.Thread(target=consumer.channel.start_consuming, daemon=True)
    consumer.thread.start()
    for n in range(60):
        assert http.post(f"/topics/{base}/{n}", content=str(n)).is_success
    seen: list[int] = []
    counts = [0, 0, 0]
    sources: list[queue.Queue[Any]] = [members[0].got, members[1].got, consumer.got]
    while len(seen) < 60:
        for i, source in enumerate(sources):
            try:
                item = source.get(timeout=0.02)
            except queue.Empty:
                continue
            seen.append(int(item[2] if i == 2 else item.payload))
            counts[i] += 1
    assert sorted(seen) == list(range(60))
    assert all(counts), counts


def test_an_mqtt_request_is_answered_by_amqp(
    mqtt: Callable[[], Mqtt], amqp: Callable[[], Amqp]
) -> None:
    topic, requester, responder = unique(), mqtt(), amqp()

    def answer(method: Any, properties: Any, body: bytes) -> None:
        responder.channel.basic_publish(
            "",
            properties.reply_to,
            body.upper(),
            pika.BasicProperties(correlation_id=properties.correlation_id),
        )

    responder.answer = answer
    responder.consume("", topic)
    requester.subscribe(f"answers/{topic}")
    requester.publish(
        topic, b"question", ResponseTopic=f"answers/{topic}", CorrelationData=b"\x00\xff7"
    )
    reply = requester.got.get(timeout=WAIT)
    assert reply.payload == b"QUESTION"
    assert reply.properties is not None
    assert reply.properties.CorrelationData == b"\x00\xff7"


def test_an_mqtt_request_is_answered_by_stomp(
    mqtt: Callable[[], Mqtt], stomp_client: Callable[[], Stomp]
) -> None:
    topic, requester, responder = unique(), mqtt(), stomp_client()

    def answer(frame: Any) -> None:
        headers = {"correlation-id": frame.headers["correlation-id"]}
        responder.connection.send(frame.headers["reply-to"], frame.body.upper(), headers=headers)

    responder.answer = answer
    responder.subscribe(f"/topic/{topic}")
    requester.subscribe(f"answers/{topic}")
    requester.publish(topic, b"question", ResponseTopic=f"answers/{topic}", CorrelationData=b"id-1")
    reply = requester.got.get(timeout=WAIT)
    assert reply.payload == b"QUESTION"
    assert reply.properties is not None
    assert reply.properties.CorrelationData == b"id-1"


def test_an_amqp_request_is_answered_by_mqtt(
    mqtt: Callable[[], Mqtt], amqp: Callable[[], Amqp]
) -> None:
    topic, requester, responder = unique(), amqp(), mqtt()
    responder.subscribe(topic)
    mine = requester.channel.queue_declare("", exclusive=True).method.queue
    asked = pika.BasicProperties(reply_to=mine, correlation_id="c-9")
    requester.channel.basic_publish("amq.topic", topic, b"question", asked)
    question = responder.got.get(timeout=WAIT)
    assert question.properties is not None
    responder.publish(
        question.properties.ResponseTopic,
        question.payload.upper(),
        CorrelationData=question.properties.CorrelationData,
    )
    for _, properties, body in requester.channel.consume(mine, inactivity_timeout=WAIT):
        assert body == b"QUESTION"
        assert properties.correlation_id == "c-9"
        break
    requester.channel.cancel()


def test_a_stomp_request_is_answered_by_amqp(
    stomp_client: Callable[[], Stomp], amqp: Callable[[], Amqp]
) -> None:
    topic, requester, responder = unique(), stomp_client(), amqp()

    def answer(method: Any, properties: Any, body: bytes) -> None:
        reply = pika.BasicProperties(correlation_id=properties.correlation_id)
        responder.channel.basic_publish("", properties.reply_to, body.upper(), reply)

    responder.answer = answer
    responder.consume("", topic)
    requester.subscribe(f"/queue/replies-{topic}")
    requester.connection.send(
        f"/topic/{topic}",
        b"question",
        headers={"reply-to": f"/queue/replies-{topic}", "correlation-id": "77"},
    )
    reply = requester.got.get(timeout=WAIT)
    assert reply.body == b"QUESTION"
    assert reply.headers["correlation-id"] == "77"


def ask(http: httpx.Client, topic: str) -> httpx.Response:
    return http.post(f"/requests/{topic}", params={"timeout": 5}, content=b"question")


def test_rest_asks_amqp(http: httpx.Client, amqp: Callable[[], Amqp]) -> None:
    topic, responder = unique(), amqp()

    def answer(method: Any, properties: Any, body: bytes) -> None:
        reply = pika.BasicProperties(
            correlation_id=properties.correlation_id, content_type="text/x-reply"
        )
        responder.channel.basic_publish("", properties.reply_to, body.upper(), reply)

    responder.answer = answer
    responder.consume("", topic)
    response = ask(http, topic)
    assert (response.status_code, response.content) == (200, b"QUESTION")
    assert response.headers["content-type"] == "text/x-reply"


def test_rest_asks_stomp(http: httpx.Client, stomp_client: Callable[[], Stomp]) -> None:
    topic, responder = unique(), stomp_client()

    def answer(frame: Any) -> None:
        headers = {"correlation-id": frame.headers["correlation-id"]}
        responder.connection.send(frame.headers["reply-to"], frame.body.upper(), headers=headers)

    responder.answer = answer
    responder.subscribe(f"/topic/{topic}")
    response = ask(http, topic)
    assert (response.status_code, response.content) == (200, b"QUESTION")


def test_rest_asks_mqtt(http: httpx.Client, mqtt: Callable[[], Mqtt]) -> None:
    topic, responder = unique(), mqtt()

    def answer(client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        assert message.properties is not None
        given = Properties(PacketTypes.PUBLISH)
        given.CorrelationData = message.properties.CorrelationData
        client.publish(message.properties.ResponseTopic, message.payload.upper(), properties=given)

    responder.client.on_message = answer
    responder.subscribe(topic)
    response = ask(http, topic)
    assert (response.status_code, response.content) == (200, b"QUESTION")


def test_rest_asks_nobody(http: httpx.Client) -> None:
    response = http.post(f"/requests/{unique()}", params={"timeout": 0.2}, content=b"?")
    assert response.status_code == 504
    assert response.headers["content-type"] == "application/problem+json"


def test_retained_values_are_the_same_for_all(
    http: httpx.Client,
    mqtt: Callable[[], Mqtt],
    stomp_client: Callable[[], Stomp],
    shared_node: dict[str, str],
) -> None:
    topic = f"retained/{unique()}"
    put = http.put(f"/topics/{topic}", content=b"one", headers={"content-type": "text/plain"})
    assert put.is_success
    subscriber = mqtt()
    subscriber.subscribe(topic)
    first = subscriber.got.get(timeout=WAIT)
    assert (first.payload, first.retain) == (b"one", True)
    subscriber.publish(topic, b"two", retain=True, ContentType="text/x-two")
    live = subscriber.got.get(timeout=WAIT)
    assert (live.payload, live.retain) == (b"two", False)
    got = http.get(f"/topics/{topic}")
    assert (got.content, got.headers["content-type"]) == (b"two", "text/x-two")
    sender = stomp_client()
    receipt = {"retain": "true", "receipt": "r"}
    sender.connection.send("/topic/" + topic.replace("/", "."), b"three", headers=receipt)
    assert sender.receipts.get(timeout=WAIT) == "r"
    url = f"ws://{shared_node['ws']}/events?subscribe={topic}&retained=true"
    with websockets.sync.client.connect(url, subprotocols=["cloudevents.json"]) as browser:
        event = json.loads(browser.recv(WAIT))
        assert (event["data"], event["meshretain"]) == ("three", True)
    assert http.delete(f"/topics/{topic}").is_success
    assert http.get(f"/topics/{topic}").status_code == 404
    subscriber.publish(topic, b"four", retain=True)
    subscriber.publish(topic, b"", retain=True)
    assert http.get(f"/topics/{topic}").status_code == 404


def test_order_of_one_publisher_is_kept_across_protocols(
    client: Callable[[str], Client], mqtt: Callable[[], Mqtt]
) -> None:
    base = unique()
    takers = [client(name) for name in CLIENTS]
    for taker in takers:
        taker.subscribe(f"{base}/+")
    sender = mqtt()
    for n in range(200):
        sender.client.publish(f"{base}/t", str(n), qos=n % 3)
    for taker in takers:
        seen = [int(taker.receive(f"{base}/t").data) for _ in range(200)]
        by_qos = [[n for n in seen if n % 3 == qos] for qos in range(3)]
        assert all(part == sorted(part) for part in by_qos)
        assert sorted(seen) == list(range(200))
