"""The trie against the naive matcher, through any order of changes."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh_core.matcher import Matcher, TopicTree
from tests.mesh_core.naive import naive_matches
from tests.mesh_core.test_address import FILTERS, TOPICS


class MatcherMachine(RuleBasedStateMachine):
    """Add and remove in any order; whatever is asked, the naive matcher says the same."""

    @initialize()
    def start(self) -> None:
        self.matcher: Matcher[int] = Matcher()
        self.pairs: set[tuple[str, int]] = set()

    @rule(filter=FILTERS, value=st.integers(0, 20))
    def add(self, filter: str, value: int) -> None:
        assert self.matcher.add(filter, value) is ((filter, value) not in self.pairs)
        self.pairs.add((filter, value))

    @rule(data=st.data())
    def remove_one(self, data: st.DataObject) -> None:
        if self.pairs:
            filter, value = data.draw(st.sampled_from(sorted(self.pairs)))
            assert self.matcher.remove(filter, value)
            self.pairs.remove((filter, value))

    @rule(filter=FILTERS, value=st.integers(0, 20))
    def remove_any(self, filter: str, value: int) -> None:
        assert self.matcher.remove(filter, value) is ((filter, value) in self.pairs)
        self.pairs.discard((filter, value))

    @rule(topic=TOPICS)
    def match(self, topic: str) -> None:
        expected = sorted(v for f, v in self.pairs if naive_matches(f, topic))
        assert sorted(self.matcher.match(topic)) == expected

    @invariant()
    def counts(self) -> None:
        assert len(self.matcher) == len(self.pairs)

    def teardown(self) -> None:
        for filter, value in self.pairs:
            assert self.matcher.remove(filter, value)
        assert self.matcher._root.empty
        assert not self.matcher._exact


MatcherMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestMatcher = MatcherMachine.TestCase


@given(st.sets(FILTERS, max_size=30), st.lists(TOPICS, max_size=10))
def test_match(filters: set[str], topics: list[str]) -> None:
    matcher: Matcher[str] = Matcher()
    for filter in filters:
        matcher.add(filter, filter)
    for topic in topics:
        expected = sorted(f for f in filters if naive_matches(f, topic))
        assert sorted(matcher.match(topic)) == expected


def test_many_values_of_one_filter() -> None:
    for filter in ("news", "news/#"):
        matcher: Matcher[int] = Matcher()
        for value in range(1000):
            assert matcher.add(filter, value)
            assert not matcher.add(filter, value)
        assert matcher.match("news") == list(range(1000))
        for value in range(999):
            assert matcher.remove(filter, value)
        assert matcher.match("news") == [999]


def test_inner_hashes_do_not_explode() -> None:
    matcher: Matcher[int] = Matcher()
    for i in range(20):
        matcher.add("/".join(["#", "a"] * (20 + i)), i)
    assert matcher.match("/".join(["a"] * 60 + ["b"])) == []


@given(
    st.lists(st.tuples(st.sampled_from(["put", "pop"]), TOPICS), max_size=40),
    st.lists(FILTERS, max_size=5),
)
def test_topic_tree(steps: list[tuple[str, str]], filters: list[str]) -> None:
    tree: TopicTree[int] = TopicTree()
    model: dict[str, int] = {}
    for n, (what, topic) in enumerate(steps):
        if what == "put":
            tree.put(topic, n)
            model[topic] = n
        else:
            assert tree.pop(topic) == model.pop(topic, None)
    assert len(tree) == len(model)
    for topic, value in model.items():
        assert tree.get(topic) == value
    for filter in filters:
        assert sorted(tree.match(filter)) == sorted(t for t in model if naive_matches(filter, t))
    for topic in list(model):
        tree.pop(topic)
    assert not tree._root.children
