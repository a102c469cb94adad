from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.message import ClientInfo
from broker.core.permissions import Access, Action, Readers, make_capability
from broker.core.policy import TopicPolicy
from broker.core.session import Session, Subscription
from broker.core.topic import parse_pattern

POLICY = TopicPolicy("default", (parse_pattern(">"),))


def until(ends_at: float) -> Subscription:
    return Subscription(POLICY, ends_at=ends_at)


def test_a_session_without_an_end_lasts_for_ever() -> None:
    session = Session("c", "ann")
    session.add("a", Subscription(POLICY))
    assert (session.ends_at, session.next_end) == (inf, inf)
    assert session.ended(1e12) == []


def test_a_capability_of_the_token_allows_what_the_policy_leaves_to_tokens() -> None:
    session = Session("c", "ann", capabilities=(make_capability(["chat.*"], ["sub"], "ann"),))
    assert session.may(Action.SUBSCRIBE, "chat.a", Access.GRANTED)
    assert not session.may(Action.PUBLISH, "chat.a", Access.GRANTED)
    assert not session.may(Action.SUBSCRIBE, "news", Access.GRANTED)
    assert not session.may(Action.SUBSCRIBE, "chat.a", Access.NOBODY)


def test_any_of_several_capabilities_will_do() -> None:
    capabilities = (make_capability(["a"], ["sub"], ""), make_capability(["b"], ["sub", "pub"], ""))
    session = Session("c", "", capabilities=capabilities)
    assert session.may(Action.SUBSCRIBE, "a", Access.GRANTED)
    assert session.may(Action.PUBLISH, "b", Access.AUTHENTICATED)
    assert not session.may(Action.PUBLISH, "a", Access.AUTHENTICATED)


def test_a_subscription_token_grants_too() -> None:
    session = Session("c", "")
    assert session.may(Action.SUBSCRIBE, "a", Access.GRANTED, granted=True)
    assert not session.may(Action.SUBSCRIBE, "a", Access.GRANTED)
    assert not session.may(Action.SUBSCRIBE, "a", Access.NOBODY, granted=True)


def test_the_policys_rule_alone_is_enough_where_it_says_so() -> None:
    assert Session("c", "ann").may(Action.PUBLISH, "a", Access.AUTHENTICATED)
    assert not Session("c", "").may(Action.PUBLISH, "a", Access.AUTHENTICATED)
    assert Session("c", "").may(Action.PUBLISH, "a", Access.ANYONE)


def test_others_see_a_client_with_its_own_info_and_the_topics() -> None:
    session = Session("c", "ann", info=b'{"n":1}')
    session.add("a", Subscription(POLICY, info=b'{"t":2}'))
    assert session.client_info("a") == ClientInfo("ann", "c", b'{"n":1}', b'{"t":2}')
    assert session.client_info("b") == ClientInfo("ann", "c", b'{"n":1}', None)


def test_a_subscription_ends_at_its_time_and_not_before() -> None:
    session = Session("c", "ann")
    session.add("a", until(10.0))
    session.add("b", until(20.0))
    session.add("c", Subscription(POLICY))
    assert session.next_end == 10.0
    assert session.ended(9.99) == []
    assert session.ended(10.0) == ["a"]
    assert session.next_end == 20.0
    assert session.ended(19.99) == []


def test_all_that_have_ended_meanwhile_are_named() -> None:
    session = Session("c", "ann")
    for topic, ends_at in (("a", 10.0), ("b", 30.0), ("c", 20.0)):
        session.add(topic, until(ends_at))
    assert session.ended(25.0) == ["a", "c"]
    assert session.next_end == 30.0


def test_an_extended_subscription_lasts_longer() -> None:
    session = Session("c", "ann")
    session.add("a", until(10.0))
    session.extend("a", 50.0)
    assert session.ended(10.0) == []
    assert session.next_end == 50.0
    assert session.ended(50.0) == ["a"]


def test_a_refreshed_subscription_may_end_sooner_too() -> None:
    session = Session("c", "ann")
    session.add("a", until(50.0))
    session.extend("a", 10.0)
    assert session.next_end == 10.0
    assert session.ended(10.0) == ["a"]


def test_a_subscription_that_is_gone_does_not_end() -> None:
    session = Session("c", "ann")
    session.add("a", until(10.0))
    del session.subscriptions["a"]
    assert session.ended(10.0) == []
    assert session.next_end == inf


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "extend", "drop", "wait"]),
            st.sampled_from("abc"),
            st.just(inf) | st.floats(0.1, 9.0),
        )
    )
)
def test_every_subscription_ends_once_and_in_time(steps: list[tuple[str, str, float]]) -> None:
    session, now, model = Session("c", "ann"), 0.0, dict[str, float]()
    for step, topic, seconds in steps:
        if step == "add" and topic not in model:
            session.add(topic, until(now + seconds))
            model[topic] = now + seconds
        elif step == "extend" and topic in model:
            session.extend(topic, now + seconds)
            model[topic] = now + seconds
        elif step == "drop" and topic in model:
            del session.subscriptions[topic], model[topic]
        elif step == "wait" and seconds < inf:
            now += seconds
            expected = {name for name, ends_at in model.items() if ends_at <= now}
            ended = session.ended(now)
            assert sorted(ended) == sorted(expected)
            for name in ended:
                del session.subscriptions[name], model[name]
        assert session.next_end <= min(model.values(), default=inf)


@pytest.mark.parametrize("readers", Readers)
@pytest.mark.parametrize("how", ["by nothing", "by subscribing", "by a subscription token", "by a connection token"])
def test_who_may_read_is_a_matter_of_the_policy_and_of_both_tokens(readers: Readers, how: str) -> None:
    capabilities = (make_capability(["t"], ["prs"], "ann"),) if how == "by a connection token" else ()
    session = Session("c", "ann", capabilities=capabilities)
    if how in {"by subscribing", "by a subscription token"}:
        actions = frozenset({Action.PRESENCE}) if how == "by a subscription token" else frozenset[Action]()
        session.add("t", Subscription(POLICY, actions=actions))
    allowed = {
        Readers.SUBSCRIBERS: how != "by nothing",
        Readers.NOBODY: False,
        Readers.GRANTED: "token" in how,
        Readers.AUTHENTICATED: True,
        Readers.ANYONE: True,
    }
    assert session.may_read(Action.PRESENCE, "t", readers) is allowed[readers]
    for_anybody = readers in {Readers.AUTHENTICATED, Readers.ANYONE}
    assert session.may_read(Action.PRESENCE, "another", readers) is for_anybody


def test_a_token_that_lets_read_one_thing_does_not_let_read_the_other() -> None:
    session = Session("c", "ann", capabilities=(make_capability(["t"], ["prs"], "ann"),))
    session.add("s", Subscription(POLICY, actions=frozenset({Action.HISTORY})))
    reads = {(action, topic) for action in Action for topic in "st" if session.may_read(action, topic, Readers.GRANTED)}
    assert reads == {(Action.PRESENCE, "t"), (Action.HISTORY, "s")}
