"""Connects that come in crowds."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

import pytest

from broker.client.client import Client
from broker.lobby import OVERFLOW, TURN_SECONDS, Lobby
from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

AT_ONCE = 4
"""Connects in one turn of the event loop."""
WORK_SECONDS = TURN_SECONDS / (AT_ONCE - 0.5)


class Loop:
    """An event loop's turns, taken by hand, and a clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: deque[Callable[[], None]] = deque()

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += WORK_SECONDS

    def turn(self) -> None:
        for _ in range(len(self.soon)):
            self.soon.popleft()()


@pytest.fixture
async def stage(nats: NatsServer) -> AsyncIterator[Stage]:
    async with staged(nats, limits={"connections_waiting": 10_000}) as stage:
        yield stage


def slow_down(stage: Stage, places: int = 10_000) -> Loop:
    """Let each connect take a while on a clock of its own, and the lobby's turns be taken by hand."""
    loop = Loop()
    stage.node.lobby = Lobby(places, loop, loop.soon.append)
    verify = stage.node.tokens.connection

    def slow(text: str) -> object:
        loop.work()
        return verify(text)

    stage.node.tokens = type("Slow", (), {"connection": staticmethod(slow)})()
    return loop


def come(stage: Stage, *behind: object) -> Conversation:
    conversation = stage.open()
    conversation.say({"id": 1, "connect": {"token": token("u")}}, *behind)
    return conversation


def connected(conversations: list[Conversation]) -> int:
    return sum(bool(one.lines) for one in conversations)


async def test_a_lone_connect_is_answered_at_once(stage: Stage) -> None:
    loop = slow_down(stage)
    for _ in range(3):
        conversation = come(stage)
        assert conversation.lines[0]["connect"]["client"]
        assert conversation.outlet.reading
        loop.turn()
        loop.turn()
    assert not loop.soon


async def test_a_crowd_in_one_turn_takes_a_slice_of_each(stage: Stage) -> None:
    loop = slow_down(stage)
    command = json.dumps({"id": 1, "connect": {"token": token("u")}}).encode()
    crowd = [stage.open() for _ in range(10_000)]
    for one in crowd:
        one.client.received(command)
    assert len(stage.node.clients) == AT_ONCE
    assert len(stage.node.lobby) == 10_000 - AT_ONCE
    turns = 0
    while stage.node.lobby:
        before = len(stage.node.clients)
        loop.turn()
        turns += 1
        assert 1 <= len(stage.node.clients) - before <= AT_ONCE
    assert len(stage.node.clients) == 10_000
    assert turns == 10_000 / AT_ONCE - 1


async def test_they_are_let_in_in_order_with_what_came_behind(stage: Stage) -> None:
    loop = slow_down(stage)
    crowd = [come(stage, {"id": 2, "subscribe": {"channel": "news"}}) for _ in range(12)]
    late = crowd[-1]
    assert not late.outlet.reading
    late.say({"id": 3, "publish": {"channel": "news", "data": 1}})
    seen = []
    while stage.node.lobby:
        seen.append(connected(crowd))
        assert [bool(one.lines) for one in crowd] == sorted((bool(one.lines) for one in crowd), reverse=True)
        loop.turn()
    assert seen == [4, 8]
    await late.reply(3)
    assert [line["id"] for line in late.lines if "id" in line] == [1, 2, 3]
    await eventually(lambda: all(one.outlet.reading for one in crowd))


async def test_when_it_is_full_nobody_new_is_let_in(stage: Stage) -> None:
    slow_down(stage, places=3)
    edge = stage.app.edge
    crowd = [come(stage) for _ in range(4 + 2)]
    assert edge.unavailable() is None
    crowd.append(come(stage))
    reason = edge.unavailable()
    assert reason is not None
    assert (reason.result, "limits.connections_waiting" in reason.detail) == ("waiting_room", True)
    crowd += [come(stage) for _ in range(3 * OVERFLOW - 3)]
    assert {one.closed for one in crowd} == {None}
    assert come(stage).closed == (3013, "too many requests: this node's waiting room is full")
    assert stage.node.metrics.connects.labels("waiting_room")._value.get() == 1


async def test_who_leaves_is_not_worked_on(stage: Stage) -> None:
    loop = slow_down(stage)
    crowd = [come(stage) for _ in range(8)]
    assert [one.outlet.reading for one in crowd] == [True] * 4 + [False] * 4
    crowd[5].client.lost()
    crowd[6].say({"id": 2, "publish": {}})
    loop.turn()

    assert [bool(one.lines) for one in crowd] == [True] * 5 + [False, True, True]
    assert len(stage.node.clients) == 7
    assert not stage.node.lobby


async def test_the_deadline_holds_and_is_not_the_clients_fault(stage: Stage) -> None:
    loop = slow_down(stage)
    crowd = [come(stage) for _ in range(6)]
    crowd[5].client.wake(stage.clock() + 11)

    assert crowd[5].closed is not None
    assert crowd[5].closed[0] == 3013  # SDKs come again, as they don't after 3502
    loop.turn()
    assert not crowd[5].lines


async def test_what_is_wrong_at_first_sight_does_not_wait(nats: NatsServer) -> None:
    async with staged(nats, auth={"anonymous": False}) as stage:
        slow_down(stage)
        for _ in range(8):
            come(stage)
        assert stage.node.lobby
        for text, code in (("", 3501), ("x" * 20_000, 3500)):
            conversation = stage.open()
            conversation.say({"id": 1, "connect": {"token": text} if text else {}})
            assert conversation.closed is not None
            assert conversation.closed[0] == code


async def test_a_mistake_of_ours_ends_one_connection(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    loop = slow_down(stage)
    crowd = [come(stage) for _ in range(7)]

    def fail(_: Client) -> None:
        raise RuntimeError("a mistake")

    stage.node.lobby._waiting[crowd[4].client] = lambda: fail(crowd[4].client)
    with caplog.at_level(logging.ERROR):
        loop.turn()

    assert crowd[4].closed == (3004, "internal server error")
    assert "a connect could not be handled" in caplog.text
    assert [bool(one.lines) for one in crowd] == [True] * 4 + [False, True, True]


async def test_no_more_than_so_many_connections_of_one_user(nats: NatsServer) -> None:
    async with staged(nats, limits={"connections_per_user": 2}) as stage:
        first, _ = [await stage.connect(token("anna")) for _ in range(2)]
        refused = stage.open()
        refused.say({"id": 1, "connect": {"token": token("anna")}})
        assert refused.closed == (
            3504,
            "connection limit: limits.connections_per_user: this node takes 2 of one user",
        )
        await stage.connect(token("bob"))
        for _ in range(3):
            await stage.connect()

        first.client.lost()
        await stage.connect(token("anna"))
        assert stage.node.connections_of("anna") == 2
        assert stage.node.metrics.connects.labels("user")._value.get() == 1
