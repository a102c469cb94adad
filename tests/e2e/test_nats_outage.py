"""NATS goes away in every way that there is, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.harness.client import WireClient, connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.site import Site
from tests.harness.waiting import eventually, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

USERS = {"authorization": {"user": "broker", "password": "a-password-for-nats"}}
OTHER_USERS = {"authorization": {"user": "broker", "password": "another-password-for-nats"}}
SIGNED_IN = {"nats": {"user": "broker", "password": "a-password-for-nats"}}


async def unready(node: BrokerNode) -> None:
    """Wait until the node says that NATS is not there."""

    async def says_so() -> bool:
        answer = await node.health()
        return answer.status == 503 and answer.json()["reasons"] == ["NATS is not connected"]

    await eventually(says_so, seconds=30)
    assert (await node.health("live")).status == 200


@asynccontextmanager
async def a_client_of_two_topics(node: BrokerNode) -> AsyncIterator[WireClient]:
    """A subscriber that is still one, without having done anything, when the block ends."""
    async with connected(node.websocket_url, topics=("news", "sport")) as client:
        yield client
        await node.ready()
        await node.publish("news", "after")
        assert await client.publication("news") == "after"
        await client.call("publish", channel="sport", data="mine")
        assert await client.publication("sport") == "mine"
        assert await node.metric("broker_relay_connected") == 1


async def nothing_can_be_published(node: BrokerNode, client: WireClient) -> None:
    answer = await node.api("publish", {"channel": "news", "data": "lost"})
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == 100
    reply = await client.ask("publish", channel="news", data="lost")
    assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)


async def test_a_node_that_starts_before_nats_waits_for_it(site: Site) -> None:
    server = NatsServer(site.directory, free_port())
    node = site.add_node(server)
    node.start()
    await unready(node)
    assert (await node.health("startup")).status == 503
    async with connected(node.websocket_url) as client:
        reply = await client.ask("subscribe", channel="news")
        assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)
        await nothing_can_be_published(node, client)
        site.start(server)
        await node.ready()

        assert (await node.health("startup")).status == 200
        await client.call("subscribe", channel="news")
        await node.publish("news", "first")
        assert await client.publication("news") == "first"


async def test_a_server_that_is_killed_and_restarted(site: Site) -> None:
    server = site.start_nats()
    node = site.start_node(server)
    async with a_client_of_two_topics(node) as client:
        server.kill()
        await unready(node)
        await nothing_can_be_published(node, client)
        code, _ = await client.refused("subscribe", channel="new")
        assert code == 100
        assert await node.metric("broker_relay_connected") == 0
        assert (await node.health("startup")).status == 200
        server.start()
    assert await node.metric('broker_published_total{policy="default",result="unavailable"') == 2


async def test_two_nodes_find_each_other_again(site: Site) -> None:
    server = site.start_nats()
    one, two = site.start_nodes(2, server)
    async with a_client_of_two_topics(one) as client:
        server.kill()
        await unready(one)
        await unready(two)
        server.start()
        await one.ready()
        await two.ready()
        await two.publish("news", "from the other")
        assert await client.publication("news") == "from the other"

        async def both() -> bool:
            return len((await two.api("info", {})).json()["result"]["nodes"]) == 2

        await eventually(both)


async def test_a_server_that_stops_answering_and_goes_on(site: Site) -> None:
    server = site.start_nats()
    node = site.start_node(server)
    async with a_client_of_two_topics(node) as client:
        server.pause()
        # at first nobody can know; what is published now is answered when the silence has lasted too long
        in_doubt = asyncio.create_task(node.api("publish", {"channel": "elsewhere", "data": "in doubt"}))
        await unready(node)
        assert (await in_doubt).status == 503
        await nothing_can_be_published(node, client)
        server.resume()


async def test_a_server_that_pauses_for_a_moment_costs_nothing(site: Site) -> None:
    server = site.start_nats()
    node = site.start_node(server)
    async with a_client_of_two_topics(node) as client:
        server.pause()
        waiting = [asyncio.create_task(node.publish("news", number)) for number in range(3)]
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
        server.resume()
        await asyncio.gather(*waiting)

        assert sorted([await client.publication("news") for _ in waiting]) == [0, 1, 2]
        assert "lost the connection" not in node.log()


async def test_a_server_that_throws_the_node_out(site: Site) -> None:
    server = site.start_nats(USERS)
    node = site.start_node(server, SIGNED_IN)
    async with a_client_of_two_topics(node) as client:
        # -ERR 'Authorization Violation': nats-py closes its client for good after it
        server.configure(OTHER_USERS)
        server.reload()
        await unready(node)
        await nothing_can_be_published(node, client)
        server.configure(USERS)
        server.reload()
    assert "Authorization Violation" in node.log()


async def test_a_server_that_has_no_room_for_the_node(site: Site) -> None:
    server = site.start_nats({"max_connections": 1})
    first = site.start_node(server)
    second = site.add_node(server)
    second.start()
    await unready(second)
    assert await first.stopped() == 0
    await second.ready()


def connections(node: BrokerNode, server: NatsServer) -> int:
    """How often the node has connected to the server."""
    return node.log().count(f"connected to NATS at {server.url}")


async def test_another_server_takes_the_place_of_one_that_is_gone(site: Site) -> None:
    one, other = site.start_nats(), site.start_nats()
    node = site.start_node(f"{one.url},{other.url}")
    async with a_client_of_two_topics(node):
        for gone, there in ((one, other), (other, one)):
            before = connections(node, there)
            gone.kill()
            # soon: a refused connection is nothing to wait for
            await eventually(lambda there=there, before=before: connections(node, there) > before, seconds=4)  # type: ignore[misc]
            gone.start()
            gone.wait_ready()


async def test_a_node_ends_cleanly_while_nats_is_away(site: Site) -> None:
    server = site.start_nats()
    node = site.start_node(server)
    async with connected(node.websocket_url, topics=("news",)) as client:
        server.kill()
        await unready(node)
        node.terminate()

        assert (await client.closed())[0] == 3001
    assert await node.ended() == 0
