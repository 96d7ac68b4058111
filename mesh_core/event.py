"""The event: a CloudEvent plus the delivery properties that all protocols share.

It is not a wire format (see `protocols.bindings`) and not a queue entry (see `mesh_core.queue`).

Invariant: an event does not change once it is published. Only two things are filled in later,
and both are pure functions of the rest: the CloudEvents attributes of a plain message, made on
first need and then the same for every subscriber, and `wire`, the encodings already made.
"""

import base64
import itertools
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TypeAlias
from urllib.parse import quote

AttributeValue: TypeAlias = bool | int | str | bytes | datetime
"""A CloudEvents attribute: Boolean, Integer, String (and URI, URI-reference), Binary, Timestamp."""

HeaderValue: TypeAlias = (
    bool
    | int
    | float
    | str
    | bytes
    | datetime
    | list["HeaderValue"]
    | dict[str, "HeaderValue"]
    | None
)
"""The value of an application header; AMQP's field tables have the widest set of types."""

Headers: TypeAlias = tuple[tuple[str, HeaderValue], ...]

DEFAULT_PRIORITY: Final = 4
"""The priority of a message that names none (JMS 2.0 §3.4.10)."""

PLAIN_TYPE: Final = "io.meshgate.message"
"""The CloudEvents `type` of a message that was not published as a CloudEvent."""

REQUIRED: Final = ("specversion", "id", "source", "type")

_NAME: Final = re.compile(r"[a-z0-9]{1,64}\Z")
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)\Z"
)
_BASE64_MARK: Final = "base64:"

_instance: Final = os.urandom(9).hex()
_serial: Final = itertools.count(1)


class CloudEventError(ValueError):
    """Attributes that CloudEvents 1.0 does not allow."""


class Event:
    """One published message.

    Attributes:
        topic: where it was published; ``""`` when it was sent straight to a queue.
        data: the payload.
        queue: the queue's name when it was sent straight to one.
        datacontenttype: the payload's media type, if its publisher gave one.
        attributes: CloudEvents context attributes by name, without `datacontenttype`; None for
            a plain message.
        headers: the application's own headers, in order, repeats kept.
        qos: how surely it is to arrive where a protocol asks per message (MQTT): 0, 1 or 2.
        durable: whether it must outlive a restart where a durable queue takes it.
        retain: whether it becomes its topic's retained value.
        priority: 0 (lowest) to 9.
        expires_at: seconds since the epoch after which it is not delivered; None for never.
        reply_to: the address of the answer: a topic, or ``$queue/<name>``.
        correlation_id: what the answer must carry.
        publisher: who published, to tell an echo; compared by identity only.
        user: the publisher's authenticated user name.
        wire: encodings already made, by keys that belong to the front-ends.
    """

    __slots__ = (
        "_context",
        "attributes",
        "correlation_id",
        "data",
        "datacontenttype",
        "durable",
        "expires_at",
        "headers",
        "priority",
        "publisher",
        "qos",
        "queue",
        "reply_to",
        "retain",
        "topic",
        "user",
        "wire",
    )

    def __init__(
        self,
        topic: str,
        data: bytes,
        datacontenttype: str | None = None,
        attributes: dict[str, AttributeValue] | None = None,
        headers: Headers = (),
        durable: bool = False,
        retain: bool = False,
        priority: int = DEFAULT_PRIORITY,
        expires_at: float | None = None,
        reply_to: str | None = None,
        correlation_id: bytes | None = None,
        queue: str | None = None,
        publisher: object | None = None,
        user: str | None = None,
        qos: int = 1,
    ) -> None:
        self.topic = topic
        self.data = data
        self.datacontenttype = datacontenttype
        self.attributes = attributes
        self.headers = headers
        self.durable = durable
        self.retain = retain
        self.priority = priority
        self.expires_at = expires_at
        self.reply_to = reply_to
        self.correlation_id = correlation_id
        self.queue = queue
        self.publisher = publisher
        self.user = user
        self.qos = qos
        self.wire: dict[object, bytes] = {}
        self._context: dict[str, AttributeValue] | None = attributes

    @property
    def is_cloudevent(self) -> bool:
        """Whether it was published as a CloudEvent."""
        return self.attributes is not None

    @property
    def context(self) -> Mapping[str, AttributeValue]:
        """Return its CloudEvents attributes, made up on first need for a plain message.

        `datacontenttype` is not among them. Source: CloudEvents 1.0 §3.
        """
        context = self._context
        if context is None:
            where = (
                f"/queues/{quote(self.queue, safe='')}"
                if self.queue
                else f"/topics/{quote(self.topic)}"
            )
            context = self._context = {
                "specversion": "1.0",
                "id": f"{_instance}-{next(_serial):x}",
                "source": where,
                "type": PLAIN_TYPE,
                "time": datetime.now(UTC),
            }
        return context

    def expired(self, now: float | None = None) -> bool:
        """Tell whether it must no longer be delivered at `now` (seconds since the epoch)."""
        if self.expires_at is None:
            return False
        return (time.time() if now is None else now) >= self.expires_at

    def __repr__(self) -> str:
        where = f"queue={self.queue!r}" if self.queue else f"topic={self.topic!r}"
        return f"<Event {where} {len(self.data)} bytes>"


