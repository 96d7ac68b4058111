"""What the matrix sends, and how each protocol's own conventions spell it.

Written from the specifications of the CloudEvents bindings, independently of `protocols`.
"""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime

Attribute = bool | int | str | bytes | bytearray | datetime


@dataclass(frozen=True)
class Message:
    """A message as its publisher means it; `attributes` is None for a plain one."""

    data: bytes
    content_type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Attribute] | None = None


@dataclass(frozen=True)
class Received:
    """A message as a subscriber's stock client saw it; attributes in whatever types it had."""

    topic: str
    data: bytes
    content_type: str | None
    headers: dict[str, str]
    attributes: dict[str, Attribute] | None


def text(value: Attribute) -> str:
    """Return the canonical string form (CloudEvents 1.0 §3.1.2)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)


MESSAGES = {
    "text": Message("grüße, 世界".encode(), "text/plain; charset=utf-8", {"x-trace": "abc-1"}),
    "binary": Message(bytes(range(256)), "application/octet-stream", {"x-trace": "abc-2"}),
    "event": Message(
        b'{"celsius":21.5,"room":"K\xc3\xbcche"}',
        "application/json",
        {},
        {
            "specversion": "1.0",
            "id": "A234-1234-1234",
            "source": "/sensors/tn-1234567/alerts?x=1",
            "type": "com.example.someevent",
            "subject": 'Küche 世界 😀 100% "quoted"',
            "time": "2026-04-05T17:31:00Z",
            "dataschema": "https://example.com/schemas/1",
            "extbool": True,
            "extint": -2147483648,
            "extstring": "é, ü; a=b %20",
            "extbinary": b"\x00\x01\xfe\xff",
            "exturi": "https://example.com/ü?q=1",
            "exturiref": "../relative#frag",
            "exttime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        },
    ),
    "empty": Message(b"", None, {"x-trace": "abc-3"}),
}
