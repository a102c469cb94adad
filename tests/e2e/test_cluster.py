"""Two nodes behind HAProxy, with a NATS server between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.javascript import javascript_client
from tests.harness.client import WireClient, connected
from tests.harness.haproxy import HAProxy
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.recorder import Recorder, sdk_client, subscribed
from tests.harness.site import Site
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

MESSAGES = 300
PUBLISHERS = 4


@pytest.fixture
def nodes(site: Site, nats: NatsServer, program: Callable[[str], str]) -> list[BrokerNode]:
    program("haproxy")
    return site.start_nodes(2, nats)


@pytest.fixture
def proxy(site: Site, nodes: list[BrokerNode]) -> HAProxy:
    return site.start_haproxy(nodes)


@asynccontextmanager
async def clients_of(url: str, count: int, *topics: str) -> AsyncIterator[list[WireClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(url, topics=topics)) for _ in range(count)]


async def connections(nodes: list[BrokerNode]) -> list[float]:
    return [await node.metric("broker_connections") for node in nodes]


def assert_one_order_for_each_node(clients: list[WireClient], received: list[list[Any]]) -> None:
    """All clients of a node hear the same. Between nodes, NATS keeps the order of each publisher, not that of all."""
    orders: dict[str, list[Any]] = {}
    for client, heard in zip(clients, received, strict=True):
        assert heard == orders.setdefault(client.lines[0]["connect"]["node"], heard)
    assert len(orders) == 2


async def test_connections_are_spread_over_the_nodes(nodes: list[BrokerNode], proxy: HAProxy) -> None:
    async with clients_of(proxy.websocket_url, 20):
        assert await connections(nodes) == [10, 10]


async def test_every_subscriber_on_every_node_gets_each_publishers_messages_in_order(
    nodes: list[BrokerNode], proxy: HAProxy
) -> None:
    async def publish(publisher: int) -> None:
        node = nodes[publisher % 2]
        for number in range(MESSAGES):
            await node.publish("numbers", [publisher, number])

    async with clients_of(proxy.websocket_url, 6, "numbers") as clients:
        assert await connections(nodes) == [3, 3]
        await asyncio.gather(*(publish(publisher) for publisher in range(PUBLISHERS)))
        received = [[await client.publication("numbers") for _ in range(PUBLISHERS * MESSAGES)] for client in clients]

    for heard in received:
        for publisher in range(PUBLISHERS):
            assert [number for who, number in heard if who == publisher] == list(range(MESSAGES))
    assert_one_order_for_each_node(clients, received)


async def test_what_clients_of_both_nodes_publish_stays_in_order(nodes: list[BrokerNode], proxy: HAProxy) -> None:
    async with clients_of(proxy.websocket_url, 4, "chat") as clients:
        for client in clients:
            lines = [{"id": 100 + number, "publish": {"channel": "chat", "data": number}} for number in range(50)]
            await client.send(*lines)
        received = [[(await client.push())["pub"] for _ in range(200)] for client in clients]

    for heard in received:
        for who in {pub["info"]["client"] for pub in heard}:
            assert [pub["data"] for pub in heard if pub["info"]["client"] == who] == list(range(50))
    assert_one_order_for_each_node(clients, received)


async def test_clients_of_a_killed_node_go_on_at_the_other(nodes: list[BrokerNode], proxy: HAProxy) -> None:
    async with AsyncExitStack() as stack:
        recorders = [Recorder() for _ in range(10)]
        news: list[Recorder] = []
        for recorder in recorders:
            client = await stack.enter_async_context(sdk_client(proxy.websocket_url, recorder))
            news.append(await subscribed(client, "news"))
        assert await connections(nodes) == [5, 5]
        nodes[0].kill()

        async def all_at_the_other() -> bool:
            return await nodes[1].metric("broker_connections") == 10

        await eventually(all_at_the_other)
        await asyncio.gather(
            *(
                one.at_least(len(recorder.of("connected")), "subscribed")
                for one, recorder in zip(news, recorders, strict=True)
            )
        )
        await nodes[1].publish("news", "we go on")
        await asyncio.gather(*(one.first("publication") for one in news))

    assert [one.data for one in news] == [["we go on"]] * 10
    assert sum(len(recorder.of("connected")) == 2 for recorder in recorders) == 5


async def test_javascript_clients_of_a_killed_node_go_on_at_the_other(
    nodes: list[BrokerNode], proxy: HAProxy, javascript: Path
) -> None:
    async with javascript_client(javascript, proxy.websocket_url) as client:
        await client.subscribe("news")
        there = [node for node in nodes if await node.metric("broker_connections")]
        (other,) = [node for node in nodes if node not in there]
        there[0].kill()
        await client.at_least(2, "subscribed")
        await other.publish("news", "we go on")

        assert (await client.first("publication"))["data"] == "we go on"


async def test_no_publication_is_missed_while_the_other_node_drains(nodes: list[BrokerNode], proxy: HAProxy) -> None:
    async with connected(nodes[1].websocket_url, topics=("news",)) as client:
        nodes[0].terminate()
        for number in range(100):
            await nodes[1].publish("news", number)
        assert [await client.publication("news") for _ in range(100)] == list(range(100))
        assert await nodes[0].ended() == 0

        async def balanced_away() -> bool:
            async with connected(proxy.websocket_url):
                return await nodes[1].metric("broker_connections") == 2

        await eventually(balanced_away)
