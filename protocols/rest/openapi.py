"""The OpenAPI 3.1 description of the REST API, served at /openapi.json.

Written beside the code it describes; a test holds its paths, methods and parameters against the
routes of `protocols.rest.codec` and `protocols.rest.session`.
"""

from typing import Any, Final

_PROBLEM: Final = {
    "description": "What went wrong (RFC 9457).",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                },
            }
        }
    },
}
_EVENT_SCHEMA: Final = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        name: {"type": "string"}
        for name in ("specversion", "id", "source", "type", "time", "subject", "datacontenttype")
    }
    | {
        "data": {},
        "data_base64": {"type": "string"},
        "meshtopic": {"type": "string", "description": "Where it was published."},
        "meshdelivery": {"type": "string", "description": "Settle it by this name."},
    },
}
_ANY_BODY: Final = {
    "description": "Any body is a plain message, its Content-Type kept. With `ce-` headers it is "
    "a CloudEvent in binary mode.",
    "content": {
        "*/*": {},
        "application/cloudevents+json": {"schema": _EVENT_SCHEMA},
        "application/cloudevents-batch+json": {"schema": {"type": "array", "items": _EVENT_SCHEMA}},
    },
}


def _path(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
    }


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_TOPIC: Final = _path("topic", "The topic, slashes and all: everything behind /topics/.")
_QUEUE: Final = _path("queue", "The queue's name, percent-encoded as one segment.")
_MODE: Final = _query(
    "mode",
    {"enum": ["auto", "raw", "binary", "structured"], "default": "auto"},
    "In which form the event is answered.",
)
_ACCEPTED: Final = {"204": {"description": "Taken; safe where a durable queue wants it."}}
_EVENT_ANSWER: Final = {
    "200": {
        "description": "The event: plain as it was published, a CloudEvent in binary mode.",
        "content": {"*/*": {}, "application/cloudevents+json": {"schema": _EVENT_SCHEMA}},
    }
}


def _operation(
    summary: str,
    parameters: list[dict[str, Any]],
    answers: dict[str, Any],
    problems: tuple[int, ...],
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": summary, "parameters": parameters}
    if body is not None:
        described["requestBody"] = body
    described["responses"] = answers | {str(status): _PROBLEM for status in problems}
    return described


def _page(summary: str, media: str) -> dict[str, Any]:
    return {
        "get": _operation(summary, [], {"200": {"description": "OK", "content": {media: {}}}}, ())
    }


_PATHS: Final[dict[str, Any]] = {
    "/topics/{topic}": {
        "post": _operation(
            "Publish a message, a CloudEvent, or a batch of CloudEvents.",
            [_TOPIC],
            _ACCEPTED,
            (400, 401, 403, 408, 413, 415, 507),
            _ANY_BODY,
        ),
        "put": _operation(
            "Publish, and keep as the topic's retained value.",
            [_TOPIC],
            _ACCEPTED,
            (400, 401, 403, 408, 413, 415, 507),
            _ANY_BODY,
        ),
        "get": _operation(
            "Return the retained value.", [_TOPIC, _MODE], _EVENT_ANSWER, (400, 401, 404)
        ),
        "delete": _operation(
            "Clear the retained value.",
            [_TOPIC],
            {"204": {"description": "Cleared."}},
            (400, 401, 403, 404),
        ),
    },
    "/events": {
        "get": _operation(
            "Stream events as Server-Sent Events, each a structured CloudEvent.",
            [
                _query(
                    "filter",
                    {"type": "array", "items": {"type": "string"}},
                    "A topic filter; may be repeated.",
                ),
                _query("retained", {"type": "boolean", "default": False}, "Retained values first."),
            ],
            {"200": {"description": "The stream.", "content": {"text/event-stream": {}}}},
            (400, 401, 403),
        )
    },
    "/requests/{topic}": {
        "post": _operation(
            "Publish, and answer with the first reply.",
            [
                _TOPIC,
                _query("timeout", {"type": "number", "default": 5}, "Seconds to wait."),
                _MODE,
            ],
            _EVENT_ANSWER,
            (400, 401, 403, 413, 504),
            _ANY_BODY,
        )
    },
    "/queues/{queue}": {
        "post": _operation(
            "Put a message into a queue, made if it does not exist.",
            [_QUEUE],
            _ACCEPTED,
            (400, 401, 403, 413, 415, 507),
            _ANY_BODY,
        ),
        "get": _operation(
            "Pull messages; each is held until it is settled.",
            [
                _QUEUE,
                _query("max", {"type": "integer", "default": 1}, "Most messages, up to 1000."),
                _query("wait", {"type": "number", "default": 0}, "Seconds to wait for the first."),
            ],
            {
                "200": {
                    "description": "The messages, none if there are none.",
                    "content": _ANY_BODY["content"],
                }
            },
            (400, 401, 403, 404),
        ),
        "put": _operation(
            "Make a queue, and bind it to topic filters.",
            [_QUEUE],
            {"204": {"description": "It exists."}},
            (400, 401, 403, 409),
            {
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "filters": {"type": "array", "items": {"type": "string"}}
                            },
                        }
                    }
                }
            },
        ),
        "delete": _operation(
            "Delete a queue with what is in it.",
            [_QUEUE],
            {"204": {"description": "Deleted."}},
            (401, 403, 404),
        ),
    },
    "/queues/{queue}/deliveries/{delivery}": {
        "delete": _operation(
            "Settle a pulled message.",
            [
                _QUEUE,
                _path("delivery", "`meshdelivery` of the message."),
                _query(
                    "outcome",
                    {"enum": ["accept", "release", "reject"], "default": "accept"},
                    "Accept it, give it back, or refuse it for good.",
                ),
            ],
            {"204": {"description": "Settled."}},
            (400, 401, 404),
        )
    },
    "/healthz": _page("Whether the process is alive.", "text/plain"),
    "/readyz": _page("Whether the node takes work.", "text/plain"),
    "/metrics": _page("Metrics in Prometheus' text format.", "text/plain"),
    "/openapi.json": _page("This document.", "application/json"),
}


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "meshgate", "version": "1", "license": {"name": "Apache-2.0"}},
        "paths": _PATHS,
    }
