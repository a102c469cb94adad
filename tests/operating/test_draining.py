"""A node that is drained by hand, asked of any node: two of them in this process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from broker.edge.drain import DrainState
from broker.relay import control
from tests.client.conversing import Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually
from tests.operating.asking import ask

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pair(nats: NatsServer) -> AsyncIterator[tuple[Stage, Stage]]:
    prefix = f"t{secrets.token_hex(4)}"
    async with staged(nats, prefix) as one, staged(nats, prefix) as two:
        await eventually(lambda: len(one.node.control.peers) == len(two.node.control.peers) == 1)
        for stage, name in ((one, "one"), (two, "two")):
            stage.node.name = name
            stage.node.control._me = control.Peer(stage.node.uid, name)
            stage.node.control._say_hello()
        await eventually(lambda: [peer.name for peer in one.node.control.peers] == ["two"])
        try:
            yield one, two
        finally:
            for stage in (one, two):
                stage.app.drain.cancel()


def draining(*stages: Stage) -> list[bool]:
    return [stage.node.draining for stage in stages]


@pytest.mark.parametrize("by", ["name", "uid"])
async def test_the_node_that_is_named_drains_and_the_other_does_not(pair: tuple[Stage, Stage], by: str) -> None:
    one, two = pair
    name = two.node.name if by == "name" else two.node.uid
    assert await ask(one, "drain", node=name) == {"node": "two", "draining": True, "connections": 0}
    assert draining(*pair) == [False, True]
    assert "the node is draining" in two.node.reasons_against_readiness()
    # once more changes nothing
    assert (await ask(one, "drain", node=name))["draining"] is True
    assert await ask(one, "drain", node=name, cancel=True) == {"node": "two", "draining": False, "connections": 0}
    assert draining(*pair) == [False, False]
    assert two.node.reasons_against_readiness() == []


@pytest.mark.parametrize("request_", [{}, {"node": ""}, {"node": None}, {"node": "one"}])
async def test_without_a_name_it_is_the_one_that_is_asked(pair: tuple[Stage, Stage], request_: dict[str, str]) -> None:
    answer = await ask(pair[0], "drain", **request_)
    assert answer == {"node": "one", "draining": True, "connections": 0}
    assert draining(*pair) == [True, False]


async def test_to_take_back_what_is_not_there_is_no_mistake(pair: tuple[Stage, Stage]) -> None:
    answer = await ask(pair[0], "drain", node="two", cancel=True)
    assert answer == {"node": "two", "draining": False, "connections": 0}


async def test_a_node_that_is_not_there_is_said_with_those_that_are(pair: tuple[Stage, Stage]) -> None:
    told = await ask(pair[0], "drain", node="three")
    assert told == (107, "bad request: node: 'three' is not there; there are one, two")
    assert draining(*pair) == [False, False]


async def test_a_node_that_does_not_answer_is_not_taken_for_one_that_is_not_there(
    pair: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.2)

    async def never(name: str, arguments: bytes) -> bytes:
        del name, arguments
        await asyncio.sleep(60)
        return b""

    monkeypatch.setattr(two.node.control, "handle", never)
    code, text = await ask(one, "drain", node="two")
    assert (code, text) == (100, "internal server error: node: two has not answered; try again")


async def test_the_node_that_is_asked_drains_without_nats_too(pair: tuple[Stage, Stage]) -> None:
    one, _ = pair
    assert one.node.relaying is not None
    one.node.relaying.cancel()
    await eventually(lambda: not one.node.connection.connected)
    assert (await ask(one, "drain"))["draining"] is True
    assert (await ask(one, "drain", node="two"))[0] == 100
    assert (await ask(one, "drain", cancel=True))["draining"] is False


async def test_what_is_the_nodes_end_can_not_be_taken_back(pair: tuple[Stage, Stage]) -> None:
    one, two = pair
    await two.app.drain.finish()
    assert two.app.drain.state is DrainState.DRAINED
    told = await ask(one, "drain", node="two", cancel=True)
    assert told == (108, "not available: cancel: the node has been told to end; that can't be taken back")
    assert two.node.draining
