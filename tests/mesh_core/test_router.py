"""Publish, subscribe, bind, and the cache of routes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_core.address import AddressError
from mesh_core.event import Event
from mesh_core.queue import Consumer, Delivery, QueueOptions
from mesh_core.receipt import Refusal
from mesh_core.router import Deliver, QueueMismatch, Router, Subscription
from tests.mesh_core.naive import naive_matches
from tests.mesh_core.test_address import FILTERS, TOPICS


def event(topic: str, data: bytes = b"x", retain: bool = False) -> Event:
    return Event(topic, data, retain=retain)


def test_each_subscription_gets_its_own_copy() -> None:
    router, got = Router(), []
    for name, filter in (("one", "a/+"), ("two", "a/#"), ("three", "b")):
        router.subscribe(Subscription(filter, lambda e, name=name: got.append(name)))
    receipt = router.publish(event("a/b"))
    assert sorted(got) == ["one", "two"]
    assert receipt.done and receipt.routed and receipt.refusal is None


def test_unrouted() -> None:
    router = Router()
    receipt = router.publish(event("nobody"))
    assert receipt.done and not receipt.routed
    assert router.unrouted == 1


def test_subscriptions_of_one_owner_are_merged() -> None:
    class Peer:
        def merge(self, subscriptions: list[Subscription]) -> Deliver:
            filters = sorted(s.filter for s in subscriptions)
            return lambda e: got.append(filters)

    router, got, peer = Router(), [], Peer()
    for filter in ("a/+", "a/#", "#"):
        router.subscribe(Subscription(filter, lambda e: got.append(["alone"]), peer))
    router.publish(event("a/b"))
    router.publish(event("c"))
    assert got == [["#", "a/#", "a/+"], ["alone"]]


def test_predicates() -> None:
    router, got = Router(), []
    router.subscribe(Subscription("t", got.append, predicate=lambda e: e.data == b"yes"))
    router.publish(event("t", b"no"))
    router.publish(event("t", b"yes"))
    assert [e.data for e in got] == [b"yes"]


def test_a_queue_takes_an_event_once_however_many_bindings_match() -> None:
    router = Router()
    queue = router.declare("q")
    router.bind(queue, "a/#")
    router.bind(queue, "a/+")
    router.bind(queue, "a/b", predicate=lambda e: False, key="never")
    router.publish(event("a/b"))
    assert len(queue) == 1


def test_binding_predicates_one_must_hold() -> None:
    router = Router()
    queue = router.declare("q")
    router.bind(queue, "t", predicate=lambda e: e.data == b"1", key=1)
    router.bind(queue, "t", predicate=lambda e: e.data == b"2", key=2)
    receipts = [router.publish(event("t", data)) for data in (b"1", b"2", b"3")]
    assert [r.routed for r in receipts] == [True, True, False]
    assert len(queue) == 2
    assert router.unbind(queue, "t", 2)
    assert not router.unbind(queue, "t", 2)
    assert not router.publish(event("t", b"2")).routed


def test_one_full_queue_refuses_the_event_but_the_others_have_it() -> None:
    router = Router()
    small = router.declare("small", QueueOptions(max_length=0))
    large = router.declare("large")
    router.bind(small, "t")
    router.bind(large, "t")
    assert router.publish(event("t")).refusal is Refusal.QUEUE_FULL
    assert len(large) == 1


def test_send_straight_to_a_queue() -> None:
    router = Router()
    assert router.send(Event("", b"", queue="q")).refusal is Refusal.NO_SUCH_QUEUE
    queue = router.declare("q")
    assert router.send(Event("", b"", queue="q")).refusal is None
    assert len(queue) == 1


def test_declare_again() -> None:
    router, me = Router(), object()
    queue = router.declare("q", QueueOptions(durable=False))
    assert router.declare("q") is queue
    assert router.declare("q", QueueOptions(durable=False)) is queue
    with pytest.raises(QueueMismatch):
        router.declare("q", QueueOptions(durable=True))
    router.declare("mine", QueueOptions(exclusive=True), me)
    assert router.declare("mine", None, me)
    with pytest.raises(QueueMismatch):
        router.declare("mine", None, object())
    with pytest.raises(AddressError):
        router.declare("")


def test_delete_ends_bindings_and_consumers() -> None:
    router, ended = Router(), []
    queue = router.declare("q")
    router.bind(queue, "t")
    queue.consume(Consumer(lambda d: None, cancelled=lambda: ended.append(True)))
    router.publish(event("t"))
    router.delete(queue)
    assert ended == [True]
    assert "q" not in router.queues
    assert not router.publish(event("t")).routed


def test_auto_delete() -> None:
    router = Router()
    queue = router.declare("q", QueueOptions(auto_delete=True))
    assert "q" in router.queues
    consumer = Consumer(lambda d: None)
    queue.consume(consumer)
    queue.cancel(consumer)
    assert "q" not in router.queues


def test_retained() -> None:
    router = Router()
    router.publish(event("a/b", b"1", retain=True))
    router.publish(event("a/b", b"2", retain=True))
    router.publish(event("a/c", b"3"))
    assert [e.data for e in router.retained.match("a/+")] == [b"2"]
    assert router.retained.clear("a/b")
    assert router.retained.get("a/b") is None


def test_retained_values_expire() -> None:
    router = Router()
    router.publish(Event("t", b"", retain=True, expires_at=1.0))
    assert router.retained.match("#") == []
    assert len(router.retained) == 0


def test_a_subscriber_may_unsubscribe_while_it_is_delivered_to() -> None:
    router, got = Router(), []

    def once(e: Event) -> None:
        got.append(e)
        router.unsubscribe(subscription)

    subscription = Subscription("t", once)
    router.subscribe(subscription)
    router.publish(event("t"))
    router.publish(event("t"))
    assert len(got) == 1


def test_a_subscribe_forgets_only_the_routes_it_touches() -> None:
    router = Router()
    for topic in ("a/1", "a/2", "b/1"):
        router.publish(event(topic))
    kept = router._routes["b/1"]
    router.subscribe(Subscription("a/+", lambda e: None))
    assert set(router._routes) == {"b/1"}
    router.publish(event("b/1"))
    assert router._routes["b/1"] is kept


def test_the_cache_is_bounded() -> None:
    router = Router(route_cache=16)
    for i in range(100):
        router.publish(event(f"t/{i}"))
    assert len(router._routes) <= 16
    assert set(router._routes) == set(router._topics)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("subscribe"), FILTERS),
            st.tuples(st.just("unsubscribe"), FILTERS),
            st.tuples(st.just("publish"), TOPICS),
        ),
        max_size=60,
    )
)
def test_the_cache_never_shows(steps: list[tuple[str, str]]) -> None:
    router = Router(route_cache=8)
    live: list[Subscription] = []
    got: list[Subscription] = []
    for what, text in steps:
        if what == "subscribe":
            subscription = Subscription(text, lambda e: None)
            subscription.deliver = lambda e, s=subscription: got.append(s)
            router.subscribe(subscription)
            live.append(subscription)
        elif what == "unsubscribe":
            for subscription in [s for s in live if s.filter == text]:
                router.unsubscribe(subscription)
                live.remove(subscription)
        else:
            got.clear()
            router.publish(event(text))
            expected = [s for s in live if naive_matches(s.filter, text)]
            assert sorted(map(id, got)) == sorted(map(id, expected))


def test_deliveries_of_a_queue_come_in_order_of_publishing() -> None:
    router, got = Router(), []
    queue = router.declare("q")
    router.bind(queue, "#")
    for i in range(5):
        router.publish(event(f"t/{i}"))

    def take(d: Delivery) -> None:
        got.append(d.event.topic)

    queue.consume(Consumer(take))
    for i in range(5, 10):
        router.publish(event(f"t/{i}"))
    assert got == [f"t/{i}" for i in range(10)]
