"""Stock clients behind one small interface: publish a `Message`, subscribe and take `Received`.

Nothing of meshgate is imported here. Each adapter spells topics, headers and CloudEvents the way
its protocol's binding says.
"""

import asyncio
import base64
import contextlib
import json
import queue
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
import uuid
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aio_pika
import amqtt.client
import httpx
import paho.mqtt.client as paho
import pika
import stomp
import stompman
import websockets.sync.client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.interop.messages import Message, Received, text

T = TypeVar("T")

WAIT = 10.0


class Loop:
    """An event loop in a thread, for clients that are asyncio."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT)
        self.loop.close()


class Client(ABC):
    """One stock client.

    `carries_headers` is False where the protocol has no place for headers and content types;
    `adds` is what its library puts in by itself.
    """

    carries_headers = True
    adds: frozenset[str] = frozenset()

    def __init__(self, address: str, loop: Loop) -> None:
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.loop = loop
        self.arrived: queue.Queue[Received] = queue.Queue()

    @abstractmethod
    def connect(self) -> None: ...

    @abstractmethod
    def publish(self, topic: str, message: Message) -> None: ...

    @abstractmethod
    def subscribe(self, filter: str) -> None:
        """Return once the subscription is active."""

    @abstractmethod
    def close(self) -> None: ...

    def receive(self, topic: str) -> Received:
        """Return the next message on `topic`; what came on others is left out."""
        while True:
            received = self.arrived.get(timeout=WAIT)
            if received.topic == topic:
                return received


def prefixed(message: Message, prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in (message.attributes or {}).items()}


def unprefixed(headers: dict[str, Any], prefix: str) -> dict[str, Any] | None:
    found = {k[len(prefix) :]: v for k, v in headers.items() if k.startswith(prefix)}
    return found or None


def as_json(message: Message) -> bytes:
    """Return the message as a structured CloudEvent (JSON event format §3.1)."""
    assert message.attributes is not None
    members: dict[str, Any] = {
        name: value if isinstance(value, bool | int) else text(value)
        for name, value in message.attributes.items()
    }
    members["datacontenttype"] = message.content_type
    members["data"] = json.loads(message.data)
    return compact(members).encode()


def compact(value: object) -> str:
    """Return JSON in the spelling of the test's data, so that its bytes can be compared."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def from_json(document: bytes | str, topic: str | None = None) -> Received:
    """Read a structured CloudEvent; meshtopic and meshheaders are documented in docs/."""
    members = json.loads(document)
    content_type = members.pop("datacontenttype", None)
    topic = members.pop("meshtopic", topic)
    headers = dict(json.loads(members.pop("meshheaders", "[]")))
    if "data_base64" in members:
        data = base64.b64decode(members.pop("data_base64"))
    elif "data" in members:
        value = members.pop("data")
        is_json = content_type is None or content_type.endswith("json")
        data = compact(value).encode() if is_json else value.encode()
    else:
        data = b""
    return Received(topic, data, content_type, headers, members)


class Paho(Client):
    """paho-mqtt, MQTT 5."""

    def connect(self) -> None:
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        connected = threading.Event()
        self.subscribed = threading.Event()
        self.client.on_connect = lambda *args: connected.set()
        self.client.on_subscribe = lambda *args: self.subscribed.set()
        self.client.on_message = self.on_message
        self.client.connect(self.host, self.port)
        self.client.loop_start()
        assert connected.wait(WAIT)

    def publish(self, topic: str, message: Message) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        if message.content_type is not None:
            properties.ContentType = message.content_type
        pairs = [*message.headers.items(), *prefixed(message, "").items()]
        for name, value in pairs:
            properties.UserProperty = (name, text(value))
        info = self.client.publish(topic, message.data, qos=1, properties=properties)
        info.wait_for_publish(WAIT)
        assert info.is_published()

    def subscribe(self, filter: str) -> None:
        self.subscribed.clear()
        self.client.subscribe(filter, qos=1)
        assert self.subscribed.wait(WAIT)

    def on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties
        assert properties is not None
        user = dict(getattr(properties, "UserProperty", []))
        # Attributes have bare names, of letters and digits only (MQTT binding §3.1.3.1).
        bare = {k: v for k, v in user.items() if k.isalnum() and k.islower()}
        attributes = bare if "specversion" in user else None
        headers = {k: v for k, v in user.items() if attributes is None or k not in bare}
        content_type = getattr(properties, "ContentType", None)
        self.arrived.put(
            Received(message.topic, message.payload, content_type, headers, attributes)
        )

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Amqtt(Client):
    """amqtt's client, MQTT 3.1.1: no headers, CloudEvents in structured mode."""

    carries_headers = False

    def connect(self) -> None:
        self.client = amqtt.client.MQTTClient(
            f"c{uuid.uuid4().hex[:12]}", {"auto_reconnect": False, "keep_alive": 30}
        )
        self.loop.run(self.client.connect(f"mqtt://{self.address}/", cleansession=True))
        self.task: Any = None

    def publish(self, topic: str, message: Message) -> None:
        data = message.data if message.attributes is None else as_json(message)
        self.loop.run(self.client.publish(topic, data, qos=1))

    def subscribe(self, filter: str) -> None:
        codes = self.loop.run(self.client.subscribe([(filter, 1)]))
        assert codes == [1], codes
        self.task = asyncio.run_coroutine_threadsafe(self.take(), self.loop.loop)

    async def take(self) -> None:
        while True:
            message = await self.client.deliver_message()
            assert message is not None
            data = bytes(message.data)
            if data.startswith(b"{") and b'"specversion"' in data:
                self.arrived.put(from_json(data, message.topic))
            else:
                self.arrived.put(Received(message.topic, data, None, {}, None))

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.loop.run(self.client.disconnect())


