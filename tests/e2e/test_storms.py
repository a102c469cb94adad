"""All clients at once: they come in at the node's rate, and those who are in notice nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations

import pytest

from loadtest.crowd import Crowd, commands_of, raise_file_limit
from tests.harness.client import WireClient, connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.site import Site
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.anyio]

LIVING = 5
SECONDS = 90.0
"""For what takes ten on a machine that has nothing else to do."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def many_files() -> None:
    raise_file_limit()


@asynccontextmanager
async def living(node: BrokerNode) -> AsyncIterator[None]:
    """Subscribers, and publications while the block runs, all of which they must get, in order."""
    async with AsyncExitStack() as stack:
        clients: list[WireClient] = [
            await stack.enter_async_context(connected(node.websocket_url, topics=("living",))) for _ in range(LIVING)
        ]
        published = 0

        async def publish() -> None:
            nonlocal published
            while True:
                await node.publish("living", published)
                published += 1
                await asyncio.sleep(0.05)

        publishing = asyncio.create_task(publish())
        try:
            yield
        finally:
            publishing.cancel()
            failure = (await asyncio.gather(publishing, return_exceptions=True))[0]
        assert isinstance(failure, asyncio.CancelledError), failure
        await node.publish("living", "end")
        for client in clients:
            got: list[object] = []
            while not got or got[-1] != "end":
                got.append(await client.publication("living"))
            # the last one may have been cancelled on its way
            assert got[:-1] in ([*range(published)], [*range(published + 1)])
        assert published > 0


@dataclass
class Counts:
    """What the node said of how many it has let in: not before, and not after, and how many."""

    seen: list[tuple[float, float, float]] = field(default_factory=list)

    async def run(self, node: BrokerNode) -> None:
        while True:
            before = time.monotonic()
            count = await node.metric('broker_connects_total{result="ok"')
            self.seen.append((before, time.monotonic(), count))
            await asyncio.sleep(0.02)

    def check(self, rate: float) -> None:
        """However long the answers took: in the longest time that can lie between two of them no more came in than in a
        tenth of a second more than that.
        """
        for (before, _, fewer), (_, after, more) in combinations(self.seen, 2):
            # a fiftieth of a second for what lies between the door and the count
            assert more - fewer <= rate * (after - before + 0.1 + 0.02) + 1


@asynccontextmanager
async def counted(node: BrokerNode) -> AsyncIterator[Counts]:
    counts = Counts()
    counting = asyncio.create_task(counts.run(node))
    yield counts
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)


async def test_two_thousand_at_once_come_in_at_four_hundred_a_second(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"limits": {"connections_per_second": 400}})
    async with living(node), counted(node) as counts:
        async with Crowd(2000, [("127.0.0.1", node.port)], eager=True) as crowd:
            await eventually(lambda: len(crowd) == 2000, seconds=SECONDS)
            assert crowd.lost == 0
        counts.check(400)
        assert len(counts.seen) > 10
        refused = await node.metric('broker_connects_total{result="rate"')
        assert refused > 0
        assert await node.metric("broker_overloaded") == 0
    await eventually_nobody(node)


async def eventually_nobody(node: BrokerNode) -> None:
    async def nobody() -> bool:
        return await node.metric("broker_connections") == 0

    await eventually(nobody)


async def test_a_thousand_clients_stay_while_nats_is_killed_and_started_again(site: Site) -> None:
    server = site.start_nats()
    node = site.start_node(server)
    async with Crowd(1000, [("127.0.0.1", node.port)], commands_of("news")) as crowd:
        await eventually(lambda: len(crowd) == 1000, seconds=SECONDS)
        for _ in range(2):
            server.kill()

            async def unready() -> bool:
                return (await node.health()).status == 503

            await eventually(unready, seconds=30)
            assert (await node.api("publish", {"channel": "news", "data": 1})).status == 503
            server.start()
            server.wait_ready()
            await node.ready()
            before = await node.metric("broker_delivered_total")
            await node.publish("news", "after")

            async def all_have_it(before: float = before) -> bool:
                return await node.metric("broker_delivered_total") == before + 1000

            await eventually(all_have_it)
        assert (len(crowd), crowd.lost) == (1000, 0)


async def test_all_of_a_node_that_dies_come_to_the_other_at_its_rate(site: Site, nats: NatsServer) -> None:
    rate = 300
    one, two = site.start_nodes(2, nats, {"limits": {"connections_per_second": rate}})
    nodes = [("127.0.0.1", node.port) for node in (one, two)]
    async with Crowd(1000, nodes[:1], eager=True) as crowd:
        await eventually(lambda: len(crowd) == 1000, seconds=SECONDS)
        crowd.nodes = nodes[1:]
        async with living(two), counted(two) as counts:
            one.kill()
            await eventually(lambda: crowd.lost == 1000)
            await eventually(lambda: len(crowd) == 1000, seconds=SECONDS)
            counts.check(rate)
            assert await two.metric("broker_connections") == 1000 + LIVING
        assert crowd.lost == 1000
