"""The index from topic filters to the values subscribed with them.

Filters without a wildcard live in one table. The others live in a trie of levels with separate
slots for `+` and `#`; a filter that shares no further level with another is kept as one leaf with
the rest of its levels, so that a million distinct filters do not make several million nodes.

`TopicTree` is the reverse: stored topics, looked up by filter. It serves retained values and the
precise invalidation of the router's cache.

Invariant: `Matcher.match(topic)` returns each value exactly once per filter that matches, however
many ways a `#` in the middle of the filter can be stretched.
"""

from collections.abc import Iterator
from sys import intern
from typing import Generic, TypeAlias, TypeVar

from mesh_core.address import has_wildcard, levels_match

T = TypeVar("T")

Values: TypeAlias = tuple[T, ...] | dict[T, None]

_FEW = 16
"""Up to so many values of one filter are a tuple (small); beyond, a dict (quick to remove from)."""


class _Leaf(Generic[T]):
    """A filter whose remaining levels belong to nobody else."""

    __slots__ = ("rest", "values")

    def __init__(self, rest: tuple[str, ...], values: Values[T]) -> None:
        self.rest = rest
        self.values = values


class _Node(Generic[T]):
    """A level that several filters pass through; `values` are those of the filter ending here."""

    __slots__ = ("children", "hash", "plus", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T] | _Leaf[T]] = {}
        self.plus: _Node[T] | _Leaf[T] | None = None
        self.hash: _Node[T] | _Leaf[T] | None = None
        self.values: Values[T] = ()

    def child(self, level: str) -> "_Node[T] | _Leaf[T] | None":
        if level == "+":
            return self.plus
        if level == "#":
            return self.hash
        return self.children.get(level)

    def put(self, level: str, child: "_Node[T] | _Leaf[T] | None") -> None:
        if level == "+":
            self.plus = child
        elif level == "#":
            self.hash = child
        elif child is None:
            self.children.pop(level, None)
        else:
            self.children[intern(level)] = child

    @property
    def empty(self) -> bool:
        return not (self.children or self.plus or self.hash or self.values)


class Matcher(Generic[T]):
    """Map topic filters to values; values are compared by equality and must be hashable."""

    __slots__ = ("_exact", "_inner_hashes", "_root", "_size")

    def __init__(self) -> None:
        self._exact: dict[str, Values[T]] = {}
        self._root: _Node[T] = _Node()
        self._inner_hashes = 0
        self._size = 0

    def __len__(self) -> int:
        """Return the number of (filter, value) pairs."""
        return self._size

    def add(self, filter: str, value: T) -> bool:
        """Add `value` under `filter`; return False if it was there already.

        The filter must have passed `mesh_core.address.check_filter`.
        """
        if has_wildcard(filter):
            added = self._add_wildcard(filter.split("/"), value)
            self._inner_hashes += added and _has_inner_hash(filter)
        else:
            values = self._exact.get(filter, ())
            added = value not in values
            if added:
                self._exact[filter] = _with(values, value)
        self._size += added
        return added

    def _add_wildcard(self, levels: list[str], value: T) -> bool:
        node = self._root
        for i, level in enumerate(levels):
            child = node.child(level)
            if child is None:
                rest = tuple(map(intern, levels[i + 1 :]))
                node.put(level, _Leaf(rest, (value,)))
                return True
            if isinstance(child, _Leaf):
                if list(child.rest) == levels[i + 1 :]:
                    return _add_to(child, value)
                child = _grown(child)
                node.put(level, child)
            node = child
        return _add_to(node, value)

    def remove(self, filter: str, value: T) -> bool:
        """Remove `value` from `filter`; return False if it was not there."""
        if not has_wildcard(filter):
            old = self._exact.get(filter)
            if old is None or value not in old:
                return False
            left = _without(old, value)
            if left:
                self._exact[filter] = left
            else:
                del self._exact[filter]
            removed = True
        else:
            removed = self._remove_wildcard(filter.split("/"), value)
            self._inner_hashes -= removed and _has_inner_hash(filter)
        self._size -= removed
        return removed

    def _remove_wildcard(self, levels: list[str], value: T) -> bool:
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        for i, level in enumerate(levels):
            child = node.child(level)
            if child is None:
                return False
            if isinstance(child, _Leaf):
                if list(child.rest) != levels[i + 1 :] or value not in child.values:
                    return False
                child.values = _without(child.values, value)
                if not child.values:
                    node.put(level, None)
                    _prune(path, node)
                return True
            path.append((node, level))
            node = child
        if value not in node.values:
            return False
        node.values = _without(node.values, value)
        _prune(path, node)
        return True

    def match(self, topic: str) -> list[T]:
        """Return the values of every filter that matches `topic`."""
        found: list[T] = list(self._exact.get(topic, ()))
        root = self._root
        levels = topic.split("/")
        seen: set[tuple[int, int]] | None = set() if self._inner_hashes else None
        if topic[:1] == "$":  # [MQTT-4.7.2-1]
            child = root.children.get(levels[0])
            if child is not None:
                _step(child, levels, 1, found, seen)
        else:
            _walk(root, levels, 0, found, seen)
        return found


def _has_inner_hash(filter: str) -> bool:
    return "#" in filter[:-1]


