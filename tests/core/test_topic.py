from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker.core.topic import (
    MAX_TOPIC_BYTES,
    MAX_TOPIC_TOKENS,
    Pattern,
    escape_token,
    is_wildcard,
    parse_pattern,
    subscription_problem,
    topic_problem,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""Lone surrogates too, which JSON's escapes can bring."""
NASTY_TEXT = st.text(st.sampled_from("ab.*>$:%_ IN\n\x00\u00e9\u3000\U0001f600\ud800\udc00"), max_size=8) | ANY_TEXT
TOKENS = st.sampled_from(["a", "b", "ab", "a:b", "a:", ":", "\u00e9"])
TOPICS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.one_of(
    TOPICS,
    st.lists(TOKENS | st.just("*"), min_size=1, max_size=4).map(".".join),
    st.lists(TOKENS | st.just("*"), max_size=3).map(lambda tokens: ".".join([*tokens, ">"])),
    TOPICS.map(lambda topic: f"{topic}:*"),
)


def reference_match(pattern: str, topic: str) -> bool:
    """The rules of the module's docstring as a regular expression."""
    if pattern.endswith(":*") and "*" not in pattern[:-2]:
        expression = re.escape(pattern[:-1]) + ".+"
    else:
        wildcards = {"*": "[^.]+", ">": ".+"}
        expression = r"\.".join(wildcards.get(token, re.escape(token)) for token in pattern.split("."))
    return re.fullmatch(expression, topic, re.DOTALL) is not None


@pytest.mark.parametrize(
    "topic",
    [
        "a",
        "chat.room-7.typing",
        "news:sport",
        "#42",
        "a$b",
        "a.$b",
        "x_INBOX",
        "a._INBOX",
        "_inbox",
        "\u00e9t\u00e9.\u4f60\u597d.\U0001f600",
        "a" * MAX_TOPIC_BYTES,
        "\u00e9" * 127 + "a",
        ".".join("a" * MAX_TOPIC_TOKENS),
    ],
)
def test_a_sound_topic_has_no_problem(topic: str) -> None:
    assert topic_problem(topic) is None


@pytest.mark.parametrize(
    ("topic", "problem"),
    [
        ("", "must not be empty"),
        (".", "holds an empty token"),
        (".a", "holds an empty token"),
        ("a.", "holds an empty token"),
        ("a..b", "holds an empty token"),
        ("a b", "holds whitespace or a character that is not printable"),
        ("a\tb", "holds whitespace or a character that is not printable"),
        ("a\r\nb", "holds whitespace or a character that is not printable"),
        ("a\x00", "holds whitespace or a character that is not printable"),
        ("a\x7f", "holds whitespace or a character that is not printable"),
        ("a\u00a0b", "holds whitespace or a character that is not printable"),
        ("a\u3000b", "holds whitespace or a character that is not printable"),
        ("a\u202eb", "holds whitespace or a character that is not printable"),
        ("a\ud800", "holds a character that has no UTF-8 form"),
        ("\udc00" * 300, "holds a character that has no UTF-8 form"),
        ("$SYS", "names that begin with $ or _INBOX are reserved"),
        ("_INBOX.x", "names that begin with $ or _INBOX are reserved"),
        ("_INBOXES", "names that begin with $ or _INBOX are reserved"),
        ("*", "wildcards (* and >) are not allowed here"),
        ("a.>", "wildcards (* and >) are not allowed here"),
        ("a*b", "wildcards (* and >) are not allowed here"),
        ("a" * 256, "256 bytes, at most 255 are allowed"),
        ("\u00e9" * 128, "256 bytes, at most 255 are allowed"),
        (".".join("a" * 17), "17 tokens, at most 16 are allowed"),
    ],
)
def test_a_topic_that_is_not_sound_is_refused_in_words(topic: str, problem: str) -> None:
    assert topic_problem(topic) == problem


@pytest.mark.parametrize(
    "name", ["*", ">", "a.*", "*.a", "a.*.b.>", "a" * (MAX_TOPIC_BYTES - 2) + ".*", ".".join("*" * MAX_TOPIC_TOKENS)]
)
def test_a_wildcard_can_be_subscribed_to(name: str) -> None:
    assert subscription_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "must not be empty"),
        ("a..*", "holds an empty token"),
        (".>", "holds an empty token"),
        ("chat.>.x", "> may stand only at the end"),
        (">.*", "> may stand only at the end"),
        ("a*", "mixes a wildcard with text in one token"),
        ("a.>b.>", "mixes a wildcard with text in one token"),
        ("**", "mixes a wildcard with text in one token"),
        ("room:*", "mixes a wildcard with text in one token"),
        ("a *", "holds whitespace or a character that is not printable"),
        ("*.\ud800", "holds a character that has no UTF-8 form"),
        ("$SYS.>", "names that begin with $ or _INBOX are reserved"),
        ("_INBOX.*", "names that begin with $ or _INBOX are reserved"),
        ("a" * (MAX_TOPIC_BYTES - 1) + ".*", "256 bytes, at most 255 are allowed"),
        (".".join("*" * (MAX_TOPIC_TOKENS + 1)), "17 tokens, at most 16 are allowed"),
    ],
)
def test_what_cannot_be_subscribed_to_is_refused_in_words(name: str, problem: str) -> None:
    assert subscription_problem(name) == problem


