"""HTTP requests and responses as values: paths, queries, headers, problem details. Sans-IO.

Framing is uvicorn's and httptools'; what is here is what our API makes of a request's parts.

Invariant: every legal topic and queue name has exactly one path, and `parse_path` gives it back:
a topic is everything behind its prefix, a queue's name is one percent-encoded segment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec

from mesh_core.address import check_queue_name, check_topic
from mesh_core.receipt import Refusal
from protocols.frontend import ProtocolError

PROBLEM: Final = "application/problem+json"

STATUS_OF_REFUSAL: Final = {
    Refusal.NOT_AUTHORIZED: HTTPStatus.FORBIDDEN,
    Refusal.QUEUE_FULL: HTTPStatus.INSUFFICIENT_STORAGE,
    Refusal.NO_SUCH_QUEUE: HTTPStatus.NOT_FOUND,
    Refusal.STORE_FULL: HTTPStatus.INSUFFICIENT_STORAGE,
    Refusal.STORE_FAILED: HTTPStatus.SERVICE_UNAVAILABLE,
}


class HttpError(ProtocolError):
    """A request that is answered with a problem (RFC 9457)."""

    def __init__(
        self, status: HTTPStatus, detail: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(detail, status.value)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Route:
    """What a path stands for: `kind`, and the topic, queue or delivery in it."""

    kind: str
    topic: str = ""
    queue: str = ""
    delivery: str = ""


@dataclass(slots=True)
class Response:
    """An answer that fits into memory."""

    status: HTTPStatus = HTTPStatus.NO_CONTENT
    body: bytes = b""
    content_type: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers as bytes, content type and length among them."""
        raw = [(name.lower().encode(), value.encode()) for name, value in self.headers]
        if self.content_type is not None:
            raw.append((b"content-type", self.content_type.encode()))
        if self.status is not HTTPStatus.NO_CONTENT:
            raw.append((b"content-length", str(len(self.body)).encode()))
        return raw


METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "topic": ("POST", "GET", "PUT", "DELETE"),
    "request": ("POST",),
    "queue": ("POST", "GET", "PUT", "DELETE"),
    "delivery": ("DELETE",),
    "events": ("GET",),
    "healthz": ("GET",),
    "readyz": ("GET",),
    "metrics": ("GET",),
    "openapi.json": ("GET",),
}


def parse_path(raw: bytes, method: str) -> Route:
    """Return what a raw (still percent-encoded) path stands for.

    Raises:
        HttpError: 404 for an unknown path, 405 for a method that the path does not have.
        AddressError: the topic or queue name is not legal.
    """
    route = _route(raw)
    allowed = METHODS[route.kind]
    if method not in allowed:
        raise HttpError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{method} is not one of {', '.join(allowed)}",
            (("Allow", ", ".join(allowed)),),
        )
    return route


def _route(raw: bytes) -> Route:
    _, _, path = raw.partition(b"/")
    first, slash, rest = path.partition(b"/")
    name = first.decode("ascii", "replace")
    if name == "topics" and slash:
        return Route("topic", topic=check_topic(_decode(rest)))
    if name == "requests" and slash:
        return Route("request", topic=check_topic(_decode(rest)))
    if name == "queues" and slash:
        queue, slash, rest = rest.partition(b"/")
        checked = check_queue_name(_decode(queue))
        if not slash:
            return Route("queue", queue=checked)
        what, _, delivery = rest.partition(b"/")
        if what == b"deliveries" and delivery and b"/" not in delivery:
            return Route("delivery", queue=checked, delivery=_decode(delivery))
    elif not slash and name in METHODS and name not in ("topic", "request", "queue", "delivery"):
        return Route(name)
    raise HttpError(HTTPStatus.NOT_FOUND, f"nothing is at {raw.decode('ascii', 'replace')}")


def _decode(raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise HttpError(HTTPStatus.BAD_REQUEST, "path is not percent-encoded UTF-8") from None


class Query:
    """A query string's parameters, with their bounds."""

    __slots__ = ("_values",)

    def __init__(self, raw: bytes) -> None:
        """Parse `raw`.

        Raises:
            HttpError: 400 if it is no query string.
        """
        try:
            text = raw.decode("ascii")
            self._values = parse_qs(
                text, keep_blank_values=True, errors="strict", max_num_fields=1000
            )
        except ValueError:
            raise HttpError(HTTPStatus.BAD_REQUEST, "query is not percent-encoded UTF-8") from None

    def all(self, name: str) -> list[str]:
        """Return every value of `name`."""
        return self._values.get(name, [])

    def text(self, name: str, default: str) -> str:
        """Return the first value of `name`."""
        return self._values.get(name, [default])[0]

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """Return `name` as a number between `least` and `most`.

        Raises:
            HttpError: 400 if it is none.
        """
        text = self._values.get(name, [None])[0]
        if text is None:
            return default
        try:
            number = float(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"{name}={text!r} is not {least:g} to {most:g}")
        return number

    def flag(self, name: str) -> bool:
        """Return whether `name` is `true`.

        Raises:
            HttpError: 400 if it is neither `true` nor `false`.
        """
        text = self.text(name, "false")
        if text not in ("true", "false"):
            raise HttpError(HTTPStatus.BAD_REQUEST, f"{name}={text!r} is not true or false")
        return text == "true"


def problem(status: HTTPStatus, detail: str) -> Response:
    """Return problem details (RFC 9457)."""
    members = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
    }
    return Response(status, msgspec.json.encode(members), PROBLEM)
