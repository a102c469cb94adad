"""Which patterns cover and overlap which, against all topics there are, under limits small enough to list these."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import topic as topics
from broker.core.topic import MAX_TOPIC_BYTES, MAX_TOPIC_TOKENS, Pattern, parse_pattern, topic_problem
from tests.core.test_topic import reference_match

pytestmark = pytest.mark.usefixtures("small")

BYTES, TOKENS = 6, 3


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Topics of six bytes and three tokens at most: three tokens of a byte each fill five of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topics, "MAX_TOPIC_BYTES", BYTES)
        patch.setattr(topics, "MAX_TOPIC_TOKENS", TOKENS)
        parse_pattern.cache_clear()  # it may know patterns that are too long here
        yield


def spelled(alphabet: str, longest: int) -> Iterator[str]:
    for length in range(1, longest + 1):
        yield from map("".join, itertools.product(alphabet, repeat=length))


@cache
def universe() -> list[str]:
    """All topics of these letters; two that patterns name, and one that they don't."""
    return [text for text in spelled("ax:.", BYTES) if topic_problem(text) is None]


def known(alphabet: str, longest: int) -> list[str]:
    """All patterns of these letters; `name:*` may be one longer than a topic, and then matches nothing."""
    return [text for text in spelled(alphabet, longest) if is_pattern(text)]


def is_pattern(text: str) -> bool:
    try:
        parse_pattern(text)
    except ValueError:
        return False
    return True


def extent(pattern: str) -> int:
    """The topics that it matches, a bit each."""
    return sum(1 << place for place, topic in enumerate(universe()) if reference_match(pattern, topic))


def test_patterns_cover_and_overlap_as_their_topics_do() -> None:
    patterns = {text: (extent(text), parse_pattern(text)) for text in known("a:.*>", BYTES + 1)}
    assert {"a", "a.*", ">", "*.*.>", "*.a:.>", "a:*", "a.a:*", "a:.:*", ":*", "aaaaa:*"} <= patterns.keys()
    assert extent("aaaaa:*") == 0
    for (ours, one), (theirs, other) in itertools.product(patterns.values(), repeat=2):
        assert one.covers(other) is (theirs & ~ours == 0), (one.text, other.text)
        assert one.overlaps(other) is (ours & theirs != 0), (one.text, other.text)


LITERALS = st.sampled_from(["a", "b", "a:", ":", "a:b"])
PATTERNS = st.one_of(
    st.lists(LITERALS | st.just("*"), min_size=1, max_size=TOKENS).map(".".join),
    st.lists(LITERALS | st.just("*"), max_size=TOKENS - 1).map(lambda tokens: ".".join([*tokens, ">"])),
    st.lists(LITERALS, min_size=1, max_size=TOKENS).map(lambda tokens: ".".join(tokens) + ":*"),
).filter(is_pattern)


@given(PATTERNS, PATTERNS, PATTERNS)
def test_what_covers_covers_on_and_on(first: str, second: str, last: str) -> None:
    one, other, third = map(parse_pattern, (first, second, last))
    assert one.covers(one)
    assert one.overlaps(other) is other.overlaps(one)
    if one.covers(other) and other.covers(third):
        assert one.covers(third)
    if one.covers(other) and other.overlaps(third):
        assert one.overlaps(third)