def dotted(topic: str) -> str:
    return topic.translate(str.maketrans("./", "/."))


def amqp_received(topic: str, properties: Any, data: bytes) -> Received:
    headers = dict(properties.headers or {})
    attributes = unprefixed(headers, "cloudEvents_")
    own = {k: v for k, v in headers.items() if not k.startswith("cloudEvents_")}
    return Received(dotted(topic), data, properties.content_type or None, own, attributes)


class AioPika(Client):
    """aio-pika, AMQP 0-9-1: amq.topic, an exclusive queue."""

    def connect(self) -> None:
        async def connect() -> None:
            self.connection = await aio_pika.connect(f"amqp://guest:guest@{self.address}/")
            self.channel = await self.connection.channel(publisher_confirms=True)
            self.exchange = await self.channel.get_exchange("amq.topic")

        self.loop.run(connect())

    def publish(self, topic: str, message: Message) -> None:
        attributes = {
            # pamqp, below aio-pika, has byte arrays for AMQP's type x.
            name: bytearray(value) if isinstance(value, bytes) else value
            for name, value in prefixed(message, "cloudEvents_").items()
        }
        out = aio_pika.Message(
            message.data,
            content_type=message.content_type,
            headers={**message.headers, **attributes},
        )
        self.loop.run(self.exchange.publish(out, dotted(topic), mandatory=False))

    def subscribe(self, filter: str) -> None:
        async def subscribe() -> None:
            queue = await self.channel.declare_queue(exclusive=True)
            pattern = filter.translate(str.maketrans("./+", "/.*"))
            await queue.bind(self.exchange, pattern)
            await queue.consume(self.on_message)

        self.loop.run(subscribe())

    async def on_message(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.arrived.put(amqp_received(message.routing_key or "", message, message.body))
        await message.ack()

    def close(self) -> None:
        self.loop.run(self.connection.close())


class Pika(Client):
    """pika, AMQP 0-9-1: its blocking connection, the consumer in a thread of its own."""

    def open(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.ConnectionParameters(self.host, self.port))

    def connect(self) -> None:
        self.connection = self.open()
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.consumer: pika.BlockingConnection | None = None

    def publish(self, topic: str, message: Message) -> None:
        properties = pika.BasicProperties(
            content_type=message.content_type,
            headers={**message.headers, **prefixed(message, "cloudEvents_")},
        )
        self.channel.basic_publish("amq.topic", dotted(topic), message.data, properties)

    def subscribe(self, filter: str) -> None:
        self.consumer = self.open()
        channel = self.consumer.channel()
        name = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(name, "amq.topic", filter.translate(str.maketrans("./+", "/.*")))

        def on_message(_: Any, method: Any, properties: Any, body: bytes) -> None:
            self.arrived.put(amqp_received(method.routing_key, properties, body))
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(name, on_message)
        self.channel_of_consumer = channel
        self.thread = threading.Thread(target=channel.start_consuming, daemon=True)
        self.thread.start()

    def close(self) -> None:
        if self.consumer is not None:
            self.consumer.add_callback_threadsafe(self.channel_of_consumer.stop_consuming)
            self.thread.join(WAIT)
            self.consumer.close()
        self.connection.close()


STOMP_OWN = {
    "destination", "message-id", "subscription", "content-type", "content-length", "ack",
    "redelivered", "priority", "expires", "persistent", "timestamp",
}  # fmt: skip


def stomp_received(headers: dict[str, str], data: bytes) -> Received:
    destination = headers["destination"]
    assert destination.startswith("/topic/"), destination
    attributes = unprefixed(headers, "cloudEvents_")
    own = {
        k: v for k, v in headers.items() if k not in STOMP_OWN and not k.startswith("cloudEvents_")
    }
    topic = dotted(destination.removeprefix("/topic/"))
    return Received(topic, data, headers.get("content-type"), own, attributes)


def stomp_headers(message: Message) -> dict[str, str]:
    return {
        **message.headers,
        **{name: text(value) for name, value in prefixed(message, "cloudEvents_").items()},
    }


def stomp_destination(filter: str) -> str:
    return "/topic/" + filter.translate(str.maketrans("./+", "/.*"))


class StompPy(Client, stomp.ConnectionListener):
    """stomp.py, STOMP 1.2."""

    def connect(self) -> None:
        self.receipts: queue.Queue[str] = queue.Queue()
        self.connection = stomp.Connection12([(self.host, self.port)], auto_decode=False)
        self.connection.set_listener("", self)
        self.connection.connect("guest", "guest", wait=True)

    def on_receipt(self, frame: Any) -> None:
        self.receipts.put(frame.headers["receipt-id"])

    def on_message(self, frame: Any) -> None:
        body = frame.body
        data = body if isinstance(body, bytes) else body.encode()
        self.arrived.put(stomp_received(frame.headers, data))

    def publish(self, topic: str, message: Message) -> None:
        receipt = uuid.uuid4().hex
        self.connection.send(
            stomp_destination(topic),
            message.data,
            content_type=message.content_type,
            headers={**stomp_headers(message), "receipt": receipt},
        )
        assert self.receipts.get(timeout=WAIT) == receipt

    def subscribe(self, filter: str) -> None:
        receipt = uuid.uuid4().hex
        self.connection.subscribe(stomp_destination(filter), "s1", headers={"receipt": receipt})
        assert self.receipts.get(timeout=WAIT) == receipt

    def close(self) -> None:
        self.connection.disconnect()


class Stompman(Client):
    """stompman, STOMP 1.2."""

    def connect(self) -> None:
        async def connect() -> None:
            server = stompman.ConnectionParameters(self.host, self.port, "guest", "guest")
            self.client = stompman.Client([server])
            await self.client.__aenter__()

        self.loop.run(connect())

    def publish(self, topic: str, message: Message) -> None:
        self.loop.run(
            self.client.send(
                message.data,
                stomp_destination(topic),
                content_type=message.content_type,
                headers=stomp_headers(message),
                receipt_timeout=WAIT,
            )
        )

    def subscribe(self, filter: str) -> None:
        async def on_message(frame: stompman.MessageFrame) -> None:
            self.arrived.put(stomp_received(dict(frame.headers), frame.body))

        self.subscription = self.loop.run(
            self.client.subscribe(
                stomp_destination(filter),
                on_message,
                on_suppressed_exception=lambda error, frame: self.arrived.put(error),
                receipt_timeout=WAIT,
            )
        )

    def close(self) -> None:
        async def close() -> None:
            if hasattr(self, "subscription"):
                await self.subscription.unsubscribe()
            await self.client.__aexit__(None, None, None)

        self.loop.run(close())


class WebSockets(Client):
    """The websockets package, subprotocol cloudevents.json: always structured."""

    def open(self, query: str) -> websockets.sync.client.ClientConnection:
        return websockets.sync.client.connect(
            f"ws://{self.address}/events?{query}", subprotocols=["cloudevents.json"]
        )

    def connect(self) -> None:
        self.publisher = self.open("")
        self.subscriber: websockets.sync.client.ClientConnection | None = None

    def publish(self, topic: str, message: Message) -> None:
        if message.attributes is not None:
            document = json.loads(as_json(message))
        else:
            # A WebSocket client has CloudEvents only: its plain message is one of its own making.
            document = {"specversion": "1.0", "id": uuid.uuid4().hex, "source": "/ws", "type": "x"}
            if message.content_type is not None:
                document["datacontenttype"] = message.content_type
            if message.data:
                document["data_base64"] = base64.b64encode(message.data).decode()
            if message.headers:
                document["meshheaders"] = json.dumps(list(message.headers.items()))
        self.publisher.send(compact({**document, "meshtopic": topic}))

    def subscribe(self, filter: str) -> None:
        self.subscriber = self.open(f"subscribe={urllib.parse.quote(filter, safe='')}")
        self.thread = threading.Thread(target=self.take, args=(self.subscriber,), daemon=True)
        self.thread.start()

    def take(self, connection: websockets.sync.client.ClientConnection) -> None:
        for document in connection:
            self.arrived.put(from_json(document))

    def close(self) -> None:
        self.publisher.close()
        if self.subscriber is not None:
            self.subscriber.close()
            self.thread.join(WAIT)


def http_headers(message: Message) -> dict[str, str]:
    headers = dict(message.headers)
    if message.content_type is not None:
        headers["content-type"] = message.content_type
    safe = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
    for name, value in prefixed(message, "ce-").items():
        headers[name] = urllib.parse.quote(text(value), safe=safe)
    return headers


def topic_path(topic: str) -> str:
    return "/topics/" + urllib.parse.quote(topic)


class Httpx(Client):
    """httpx: POST, and Server-Sent Events."""

    def connect(self) -> None:
        self.http = httpx.Client(base_url=f"http://{self.address}", timeout=WAIT)
        self.lines: httpx.Response | None = None

    def publish(self, topic: str, message: Message) -> None:
        response = self.http.post(
            topic_path(topic), content=message.data, headers=http_headers(message)
        )
        assert response.is_success, response.text

    def subscribe(self, filter: str) -> None:
        request = self.http.build_request("GET", "/events", params={"filter": filter})
        self.lines = self.http.send(request, stream=True)
        assert self.lines.status_code == 200
        assert self.lines.headers["content-type"].startswith("text/event-stream")
        self.thread = threading.Thread(target=self.take, args=(self.lines,), daemon=True)
        self.thread.start()

    def take(self, response: httpx.Response) -> None:
        with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
            for line in response.iter_lines():
                if line.startswith("data:"):
                    self.arrived.put(from_json(line.removeprefix("data:")))

    def close(self) -> None:
        self.http.close()


class Curl(Client):
    """curl: a POST per message, and -N for Server-Sent Events."""

    def connect(self) -> None:
        curl = shutil.which("curl")
        assert curl is not None
        self.curl = curl
        self.process: subprocess.Popen[bytes] | None = None

    def publish(self, topic: str, message: Message) -> None:
        with tempfile.NamedTemporaryFile() as body:
            Path(body.name).write_bytes(message.data)
            headers = {"content-type": "", **http_headers(message)}
            arguments = [f"-H{name}: {value}" for name, value in headers.items()]
            url = f"http://{self.address}{topic_path(topic)}"
            subprocess.run(
                [self.curl, "-sSf", "-XPOST", *arguments, "--data-binary", f"@{body.name}", url],
                check=True,
                timeout=WAIT,
                stdout=subprocess.DEVNULL,
            )

    def subscribe(self, filter: str) -> None:
        url = f"http://{self.address}/events?filter={urllib.parse.quote(filter, safe='')}"
        self.process = subprocess.Popen([self.curl, "-sSNi", url], stdout=subprocess.PIPE)
        self.active = threading.Event()
        self.thread = threading.Thread(target=self.take, daemon=True)
        self.thread.start()
        assert self.active.wait(WAIT)

    def take(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode().rstrip("\r\n")
            if not line:
                self.active.set()
            if line.startswith("data:"):
                self.arrived.put(from_json(line.removeprefix("data:")))

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(WAIT)
            self.thread.join(WAIT)
            assert self.process.stdout is not None
            self.process.stdout.close()


CLIENTS: dict[str, tuple[str, type[Client]]] = {
    "mqtt:paho": ("mqtt", Paho),
    "mqtt:amqtt": ("mqtt", Amqtt),
    "amqp:aio-pika": ("amqp", AioPika),
    "amqp:pika": ("amqp", Pika),
    "stomp:stomp.py": ("stomp", StompPy),
    "stomp:stompman": ("stomp", Stompman),
    "ws:websockets": ("ws", WebSockets),
    "http:httpx": ("http", Httpx),
    "http:curl": ("http", Curl),
}