def _add_to(place: _Node[T] | _Leaf[T], value: T) -> bool:
    if value in place.values:
        return False
    place.values = _with(place.values, value)
    return True


def _grown(leaf: _Leaf[T]) -> _Node[T]:
    node: _Node[T] = _Node()
    if leaf.rest:
        node.put(leaf.rest[0], _Leaf(leaf.rest[1:], leaf.values))
    else:
        node.values = leaf.values
    return node


def _prune(path: list[tuple[_Node[T], str]], node: _Node[T]) -> None:
    while path and node.empty:
        parent, level = path.pop()
        parent.put(level, None)
        node = parent


def _walk(
    node: _Node[T],
    levels: list[str],
    i: int,
    found: list[T],
    seen: set[tuple[int, int]] | None,
) -> None:
    """Collect what `node` leads to, `i` levels of the topic being used up.

    `seen` is None while no filter has `#` before its end: then nothing is reached twice.
    """
    if seen is not None:
        key = (id(node), i)
        if key in seen:
            return
        seen.add(key)
    after_hash = node.hash
    if after_hash is not None:
        for j in range(i, len(levels) + 1):
            if isinstance(after_hash, _Node):
                _walk(after_hash, levels, j, found, seen)
            elif not after_hash.rest or levels_match(after_hash.rest, levels, j):
                _take(after_hash, found, seen)
                break
    if i == len(levels):
        found.extend(node.values)
        return
    child = node.children.get(levels[i])
    if child is not None:
        _step(child, levels, i + 1, found, seen)
    plus = node.plus
    if plus is not None:
        _step(plus, levels, i + 1, found, seen)


def _step(
    child: _Node[T] | _Leaf[T],
    levels: list[str],
    i: int,
    found: list[T],
    seen: set[tuple[int, int]] | None,
) -> None:
    if isinstance(child, _Node):
        _walk(child, levels, i, found, seen)
    elif levels_match(child.rest, levels, i):
        _take(child, found, seen)


def _take(leaf: _Leaf[T], found: list[T], seen: set[tuple[int, int]] | None) -> None:
    if seen is not None:
        key = (id(leaf), -1)
        if key in seen:
            return
        seen.add(key)
    found.extend(leaf.values)


def _with(values: Values[T], value: T) -> Values[T]:
    if isinstance(values, dict):
        values[value] = None
        return values
    if len(values) < _FEW:
        return (*values, value)
    return dict.fromkeys((*values, value))


def _without(values: Values[T], value: T) -> Values[T]:
    if isinstance(values, dict):
        del values[value]
        return values
    return tuple(v for v in values if v != value)


class _Branch:
    """A level of stored topics; `topic` is the one that ends here."""

    __slots__ = ("children", "topic")

    def __init__(self) -> None:
        self.children: dict[str, _Branch] = {}
        self.topic: str | None = None


class TopicTree(Generic[T]):
    """Map topics (no wildcards) to one value each, looked up by filter."""

    __slots__ = ("_root", "_values")

    def __init__(self) -> None:
        self._values: dict[str, T] = {}
        self._root = _Branch()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the topics, oldest first."""
        return iter(self._values)

    def get(self, topic: str) -> T | None:
        """Return the value at `topic`, or None."""
        return self._values.get(topic)

    def put(self, topic: str, value: T) -> None:
        """Set the value at `topic`."""
        if topic not in self._values:
            branch = self._root
            for level in topic.split("/"):
                child = branch.children.get(level)
                if child is None:
                    child = branch.children[intern(level)] = _Branch()
                branch = child
            branch.topic = topic
        self._values[topic] = value

    def pop(self, topic: str) -> T | None:
        """Remove and return the value at `topic`; None if there was none."""
        value = self._values.pop(topic, None)
        if value is None:
            return None
        path: list[tuple[_Branch, str]] = []
        branch = self._root
        for level in topic.split("/"):
            path.append((branch, level))
            branch = branch.children[level]
        branch.topic = None
        while path and branch.topic is None and not branch.children:
            branch, level = path.pop()
            del branch.children[level]
        return value

    def match(self, filter: str) -> list[str]:
        """Return the topics that `filter` matches, in no particular order."""
        if not has_wildcard(filter):
            return [filter] if filter in self._values else []
        found: dict[str, None] = {}
        seen: set[tuple[int, int]] | None = set() if _has_inner_hash(filter) else None
        _gather(self._root, filter.split("/"), 0, found, seen, below_root=False)
        return list(found)


def _gather(
    branch: _Branch,
    levels: list[str],
    i: int,
    found: dict[str, None],
    seen: set[tuple[int, int]] | None,
    *,
    below_root: bool = True,
) -> None:
    """Collect the topics below `branch` that the filter's levels from `i` on match."""
    if seen is not None:
        if (id(branch), i) in seen:
            return
        seen.add((id(branch), i))
    if i == len(levels):
        if branch.topic is not None:
            found[branch.topic] = None
        return
    level = levels[i]
    if level not in ("+", "#"):
        child = branch.children.get(level)
        if child is not None:
            _gather(child, levels, i + 1, found, seen)
        return
    following = i + 1
    if level == "#":
        _gather(branch, levels, following, found, seen, below_root=below_root)
        following = i
    for name, child in branch.children.items():
        if below_root or name[:1] != "$":  # [MQTT-4.7.2-1]
            _gather(child, levels, following, found, seen, below_root=True)
