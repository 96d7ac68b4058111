"""Queues: cases by hand, and a rule-based machine against a plain model."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh_core.event import Event
from mesh_core.queue import (
    Consumer,
    Credit,
    Delivery,
    Outcome,
    Queue,
    QueueError,
    QueueOptions,
    Sequence,
)
from mesh_core.receipt import Refusal


def make(options: QueueOptions | None = None) -> Queue:
    return Queue("q", options or QueueOptions())


def message(n: int, expires_at: float | None = None) -> Event:
    return Event("t", str(n).encode(), expires_at=expires_at)


class Taker:
    """A consumer that keeps what it gets."""

    def __init__(self, credit: Credit | int = 100, auto_accept: bool = False) -> None:
        self.got: list[Delivery] = []
        shared = Credit(credit) if isinstance(credit, int) else credit
        self.consumer = Consumer(self.got.append, shared, auto_accept=auto_accept)

    @property
    def numbers(self) -> list[int]:
        return [int(d.event.data) for d in self.got]


def test_consumers_compete_in_turn() -> None:
    queue, one, two = make(), Taker(), Taker()
    queue.consume(one.consumer)
    queue.consume(two.consumer)
    for n in range(6):
        queue.enqueue(message(n))
    assert sorted(one.numbers + two.numbers) == list(range(6))
    assert len(one.numbers) == len(two.numbers) == 3


def test_credit_is_respected_to_the_message() -> None:
    queue, taker = make(), Taker(credit=2)
    queue.consume(taker.consumer)
    for n in range(5):
        queue.enqueue(message(n))
    assert taker.numbers == [0, 1]
    assert len(queue) == 3
    assert taker.got[0].settle(Outcome.ACCEPT)
    assert taker.numbers == [0, 1, 2]


def test_who_has_no_credit_does_not_hold_up_the_others() -> None:
    queue, slow, fast = make(), Taker(credit=1), Taker(credit=100)
    queue.consume(slow.consumer)
    queue.consume(fast.consumer)
    for n in range(10):
        queue.enqueue(message(n))
    assert len(slow.got) == 1
    assert len(fast.got) == 9


def test_shared_credit() -> None:
    credit = Credit(3)
    first, second = make(), make()
    one, two = Taker(credit), Taker(credit)
    first.consume(one.consumer)
    second.consume(two.consumer)
    for n in range(3):
        first.enqueue(message(n))
        second.enqueue(message(n))
    assert len(one.got) + len(two.got) == 3
    for delivery in one.got + two.got:
        delivery.settle(Outcome.ACCEPT)
    assert len(one.got) + len(two.got) == 6


def test_release_goes_back_to_its_place_and_counts() -> None:
    queue, taker = make(), Taker(credit=3)
    queue.consume(taker.consumer)
    for n in range(5):
        queue.enqueue(message(n))
    queue.cancel(taker.consumer)
    taker.got[1].settle(Outcome.RELEASE)
    taker.got[0].settle(Outcome.RELEASE)
    again = Taker()
    queue.consume(again.consumer)
    assert again.numbers == [0, 1, 3, 4]
    assert [d.redelivered for d in again.got] == [True, True, False, False]


def test_release_all_hands_over_in_order() -> None:
    queue, lost, other = make(), Taker(credit=3), Taker(credit=0)
    queue.consume(lost.consumer)
    queue.consume(other.consumer)
    for n in range(5):
        queue.enqueue(message(n))
    other.consumer.credit.add(100)
    assert other.numbers == [3, 4]
    queue.cancel(lost.consumer)
    queue.release_all(lost.got)
    assert other.numbers == [3, 4, 0, 1, 2]


def test_settling_twice_changes_nothing() -> None:
    queue, taker = make(), Taker()
    queue.consume(taker.consumer)
    queue.enqueue(message(1))
    assert taker.got[0].settle(Outcome.ACCEPT)
    assert not taker.got[0].settle(Outcome.RELEASE)
    assert len(queue) == 0
    assert queue.unsettled == 0


def test_reject_does_not_come_back() -> None:
    queue, taker = make(), Taker()
    queue.consume(taker.consumer)
    queue.enqueue(message(1))
    taker.got[0].settle(Outcome.REJECT)
    assert taker.numbers == [1]
    assert queue.rejected == 1


def test_paused_credit() -> None:
    queue, taker = make(), Taker(auto_accept=True)
    queue.consume(taker.consumer)
    taker.consumer.credit.pause()
    queue.enqueue(message(1))
    assert taker.numbers == []
    taker.consumer.credit.resume()
    assert taker.numbers == [1]
    assert queue.unsettled == 0


def test_expired_messages_are_not_delivered() -> None:
    queue, taker = make(), Taker()
    queue.enqueue(message(1, expires_at=1.0))
    queue.consume(taker.consumer)
    queue.enqueue(message(2, expires_at=1.0))
    queue.enqueue(message(3))
    assert taker.numbers == [3]
    assert queue.expired == 2


@pytest.mark.parametrize("options", [QueueOptions(max_length=2), QueueOptions(max_bytes=2)])
def test_limits_refuse(options: QueueOptions) -> None:
    queue = make(options)
    receipts = [queue.enqueue(message(n)) for n in range(3)]
    assert [r.refusal for r in receipts] == [None, None, Refusal.QUEUE_FULL]
    assert queue.get() is not None
    assert queue.enqueue(message(3)).refusal is None


def test_expired_messages_make_room() -> None:
    queue = make(QueueOptions(max_length=1))
    queue.enqueue(message(1, expires_at=1.0))
    assert queue.enqueue(message(2)).refusal is None
    assert len(queue) == 1


def test_get() -> None:
    queue = make()
    queue.enqueue(message(1))
    delivery = queue.get()
    assert delivery is not None and queue.get() is None
    assert queue.unsettled == 1
    delivery.settle(Outcome.RELEASE)
    again = queue.get()
    assert again is delivery and again.redelivered


def test_exclusive_consumer() -> None:
    queue, one, two = make(), Taker(), Taker()
    queue.consume(one.consumer, exclusive=True)
    with pytest.raises(QueueError):
        queue.consume(two.consumer)
    queue.cancel(one.consumer)
    queue.consume(two.consumer)
    with pytest.raises(QueueError):
        queue.consume(one.consumer, exclusive=True)


def test_a_consumer_that_settles_at_once_does_not_recurse() -> None:
    queue, got = make(), []

    def take(delivery: Delivery) -> None:
        got.append(delivery)
        delivery.settle(Outcome.ACCEPT)

    for n in range(5000):
        queue.enqueue(message(n))
    queue.consume(Consumer(take, Credit(1)))
    assert len(got) == 5000


class QueueMachine(RuleBasedStateMachine):
    """Any order of publish, consume, settle, cancel and disconnect, against sets of numbers."""

    @initialize()
    def start(self) -> None:
        self.queue = make()
        self.takers: list[Taker] = []
        self.held: dict[int, Delivery] = {}
        self.ready: set[int] = set()
        self.gone: set[int] = set()
        self.next = 0

    def collect(self) -> None:
        """Take over what was handed out since the last step."""
        for taker in self.takers:
            for delivery in taker.got:
                n = int(delivery.event.data)
                assert n in self.ready, "handed over twice, or never published"
                self.ready.remove(n)
                self.held[n] = delivery
            taker.got.clear()

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.ready.add(self.next)
            self.queue.enqueue(message(self.next))
            self.next += 1
        self.collect()

    @rule(credit=st.integers(0, 4))
    def consume(self, credit: int) -> None:
        taker = Taker(credit)
        self.takers.append(taker)
        self.queue.consume(taker.consumer)
        self.collect()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        n = data.draw(st.sampled_from(sorted(self.held)))
        delivery = self.held.pop(n)
        (self.ready if outcome is Outcome.RELEASE else self.gone).add(n)
        assert delivery.settle(outcome)
        self.collect()

    @precondition(lambda self: self.takers)
    @rule(data=st.data(), disconnect=st.booleans())
    def cancel(self, data: st.DataObject, disconnect: bool) -> None:
        taker = data.draw(st.sampled_from(self.takers))
        self.takers.remove(taker)
        mine = [d for d in self.held.values() if d.consumer is taker.consumer]
        self.queue.cancel(taker.consumer)
        if disconnect:
            for delivery in mine:
                n = int(delivery.event.data)
                del self.held[n]
                self.ready.add(n)
            self.queue.release_all(mine)
        self.collect()

    @rule(amount=st.integers(1, 3), data=st.data())
    def grant(self, amount: int, data: st.DataObject) -> None:
        if self.takers:
            data.draw(st.sampled_from(self.takers)).consumer.credit.add(amount)
            self.collect()

    @invariant()
    def agrees(self) -> None:
        queue = self.queue
        assert len(queue) == len(self.ready)
        assert queue.unsettled == len(self.held)
        assert len(self.ready) + len(self.held) + len(self.gone) == self.next
        sequences = [d.sequence for d in queue._ready]
        assert sequences == sorted(sequences)
        assert queue.bytes == sum(len(str(n)) for n in self.ready)

    @invariant()
    def nobody_waits_who_need_not(self) -> None:
        if self.ready:
            assert all(t.consumer.credit.available <= 0 for t in self.takers)


QueueMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase


def test_sequence_starts_at_one() -> None:
    queue, taker = make(), Taker()
    queue.consume(taker.consumer)
    queue.enqueue(message(0))
    assert taker.got[0].sequence == Sequence(1)
