"""A roster against what is true, over a network that keeps the order of what it carries and loses the rest."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.core.roster import Changes, Roster

NODES = st.sampled_from(["n1", "n2", "n3"])
CLIENTS = st.integers(0, 5)


@dataclass(frozen=True)
class Event:
    client: str
    came: bool


@dataclass(frozen=True)
class Part:
    members: frozenset[str]
    first: bool
    last: bool


class RosterModel(RuleBasedStateMachine):
    """Three nodes with members, one that hears of them, and somebody who sees only what that one tells."""

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.truth: dict[str, set[str]] = {"n1": set(), "n2": set(), "n3": set()}
        self.wires: dict[str, deque[Event | Part]] = {node: deque() for node in self.truth}
        self.seen: set[str] = set()

    @rule(node=NODES, number=CLIENTS)
    def come_or_go(self, node: str, number: int) -> None:
        client, was_empty = f"{node}.{number}", not self.truth[node]
        self.truth[node] ^= {client}
        if was_empty:
            self.list_all(node, 1)  # a node's first member of a topic is told so, for it asks the others to list theirs
        else:
            self.wires[node].append(Event(client, client in self.truth[node]))

    @rule(node=NODES, cuts=st.integers(1, 3))
    def list_all(self, node: str, cuts: int) -> None:
        """A listing is sent in one go, in some number of parts."""
        members = sorted(self.truth[node])
        for part in range(cuts):
            some = frozenset(members[part::cuts])
            self.wires[node].append(Part(some, first=part == 0, last=part == cuts - 1))

    @rule(node=NODES, count=st.integers(1, 5))
    def deliver(self, node: str, count: int) -> None:
        wire = self.wires[node]
        for _ in range(min(count, len(wire))):
            self.hear(node, wire.popleft())

    @rule(node=NODES)
    def lose(self, node: str) -> None:
        """The way from one node breaks. It is told that, as it is told when it is back."""
        self.wires[node].clear()
        self.list_all(node, 1)

    @rule()
    def lose_everything(self) -> None:
        """The hearing node's own connection breaks: it doubts everybody, and asks."""
        for node, wire in self.wires.items():
            wire.clear()
            self.roster.doubt(node)
        for node in self.truth:
            if self.truth[node]:  # who has nobody may not even hear the question
                self.list_all(node, 2)

    @rule(node=NODES, at_most=st.integers(1, 3))
    def drop_some(self, node: str, at_most: int) -> None:
        if not self.wires[node] and not self.truth[node]:  # it has said nothing in time
            self.tell(Changes(went=self.roster.drop(node, at_most)))

    @rule(node=NODES)
    def die(self, node: str) -> None:
        self.wires[node].clear()
        self.truth[node].clear()
        self.roster.doubt(node)
        while infos := self.roster.drop(node, 2):
            self.tell(Changes(went=infos))

    def hear(self, node: str, said: Event | Part) -> None:
        if isinstance(said, Part):
            members = {client: client.encode() for client in said.members}
            self.tell(self.roster.listed(node, members, first=said.first, last=said.last))
        elif said.came:
            if self.roster.joined(node, said.client, said.client.encode()):
                self.tell(Changes(came=[said.client.encode()]))
        elif (info := self.roster.left(node, said.client)) is not None:
            self.tell(Changes(went=[info]))

    def tell(self, changes: Changes) -> None:
        """Nobody comes twice, nobody goes who isn't there."""
        for info in changes.came:
            assert info.decode() not in self.seen
            self.seen.add(info.decode())
        for info in changes.went:
            self.seen.remove(info.decode())

    @invariant()
    def who_sees_only_what_is_told_knows_as_much_as_the_roster(self) -> None:
        assert self.seen == {client for node in self.roster._nodes.values() for client in node.members}

    def teardown(self) -> None:
        for node, wire in self.wires.items():
            for said in wire:
                self.hear(node, said)
        for node in self.roster.doubtful():
            while infos := self.roster.drop(node, 2):
                self.tell(Changes(went=infos))
        assert self.seen == set().union(*self.truth.values())
        assert self.roster._nodes.keys() == {node for node, members in self.truth.items() if members}


TestRosterModel = RosterModel.TestCase
TestRosterModel.settings = settings(max_examples=200, stateful_step_count=40)
