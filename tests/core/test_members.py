from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.core.members import Members, count_users

TOPICS = st.sampled_from(["a", "b", "c"])
CLIENTS = st.sampled_from(["c1", "c2", "c3", "c4"])
USERS = st.sampled_from(["", "ann", "bob", "ünïcode 🎈"])


def test_a_topic_without_members_has_none_and_counts_none() -> None:
    members = Members()
    assert "a" not in members
    assert (members.entries("a"), members.size_bytes("a")) == ([], 0)
    assert (members.clients("a"), members.users("a"), members.packed_users("a")) == (0, 0, b"")
    assert members.leave("a", "c1") is False


def test_connections_are_counted_and_users_apart_from_them() -> None:
    members = Members()
    for client, user in (("c1", "ann"), ("c2", "ann"), ("c3", ""), ("c4", "")):
        members.enter("a", client, user, b"")
    assert (members.clients("a"), members.users("a")) == (4, 2)
    members.leave("a", "c1")
    assert (members.clients("a"), members.users("a")) == (3, 2)
    members.leave("a", "c2")
    assert (members.clients("a"), members.users("a")) == (2, 1)


def test_who_enters_twice_is_a_member_once_as_it_was_last() -> None:
    members = Members()
    members.enter("a", "c1", "ann", b"first")
    members.enter("a", "c1", "bob", b"later")
    assert (members.entries("a"), members.clients("a"), members.users("a")) == ([b"later"], 1, 1)
    assert members.leave("a", "c1") is True
    assert members.leave("a", "c1") is False


@given(st.lists(st.lists(st.text(max_size=3))))
def test_a_user_on_several_nodes_counts_once(nodes: Sequence[Sequence[str]]) -> None:
    packed = []
    for users in nodes:
        members = Members()
        for number, user in enumerate(users):
            members.enter("a", f"c{number}", user, b"")
        packed.append(members.packed_users("a"))
    assert count_users(packed) == len({user for users in nodes for user in users})


class MembersModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.members = Members()
        self.model: dict[str, dict[str, tuple[str, bytes]]] = {}

    @rule(topic=TOPICS, client=CLIENTS, user=USERS, entry=st.binary(max_size=3))
    def enter(self, topic: str, client: str, user: str, entry: bytes) -> None:
        self.members.enter(topic, client, user, entry)
        self.model.setdefault(topic, {})[client] = user, entry

    @rule(topic=TOPICS, client=CLIENTS)
    def leave(self, topic: str, client: str) -> None:
        of_topic = self.model.get(topic, {})
        assert self.members.leave(topic, client) is (client in of_topic)
        of_topic.pop(client, None)
        if not of_topic:
            self.model.pop(topic, None)

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        assert self.members.total == sum(map(len, self.model.values()))
        for topic in "abc":
            present = self.model.get(topic, {})
            users, entries = {user for user, _ in present.values()}, [entry for _, entry in present.values()]
            assert sorted(self.members.entries(topic)) == sorted(entries)
            assert self.members.size_bytes(topic) == sum(map(len, entries))
            assert (self.members.clients(topic), self.members.users(topic)) == (len(present), len(users))
            assert len(self.members.packed_users(topic)) == 8 * len(users)

    @invariant()
    def nothing_is_kept_of_topics_without_members(self) -> None:
        assert len(self.members) == len(self.model)
        assert all((topic in self.members) is (topic in self.model) for topic in "abc")


TestMembersModel = MembersModel.TestCase
TestMembersModel.settings = settings(max_examples=100, stateful_step_count=30)
