"""A node that is told to end lets its clients go a few at a time."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from tests.harness.client import connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.raw import dialled, upgrade
from tests.harness.recorder import Recorder, sdk_client
from tests.harness.site import Site
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

CLIENTS = 40


async def draining(node: BrokerNode) -> None:
    async def says_so() -> bool:
        answer = await node.health()
        return answer.status == 503 and "the node is draining" in answer.json()["reasons"]

    await eventually(says_so)


async def test_clients_are_closed_at_a_steady_rate(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"drain": {"rate_per_second": CLIENTS / 2, "timeout_seconds": 20}})
    ended: list[float] = []
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(node.websocket_url)) for _ in range(CLIENTS)]

        async def watch(number: int) -> tuple[int, str]:
            closed = await clients[number].closed()
            ended.append(time.monotonic())
            return closed

        began = time.monotonic()
        node.terminate()
        closes = await asyncio.gather(*(watch(number) for number in range(CLIENTS)))

    assert set(closes) == {(3001, "shutdown")}
    assert await node.ended() == 0
    # all at once would be within the first tenth; by the rate it is two seconds in all
    assert sum(at - began < 0.3 for at in ended) < CLIENTS / 2
    assert sum(at - ended[0] < 0.6 for at in ended) > CLIENTS / 8
    assert ended[-1] - ended[0] > 0.6


async def test_first_it_is_unready_then_it_takes_nobody_then_it_lets_go(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"drain": {"delay_seconds": 1.5}})
    async with connected(node.websocket_url, topics=("news",)) as client:
        node.terminate()
        await draining(node)
        assert (await node.health("live")).status == 200
        assert await node.metric("broker_draining") == 1
        async with dialled(node.port) as connection:
            await connection.send(upgrade())
            status, headers = await connection.head()
        assert (status, headers["retry-after"]) == (503, "1")
        # those that it has are served as before
        await node.publish("news", "still")
        assert await client.publication("news") == "still"
        assert client.is_open
        assert await client.closed() == (3001, "shutdown")
    assert await node.ended() == 0


async def test_it_can_not_be_taken_back_once_the_node_was_told_to_end(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"drain": {"delay_seconds": 2}})
    async with connected(node.websocket_url) as client:
        assert (await node.api("drain", {})).json()["result"] == {
            "node": node.name,
            "draining": True,
            "connections": 1,
        }
        node.terminate()
        await eventually(lambda: "SIGTERM: draining" in node.log())
        refused = (await node.api("drain", {"cancel": True})).json()["error"]
        assert refused["code"] == 108
        assert await client.closed() == (3001, "shutdown")
    assert await node.ended() == 0


async def test_clients_that_do_not_answer_cannot_hold_it_up(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"drain": {"timeout_seconds": 1}})
    async with connected(node.websocket_url) as client:
        client.websocket.transport.pause_reading()
        node.terminate()

        assert await node.ended(seconds=10) == 0
    assert "1 connections did not end in time" in node.log()


async def test_a_node_without_clients_ends_at_once(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"drain": {"rate_per_second": 1, "timeout_seconds": 600}})
    node.terminate()

    assert await node.ended(seconds=5) == 0


async def test_clients_come_to_the_other_node_and_none_is_lost(site: Site, nats: NatsServer) -> None:
    one, two = site.start_nodes(2, nats, {"drain": {"rate_per_second": 20}})
    async with AsyncExitStack() as stack:
        recorders = [Recorder() for _ in range(10)]
        for recorder in recorders:
            client = await stack.enter_async_context(sdk_client(one.websocket_url, recorder))
            await client.ready()
            client._address = two.websocket_url  # as a balancer would send it elsewhere
        one.terminate()
        await asyncio.gather(*(recorder.at_least(2, "connected") for recorder in recorders))

        assert await two.metric("broker_connections") == 10
        assert {recorder.of("connecting")[1].code for recorder in recorders} == {3001}
    assert await one.ended() == 0
