"""The grammar of topics, filters and queue names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_core.address import (
    AddressError,
    check_filter,
    check_queue_name,
    check_topic,
    filter_matches,
    queue_address,
    queue_of,
    swap_filter,
    swap_topic,
)
from tests.mesh_core.naive import naive_matches

LEVEL = st.sampled_from(["", "a", "b", "$x", "é", "a b"])
TOPICS = st.lists(LEVEL, min_size=1, max_size=5).map("/".join).filter(bool)
FILTERS = (
    st.lists(st.one_of(LEVEL, st.sampled_from(["+", "#"])), min_size=1, max_size=6)
    .map("/".join)
    .filter(bool)
)


@pytest.mark.parametrize("topic", ["a", "/", "a//b", "/a", "a/", "$SYS/x", "日本/é", "a b", "a.b"])
def test_legal_topics(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize(
    "topic", ["", "a/+", "#", "a\0b", "a" * 65_536, "/" * 128, "\ud800", "é" * 40_000]
)
def test_illegal_topics(topic: str) -> None:
    with pytest.raises(AddressError):
        check_topic(topic)


@pytest.mark.parametrize("filter", ["#", "+", "a/#", "+/a/+", "a/#/b", "/+", "$share"])
def test_legal_filters(filter: str) -> None:
    assert check_filter(filter) == filter


@pytest.mark.parametrize("filter", ["", "a+", "a/b#", "+a/b", "##", "a\0"])
def test_illegal_filters(filter: str) -> None:
    with pytest.raises(AddressError):
        check_filter(filter)


@pytest.mark.parametrize("name", ["", "a\0", "a\nb", "x" * 256, "é" * 128])
def test_illegal_queue_names(name: str) -> None:
    with pytest.raises(AddressError):
        check_queue_name(name)


@pytest.mark.parametrize(
    ("filter", "topic", "matches"),
    [
        ("sport/tennis/#", "sport/tennis", True),  # MQTT 5.0 §4.7.1.2
        ("sport/+", "sport", False),  # MQTT 5.0 §4.7.1.3
        ("sport/+", "sport/", True),
        ("+", "/finance", False),
        ("/+", "/finance", True),
        ("#", "$SYS/monitor", False),  # [MQTT-4.7.2-1]
        ("+/monitor", "$SYS/monitor", False),
        ("$SYS/#", "$SYS/monitor", True),
        ("a/#/b", "a/b", True),  # AMQP 0-9-1 §3.1.3.3
        ("a/#/b", "a/x/y/b", True),
        ("#/b/#", "b", True),
        ("a/#/b/+", "a/b/b/b", True),
    ],
)
def test_filter_matches(filter: str, topic: str, matches: bool) -> None:
    assert filter_matches(filter, topic) is matches


@given(FILTERS, TOPICS)
def test_filter_matches_like_the_naive_matcher(filter: str, topic: str) -> None:
    assert filter_matches(filter, topic) is naive_matches(filter, topic)


def test_many_hashes_do_not_explode() -> None:
    assert not filter_matches("/".join(["#", "a"] * 60), "/".join(["a"] * 59 + ["b"] * 60))


@given(st.text())
def test_swaps_undo_themselves(text: str) -> None:
    assert swap_topic(swap_topic(text)) == text
    assert swap_filter(swap_filter(text)) == text


def test_queue_addresses() -> None:
    assert queue_of(queue_address("jobs/a")) == "jobs/a"
    assert queue_of("jobs") is None
