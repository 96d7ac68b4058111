"""Attributes and properties as text headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_core.event import CloudEventError, Event
from protocols.bindings.headers import (
    CORRELATION,
    EXPIRES,
    PRIORITY,
    REPLY_TO,
    http_decode,
    http_encode,
    property_headers,
    split_properties,
)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),  # HTTP binding §3.1.3.2, its own example
        ('a"b', "a%22b"),
        ("100%", "100%25"),
        ("plain-._~!$&'()*+,;=:@/?#[]", "plain-._~!$&'()*+,;=:@/?#[]"),
        ("line\nbreak", "line%0Abreak"),
    ],
)
def test_http_header_values(text: str, header: str) -> None:
    assert http_encode(text) == header
    assert http_decode(header) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_http_header_values_round_trip(text: str) -> None:
    encoded = http_encode(text)
    assert encoded.isascii() and (encoded.isprintable() or not encoded)
    assert http_decode(encoded) == text


def test_http_lower_case_and_quoted() -> None:
    assert http_decode("%c3%a9") == "é"
    assert http_decode('"a \\"b\\""') == 'a "b"'
    with pytest.raises(CloudEventError):
        http_decode("%ff")


ALL = Event(
    "t", b"", priority=7, expires_at=1_900_000_000.25, reply_to="a/b", correlation_id=b"\xff"
)


def test_properties_round_trip() -> None:
    headers = [("x", 1), *property_headers(ALL, frozenset())]
    rest, found = split_properties(headers)
    assert rest == (("x", 1),)
    assert found.priority == 7
    assert found.expires_at == ALL.expires_at
    assert found.reply_to == "a/b"
    assert found.correlation_id == b"\xff"


def test_carried_properties_are_left_out() -> None:
    assert property_headers(ALL, frozenset((PRIORITY, EXPIRES, REPLY_TO, CORRELATION))) == []
    assert [n for n, _ in property_headers(ALL, frozenset((PRIORITY,)))] == [
        EXPIRES,
        REPLY_TO,
        CORRELATION,
    ]


def test_headers_that_make_no_sense_stay() -> None:
    odd = ((PRIORITY, "10"), (PRIORITY, "x"), (EXPIRES, "soon"), ("mesh-other", "y"))
    rest, found = split_properties(odd)
    assert rest == odd
    assert found.priority == 4
