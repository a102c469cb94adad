"""What does not keep up, put together from two nodes in this process."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from broker.core.pressure import SlowConnection, SlowTopic
from broker.operating.slow import SlowHere, SlowSource
from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.tokens import token
from tests.harness.waiting import eventually
from tests.operating.asking import ask

pytestmark = pytest.mark.anyio


def slow(
    conversation: Conversation, size: int = 0, messages: int = 0, lag: float = 0.0, dropped: int = 0
) -> SlowConnection:
    return SlowConnection(conversation.outlet, size, messages, lag, dropped)


def told(stage: Stage, connections: list[SlowConnection], topics: list[SlowTopic]) -> None:
    """What the node says of itself from now on."""
    SlowHere(stage.node, SlowSource(slow_connections=lambda: connections, slow_topics=lambda: topics))


async def test_nothing_is_slow_where_everything_keeps_up(nats: NatsServer) -> None:
    nothing: dict[str, list[Any]] = {"by_queued_bytes": [], "by_lag": [], "by_drops": []}
    async with staged(nats) as stage:
        assert await ask(stage, "slow") == {"connections": nothing, "topics": nothing}


async def test_the_worst_of_all_nodes_come_first_by_each_measure(nats: NatsServer) -> None:
    prefix = f"t{secrets.token_hex(4)}"
    async with staged(nats, prefix) as one, staged(nats, prefix) as two:
        await eventually(lambda: len(one.node.control.peers) == 1)
        one.node.name, two.node.name = "one", "two"
        ann, ben, eve = (
            await one.connect(token("ann")),
            await two.connect(token("ben")),
            await two.connect(token("eve")),
        )
        silent = one.open()
        told(
            one,
            [slow(ann, 500, 5, 1.0, 0), slow(silent, 900, 9, 9.0, 9)],
            [SlowTopic("a", "p", 10, 1, 2.5, 0), SlowTopic("b", "p", 15, 1, 0.5, 1)],
        )
        told(
            two,
            [slow(ben, 100, 1, 3.0001, 7), slow(eve, 700, 7, 2.0, 2)],
            [SlowTopic("a", "p", 20, 2, 1.5, 4)],
        )
        answer = await ask(one, "slow")
        users = {name: [entry["user"] for entry in some] for name, some in answer["connections"].items()}
        # not the one that has not said who it is
        assert users == {
            "by_queued_bytes": ["eve", "ann", "ben"],
            "by_lag": ["ben", "eve", "ann"],
            "by_drops": ["ben", "eve"],
        }
        assert answer["connections"]["by_lag"][0] == {
            "client": ben.client.id,
            "user": "ben",
            "node": "two",
            "address": "192.0.2.7",
            "queued_bytes": 100,
            "queued_messages": 1,
            "lag_seconds": 3.0,
            "dropped": 7,
        }
        # a topic is what it is on all nodes together
        a = {"topic": "a", "policy": "p", "queued_bytes": 30, "slow": 3, "lag_seconds": 2.5, "dropped": 4}
        b = {"topic": "b", "policy": "p", "queued_bytes": 15, "slow": 1, "lag_seconds": 0.5, "dropped": 1}
        assert answer["topics"] == {"by_queued_bytes": [a, b], "by_lag": [a, b], "by_drops": [a, b]}

        few = await ask(two, "slow", limit=1)
        assert [entry["user"] for entry in few["connections"]["by_queued_bytes"]] == ["eve"]
        assert [entry["topic"] for entry in few["topics"]["by_queued_bytes"]] == ["a"]


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_the_limit_is_bounded(nats: NatsServer, limit: int) -> None:
    async with staged(nats) as stage:
        assert await ask(stage, "slow", limit=limit) == (107, "bad request: limit: must be from 1 to 1000")
