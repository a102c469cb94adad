from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from broker.relay.connection import confirmed
from broker.relay.control import GONE_SECONDS, HELLO_SECONDS, ControlBus, Peer
from broker.relay.errors import RelayUnavailableError
from broker.relay.subjects import Subjects
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually
from tests.relay.relaying import Clock, Connection, running

pytestmark = pytest.mark.anyio


class Member(ControlBus):
    """A node as the others see it; it answers with its name and what it was asked."""

    def __init__(self, connection: Connection, name: str, prefix: str) -> None:
        self.clock = Clock()
        self.connection = connection
        self.asked: list[tuple[str, bytes]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        super().__init__(connection, Subjects(prefix), Peer(f"uid-{name}", name), self.clock)
        self.handle = self._do
        self.told: list[tuple[str, str]] = []
        self.on_gone = lambda peer: self.told.append(("gone", peer.name))
        self.on_back = lambda peer: self.told.append(("back", peer.name))
        self.start()
        self.connected()

    async def _do(self, operation: str, arguments: bytes) -> bytes:
        self.asked.append((operation, arguments))
        await self.hold.wait()
        if operation == "fail":
            raise ValueError("this is not for us")
        return b'{"from":"%b","had":%b}' % (self._me.name.encode(), arguments)

    @property
    def names(self) -> set[str]:
        return {peer.name for peer in self.peers}


@asynccontextmanager
async def members(server: NatsServer, names: str, prefix: str = "ctl") -> AsyncIterator[list[Member]]:
    """Nodes that all know each other."""
    async with AsyncExitStack() as stack:
        all_ = [Member(await stack.enter_async_context(running(server.url)), name, prefix) for name in names]
        for member in all_:
            await eventually(lambda member=member: member.names == set(names) - {member._me.name})  # type: ignore[misc]
        yield all_


async def test_nodes_find_each_other_whoever_comes_last(server: NatsServer) -> None:
    async with members(server, "abc") as (a, *_):
        assert sorted(a.peers, key=lambda peer: peer.name) == [Peer("uid-b", "b"), Peer("uid-c", "c")]


async def test_all_others_are_asked_and_all_answers_gathered(server: NatsServer) -> None:
    async with members(server, "abc") as (a, b, c):
        gathered = await a.ask("look", b'{"n":1}')
        assert sorted(gathered.answers) == [b'{"from":"b","had":{"n":1}}', b'{"from":"c","had":{"n":1}}']
        assert gathered.unanswered == []
        assert (a.asked, b.asked, c.asked) == ([], [("look", b'{"n":1}')], [("look", b'{"n":1}')])


async def test_questions_at_the_same_time_keep_their_answers_apart(server: NatsServer) -> None:
    async with members(server, "ab") as (a, b):
        numbers = range(50)
        gathered = await asyncio.gather(*((a, b)[n % 2].ask("look", b"%d" % n) for n in numbers))
        names = [b"ba"[n % 2 : n % 2 + 1] for n in numbers]
        assert [one.answers for one in gathered] == [[b'{"from":"%b","had":%d}' % (names[n], n)] for n in numbers]


async def test_who_is_alone_has_nobody_to_ask(server: NatsServer) -> None:
    async with members(server, "a", "alone") as (a,):
        gathered = await a.ask("look", b"1")
        assert (gathered.answers, gathered.unanswered) == ([], [])


async def test_who_does_not_answer_in_time_is_named(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.relay.control.ANSWER_SECONDS", 0.2)
    async with members(server, "abc") as (a, _, c):
        c.hold.clear()
        gathered = await a.ask("look", b"1")
        assert gathered.answers == [b'{"from":"b","had":1}']
        assert gathered.unanswered == [Peer("uid-c", "c")]
        c.hold.set()  # its late answer is for nobody
        await eventually(lambda: not c._working)
        await confirmed(a.connection.publish("nobody", b""))
        assert (await a.ask("look", b"2")).unanswered == []


async def test_who_fails_is_named_and_says_why_in_its_log(
    server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.relay.control.ANSWER_SECONDS", 0.2)
    async with members(server, "ab") as (a, _):
        assert (await a.ask("fail", b"1")).unanswered == [Peer("uid-b", "b")]
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == ["fail for node uid-a failed"]


async def test_who_says_goodbye_is_not_asked_any_more(server: NatsServer) -> None:
    async with members(server, "abc") as (a, b, c):
        c.leave()
        await eventually(lambda: a.names == {"b"} and b.names == {"a"})
        c.hold.clear()
        assert (await a.ask("look", b"1")).unanswered == []


async def test_who_says_goodbye_during_a_question_is_not_waited_for(server: NatsServer) -> None:
    async with members(server, "ab") as (a, b):
        b.hold.clear()
        question = asyncio.create_task(a.ask("look", b"1"))
        await eventually(lambda: b.asked)
        b.leave()
        async with asyncio.timeout(1):  # well before ANSWER_SECONDS
            gathered = await question
        assert (gathered.answers, gathered.unanswered) == ([], [])


async def test_who_is_silent_for_too_long_is_gone(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with members(server, "abc") as (a, b, _):
        a.clock.now += GONE_SECONDS - 0.1
        b.tick()  # is within its time
        b.clock.now += HELLO_SECONDS
        b.tick()
        await eventually(lambda: a._peers["uid-b"][1] == a.clock.now)
        a.clock.now += 0.2
        a.tick()
        assert a.names == {"b"}
        assert "node c (uid-c) is gone" in [record.message for record in caplog.records]


async def test_who_ends_is_told_to_be_gone_and_who_only_begins_is_not_told_to_be_back(server: NatsServer) -> None:
    async with members(server, "abc") as (a, b, c):
        c.leave()
        await eventually(lambda: a.told == b.told == [("gone", "c")])


async def test_who_was_taken_for_dead_and_is_heard_again_is_back_once(server: NatsServer) -> None:
    async with members(server, "ab") as (a, b):
        for expected in ([("gone", "b"), ("back", "b")], 2 * [("gone", "b"), ("back", "b")]):
            a.clock.now += GONE_SECONDS + 0.1
            a.tick()
            for _ in range(2):
                b.clock.now += HELLO_SECONDS
                b.tick()
            await eventually(lambda expected=expected: a.told == expected)  # type: ignore[misc]
        assert a._buried == set()


async def test_a_node_is_heard_at_every_heartbeat(server: NatsServer) -> None:
    async with members(server, "ab") as (a, b):
        for _ in range(5):
            a.clock.now += HELLO_SECONDS
            b.clock.now += HELLO_SECONDS
            b.tick()
            await eventually(lambda: a._peers["uid-b"][1] == a.clock.now)
            a.tick()
        assert a.names == {"b"}


async def test_two_deployments_on_one_nats_do_not_see_each_other(server: NatsServer) -> None:
    async with members(server, "ab", "one") as (a, _), members(server, "cd", "two") as (c, d):
        assert (a.names, c.names) == ({"b"}, {"d"})
        await a.ask("look", b"1")
        assert (c.asked, d.asked) == ([], [])


async def test_nobody_is_taken_for_dead_while_nats_is_down(own_server: NatsServer) -> None:
    async with members(own_server, "ab") as (a, b):
        own_server.kill()
        await a.connection.down()
        a.clock.now += 100 * GONE_SECONDS
        a.tick()
        assert a.names == {"b"}
        with pytest.raises(RelayUnavailableError):
            await a.ask("look", b"1")
        own_server.start()
        await a.connection.another_life(2)
        await b.connection.another_life(2)
        a.connected()
        a.tick()
        assert a.names == {"b"}
        assert len((await a.ask("look", b"1")).answers) == 1


async def test_alone_and_without_nats_is_an_error_too(own_server: NatsServer) -> None:
    async with members(own_server, "a") as (a,):
        own_server.kill()
        await a.connection.down()
        with pytest.raises(RelayUnavailableError):
            await a.ask("look", b"1")


async def test_rubbish_between_nodes_harms_nobody(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with members(server, "ab", "rubbish") as (a, _):
        subjects = Subjects("rubbish")
        for subject in (subjects.hello, subjects.requests, subjects.answers("uid-a")):
            for payload in (b"", b"{", b"null", b'{"uid":1}', b"\xff"):
                await confirmed(a.connection.publish(subject, payload))
        assert len((await a.ask("look", b"1")).answers) == 1
