from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.relay.subjects import Subjects

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
