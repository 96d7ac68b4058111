"""A page in headless Chromium: plain WebSocket, MQTT.js and @stomp/stompjs, against each other.

Needs Debian's chromium and the npm packages that scripts/peers.sh installs beside this file.
"""

import functools
import http.server
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.interop.clients import Loop, Paho
from tests.interop.conftest import shared_node  # noqa: F401 - a fixture
from tests.interop.messages import Message
from tests.interop.test_readme import block

pytestmark = pytest.mark.peers

HERE = Path(__file__).parent
CLIENTS = ("events", "mqtt", "stomp")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep the test's output for failures."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Serve this folder, node_modules included, on loopback."""
    for package in ("mqtt", "@stomp/stompjs"):
        assert (HERE / "node_modules" / package).exists(), f"{package}: run scripts/peers.sh"
    handler = functools.partial(Quiet, directory=str(HERE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary and driver, "chromium and chromium-driver: run scripts/peers.sh"
    options.binary_location = binary
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_script_timeout(20)
    yield browser
    browser.quit()


def run(browser: webdriver.Chrome, script: str, *arguments: object) -> Any:
    """Run an async script of the page; its error is the test's."""
    result = browser.execute_async_script(
        f"""
        const done = arguments[arguments.length - 1]
        const run = async (...given) => {{ {script} }}
        run(...Array.from(arguments).slice(0, -1))
            .then((value) => done([value, null]), (error) => done([null, String(error)]))
        """,
        *arguments,
    )
    assert result[1] is None, result[1]
    return result[0]


@pytest.fixture(scope="module")
def page(
    chromium: webdriver.Chrome,
    site: str,
    shared_node: dict[str, str],  # noqa: F811 - the fixture above
) -> webdriver.Chrome:
    chromium.get(f"{site}/page.html")
    for name in CLIENTS:
        url = f"ws://{shared_node['ws']}"
        run(chromium, "await clients[given[0]].connect(given[1])", name, url)
    return chromium


def heard(page: webdriver.Chrome, name: str, topic: str, text: str) -> None:
    WebDriverWait(page, 10, 0.02).until(
        lambda browser: [topic, text] in browser.execute_script(f"return got.{name}")
    )


@pytest.mark.parametrize("subscriber", CLIENTS)
@pytest.mark.parametrize("publisher", CLIENTS)
def test_cell(page: webdriver.Chrome, publisher: str, subscriber: str) -> None:
    topic, text = f"browser/{uuid.uuid4().hex}", "grüße 世界"
    run(page, "await clients[given[0]].subscribe(given[1])", subscriber, topic)
    run(page, "await clients[given[0]].publish(given[1], given[2])", publisher, topic, text)
    heard(page, subscriber, topic, text)


def test_the_readmes_page(
    chromium: webdriver.Chrome,
    shared_node: dict[str, str],  # noqa: F811 - the fixture above
    tmp_path: Path,
) -> None:
    """Ten lines of JavaScript show what an MQTT client publishes."""
    source = block("browser").replace("localhost:8083", shared_node["ws"])
    file = tmp_path / "tour.html"
    file.write_text(source)
    chromium.switch_to.new_window("tab")
    chromium.get(file.as_uri())
    loop = Loop()
    device = Paho(shared_node["mqtt"], loop)
    device.connect()
    wait = WebDriverWait(chromium, 10, 0.02)
    wait.until(lambda browser: browser.execute_script("return socket.readyState") == 1)
    device.publish("sensors/kitchen", Message(b"21.5"))
    wait.until(lambda browser: browser.find_elements("css selector", "#list li"))
    assert chromium.find_element("css selector", "#list li").text == "sensors/kitchen: 21.5"
    device.close()
    loop.stop()
    chromium.close()
    chromium.switch_to.window(chromium.window_handles[0])
