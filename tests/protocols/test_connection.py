"""The socket side, with a session that echoes lines: batching, bounds, closing, timers."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from protocols.connection import Flusher, Listener
from protocols.frontend import Counters, Limits, SessionContext
from protocols.outbox import Outbox


class Echo:
    """Answers bytes with themselves; `bye` closes, `flood` says more than anyone reads."""

    def __init__(self, context: SessionContext) -> None:
        self.context = context
        self.closed = False
        self.losses = 0
        self.deadline: float | None = None

    def receive(self, data: bytes) -> None:
        if data.startswith(b"flood"):
            for _ in range(100):
                self.context.outbox.write(bytes(1024 * 1024))
            return
        self.context.outbox.write(data)
        self.closed = data.startswith(b"bye")

    def timeout(self, now: float) -> float | None:
        if self.deadline is None:
            self.deadline = now + 0.05
        elif now >= self.deadline:
            self.context.outbox.write(b"late")
            self.closed = True
        return self.deadline

    def shutdown(self) -> None:
        self.context.outbox.write(b"goodbye")
        self.closed = True

    def lost(self) -> None:
        self.losses += 1


class Patient(Echo):
    def timeout(self, now: float) -> float | None:
        return None


@contextlib.asynccontextmanager
async def listening(kind: type[Echo], limits: Limits | None = None):  # type: ignore[no-untyped-def]
    sessions: list[Echo] = []

    def make(context: SessionContext) -> Echo:
        sessions.append(kind(context))
        return sessions[-1]

    flusher = Flusher(asyncio.get_running_loop())
    listener = Listener("test", "127.0.0.1", 0, make, limits or Limits(), Counters(), flusher)
    await listener.start()
    yield listener, sessions
    await listener.stop(1.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_echo_and_close() -> None:
    async with listening(Patient) as (listener, sessions):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        writer.write(b"bye")
        assert await reader.read() == b"bye"
        writer.close()
        await until(lambda: sessions[0].losses == 1)
        assert (listener.counters.opened, listener.counters.closed) == (1, 1)
        assert listener.counters.bytes_in == listener.counters.bytes_out == 6


async def test_a_lost_peer_is_lost_once() -> None:
    async with listening(Patient) as (_listener, sessions):
        listener = _listener
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"x")
        await until(lambda: bool(sessions))
        writer.transport.abort()
        await until(lambda: sessions[0].losses == 1)
        assert not listener.connections


async def test_timers() -> None:
    async with listening(Echo) as (listener, sessions):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert await reader.read() == b"late"
        writer.close()
        await until(lambda: sessions[0].losses == 1)


async def test_a_peer_that_does_not_read_is_cut_off() -> None:
    limits = Limits(outbox_bytes=1024 * 1024)
    async with listening(Patient, limits) as (listener, sessions):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, limit=1024)
        other_reader, other = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"flood")
        # What waits in the transport is one answer; what grows behind it is the outbox's.
        await until(lambda: listener.counters.bytes_in == len(b"flood"))
        writer.write(b"flood")
        await until(lambda: sessions[0].losses == 1)
        assert listener.counters.protocol_errors["slow-peer"] == 1
        other.write(b"still here")
        assert await other_reader.readexactly(10) == b"still here"
        writer.close()
        other.close()
        del reader


async def test_a_full_listener_turns_away() -> None:
    async with listening(Patient, Limits(connections=1)) as (listener, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"x")
        await reader.readexactly(1)
        second, second_writer = await asyncio.open_connection("127.0.0.1", listener.port)
        with contextlib.suppress(ConnectionResetError):
            assert await second.read() == b""
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        writer.close()
        second_writer.close()


async def test_stop_says_goodbye() -> None:
    async with listening(Patient) as (listener, sessions):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        await until(lambda: bool(sessions))
        await listener.stop(1.0)
        assert await reader.read() == b"goodbye"
        assert sessions[0].losses == 1
        writer.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", listener.port)


def test_the_outbox_drops_above_its_limit_and_counts() -> None:
    wakes: list[bool] = []
    outbox = Outbox(limit=10, wake=lambda: wakes.append(True))
    assert outbox.offer(b"x" * 10)
    assert outbox.offer(b"y")
    assert not outbox.offer(b"z")
    outbox.write(b"owed")
    assert wakes == [True]
    assert (outbox.size, outbox.dropped) == (15, 1)
    assert outbox.take() == b"x" * 10 + b"yowed"
    assert outbox.size == 0
    assert outbox.take() == b""


def test_drained_callbacks_run_once() -> None:
    outbox, heard = Outbox(), []
    outbox.when_drained(lambda: heard.append(1))
    outbox.drained()
    outbox.drained()
    assert heard == [1]
