"""One real node, as `meshgate serve` starts it, for all tests of a module here."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LISTENERS = ("http", "mqtt", "amqp", "stomp", "ws")
START_SECONDS = 20.0


def start_node(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start a node on free ports; return its process and where each listener is bound."""
    ready = folder / "ready.json"
    environment = os.environ | {f"MESHGATE_{name.upper()}__PORT": "0" for name in LISTENERS}
    command = [sys.executable, "-m", "gateway", "serve"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(folder / "data"), "--ready-file", str(ready)],
        env=environment,
        cwd=folder,
    )
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        assert process.poll() is None, f"the node ended with {process.returncode}"
        assert time.monotonic() < deadline, "the node did not get ready"
        # Polls for a file that another process makes; nothing to wait on but the clock.
        time.sleep(0.02)
    return process, json.loads(ready.read_text())


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    process, addresses = start_node(tmp_path_factory.mktemp("node"))
    yield addresses
    process.terminate()
    assert process.wait(15) == 0
