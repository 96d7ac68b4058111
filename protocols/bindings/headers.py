"""What every protocol with text headers does the same way: attributes and properties as headers.

Each front-end names its own prefix for CloudEvents attributes; what is shared is the percent
encoding of HTTP and the `mesh-` headers, in which a delivery property travels through a protocol
that has no field for it.

Invariant: `split_properties(rest + property_headers(event, carried))` gives back the properties
that were not `carried`, and `rest` untouched.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from mesh_core.event import (
    DEFAULT_PRIORITY,
    CloudEventError,
    Event,
    Headers,
    HeaderValue,
    correlation_bytes,
    correlation_text,
    header_text,
    parse_timestamp,
    timestamp_text,
)

PRIORITY: Final = "mesh-priority"
EXPIRES: Final = "mesh-expires"
REPLY_TO: Final = "mesh-reply-to"
CORRELATION: Final = "mesh-correlation"

# CloudEvents HTTP binding §3.1.3.2: printable ASCII but space, double quote and percent.
_HTTP_SAFE: Final = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')


def http_encode(text: str) -> str:
    """Return an attribute's text for an HTTP header.

    Source: CloudEvents HTTP binding 1.0.2 §3.1.3.2 "HTTP Header Values".
    """
    return quote(text, safe=_HTTP_SAFE)


def http_decode(text: str) -> str:
    """Return the attribute's text that an HTTP header stands for (the same section).

    Raises:
        CloudEventError: the percent-decoded bytes are not UTF-8.
    """
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise CloudEventError(f"header value {text!r} is not percent-encoded UTF-8") from None


@dataclass(slots=True)
class Properties:
    """Delivery properties that came as `mesh-` headers; defaults where none did."""

    priority: int = DEFAULT_PRIORITY
    expires_at: float | None = None
    reply_to: str | None = None
    correlation_id: bytes | None = None


def property_headers(event: Event, carried: frozenset[str]) -> list[tuple[str, str]]:
    """Return the `mesh-` headers for `event`'s properties that the protocol does not carry itself.

    Args:
        event: whose properties.
        carried: the names above that the protocol has a field of its own for.
    """
    headers: list[tuple[str, str]] = []
    if event.priority != DEFAULT_PRIORITY and PRIORITY not in carried:
        headers.append((PRIORITY, str(event.priority)))
    if event.expires_at is not None and EXPIRES not in carried:
        moment = datetime.fromtimestamp(event.expires_at, UTC)
        headers.append((EXPIRES, timestamp_text(moment)))
    if event.reply_to is not None and REPLY_TO not in carried:
        headers.append((REPLY_TO, event.reply_to))
    if event.correlation_id is not None and CORRELATION not in carried:
        headers.append((CORRELATION, correlation_text(event.correlation_id)))
    return headers


def has_properties(names: Iterable[str]) -> bool:
    """Tell whether `split_properties` would find anything; cheap enough to ask per message."""
    return any(name.startswith("mesh-") for name in names)


def split_properties(headers: Iterable[tuple[str, HeaderValue]]) -> tuple[Headers, Properties]:
    """Take the `mesh-` headers out of `headers`; one that makes no sense stays among the others."""
    rest: list[tuple[str, HeaderValue]] = []
    found = Properties()
    for name, value in headers:
        if not (name.startswith("mesh-") and _take(found, name, header_text(value))):
            rest.append((name, value))
    return tuple(rest), found


def _take(found: Properties, name: str, text: str) -> bool:
    if name == PRIORITY and len(text) == 1 and text.isascii() and text.isdigit():
        found.priority = int(text)
    elif name == EXPIRES:
        try:
            found.expires_at = parse_timestamp(text).timestamp()
        except ValueError:
            return False
    elif name == REPLY_TO and text:
        found.reply_to = text
    elif name == CORRELATION:
        found.correlation_id = correlation_bytes(text)
    else:
        return False
    return True
