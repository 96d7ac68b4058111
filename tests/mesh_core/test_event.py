"""The event's lazy attributes, the checks of CloudEvents, and the text forms."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_core.event import (
    CloudEventError,
    Event,
    attribute_text,
    check_attributes,
    correlation_bytes,
    correlation_text,
    header_text,
    parse_timestamp,
    timestamp_text,
)

GOOD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def test_a_plain_event_gets_one_context_for_all() -> None:
    event = Event("a b/é", b"")
    assert not event.is_cloudevent
    context = dict(event.context)
    check_attributes(context)
    assert context["source"] == "/topics/a%20b/%C3%A9"
    assert dict(event.context) == context
    assert not event.is_cloudevent


def test_two_plain_events_differ_in_id() -> None:
    assert Event("t", b"").context["id"] != Event("t", b"").context["id"]


def test_a_cloudevent_keeps_its_attributes() -> None:
    event = Event("t", b"", attributes=dict(GOOD))
    assert event.is_cloudevent
    assert event.context == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"source": None},
        {"specversion": "0.3"},
        {"type": 1},
        {"Upper": "x"},
        {"under_score": "x"},
        {"n": 2**31},
        {"n": -(2**31) - 1},
        {"time": "yesterday"},
        {"f": 1.5},
        {"": "x"},
        {"newline\n": "x"},
    ],
)
def test_attributes_that_are_not_allowed(change: dict[str, object]) -> None:
    attributes = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    with pytest.raises(CloudEventError):
        check_attributes(attributes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (-7, "-7"),
        ("é", "é"),
        (b"\xff\x00", "/wA="),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 250000), "2026-01-02T03:04:05.250000Z"),
        (
            datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
            "2026-01-02T03:04:05+01:00",
        ),
    ],
)
def test_canonical_text(value: bool | int | str | bytes | datetime, text: str) -> None:
    assert attribute_text(value) == text


@given(st.datetimes(timezones=st.just(UTC)))
def test_timestamps_round_trip(moment: datetime) -> None:
    assert parse_timestamp(timestamp_text(moment)) == moment


@given(st.binary())
def test_correlation_ids_round_trip(correlation_id: bytes) -> None:
    text = correlation_text(correlation_id)
    text.encode()
    assert correlation_bytes(text) == correlation_id


@given(st.text())
def test_any_text_is_a_correlation_id(text: str) -> None:
    assert isinstance(correlation_bytes(text), bytes)


def test_header_text() -> None:
    assert header_text(None) == ""
    assert header_text(1.5) == "1.5"
    assert header_text({"a": [1, b"x"]}) == '{"a":[1,"eA=="]}'


def test_expiry() -> None:
    event = Event("t", b"", expires_at=100.0)
    assert not event.expired(99.0)
    assert event.expired(100.0)
    assert not Event("t", b"").expired()
