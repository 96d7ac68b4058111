"""The README's tour, run as it stands there, with the ports of a node of our own."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
DEFAULTS = {
    "localhost:1883": "mqtt",
    "localhost:5672": "amqp",
    "localhost:61613": "stomp",
    "localhost:8083": "ws",
    "localhost:8080": "http",
}


def block(name: str) -> str:
    found = re.search(rf"<!-- tour:{name} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"the README has no block {name!r}"
    return found[1]


def commands(name: str, node: dict[str, str]) -> list[str]:
    text = block(name)
    for default, listener in DEFAULTS.items():
        text = text.replace(default, node[listener])
    port = node["mqtt"].rpartition(":")[2]
    text = text.replace("mosquitto_pub ", f"mosquitto_pub -h 127.0.0.1 -p {port} ")
    return text.splitlines()


ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(command: str) -> str:
    return subprocess.run(
        ["bash", "-c", command],
        env=ENVIRONMENT,
        check=True,
        timeout=20,
        capture_output=True,
        text=True,
    ).stdout


class Listening:
    """One `meshgate sub` of the tour, and what it printed so far."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.lines: list[str] = []
        self.news = threading.Condition()
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()

    def hears(self, word: str, seconds: float) -> bool:
        with self.news:
            return self.news.wait_for(lambda: any(word in line for line in self.lines), seconds)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.thread.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def listeners(shared_node: dict[str, str]) -> Iterator[list[Listening]]:
    """The tour's listeners, once each of them listens."""
    listeners = [Listening(command) for command in commands("listen", shared_node)]
    url = f"http://{shared_node['http']}"
    for listener in listeners:
        # A subscriber does not say when it is ready; it has heard the probe when it is.
        for _ in range(100):
            shell(f"meshgate pub {url} sensors/probe probing")
            if listener.hears("probing", 0.1):
                break
    yield listeners
    for listener in listeners:
        listener.stop()


def test_every_listener_hears_every_publisher(
    shared_node: dict[str, str], listeners: list[Listening]
) -> None:
    for command in commands("publish", shared_node):
        shell(command)
        for listener in listeners:
            assert listener.hears(command.split()[-1], 10), f"{listener.command} missed {command}"


@pytest.mark.peers
def test_other_peoples_tools(shared_node: dict[str, str], listeners: list[Listening]) -> None:
    for command, value in zip(
        commands("peers", shared_node), ("22.1", "22.2", "22.3"), strict=True
    ):
        shell(command)
        for listener in listeners:
            assert listener.hears(value, 10), f"{listener.command} missed {command}"


@pytest.mark.peers
def test_retained_values_and_queues(shared_node: dict[str, str]) -> None:
    put, get, post, pull = commands("rest", shared_node)
    shell(put)
    assert shell(get) == "22.4"
    shell(post)
    assert "mend the heating" in shell(pull)