class TestAtFullSize:
    """The limits as they are."""

    @pytest.fixture(autouse=True)
    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(topics, "MAX_TOPIC_BYTES", MAX_TOPIC_BYTES)
        monkeypatch.setattr(topics, "MAX_TOPIC_TOKENS", MAX_TOPIC_TOKENS)

    @pytest.mark.parametrize(
        ("one", "other", "covers", "overlaps"),
        [
            ("chat.*", "chat.a", True, True),
            ("chat.a", "chat.*", False, True),
            ("chat.>", "chat.*", True, True),
            ("chat.*", "chat.>", False, True),
            ("chat.>", "chat", False, False),
            (">", "*", True, True),
            ("*", ">", False, True),
            ("*.>", ">", False, True),
            ("*.>", "*.*", True, True),
            ("*.b", "a.*", False, True),
            ("*.b", "*.c", False, False),
            (">", "room:*", True, True),
            ("*", "room:*", False, True),
            ("room:*", "*", False, True),
            ("room:*", "*.x", False, True),
            ("room:*", "room:1.*", True, True),
            ("room:*", "room:x.>", True, True),
            ("room:*", "room:.*", True, True),
            ("room:*", "room:", False, False),
            ("room:*", "room", False, False),
            ("room:*", "rooms.*", False, False),
            ("room:*", "*.room:a", False, True),
            ("x.room:*", "*.room:", False, False),
            ("x.room:*", "*.room:.>", False, True),
            ("room:*", "room:a:*", True, True),
            ("room:a:*", "room:*", False, True),
            ("room:a:*", "room:b:*", False, False),
            ("a.room:*", "a.*", False, True),
            ("a.>", "a.room:*", True, True),
            ("a.*.>", "a.room:*", False, True),
            ("a.*.>", "a.b.room:*", True, True),
        ],
    )
    def test_examples(self, one: str, other: str, covers: bool, overlaps: bool) -> None:  # noqa: FBT001 - a row
        assert parse_pattern(one).covers(parse_pattern(other)) is covers
        assert parse_pattern(one).overlaps(parse_pattern(other)) is overlaps
        assert parse_pattern(other).overlaps(parse_pattern(one)) is overlaps

    def test_in_the_last_token_a_rest_is_one_token(self) -> None:
        fifteen = "a." * (MAX_TOPIC_TOKENS - 1)
        assert parse_pattern(f"{fifteen}*").covers(parse_pattern(f"{fifteen}>"))
        assert parse_pattern(f"{fifteen}*").covers(parse_pattern(f"{fifteen}b:*"))
        assert not parse_pattern(f"{fifteen[2:]}*").covers(parse_pattern(f"{fifteen[2:]}>"))

    def test_in_the_last_bytes_a_rest_is_one_token(self) -> None:
        for size, covers in ((MAX_TOPIC_BYTES - 4, False), (MAX_TOPIC_BYTES - 3, True), (MAX_TOPIC_BYTES - 2, True)):
            long = "é" * (size // 2) + "a" * (size % 2)
            assert parse_pattern(f"{long}.*").covers(parse_pattern(f"{long}.>")) is covers

    def test_no_topic_is_so_long_that_two_long_patterns_meet_in_it(self) -> None:
        half = "a" * 127
        assert parse_pattern(f"{half}.*").overlaps(parse_pattern(f"*.{half}"))
        assert not parse_pattern(f"{half}.*").overlaps(parse_pattern(f"*.{half}a"))
        assert not parse_pattern(f"{'a' * 254}:*").overlaps(parse_pattern(">"))

    @given(st.data())
    def test_topics_of_a_covered_pattern_are_matched(self, data: st.DataObject) -> None:
        token = st.sampled_from(["a", "b", "b:", "b:c", ":"])
        tokens = data.draw(st.lists(token | st.just("*"), min_size=1, max_size=6))
        narrow = self._pattern(tokens, data)
        wide = self._pattern([data.draw(st.sampled_from([one, "*"])) for one in tokens], data)
        topic = data.draw(
            st.from_regex(self._expression(narrow), fullmatch=True).filter(lambda t: not topic_problem(t))
        )
        assert narrow.matches(topic)
        if wide.covers(narrow):
            assert wide.matches(topic)
        if wide.matches(topic):
            assert wide.overlaps(narrow)

    @staticmethod
    def _pattern(tokens: list[str], data: st.DataObject) -> Pattern:
        kept = tokens[: data.draw(st.integers(1, len(tokens)))]
        text = ".".join([*kept, *data.draw(st.sampled_from([[], [">"]]))])
        namespace = f"{text}:*"
        return parse_pattern(namespace if "*" not in text and ">" not in text and data.draw(st.booleans()) else text)

    @staticmethod
    def _expression(pattern: Pattern) -> str:
        token, more = "[ab:]{1,3}", r"(\.[ab:]{1,3}){0,3}"
        if pattern.prefix is not None:
            return re.escape(pattern.prefix) + rf"(\.{token}|{token})" + more
        wildcards = {"*": token, ">": token + more}
        return r"\.".join(wildcards.get(one, re.escape(one)) for one in pattern.tokens)
