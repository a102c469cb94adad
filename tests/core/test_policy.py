from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.permissions import Access
from broker.core.policy import PolicyTable, TopicPolicy
from broker.core.topic import parse_pattern


def make_policy(name: str, *patterns: str) -> TopicPolicy:
    return TopicPolicy(name, tuple(map(parse_pattern, patterns)))


def test_a_policy_grants_by_token_alone_unless_told_otherwise() -> None:
    policy = make_policy("default", ">")
    assert policy.subscribe is Access.GRANTED
    assert policy.publish is Access.GRANTED


def test_a_topic_belongs_to_the_first_policy_that_matches() -> None:
    special, general, rest = make_policy("special", "chat.vip"), make_policy("general", "chat.*"), make_policy("r", ">")
    table = PolicyTable([special, general, rest])
    assert table.resolve("chat.vip") is special
    assert table.resolve("chat.a") is general
    assert table.resolve("chat.a.b") is rest
    assert PolicyTable([rest, special]).resolve("chat.vip") is rest


def test_any_of_a_policys_patterns_will_do() -> None:
    policy = make_policy("mixed", "a", "b.>", "ns:*")
    table = PolicyTable([policy])
    assert [topic for topic in ("a", "b.c.d", "ns:x", "b", "ns") if table.resolve(topic) is policy] == [
        "a",
        "b.c.d",
        "ns:x",
    ]


def test_a_topic_that_no_policy_matches_does_not_exist() -> None:
    assert PolicyTable([make_policy("a", "a")]).resolve("b") is None
    assert PolicyTable([]).resolve("a") is None


def test_a_policy_without_patterns_matches_nothing() -> None:
    assert PolicyTable([make_policy("none")]).resolve("a") is None


ROOMS = PolicyTable(
    [
        make_policy("vip", "chat.vip"),
        make_policy("chat", "chat.*", "news.>"),
        make_policy("deep", "chat.*.>"),
        make_policy("rooms", "room:*", "lobby"),
        make_policy("logs", "*.log.>"),
        make_policy("rest", "a.>", "b.*"),
    ]
)


@pytest.mark.parametrize(
    ("wildcard", "policy"),
    [
        ("news.>", "chat"),
        ("news.*", "chat"),
        ("news.log.*", "chat"),
        ("chat.*.*", "deep"),
        ("chat.*.a.>", "deep"),
        ("room:1.*", "rooms"),
        ("room:1.log.>", "rooms"),
        ("a.x.>", "rest"),
        ("a.*", "rest"),
        ("x.log.*", "logs"),
    ],
)
def test_a_wildcard_belongs_to_the_policy_that_all_its_topics_belong_to(wildcard: str, policy: str) -> None:
    found = ROOMS.resolve_wildcard(parse_pattern(wildcard))
    assert isinstance(found, TopicPolicy)
    assert found.name == policy


@pytest.mark.parametrize(
    ("wildcard", "reason"),
    [
        ("chat.*", "chat.* overlaps several policies (vip, chat); it has to stay within one"),
        ("chat.>", "chat.> overlaps several policies (vip, chat, deep, …); it has to stay within one"),
        (">", "> overlaps several policies (vip, chat, deep, …); it has to stay within one"),
        ("a.*.*", "a.*.* overlaps several policies (logs, rest); it has to stay within one"),
        ("b.>", "b.> overlaps several policies (logs, rest); it has to stay within one"),
        ("*", "policy rooms has some of the topics that * matches, but no pattern for all"),
        ("x.y.*", "no policy has topics that x.y.* matches"),
    ],
)
def test_a_wildcard_of_several_policies_or_none_is_refused_in_words(wildcard: str, reason: str) -> None:
    assert ROOMS.resolve_wildcard(parse_pattern(wildcard)) == reason


def test_patterns_that_cover_a_wildcard_only_together_do_not_count() -> None:
    policy = make_policy("two", "a.*", "a.*.>")
    reason = "policy two has some of the topics that a.> matches, but no pattern for all"
    assert PolicyTable([policy]).resolve_wildcard(parse_pattern("a.>")) == reason
    assert PolicyTable([policy]).resolve_wildcard(parse_pattern("a.*.*")) is policy


@given(
    st.lists(st.lists(st.sampled_from(["a", "a.*", "*.b", ">", "a.>", "*", "a:*"]), max_size=3), max_size=5),
    st.sampled_from(["a.*", "*.b", "*", ">", "a.>", "*.*", "a.*.b", "a:.*"]),
)
def test_all_topics_of_a_wildcard_have_its_policy(patterns: list[list[str]], wildcard: str) -> None:
    table = PolicyTable([make_policy(f"p{number}", *texts) for number, texts in enumerate(patterns)])
    compiled = parse_pattern(wildcard)
    topics = ["a", "b", "a:b", "a:.b", "a.a", "a.b", "b.b", "b.a", "a.b.b", "a.a.a", "b.b.b", "a:.b.c"]
    owners = {table.resolve(topic) for topic in topics if compiled.matches(topic)}
    found = table.resolve_wildcard(compiled)
    if isinstance(found, TopicPolicy):
        assert owners == {found}
    elif found.startswith("no policy"):
        assert owners == {None}


@given(
    st.lists(st.lists(st.sampled_from(["a", "a.*", "*.b", ">", "a.>", "*"]), max_size=3), max_size=5),
    st.sampled_from(["a", "b", "a.b", "b.b", "a.b.c"]),
)
def test_no_earlier_policy_matches_a_topic(patterns: list[list[str]], topic: str) -> None:
    policies = [make_policy(f"p{number}", *texts) for number, texts in enumerate(patterns)]
    fitting = [one for one in policies if any(pattern.matches(topic) for pattern in one.match)]
    assert PolicyTable(policies).resolve(topic) is (fitting[0] if fitting else None)
