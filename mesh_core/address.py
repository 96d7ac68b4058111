"""Topics, topic filters and queue names: the grammar, its checks, and its dotted spelling.

A topic is a path of levels separated by ``/``. A filter is a topic in which a level may be
``+`` (exactly one level) or ``#`` (zero or more levels, at any place). A queue's address is
``$queue/<name>``, so that one string can say "this topic" or "this queue" wherever a reply
address is carried.

Invariant: whatever passes `check_topic` can be matched, cached and sent in every protocol;
whatever passes `check_filter` can be added to the matcher.
"""

from collections.abc import Sequence
from typing import Final

MAX_ADDRESS_BYTES: Final = 65_535
"""Longest topic or filter, in bytes of UTF-8: the size of MQTT's two-byte length."""

MAX_LEVELS: Final = 128
"""Most levels in a topic or filter; bounds the work of one match."""

MAX_QUEUE_NAME_BYTES: Final = 255
"""Longest queue name, in bytes of UTF-8: the size of AMQP 0-9-1's short string."""

QUEUE_PREFIX: Final = "$queue/"

_SWAP_TOPIC: Final = str.maketrans("./", "/.")
_SWAP_FILTER: Final = str.maketrans("./*+", "/.+*")


class AddressError(ValueError):
    """A topic, filter or queue name that the grammar does not allow."""


def check_topic(topic: str) -> str:
    """Return `topic` if an event may be published to it.

    Raises:
        AddressError: it is empty, longer than `MAX_ADDRESS_BYTES`, deeper than `MAX_LEVELS`,
            holds a wildcard or U+0000, or can't be written as UTF-8.
            Source: MQTT 5.0 §4.7.1.1, §4.7.3.
    """
    _check_text(topic, "topic", MAX_ADDRESS_BYTES)
    if "+" in topic or "#" in topic:
        raise AddressError(f"topic {topic!r} holds a wildcard: + and # are for filters only")
    if topic.count("/") >= MAX_LEVELS:
        raise AddressError(f"topic has more than {MAX_LEVELS} levels")
    return topic


def check_filter(filter: str) -> str:
    """Return `filter` if a subscription may be made with it.

    Raises:
        AddressError: as for a topic, or a wildcard shares its level with other characters.
            Source: MQTT 5.0 §4.7.1.2, §4.7.1.3 (except that ``#`` may stand at any place).
    """
    _check_text(filter, "filter", MAX_ADDRESS_BYTES)
    if filter.count("/") >= MAX_LEVELS:
        raise AddressError(f"filter has more than {MAX_LEVELS} levels")
    if "+" in filter or "#" in filter:
        for level in filter.split("/"):
            if len(level) > 1 and ("+" in level or "#" in level):
                raise AddressError(
                    f"filter {filter!r}: a wildcard must be a level of its own, not {level!r}"
                )
    return filter


def check_queue_name(name: str) -> str:
    """Return `name` if a queue may be called so.

    Raises:
        AddressError: it is empty, longer than `MAX_QUEUE_NAME_BYTES`, holds a control
            character, or can't be written as UTF-8.
    """
    _check_text(name, "queue name", MAX_QUEUE_NAME_BYTES)
    if not name.isprintable():
        raise AddressError(f"queue name {name!r} holds an unprintable character")
    return name


def _check_text(text: str, what: str, limit: int) -> None:
    if not text:
        raise AddressError(f"{what} is empty")
    if "\0" in text:
        raise AddressError(f"{what} {text!r} holds U+0000")
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise AddressError(f"{what} {text!r} can't be written as UTF-8") from None
    if size > limit:
        raise AddressError(f"{what} has {size} bytes, more than {limit}")


def has_wildcard(filter: str) -> bool:
    """Tell whether `filter` can match more than the topic of the same spelling."""
    return "+" in filter or "#" in filter


def queue_address(name: str) -> str:
    """Return the address of queue `name`: ``$queue/<name>``."""
    return QUEUE_PREFIX + name


def queue_of(address: str) -> str | None:
    """Return the queue's name if `address` is a queue's, None if it is a topic."""
    return address[len(QUEUE_PREFIX) :] if address.startswith(QUEUE_PREFIX) else None


def swap_topic(topic: str) -> str:
    """Swap ``.`` and ``/``: ``orders/eu`` ↔ ``orders.eu``. Its own inverse."""
    return topic.translate(_SWAP_TOPIC)


def swap_filter(filter: str) -> str:
    """Swap ``.`` and ``/``, ``*`` and ``+``: ``orders/+/new`` ↔ ``orders.*.new``. Its own inverse."""
    return filter.translate(_SWAP_FILTER)


def filter_matches(filter: str, topic: str) -> bool:
    """Tell whether `filter` matches `topic`.

    A leading wildcard doesn't match a topic whose first level begins with ``$``
    ([MQTT-4.7.2-1]).
    """
    if topic[:1] == "$" and filter[:1] in ("+", "#"):
        return False
    return levels_match(filter.split("/"), topic.split("/"), 0)


def levels_match(filter_levels: Sequence[str], topic_levels: Sequence[str], start: int) -> bool:
    """Tell whether `filter_levels` matches `topic_levels` from index `start` on, to the end.

    Backtracks to the last ``#`` only, so the work is at most the product of both lengths.
    """
    f, t = 0, start
    f_end, t_end = len(filter_levels), len(topic_levels)
    hash_at = -1
    resume = start
    while True:
        if f < f_end:
            level = filter_levels[f]
            if level == "#":
                hash_at, resume = f, t
                f += 1
                continue
            if t < t_end and (level == "+" or level == topic_levels[t]):
                f += 1
                t += 1
                continue
        elif t == t_end:
            return True
        if hash_at < 0 or resume >= t_end:
            return False
        resume += 1
        f, t = hash_at + 1, resume