def check_attributes(attributes: Mapping[str, AttributeValue]) -> None:
    """Check that `attributes` make a CloudEvent.

    Raises:
        CloudEventError: a required attribute is missing or empty, the version is not 1.0, a name
            is not lower-case letters and digits, or a value has no CloudEvents type.
            Source: CloudEvents 1.0 §3.1 (naming, types), §3.1.1 (required).
    """
    for name in REQUIRED:
        value = attributes.get(name)
        if not isinstance(value, str) or not value:
            raise CloudEventError(f"CloudEvent without {name}: it must be a non-empty string")
    if attributes["specversion"] != "1.0":
        raise CloudEventError(f"specversion {attributes['specversion']!r} is not 1.0")
    for name, value in attributes.items():
        if not _NAME.match(name):
            raise CloudEventError(
                f"attribute name {name!r} must be 1 to 64 lower-case letters and digits"
            )
        if isinstance(value, int) and not isinstance(value, bool):
            if not -(2**31) <= value < 2**31:
                raise CloudEventError(f"attribute {name} is {value}, beyond 32 bits")
        elif not isinstance(value, bool | str | bytes | datetime):
            raise CloudEventError(f"attribute {name} has a {type(value).__name__} for a value")
    moment = attributes.get("time")
    if isinstance(moment, str) and not _RFC3339.match(moment):
        raise CloudEventError(f"time {moment!r} is not an RFC 3339 timestamp")


def attribute_text(value: AttributeValue) -> str:
    """Return the canonical string form of an attribute (CloudEvents 1.0 §3.1.2 "Type System")."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return timestamp_text(value)
    return str(value)


def timestamp_text(moment: datetime) -> str:
    """Return `moment` as RFC 3339; a naive one counts as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    text = moment.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def parse_timestamp(text: str) -> datetime:
    """Return the moment that an RFC 3339 `text` names.

    Raises:
        ValueError: `text` is not RFC 3339.
    """
    if not _RFC3339.match(text):
        raise ValueError(f"{text!r} is not an RFC 3339 timestamp")
    return datetime.fromisoformat(text.upper())


def correlation_text(correlation_id: bytes) -> str:
    """Return a correlation id as text: UTF-8 as it is, other bytes behind ``base64:``.

    `correlation_bytes` is the inverse.
    """
    try:
        text = correlation_id.decode()
    except UnicodeDecodeError:
        return _BASE64_MARK + base64.b64encode(correlation_id).decode()
    if text.startswith(_BASE64_MARK) or not text.isprintable():
        return _BASE64_MARK + base64.b64encode(correlation_id).decode()
    return text


def correlation_bytes(text: str) -> bytes:
    """Return the correlation id that `text` stands for; text with a broken mark stands for itself."""
    if text.startswith(_BASE64_MARK):
        try:
            return base64.b64decode(text[len(_BASE64_MARK) :], validate=True)
        except ValueError:
            return text.encode(errors="surrogateescape")
    return text.encode(errors="surrogateescape")


def header_text(value: HeaderValue) -> str:
    """Return a header's value for a protocol whose headers are text.

    Scalars take their CloudEvents string form; null is the empty string, floats take their
    shortest decimal form, lists and tables become JSON.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | dict):
        import msgspec

        return msgspec.json.encode(value, enc_hook=str).decode()
    return attribute_text(value)
