"""`catch_up`: who is behind gets everything, late, from the stream, and then what is live, without a gap between."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.e2e.pressing import FLOOD, PADDING, QUEUE_BYTES, calm, dropped, kept
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.reader import Reader, reading
from tests.harness.site import Site
from tests.harness.source import Source, check_all, last_arrived
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

POLICIES = [kept("keep"), kept("brief", history_messages=100)]


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    return module_site.start_node(nats, {"topics": POLICIES, "limits": {"queue_bytes": QUEUE_BYTES}})


async def catching_up(node: BrokerNode, count: int) -> None:
    async def is_so() -> bool:
        return await node.metric("broker_catching_up") == count

    await eventually(is_so, 30)


async def behind(source: Source, reader: Reader, topic: str, flood: int = FLOOD, *, connections: int = 1) -> None:
    """Have a reader stop, and publish so much that it has to catch up."""
    reader.stop()
    await source.until_slow(topic, connections=connections)
    await source.publish(topic, flood, padding=PADDING)

    async def is_so() -> bool:
        return await source.node.metric("broker_catching_up") >= 1

    await eventually(is_so)


async def goes_on_live(node: BrokerNode, source: Source, topic: str, *readers: Reader) -> None:
    """All have caught up, and get what is published now."""
    await last_arrived(source, topic, *readers)
    await catching_up(node, 0)
    await calm(node)
    reads = await node.metric("broker_relay_reads_total")
    for _ in range(3):
        await source.publish(topic)
        await last_arrived(source, topic, *readers)
    assert await node.metric("broker_relay_reads_total") == reads, "what is live is read from the stream"


async def test_a_reader_at_half_the_speed_gets_everything_in_order(node: BrokerNode) -> None:
    source, topic = Source(node), "keep.half"
    async with reading(node.port, topic) as slow, reading(node.port, topic, receive_bytes=None) as fast:
        slow.bytes_per_second = 2_000_000
        was_behind = False
        while not was_behind or len(source.published[topic]) < 1000:
            await source.publish(topic, 50, padding=PADDING)
            was_behind = was_behind or await node.metric("broker_catching_up") == 1
        await last_arrived(source, topic, fast)
        assert len(slow.arrivals) < len(fast.arrivals)
        slow.bytes_per_second = None
        await goes_on_live(node, source, topic, slow, fast)

        for reader in (slow, fast):
            check_all(reader.of(topic), len(source.published[topic]))
            offsets = [one.offset for one in reader.of(topic)]
            assert offsets == sorted(set(offsets))
    assert await dropped(node, "keep", "dropped") == await dropped(node, "keep", "slow") == 0


async def test_a_reader_that_stops_gets_everything_when_it_goes_on(node: BrokerNode) -> None:
    source, topic = Source(node), "keep.stop"
    async with reading(node.port, topic) as slow:
        for _ in range(3):
            await behind(source, slow, topic)
            slow.go_on()
            await goes_on_live(node, source, topic, slow)

        check_all(slow.of(topic), len(source.published[topic]))


async def test_publications_that_wait_too_long_are_read_later(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"topics": POLICIES, "limits": {"queue_age_seconds": 1}})
    source, topic = Source(node), "keep.age"
    async with reading(node.port, topic) as slow:
        slow.stop()
        await source.until_slow(topic)
        await source.publish(topic, 5, padding=PADDING)
        await catching_up(node, 1)
        assert await node.metric("broker_queued_bytes") < PADDING
        slow.go_on()
        await goes_on_live(node, source, topic, slow)

        check_all(slow.of(topic), len(source.published[topic]))


async def test_past_the_history_the_subscription_ends_and_the_truth_is_told(node: BrokerNode) -> None:
    source, topic = Source(node), "brief.a"
    async with reading(node.port, topic) as slow, reading(node.port, topic, receive_bytes=None) as fast:
        await behind(source, slow, topic, 1000)
        slow.go_on()
        await eventually(lambda: slow.unsubscribed, 30)
        assert slow.unsubscribed == [(topic, 2500)]
        came = slow.of(topic)
        check_all(came, len(came))
        await last_arrived(source, topic, fast)
        check_all(fast.of(topic), len(source.published[topic]))
        await catching_up(node, 0)

        request: dict[str, Any] = {"channel": topic, "recover": True, "offset": came[-1].offset, "epoch": source.epoch}
        result = await slow.call("subscribe", **request)
        assert (result.get("recovered", False), result["was_recovering"]) == (False, True)
        assert not result.get("publications")
        begin = len(source.published[topic])
        await source.publish(topic, 3)
        await last_arrived(source, topic, slow)
        check_all(slow.of(topic)[len(came) :], begin + 3, begin)


async def test_nats_that_stops_meanwhile_delays_it_only(site: Site) -> None:
    nats = site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})
    node = site.start_node(nats, {"topics": POLICIES, "limits": {"queue_bytes": QUEUE_BYTES}})
    source, topic = Source(node), "keep.a"
    async with reading(node.port, topic) as slow:
        await behind(source, slow, topic, 1000)
        nats.pause()
        try:
            slow.go_on()

            async def lost() -> bool:
                return await node.metric("broker_relay_connected") == 0

            await eventually(lost, 30)
            assert slow.end is None
            assert len(slow.arrivals) < len(source.published[topic])
        finally:
            nats.resume()
        await goes_on_live(node, source, topic, slow)

        check_all(slow.of(topic), len(source.published[topic]))


async def test_those_who_catch_up_together_share_the_reads(node: BrokerNode) -> None:
    source, topic, readers = Source(node), "keep.shared", 10
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(reading(node.port, topic)) for _ in range(readers)]
        for reader in slow:
            reader.stop()
        await source.until_slow(topic, connections=readers)
        await source.publish(topic, 1000, padding=PADDING)
        await catching_up(node, readers)
        before = await node.metric("broker_relay_reads_total")
        for reader in slow:
            reader.go_on()
        await last_arrived(source, topic, *slow, seconds=60)
        reads = await node.metric("broker_relay_reads_total") - before
        await goes_on_live(node, source, topic, *slow)

        for reader in slow:
            check_all(reader.of(topic), len(source.published[topic]))
    # one for each message and client would be ten thousand
    assert 0 < reads < 500, reads


async def test_a_wildcard_catches_up_with_all_its_topics(node: BrokerNode) -> None:
    source, topics = Source(node), ("keep.w.one", "keep.w.two")
    async with reading(node.port, "keep.w.*") as slow:
        slow.stop()
        await source.until_slow(topics[0])
        for _ in range(FLOOD // 10):
            for topic in topics:
                await source.publish(topic, 10, padding=PADDING)
        await catching_up(node, 1)
        slow.go_on()
        for topic in topics:
            await goes_on_live(node, source, topic, slow)

    for topic in topics:
        check_all(slow.of(topic), len(source.published[topic]))


async def test_two_topics_of_one_connection_catch_up(node: BrokerNode) -> None:
    source, topics = Source(node), ("keep.two.one", "keep.two.two")
    async with reading(node.port, *topics) as slow:
        slow.stop()
        await source.until_slow(topics[0])
        for _ in range(FLOOD // 10):
            for topic in topics:
                await source.publish(topic, 10, padding=PADDING)
        slow.go_on()
        for topic in topics:
            await goes_on_live(node, source, topic, slow)

    for topic in topics:
        check_all(slow.of(topic), len(source.published[topic]))


async def test_who_unsubscribes_meanwhile_gets_nothing_more(node: BrokerNode) -> None:
    source, topic, other = Source(node), "keep.leave", "keep.stay"
    async with reading(node.port, topic, other) as slow:
        await behind(source, slow, topic)
        await source.publish(other, 3)
        leave: dict[str, Any] = {"unsubscribe": {"channel": topic}}
        slow.send(leave)
        slow.go_on()
        await slow.reply(leave["id"])
        await goes_on_live(node, source, other, slow)

        at = next(index for index, line in enumerate(slow.events) if line.get("id") == leave["id"])
        assert not any(line.get("push", {}).get("channel") == topic for line in slow.events[at:])
        check_all(slow.of(other), len(source.published[other]))
        check_all(slow.of(topic), len(slow.of(topic)))


async def test_who_is_gone_is_not_caught_up_for(node: BrokerNode) -> None:
    source, topic = Source(node), "keep.gone"
    async with reading(node.port, topic) as slow:
        await behind(source, slow, topic)
    await catching_up(node, 0)
    await calm(node)


async def test_what_is_published_while_it_catches_up_comes_behind(node: BrokerNode) -> None:
    """The seam between what is read and what is live is crossed while both flow."""
    source, topic = Source(node), "keep.seam"
    async with reading(node.port, topic) as slow:
        await behind(source, slow, topic)
        slow.go_on()
        ended = asyncio.Event()

        async def flow() -> None:
            while not ended.is_set():
                await source.publish(topic, 5, padding=100)

        flowing = asyncio.create_task(flow())
        await catching_up(node, 0)
        ended.set()
        await flowing
        await goes_on_live(node, source, topic, slow)

        check_all(slow.of(topic), len(source.published[topic]))
