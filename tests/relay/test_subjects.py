from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.topic import topic_problem
from broker.relay.subjects import Subjects

SUBJECTS = Subjects("pre.fix")


@pytest.mark.parametrize("topic", ["a", "a.b.c", "room:1", "gr\u00fc\u00dfe.\U0001f600", "live.a", ".".join("a" * 16)])
def test_a_topic_is_read_from_its_live_subject(topic: str) -> None:
    assert SUBJECTS.topic("chat", SUBJECTS.live("chat", topic).encode()) == topic


@pytest.mark.parametrize(
    "name", [b"", b"*", b"a.>", b"a*", b"$SYS", b"a.\xff", b"a\x0b", b"a\xc2\xa0b", b"a" * 256, b"a." * 16 + b"a"]
)
def test_a_subject_that_no_topic_has_is_of_none(name: bytes) -> None:
    assert SUBJECTS.topic("chat", b"pre.fix.chat.live." + name) is None


@given(st.binary(max_size=12))
def test_whatever_is_read_is_a_sound_topic(name: bytes) -> None:
    topic = SUBJECTS.topic("chat", b"pre.fix.chat.live." + name)
    if topic is not None:
        assert topic_problem(topic) is None
        assert topic.encode() == name


TOPICS = st.lists(st.text("ab%2A3E*>", min_size=1, max_size=4), min_size=1, max_size=3).map(".".join)


def test_a_wildcard_subscription_has_members_of_its_own() -> None:
    subjects = Subjects("broker")
    assert subjects.members("chat.1") == "broker.ctl.member.chat.1"
    assert subjects.members("chat.*") == "broker.ctl.member.chat.%2A"
    assert subjects.members("chat.>") == "broker.ctl.member.chat.%3E"


@given(TOPICS, TOPICS)
def test_no_two_topics_share_a_subject_and_none_is_a_wildcard(one: str, other: str) -> None:
    subjects = Subjects("p")
    assert (subjects.members(one) == subjects.members(other)) is (one == other)
    assert not {"*", ">"} & set(subjects.members(one))
    assert subjects.members(one).count(".") == one.count(".") + 3