@given(NASTY_TEXT)
def test_what_can_be_subscribed_to_is_a_topic_or_a_pattern_of_nats(name: str) -> None:
    if not is_wildcard(name):
        assert subscription_problem(name) == topic_problem(name)
    elif subscription_problem(name) is None:
        assert parse_pattern(name).prefix is None
    else:
        with suppress(ValueError):
            assert parse_pattern(name).prefix is not None


@given(NASTY_TEXT)
def test_any_string_is_a_topic_or_has_a_problem(text: str) -> None:
    problem = topic_problem(text)
    if problem is not None:
        assert problem
        return
    tokens = text.split(".")
    assert len(text.encode()) <= MAX_TOPIC_BYTES
    assert len(tokens) <= MAX_TOPIC_TOKENS
    assert all(tokens)
    assert all(token.isprintable() and not set(token) & set(" *>") for token in tokens)
    assert not text.startswith(("$", "_INBOX"))


@given(st.lists(st.text("a:%$_IN\u00e9\U0001f600", min_size=1, max_size=8), min_size=1, max_size=MAX_TOPIC_TOKENS))
def test_every_topic_is_a_pattern_that_matches_itself_alone(tokens: list[str]) -> None:
    topic = ".".join(["x", *tokens[1:]])
    pattern = parse_pattern(topic)
    assert pattern.exact
    assert pattern.matches(topic)
    assert not pattern.matches(topic + "x")
    assert not pattern.matches(topic + ".x")


