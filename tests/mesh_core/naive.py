"""Reference implementations, as slow and as plain as the specification's sentences."""


def naive_matches(filter: str, topic: str) -> bool:
    """Match by recursion over the levels."""
    f, t = filter.split("/"), topic.split("/")
    if topic.startswith("$") and f[0] in ("+", "#"):
        return False

    def rest(i: int, j: int) -> bool:
        if i == len(f):
            return j == len(t)
        if f[i] == "#":
            return any(rest(i + 1, k) for k in range(j, len(t) + 1))
        return j < len(t) and f[i] in ("+", t[j]) and rest(i + 1, j + 1)

    return rest(0, 0)
