from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.permissions import ACTIONS, Access, Action, Capability, make_capability, permits
from broker.core.topic import escape_token, parse_pattern


@pytest.mark.parametrize(
    ("access", "anonymous", "user", "anonymous_granted", "user_granted"),
    [
        (Access.NOBODY, False, False, False, False),
        (Access.GRANTED, False, False, True, True),
        (Access.AUTHENTICATED, False, True, True, True),
        (Access.ANYONE, True, True, True, True),
    ],
)
def test_a_rule_lets_these_act_and_not_those(
    access: Access,
    anonymous: bool,  # noqa: FBT001 - a row of the table
    user: bool,  # noqa: FBT001
    anonymous_granted: bool,  # noqa: FBT001
    user_granted: bool,  # noqa: FBT001
) -> None:
    assert permits(access, user="", granted=False) is anonymous
    assert permits(access, user="ann", granted=False) is user
    assert permits(access, user="", granted=True) is anonymous_granted
    assert permits(access, user="ann", granted=True) is user_granted


def test_the_table_above_names_every_rule() -> None:
    assert {str(access) for access in Access} == {"nobody", "granted", "authenticated", "anyone"}


def test_the_actions_are_the_ones_tokens_name() -> None:
    assert {str(action) for action in ACTIONS} == {"sub", "pub", "prs", "hst"}


def test_a_capability_allows_its_actions_on_its_topics_only() -> None:
    capability = make_capability(["chat.*", "news"], ["sub", "prs"], "ann")
    allowed = {
        (action, topic)
        for action in Action
        for topic in ("chat.a", "news", "other")
        if capability.allows(action, topic)
    }
    assert allowed == {
        (Action.SUBSCRIBE, "chat.a"),
        (Action.SUBSCRIBE, "news"),
        (Action.PRESENCE, "chat.a"),
        (Action.PRESENCE, "news"),
    }


@pytest.mark.parametrize(
    ("pattern", "wildcards", "others"),
    [
        ("chat.a", [], ["chat.*", "chat.>", "*", ">", "*.a"]),
        ("chat.*", ["chat.*"], ["chat.>", "chat.*.*", "*.*", ">", "*"]),
        ("chat.>", ["chat.*", "chat.>", "chat.a.*", "chat.*.>"], ["*.*", ">", "*", "chats.*"]),
        ("*", ["*"], [">", "*.*"]),
        (">", [">", "*", "a.>"], []),
        ("room:*", ["room:a.*", "room:.>"], ["*", "room.*"]),
        ("user.{sub}.>", ["user.ann.*", "user.ann.box.>"], ["user.*.>", "user.>", "user.bob.*", "user.*.box"]),
    ],
)
def test_a_capability_allows_a_wildcard_that_one_of_its_patterns_covers(
    pattern: str, wildcards: list[str], others: list[str]
) -> None:
    capability = make_capability([pattern], ["sub"], "ann")
    assert [name for name in wildcards + others if capability.allows(Action.SUBSCRIBE, name)] == wildcards
    assert not any(capability.allows(Action.PUBLISH, name) for name in wildcards)


def test_a_capability_that_covers_a_wildcard_only_with_several_patterns_does_not_allow_it() -> None:
    capability = make_capability(["a", "a.*", "a.*.>"], ["sub"], "ann")
    assert not capability.allows(Action.SUBSCRIBE, "a.>")


@pytest.mark.parametrize("user", ["*", ">", "a.>"])
def test_a_user_named_like_a_wildcard_owns_no_more_than_others(user: str) -> None:
    capability = make_capability(["user.{sub}", "user.{sub}.>"], ["sub"], user)
    assert not any(capability.allows(Action.SUBSCRIBE, name) for name in ("user.*", "user.>", "user.*.>", "user.a.*"))
    assert capability.allows(Action.SUBSCRIBE, f"user.{escape_token(user)}.*")


def test_a_capability_holds_actions_not_their_names() -> None:
    capability = make_capability(["a"], ["pub"], "")
    assert capability == Capability((parse_pattern("a"),), frozenset({Action.PUBLISH}))
    assert all(isinstance(action, Action) for action in capability.actions)


def test_a_capability_of_nothing_allows_nothing() -> None:
    assert not make_capability([], ["sub"], "ann").allows(Action.SUBSCRIBE, "a")
    assert not make_capability([">"], [], "ann").allows(Action.SUBSCRIBE, "a")


def test_the_user_stands_in_for_sub() -> None:
    capability = make_capability(["user.{sub}.>", "#{sub}", "{sub}.{sub}"], ["sub"], "ann")
    topics = ["user.ann.inbox", "#ann", "ann.ann", "user.bob.inbox", "#bob", "ann.bob", "user.{sub}.inbox"]
    assert [topic for topic in topics if capability.allows(Action.SUBSCRIBE, topic)] == topics[:3]


def test_a_pattern_that_names_sub_grants_the_anonymous_nothing() -> None:
    capability = make_capability(["#{sub}", "{sub}:*", "lobby"], ["sub"], "")
    assert [pattern.text for pattern in capability.patterns] == ["lobby"]
    assert not any(capability.allows(Action.SUBSCRIBE, topic) for topic in ("#", ":a", "#user", "#{sub}"))


@pytest.mark.parametrize("user", ["*", ">", "a.b", "a:b", "%2A", "{sub}", "$", "_INBOX", " ", "\ud800"])
def test_no_users_name_widens_a_pattern(user: str) -> None:
    patterns = make_capability(["{sub}.box", "{sub}:*", "u.{sub}"], ["sub"], user).patterns
    token = escape_token(user)
    assert [pattern.text for pattern in patterns] == [f"{token}.box", f"{token}:*", f"u.{token}"]
    assert not any(pattern.matches(topic) for pattern in patterns for topic in ("ann.box", "ann:x", "u.ann", "u.a.b"))


def test_a_user_too_long_for_a_token_owns_no_topic_but_keeps_the_rest() -> None:
    capability = make_capability(["#{sub}", "lobby"], ["sub"], "a" * 255)
    assert [pattern.text for pattern in capability.patterns] == ["lobby"]


@pytest.mark.parametrize("user", ["", "ann", "a" * 255])
@pytest.mark.parametrize("pattern", ["a..b", "{sub}*", "{sub}..x", "$SYS.{sub}", ""])
def test_a_pattern_that_is_none_is_refused_whoever_the_user_is(pattern: str, user: str) -> None:
    with pytest.raises(ValueError, match=r"token|reserved|empty"):
        make_capability([pattern], ["sub"], user)


def test_an_unknown_action_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'delete' is none of hst, prs, pub, sub"):
        make_capability(["a"], ["sub", "write", "delete"], "ann")


@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_one_users_own_topic_is_never_anothers(one: str, other: str) -> None:
    capability = make_capability(["own.{sub}"], ["sub"], one)
    if other and len(other) < 50:
        assert capability.allows(Action.SUBSCRIBE, f"own.{escape_token(other)}") is (one == other)