@given(NASTY_TEXT)
def test_any_string_is_a_pattern_or_refused_in_words(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either outcome is fine, an empty message is not
    else:
        assert pattern.text == text
        assert is_wildcard(text) is not pattern.exact


@given(PATTERNS, TOPICS)
def test_patterns_match_as_the_regular_expression_does(pattern: str, topic: str) -> None:
    assert parse_pattern(pattern).matches(topic) is reference_match(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "a.c", "A.b"]),
        ("*", ["a", "a:b"], ["a.b"]),
        ("a.*", ["a.b"], ["a", "b.b", "a.b.c"]),
        ("*.b", ["a.b"], ["b", "a.c", "a.a.b"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b.c", "a.b.d"]),
        (">", ["a", "a.b.c"], []),
        ("a.>", ["a.b", "a.b.c"], ["a", "ab", "b.c"]),
        ("*.>", ["a.b", "a.b.c"], ["a"]),
        ("a:*", ["a:b", "a:b.c", "a:b:c"], ["a", "a:", "a.b", "ab:c"]),
        ("a.b:*", ["a.b:c", "a.b:c.d"], ["a.b", "a.c:c"]),
        (":*", [":a"], [":", "a:b"]),
    ],
)
def test_a_pattern_matches_these_and_not_those(pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = parse_pattern(pattern)
    assert [topic for topic in matching + others if compiled.matches(topic)] == matching


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must not be empty"),
        ("a..>", "holds an empty token"),
        (">.a", "> may stand only at the end"),
        ("a.>.b", "> may stand only at the end"),
        ("a*", "token 'a*' mixes a wildcard with text"),
        ("a.b>", "token 'b>' mixes a wildcard with text"),
        ("**", "token '**' mixes a wildcard with text"),
        ("a.*:*", "token '*:*' mixes a wildcard with text"),
        (">:*", "token '>:*' mixes a wildcard with text"),
        ("a b:*", "holds whitespace or a character that is not printable"),
        ("$SYS.>", "names that begin with $ or _INBOX are reserved"),
        ("_INBOX:*", "names that begin with $ or _INBOX are reserved"),
        (".".join("*" * 17), "17 tokens, at most 16 are allowed"),
    ],
)
def test_what_is_no_pattern_is_refused_in_words(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_pattern(text)


def test_a_pattern_compiles_to_its_tokens() -> None:
    assert parse_pattern("a.*.>") == Pattern("a.*.>", ("a", "*", ">"), None, exact=False)


@pytest.mark.parametrize(
    ("user", "token"),
    [
        ("42", "42"),
        ("ann-b_c~", "ann-b_c~"),
        ("ann@example.com", "ann@example%2Ecom"),
        ("a b", "a%20b"),
        ("*", "%2A"),
        (">", "%3E"),
        ("$SYS", "%24SYS"),
        ("a:b", "a%3Ab"),
        ("100%", "100%25"),
        ("\u00e9", "\u00e9"),
        ("\u3000", "%E3%80%80"),
        ("\ud800", "%ED%A0%80"),
        ("_INBOX", "%5FINBOX"),
        ("_INBOXx", "%5FINBOXx"),
        ("_inbox", "_inbox"),
        ("", ""),
    ],
)
def test_a_user_is_escaped_where_it_has_to_be(user: str, token: str) -> None:
    assert escape_token(user) == token


@given(NASTY_TEXT)
def test_an_escaped_user_is_one_sound_token(user: str) -> None:
    token = escape_token(user)
    assert bool(token) is bool(user)
    assume(0 < len(token.encode()) <= MAX_TOPIC_BYTES)
    assert topic_problem(token) is None
    assert "." not in token
    assert ":" not in token


@given(NASTY_TEXT, NASTY_TEXT)
def test_two_users_never_share_a_token(one: str, other: str) -> None:
    assume(one != other)
    assert escape_token(one) != escape_token(other)


@given(st.text(st.sampled_from("%2eE.5F_INBOX$4"), max_size=8))
def test_no_user_can_be_named_like_another_ones_escaped_form(user: str) -> None:
    token = escape_token(user)
    if token != user:
        assert escape_token(token) != token


@given(NASTY_TEXT, TOPICS)
def test_a_pattern_with_an_escaped_user_never_widens(user: str, topic: str) -> None:
    token = escape_token(user)
    assume(0 < len(token.encode()) <= MAX_TOPIC_BYTES - 4)
    own = f"u.{token}.x"
    assert parse_pattern(own).exact
    pattern = parse_pattern(f"u.{token}.*")
    assert pattern.matches(own)
    for foreign in (topic, f"u.{topic}", f"u.{topic}.x"):
        assert pattern.matches(foreign) is (foreign.split(".")[:2] == ["u", token] and foreign.count(".") == 2)
    namespace = parse_pattern(f"{token}:*")
    assert namespace.matches(f"{token}:x")
    assert namespace.matches(f"{topic}:x") is (topic.partition(":")[0] == token)
