"""The client's checks: every verb asks, a failing authorizer or authenticator means no."""

from collections.abc import Callable

import pytest

from mesh_core.event import Event
from mesh_core.queue import Consumer
from mesh_core.receipt import Refusal
from mesh_core.router import Router
from protocols.frontend import (
    Action,
    Authenticated,
    Broker,
    Client,
    Credentials,
    Identity,
    NotAuthorized,
)


class Anyone:
    def authenticate(self, credentials: Credentials, done: Authenticated) -> None:
        done(Identity(credentials.username))


class Rules:
    """Allows what is listed, and keeps what it was asked."""

    def __init__(self, *allowed: tuple[Action, str]) -> None:
        self.allowed = allowed
        self.asked: list[tuple[Action, str]] = []

    def allows(self, client: Client, action: Action, address: str) -> bool:
        self.asked.append((action, address))
        return (action, address) in self.allowed


class Broken:
    def allows(self, client: Client, action: Action, address: str) -> bool:
        raise RuntimeError("out of order")

    def authenticate(self, credentials: Credentials, done: Authenticated) -> None:
        raise RuntimeError("out of order")


def login(router: Router, authorizer: Rules | Broken | None) -> Client:
    clients: list[Client | None] = []
    broker = Broker("test", router, Anyone(), authorizer)
    broker.authenticate(Credentials("test", "127.0.0.1", "me"), clients.append)
    assert clients[0] is not None
    return clients[0]


VERBS: dict[str, tuple[Callable[[Client, Router], object], Action, str]] = {
    "subscribe": (lambda c, r: c.subscribe("a/#", print), Action.SUBSCRIBE, "a/#"),
    "clear_retained": (lambda c, r: c.clear_retained("a"), Action.PUBLISH, "a"),
    "declare": (lambda c, r: c.declare("new"), Action.CONFIGURE, "$queue/new"),
    "delete": (lambda c, r: c.delete(r.queues["q"]), Action.CONFIGURE, "$queue/q"),
    "purge": (lambda c, r: c.purge(r.queues["q"]), Action.CONFIGURE, "$queue/q"),
    "bind": (lambda c, r: c.bind(r.queues["q"], "a/+"), Action.CONFIGURE, "$queue/q"),
    "unbind": (lambda c, r: c.unbind(r.queues["q"], "a/+"), Action.CONFIGURE, "$queue/q"),
    "consume": (
        lambda c, r: c.consume(r.queues["q"], Consumer(print)),
        Action.CONSUME,
        "$queue/q",
    ),
    "get": (lambda c, r: c.get(r.queues["q"]), Action.CONSUME, "$queue/q"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("authorizer", [Rules(), Broken()], ids=["says no", "raises"])
def test_every_verb_asks(verb: str, authorizer: Rules | Broken) -> None:
    router = Router()
    router.declare("q")
    call, action, address = VERBS[verb]
    with pytest.raises(NotAuthorized, match=action.value):
        call(login(router, authorizer), router)
    if isinstance(authorizer, Rules):
        assert authorizer.asked[-1] == (action, address)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_works_without_an_authorizer(verb: str) -> None:
    router = Router()
    router.declare("q")
    VERBS[verb][0](login(router, None), router)


@pytest.mark.parametrize("authorizer", [Rules(), Broken()], ids=["says no", "raises"])
def test_publishing_is_refused(authorizer: Rules | Broken) -> None:
    router, got = Router(), []
    client = login(router, authorizer)
    login(router, None).subscribe("#", got.append)
    router.declare("q")
    assert client.publish(Event("a", b"")).refusal is Refusal.NOT_AUTHORIZED
    assert client.send(Event("", b"", queue="q")).refusal is Refusal.NOT_AUTHORIZED
    assert got == [] and len(router.queues["q"]) == 0


def test_sending_makes_the_queue_only_where_that_is_allowed() -> None:
    router = Router()
    event = Event("", b"", queue="new")
    client = login(router, Rules((Action.PUBLISH, "$queue/new")))
    assert client.send(event).refusal is Refusal.NO_SUCH_QUEUE
    assert client.send(event, create=True).refusal is Refusal.NOT_AUTHORIZED
    assert "new" not in router.queues
    rules = Rules((Action.PUBLISH, "$queue/new"), (Action.CONFIGURE, "$queue/new"))
    assert login(router, rules).send(event, create=True).refusal is None
    assert len(router.queues["new"]) == 1


def test_publishing_is_allowed_where_it_is() -> None:
    router, got = Router(), []
    client = login(router, Rules((Action.PUBLISH, "a")))
    login(router, None).subscribe("#", got.append)
    assert client.publish(Event("a", b"")).routed
    assert client.publish(Event("b", b"")).refusal is Refusal.NOT_AUTHORIZED
    assert len(got) == 1


def test_binding_needs_the_right_to_subscribe_too() -> None:
    router = Router()
    queue = router.declare("q")
    client = login(router, Rules((Action.CONFIGURE, "$queue/q")))
    with pytest.raises(NotAuthorized, match="subscribe"):
        client.bind(queue, "secret/#")


def test_retained_values_are_filtered_by_topic() -> None:
    router = Router()
    for topic in ("open", "secret"):
        router.publish(Event(topic, b"", retain=True))
    client = login(router, Rules((Action.SUBSCRIBE, "open")))
    assert [e.topic for e in client.retained("#")] == ["open"]


def test_an_authenticator_that_raises_means_no() -> None:
    broker, clients = Broker("test", Router(), Broken()), []
    broker.authenticate(Credentials("test", "127.0.0.1"), clients.append)
    assert clients == [None]
    assert broker.counters.refused == 1


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(Credentials("test", "127.0.0.1", "me", b"secret"))
