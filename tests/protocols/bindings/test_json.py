"""Structured CloudEvents in JSON: round trip, the specification's cases, bad input, an oracle."""

import contextlib
import json
from datetime import UTC, datetime

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from mesh_core.address import AddressError
from mesh_core.event import CloudEventError, Event
from protocols.bindings.json import (
    decode_batch,
    decode_event,
    encode_batch,
    encode_event,
    is_structured,
)

BASE = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def body(**members: object) -> bytes:
    return json.dumps({**BASE, "meshtopic": "t", **members}).encode()


@pytest.mark.parametrize(
    ("content_type", "data", "members"),
    [
        ("application/json", b'{"a": 1.50}', {"data": {"a": 1.5}}),
        ("application/vnd.x+json; charset=utf-8", b"[1]", {"data": [1]}),
        ("application/json", b"not json", {"data_base64": "bm90IGpzb24="}),
        ("text/plain", b"21.5", {"data": "21.5"}),
        ("text/plain", b"\xff", {"data_base64": "/w=="}),
        ("application/octet-stream", b"abc", {"data_base64": "YWJj"}),
        (None, b"21.5", {"data": 21.5}),
        (None, b"hello", {"data": "hello", "datacontenttype": "text/plain"}),
        (None, b"\xff\x00", {"data_base64": "/wA="}),
        ("text/plain", b"", {}),
    ],
)
def test_data(content_type: str | None, data: bytes, members: dict[str, object]) -> None:
    event = Event("t", data, content_type, dict(BASE))
    sent = json.loads(encode_event(event))
    for name in ("data", "data_base64"):
        assert sent.get(name) == members.get(name)
    assert sent.get("datacontenttype") == members.get("datacontenttype", content_type)
    assert decode_event(encode_event(event)).data == data


def test_every_property_comes_back() -> None:
    event = Event(
        "a/é",
        b"\x00\xff",
        "image/png",
        {**BASE, "flag": True, "count": -3, "ext": "é", "time": "2026-01-01T00:00:00Z"},
        (("X-One", "1"), ("X-One", "2"), ("n", 3), ("table", {"a": [1, None]})),
        retain=True,
        priority=9,
        expires_at=1_900_000_000.5,
        reply_to="$queue/r",
        correlation_id=b"\xff",
    )
    back = decode_event(encode_event(event))
    for name in Event.__slots__:
        if name not in ("wire", "_context"):
            assert getattr(back, name) == getattr(event, name), name


def test_types_without_json_counterpart_take_their_text() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    event = Event("t", b"", None, {**BASE, "bin": b"\xff", "at": moment}, (("b", b"\x01"),))
    back = decode_event(encode_event(event))
    assert back.attributes is not None
    assert back.attributes["bin"] == "/w=="
    assert back.attributes["at"] == "2026-01-01T00:00:00Z"
    assert back.headers == (("b", "AQ=="),)


def test_json_data_keeps_its_bytes() -> None:
    data = b'{"big": 12345678901234567890123, "f": 1.10, "s":"\\u00e9"}'
    raw = body()[:-1] + b', "data": ' + data + b"}"
    assert decode_event(raw).data == data


@given(
    st.sampled_from([None, "application/json", "text/plain", "application/xml", "x/y"]),
    st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
)
def test_data_round_trips(content_type: str | None, data: bytes) -> None:
    back = decode_event(encode_event(Event("t", data, content_type, dict(BASE))))
    assert back.data == data


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"specversion":"1.0"}',
        body(specversion="0.3"),
        body(ext={"a": 1}),
        body(ext=1.5),
        body(data="x", data_base64="eA=="),
        body(data_base64="*"),
        body(data_base64=1),
        body(meshpriority=10),
        body(meshpriority=True),
        body(meshretain="yes"),
        body(meshexpires="soon"),
        body(meshheaders="{}"),
        body(meshheaders="["),
        body(datacontenttype=1),
        body(id=""),
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_bad_input(bad: bytes) -> None:
    with pytest.raises(CloudEventError):
        decode_event(bad)


@pytest.mark.parametrize("topic", ["a/+", "a\0"])
def test_bad_topic(topic: str) -> None:
    with pytest.raises(AddressError):
        decode_event(body(meshtopic=topic))


def test_no_topic() -> None:
    with pytest.raises(AddressError):
        decode_event(json.dumps(BASE).encode())
    assert decode_event(json.dumps(BASE).encode(), "given").topic == "given"
    assert decode_event(json.dumps({**BASE, "meshqueue": "q"}).encode()).queue == "q"


@given(st.binary(max_size=60))
def test_arbitrary_bytes(data: bytes) -> None:
    for decode in (decode_event, decode_batch):
        with contextlib.suppress(CloudEventError):
            decode(data, "t")


def test_batch() -> None:
    events = [Event("t", str(n).encode(), None, {**BASE, "id": str(n + 1)}) for n in range(3)]
    back = decode_batch(encode_batch(events))
    assert [e.data for e in back] == [b"0", b"1", b"2"]
    assert decode_batch(b"[]") == []


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (None, False),
        ("application/json", False),
        ("application/cloudevents+json", True),
        ("Application/CloudEvents+JSON; charset=utf-8", True),
        ("application/cloudevents-batch+json", False),
    ],
)
def test_is_structured(content_type: str | None, expected: bool) -> None:
    assert is_structured(content_type) is expected


def test_other_formats_are_refused() -> None:
    with pytest.raises(CloudEventError):
        is_structured("application/cloudevents+protobuf")


def test_the_cloudevents_package_reads_what_we_write() -> None:
    event = Event("a/b", b'{"n":1}', "application/json", {**BASE, "subject": "é", "flag": True})
    theirs = JSONFormat().read(None, encode_event(event))
    assert theirs.get_id() == "1"
    assert theirs.get_subject() == "é"
    assert theirs.get_data() == {"n": 1}
    assert theirs.get_extension("meshtopic") == "a/b"


def test_we_read_what_the_cloudevents_package_writes() -> None:
    theirs = CloudEvent(
        {**BASE, "time": datetime(2026, 1, 1, tzinfo=UTC), "datacontenttype": "text/plain"},
        "grüße",
    )
    event = decode_event(JSONFormat().write(theirs), "t")
    assert event.data == "grüße".encode()
    assert event.datacontenttype == "text/plain"
    assert event.attributes is not None and event.attributes["time"] == "2026-01-01T00:00:00Z"
