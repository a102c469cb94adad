from __future__ import annotations

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


@given(
    st.lists(st.lists(st.sampled_from(["a", "a.*", "*.b", ">", "a.>", "*"]), max_size=3), max_size=5),
    st.sampled_from(["a", "b", "a.b", "b.b", "a.b.c"]),
)
def test_no_earlier_policy_matches_a_topic(patterns: list[list[str]], topic: str) -> None:
    policies = [make_policy(f"p{number}", *texts) for number, texts in enumerate(patterns)]
    fitting = [one for one in policies if any(pattern.matches(topic) for pattern in one.match)]
    assert PolicyTable(policies).resolve(topic) is (fitting[0] if fitting else None)
