"""Whatever dies, stops or loses its memory: what was acknowledged reaches every subscriber once, in order, or they are
told. Three NATS servers, two nodes with subscribers, and a publisher that goes on all the time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.javascript import javascript_subscriber
from tests.harness.accounting import Accounting, Receipt, SubscriberLog
from tests.harness.client import connected
from tests.harness.cluster import SIZE, ClusterServer, NatsCluster
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.publisher import Publisher
from tests.harness.site import Site
from tests.harness.streams import SECOND, Streams, stream_config, stream_name, streams_at
from tests.harness.subscriber import sdk_subscriber, subscriber
from tests.harness.traffic import FAULT_SECONDS, TOPIC, Traffic, durable, durable_settings, traffic
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SETTINGS = durable_settings(replicas=SIZE)
START_SECONDS = 60.0
"""Enough for ten nodes at once on a slow machine."""


@pytest.fixture
def nodes(site: Site, cluster: NatsCluster) -> list[BrokerNode]:
    return site.start_nodes(2, cluster.url, SETTINGS)


@pytest.fixture
def stream(site: Site) -> str:
    return stream_name(site.prefix, "chat")


async def server_of(cluster: NatsCluster, node: BrokerNode) -> ClusterServer:
    return await cluster.server_of(f"broker {await asyncio.to_thread(lambda: node.name)}")


async def restarted(cluster: NatsCluster, server: ClusterServer, stream: str) -> None:
    server.start()
    await cluster.ready()
    await cluster.current(stream)


async def test_the_stream_is_made_as_it_was_agreed(
    cluster: NatsCluster, nodes: list[BrokerNode], site: Site, stream: str
) -> None:
    expected = stream_config(
        site.prefix, "chat", replicas=SIZE, max_msgs_per_subject=20_001, max_age=3600 * SECOND, allow_rollup_hdrs=False
    )
    async with cluster.streams() as streams:
        config = (await streams.info(stream))["config"]

    assert {name: config[name] for name in expected} == expected


# NATS servers die


async def test_the_streams_leader_is_killed(cluster: NatsCluster, nodes: list[BrokerNode], stream: str) -> None:
    async with traffic(nodes) as running:
        leader = await cluster.leader_of(stream)
        leader.kill()
        assert await cluster.leader_of(stream) is not leader
        await running.goes_on()
        await restarted(cluster, leader, stream)


async def test_a_follower_is_killed(cluster: NatsCluster, nodes: list[BrokerNode], stream: str) -> None:
    async with traffic(nodes) as running:
        follower, _ = await cluster.followers_of(stream)
        follower.kill()
        await running.goes_on()
        await restarted(cluster, follower, stream)


async def test_the_server_that_a_node_uses_is_killed(
    cluster: NatsCluster, nodes: list[BrokerNode], stream: str
) -> None:
    async with traffic(nodes) as running:
        server = await server_of(cluster, nodes[0])
        server.kill()
        assert await server_of(cluster, nodes[0]) is not server
        await running.goes_on()
        await restarted(cluster, server, stream)


@pytest.mark.slow
async def test_all_three_servers_are_killed_in_turn(cluster: NatsCluster, nodes: list[BrokerNode], stream: str) -> None:
    async with traffic(nodes) as running:
        for server in cluster.servers:
            server.kill()
            await running.goes_on()
            await restarted(cluster, server, stream)


async def test_all_three_servers_are_killed_at_once(cluster: NatsCluster, nodes: list[BrokerNode], stream: str) -> None:
    async with traffic(nodes) as running:
        for server in cluster.servers:
            server.kill()
        await eventually(lambda: unready(nodes), FAULT_SECONDS)
        await cluster.healed()
        await cluster.current(stream)
        await running.goes_on()


async def unready(nodes: list[BrokerNode]) -> bool:
    return [(await node.health()).status for node in nodes] == [503] * len(nodes)


# NATS servers stop for a while, with all connections open


@pytest.mark.slow
@pytest.mark.parametrize("which", ["leader", "the node's"])
async def test_a_server_stops_for_longer_than_pings_wait(
    cluster: NatsCluster, nodes: list[BrokerNode], stream: str, which: str
) -> None:
    async with traffic(nodes) as running:
        used = await server_of(cluster, nodes[0])
        server = await cluster.leader_of(stream) if which == "leader" else used
        server.pause()
        assert await cluster.leader_of(stream) is not server
        assert await server_of(cluster, nodes[0]) is not server
        assert await server_of(cluster, nodes[1]) is not server
        await running.goes_on()
        server.resume()
        await cluster.current(stream)


async def test_a_server_stops_for_a_moment(cluster: NatsCluster, nodes: list[BrokerNode], stream: str) -> None:
    async with traffic(nodes) as running:
        server = await server_of(cluster, nodes[0])
        server.pause()
        await asyncio.sleep(1)  # much less than the five seconds after which it is given up
        server.resume()
        await running.goes_on()
        await cluster.current(stream)


# messages are lost on the live path only


async def test_messages_that_do_not_come_live_are_filled_in_before_the_next_one(site: Site, nats: NatsServer) -> None:
    nodes = site.start_nodes(2, nats, durable_settings())
    async with streams_at(nats.url) as streams, traffic(nodes) as running:
        for number in range(3):
            await loses(running.accounting, streams, site, f"lost {number}")
            await running.goes_on(5)
        assert running.accounting.delivered([f"lost {number}" for number in range(3)])
    assert all([await node.metric("broker_relay_gaps_total") > 0 for node in nodes])


async def test_a_message_that_does_not_come_live_is_found_though_nothing_follows(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, durable_settings())
    accounting = Accounting(TOPIC)
    async with (
        streams_at(nats.url) as streams,
        subscriber(accounting.log("ann"), TOPIC, [node]),
        Publisher(accounting, [node]) as publisher,
    ):
        await eventually(lambda: len(accounting.receipts) > 10)
        await publisher.stop()
        # no later message will tell that it is missing: it must be looked for
        await loses(accounting, streams, site, "the last one")
        await accounting.settled(FAULT_SECONDS)
    accounting.check_that_nothing_was_excused()


async def loses(accounting: Accounting, streams: Streams, site: Site, ident: str) -> None:
    """Store a message that no node gets to see; and all others that are stored in this moment."""
    epoch = next(iter(accounting.receipts.values())).epoch
    accounting.sends(ident)
    payload = json.dumps({"id": ident}).encode()
    subject = f"{site.prefix}.chat.in.{TOPIC}"
    stored = await streams.store_unseen(stream_name(site.prefix, "chat"), subject, payload)
    accounting.acks(ident, stored.sequence, epoch)


# nodes die, stop and start


async def test_a_node_is_killed(cluster: NatsCluster, nodes: list[BrokerNode]) -> None:
    async with traffic(nodes) as running:
        nodes[0].kill()
        await running.goes_on()
        nodes[0].start()
        await nodes[0].ready()
        await running.goes_on()
    assert [log.recoveries for log in running.accounting.logs] == [[True]] * 3 + [[]] * 3


async def test_a_node_drains_and_starts_again(cluster: NatsCluster, nodes: list[BrokerNode]) -> None:
    async with traffic(nodes) as running:
        assert await nodes[0].stopped() == 0
        await running.goes_on()
        nodes[0].start()
        await nodes[0].ready()
        await running.goes_on()
    assert [log.recoveries for log in running.accounting.logs] == [[True]] * 3 + [[]] * 3


async def test_every_node_is_killed_at_once(cluster: NatsCluster, nodes: list[BrokerNode]) -> None:
    async with traffic(nodes) as running:
        for node in nodes:
            node.kill()
        for node in nodes:
            node.start()
        for node in nodes:
            await node.ready()
        await running.goes_on()
    assert all(log.recoveries and all(log.recoveries) for log in running.accounting.logs)


@pytest.mark.slow
async def test_a_node_stops_until_nats_throws_it_out(site: Site) -> None:
    store = str(site.directory / "store")
    # the server has little patience, and little room for those who do not read
    server = site.start_nats({"jetstream": {"store_dir": store}, "max_pending": 1_048_576, "write_deadline": "1s"})
    settings = durable_settings(limits={"queue_bytes": 67_108_864})
    stopped, other = site.start_nodes(2, server, settings)
    # what a client is sent when the node goes on may be more than it is allowed to have waiting: it is told then
    async with traffic([stopped, other], publish_to=[other], padding=20_000, excuses=True) as running:
        stopped.pause()
        await eventually(lambda: "Slow Consumer" in server.log(), FAULT_SECONDS)
        seen = len(running.accounting.published)
        await eventually(lambda: len(running.accounting.published) > seen + 100, FAULT_SECONDS)
        stopped.resume()
        await running.goes_on()
    assert "lost the connection to NATS" in stopped.log()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"history_messages": 20_000, "history_seconds": 3600}, {"history_messages": 30_000, "history_seconds": 7200}),
        ({"history_messages": 20_000, "history_seconds": 3600}, {"history_messages": 5000, "history_seconds": 600}),
    ],
    ids=["longer", "shorter"],
)
async def test_nodes_restart_with_another_history_and_the_stream_is_changed_in_place(
    cluster: NatsCluster, site: Site, stream: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    nodes = site.start_nodes(2, cluster.url, durable_settings(replicas=SIZE, **before))
    async with cluster.streams() as streams:
        async with traffic(nodes) as running:
            created = (await streams.info(stream))["created"]
            for node in nodes:
                await node.stopped()
                node.reconfigure({"topics": [durable(**after)]})
                node.start()
                await node.ready()
                await running.goes_on()
        info = await streams.info(stream)

    assert info["created"] == created
    assert len({receipt.epoch for receipt in running.accounting.receipts.values()}) == 1
    config = info["config"]
    assert config["max_msgs_per_subject"] == after["history_messages"] + 1
    assert config["max_age"] == after["history_seconds"] * SECOND


def complaints(node: BrokerNode, stream: str) -> list[str]:
    """What a node says last of a stream; before that it may say that it tries again."""
    said = [line for line in node.log().splitlines() if " ERROR " in line or " CRITICAL " in line]
    assert all(stream in line for line in said), node.log()
    return said


async def test_a_node_ends_where_its_stream_would_need_more_servers_than_there_are(
    cluster: NatsCluster, site: Site, stream: str
) -> None:
    node = site.add_node(cluster.url, durable_settings(replicas=5))
    node.start()

    assert await node.ended(FAULT_SECONDS) == 1
    assert len(complaints(node, stream)) == 1, node.log()
    async with cluster.streams() as streams:
        assert await streams.names(f"{site.prefix}.chat.in.>") == []


async def test_a_node_ends_where_a_stream_cannot_be_changed_and_leaves_it_alone(
    cluster: NatsCluster, site: Site, stream: str
) -> None:
    async with cluster.streams() as streams:
        await streams.create(stream_config(site.prefix, "chat", replicas=SIZE, storage="memory"))
        await streams.store(f"{site.prefix}.chat.in.{TOPIC}", b'"kept"')
        before = await streams.info(stream)
        node = site.add_node(cluster.url, SETTINGS)
        node.start()

        assert await node.ended(FAULT_SECONDS) == 1
        assert len(complaints(node, stream)) == 1, node.log()
        after = await streams.info(stream)
    assert (after["config"], after["created"]) == (before["config"], before["created"])
    assert after["state"]["messages"] == 1


async def test_a_running_cluster_is_not_disturbed_by_a_node_with_impossible_settings(
    cluster: NatsCluster, nodes: list[BrokerNode], site: Site, stream: str
) -> None:
    async with cluster.streams() as streams, traffic(nodes) as running:
        before = (await streams.info(stream))["config"]
        node = site.add_node(cluster.url, durable_settings(replicas=5))
        node.start()
        assert await node.ended(FAULT_SECONDS) == 1
        assert len(complaints(node, stream)) == 1, node.log()
        await running.goes_on()
        assert (await streams.info(stream))["config"] == before


@pytest.mark.slow
async def test_ten_nodes_start_at_once_where_nothing_is_yet(cluster: NatsCluster, site: Site, stream: str) -> None:
    nodes = [site.add_node(cluster.url, SETTINGS) for _ in range(10)]
    for node in nodes:
        node.start()

    async def all_ready() -> bool:
        return [(await node.health()).status for node in nodes] == [200] * len(nodes)

    await eventually(all_ready, START_SECONDS)
    async with cluster.streams() as streams:
        assert await streams.names(f"{site.prefix}.chat.in.>") == [stream]
    async with traffic(nodes, subscribers=1, rate=30):
        pass


# the SDKs' own recovery


async def test_the_python_sdk_recovers_at_another_node(
    cluster: NatsCluster, nodes: list[BrokerNode], site: Site, program: Callable[[str], str]
) -> None:
    program("haproxy")
    proxy = site.start_haproxy(nodes)
    async with traffic(nodes) as running:
        logs = [running.accounting.log(f"Python SDK {number + 1}") for number in range(4)]
        for log in logs:
            await running.joined_by(sdk_subscriber(log, TOPIC, proxy.websocket_url))
        await a_node_is_killed_and_comes_back(nodes, running, logs)
    assert sorted(log.recoveries for log in logs) == [[], [], [True], [True]]


async def test_the_javascript_sdk_recovers_at_another_node(
    cluster: NatsCluster, nodes: list[BrokerNode], site: Site, program: Callable[[str], str], javascript: Path
) -> None:
    program("haproxy")
    proxy = site.start_haproxy(nodes)
    async with traffic(nodes) as running:
        logs = [running.accounting.log(f"JavaScript SDK {number + 1}") for number in range(2)]
        for log in logs:
            await running.joined_by(javascript_subscriber(javascript, log, TOPIC, proxy.websocket_url))
        await a_node_is_killed_and_comes_back(nodes, running, logs)
    assert sorted(log.recoveries for log in logs) == [[], [True]]


async def a_node_is_killed_and_comes_back(nodes: list[BrokerNode], running: Traffic, logs: list[SubscriberLog]) -> None:
    nodes[0].kill()
    await eventually(lambda: any(log.recoveries for log in logs), FAULT_SECONDS)
    await running.goes_on()
    nodes[0].start()
    await nodes[0].ready()
    await running.goes_on()


async def test_the_sdks_recover_at_the_same_node_when_it_is_there_again(
    site: Site, nats: NatsServer, javascript: Path
) -> None:
    # a node that has just started knows nothing: all that it gives them it must have read
    node, other = site.start_nodes(2, nats, durable_settings())
    async with traffic([other]) as running:
        logs = [running.accounting.log(name) for name in ("Python SDK", "JavaScript SDK")]
        await running.joined_by(sdk_subscriber(logs[0], TOPIC, node.websocket_url))
        await running.joined_by(javascript_subscriber(javascript, logs[1], TOPIC, node.websocket_url))
        node.kill()
        begin = len(running.accounting.receipts)
        await eventually(lambda: len(running.accounting.receipts) > begin + 50)
        node.start()
        await eventually(lambda: all(log.recoveries for log in logs), FAULT_SECONDS)
    assert [log.recoveries for log in logs] == [[True], [True]]


# what is no longer kept


async def came_back(node: BrokerNode, topic: str, position: Receipt) -> dict[str, Any]:
    """What somebody is told who comes back from this position."""
    async with connected(node.websocket_url) as client:
        result: dict[str, Any] = await client.call(
            "subscribe", channel=topic, recover=True, offset=position.offset, epoch=position.epoch
        )
        return result


async def test_who_was_away_for_as_many_messages_as_are_kept_gets_them_all(site: Site, nats: NatsServer) -> None:
    one, other = site.start_nodes(2, nats, durable_settings(history_messages=10))
    seen = await one.store(TOPIC, "seen")
    missed = [await one.store(TOPIC, number) for number in range(10)]

    for node in (one, other):
        result = await came_back(node, TOPIC, seen)
        assert (result["recovered"], result["was_recovering"]) == (True, True)
        assert [pub["data"] for pub in result["publications"]] == list(range(10))
        assert [pub["offset"] for pub in result["publications"]] == [receipt.offset for receipt in missed]
        assert (result["offset"], result["epoch"]) == (seen.offset, seen.epoch)


async def test_who_was_away_for_more_messages_than_are_kept_is_told(site: Site, nats: NatsServer) -> None:
    one, other = site.start_nodes(2, nats, durable_settings(history_messages=10))
    seen = await one.store(TOPIC, "seen")
    missed = [await one.store(TOPIC, number) for number in range(12)]

    for node in (one, other):
        result = await came_back(node, TOPIC, seen)
        assert (result.get("recovered", False), result["was_recovering"]) == (False, True)
        assert not result.get("publications")
        assert (result["offset"], result["epoch"]) == (missed[-1].offset, seen.epoch)


async def test_who_was_away_for_longer_than_messages_are_kept_is_told(site: Site, nats: NatsServer) -> None:
    one, other = site.start_nodes(2, nats, durable_settings(history_seconds=2))
    seen = await one.store(TOPIC, "seen")
    missed = [await one.store(TOPIC, number) for number in range(3)]
    async with streams_at(nats.url) as streams:

        async def nothing_is_kept() -> bool:
            return not (await streams.info(stream_name(site.prefix, "chat")))["state"]["messages"]

        await eventually(nothing_is_kept)

    for node in (one, other):
        result = await came_back(node, TOPIC, seen)
        assert (result.get("recovered", False), result["was_recovering"]) == (False, True)
        assert not result.get("publications")
        assert (result["offset"], result["epoch"]) == (missed[-1].offset, seen.epoch)
    async with connected(other.websocket_url, topics=(TOPIC,)) as client:
        after = await one.store(TOPIC, "after")
        pub = (await client.push())["pub"]
        assert (pub["data"], pub["offset"]) == ("after", after.offset)


async def test_who_asks_for_it_is_told_by_error_112(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, durable_settings(history_messages=10))
    seen = await node.store(TOPIC, "seen")
    for number in range(12):
        await node.store(TOPIC, number)
    async with connected(node.websocket_url) as client:
        position = {"recover": True, "offset": seen.offset, "epoch": seen.epoch}
        code, _ = await client.refused("subscribe", channel=TOPIC, flag=2, **position)
        assert code == 112
        result = await client.call("subscribe", channel=TOPIC)
        await node.store(TOPIC, "after")
        assert await client.publication(TOPIC) == "after"
    assert result["offset"] > seen.offset


async def test_a_stream_that_was_made_anew_has_another_epoch(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, durable_settings())
    seen = await node.store(TOPIC, "seen")
    await node.stopped()
    async with streams_at(nats.url) as streams:
        await streams.delete(stream_name(site.prefix, "chat"))
    node.start()
    await node.ready()

    result = await came_back(node, TOPIC, seen)
    assert not result.get("recovered")
    assert result["epoch"] != seen.epoch
    assert (await node.store(TOPIC, "first")).epoch == result["epoch"]
