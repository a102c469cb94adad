"""The harness's own cluster: what it says of a stream is true, whatever happens to the servers."""

from __future__ import annotations

import pytest

from tests.harness.cluster import SIZE, NatsCluster
from tests.harness.site import Site
from tests.harness.streams import StreamError, Streams, stream_config, streams_at
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


async def a_stream(streams: Streams, site: Site) -> tuple[str, str]:
    """A stream of three replicas; its name, and a subject of it."""
    config = stream_config(site.prefix, "chat", replicas=SIZE)
    await streams.create(config)
    return config["name"], f"{site.prefix}.chat.in.room"


async def store(streams: Streams, subject: str, payload: str) -> int:
    """Store a message, which may need a new leader first."""

    async def stored() -> int:
        return (await streams.store(subject, payload.encode(), {"Nats-Msg-Id": payload})).sequence

    sequence: int = await eventually(stored, seconds=40)
    return sequence


async def test_a_leader_that_is_killed_is_followed_by_another(cluster: NatsCluster, site: Site) -> None:
    async with cluster.streams() as streams:
        stream, subject = await a_stream(streams, site)
        leader = await cluster.leader_of(stream)
        assert await cluster.followers_of(stream) == cluster.others(leader)
        assert await store(streams, subject, "before") == 1
        leader.kill()

        assert await cluster.leader_of(stream) in cluster.others(leader)
        assert await store(streams, subject, "meanwhile") == 2
        with pytest.raises(AssertionError, match="is at"):
            await cluster.current(stream, seconds=0.5)
        leader.start()
        await cluster.current(stream)
        assert (await streams.info(stream))["state"]["messages"] == 2


async def test_a_paused_server_is_not_asked_and_comes_back(cluster: NatsCluster, site: Site) -> None:
    async with cluster.streams() as streams:
        stream, subject = await a_stream(streams, site)
        one, _ = await cluster.followers_of(stream)
        one.pause()
        assert not one.available
        assert await store(streams, subject, "meanwhile") == 1
        assert await cluster.leader_of(stream) is not one
        one.resume()
        await cluster.current(stream)
        await cluster.ready()


async def test_without_a_majority_nothing_is_stored_until_the_cluster_is_healed(
    cluster: NatsCluster, site: Site
) -> None:
    async with cluster.streams() as streams:
        stream, subject = await a_stream(streams, site)
        one, other = await cluster.followers_of(stream)
        one.kill()
        other.pause()
        leader = cluster.others(one, other)[0]
        async with streams_at(leader.url) as alone:
            with pytest.raises(StreamError):
                await alone.store(subject, b"in doubt", {"Nats-Msg-Id": "in doubt"})
            with pytest.raises(StreamError, match="in process"):
                await alone.store(subject, b"in doubt", {"Nats-Msg-Id": "in doubt"})
        await cluster.healed()
        await cluster.current(stream)
        await store(streams, subject, "in doubt")

        # the one that was in doubt was kept, or it was not: there is one of it
        assert (await streams.info(stream))["state"]["messages"] == 1


async def test_what_was_stored_outlives_all_servers(cluster: NatsCluster, site: Site) -> None:
    async with cluster.streams() as streams:
        stream, subject = await a_stream(streams, site)
        for number in range(100):
            await streams.store(subject, b"%d" % number)
    for server in cluster.servers:
        server.kill()
    await cluster.healed()
    await cluster.current(stream)
    async with cluster.streams() as streams:
        assert (await streams.info(stream))["state"]["messages"] == 100


async def test_it_knows_which_server_a_client_uses(cluster: NatsCluster, site: Site) -> None:
    node = site.start_node(cluster.url)
    client = f"broker {node.name}"
    server = await cluster.server_of(client)
    server.kill()

    assert await cluster.server_of(client) in cluster.others(server)


async def test_a_message_can_be_stored_unseen(cluster: NatsCluster, site: Site) -> None:
    seen: list[bytes] = []
    async with cluster.streams() as streams:
        stream, subject = await a_stream(streams, site)
        client = await streams.client()
        live = await client.subscribe(f"{site.prefix}.chat.live.>")
        await client.flush()
        await streams.store(subject, b"1")
        hidden = await streams.store_unseen(stream, subject, b"2")
        await streams.store(subject, b"3")
        for _ in range(2):
            message = await live.next_msg(timeout=10)
            seen.append(message.data)
            headers = message.headers or {}

    assert seen == [b"1", b"3"]
    assert (headers["Nats-Sequence"], headers["Nats-Last-Sequence"]) == ("3", str(hidden.sequence))
