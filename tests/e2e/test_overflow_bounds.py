"""Each bound of what waits for a connection, crossed by itself; and what must get through all the same."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.e2e.pressing import LIVE, PADDING, QUEUE_BYTES, SYMBOLS, calm, closed, dropped, policy, rss_bytes
from tests.harness.nats import NatsServer
from tests.harness.raw import PING, masked
from tests.harness.reader import reading
from tests.harness.site import Site
from tests.harness.source import Source, check_all, check_conflated, check_declared, last_arrived
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

READERS = 50
WRITE_BUFFER = 65_536
LARGE = 30_000
OVERHEAD = 8 * 1_048_576
"""What a Python process may take beside, for allocation in arenas and for the messages on their way."""


async def test_the_number_of_messages(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"topics": LIVE, "limits": {"queue_messages": 20}})
    source, topic = Source(node), "oldest.a"
    async with reading(node.port, topic) as slow:
        slow.stop()
        await source.until_slow(topic)
        await source.publish(topic, 500)
        assert await dropped(node, "oldest", "dropped") >= 480
        slow.go_on()
        await calm(node)
        await source.publish(topic)
        count = len(source.published[topic])
        await last_arrived(source, topic, slow)

    assert 480 <= check_declared(slow.of(topic), count) <= 520
    assert [one.number for one in slow.of(topic)][-20:] == list(range(count - 20, count))


async def test_the_age(site: Site, nats: NatsServer) -> None:
    """Nothing is published meanwhile: that it is too old has to be noticed without."""
    node = site.start_node(nats, {"topics": LIVE, "limits": {"queue_age_seconds": 1}})
    source = Source(node)
    async with AsyncExitStack() as stack:
        readers = {}
        for name in ("prices", "oldest", "newest", "cut"):
            readers[name] = slow = await stack.enter_async_context(reading(node.port, f"{name}.age"))
            slow.stop()
            keys = SYMBOLS if name == "prices" else None
            await source.until_slow(f"{name}.age", keys=keys, connections=len(readers))
            await source.publish(f"{name}.age", 20, padding=PADDING, keys=keys)

        async def all_old() -> bool:
            old = [await dropped(node, name, "dropped") >= 20 for name in ("oldest", "newest")]
            return all(old) and await dropped(node, "cut", "slow") >= 20

        await eventually(all_old)
        # the prices have waited for longer, and are still the newest there are
        assert await dropped(node, "prices", "dropped") == 0
        for slow in readers.values():
            slow.go_on()
        assert (await closed(readers["cut"]))[0] == 3008
        await calm(node)
        for name in ("oldest", "newest"):
            topic = f"{name}.age"
            await source.publish(topic)
            count = len(source.published[topic])
            await last_arrived(source, topic, readers[name])
            assert check_declared(readers[name].of(topic), count) >= 20
        published = source.published["prices.age"]
        await last_arrived(source, "prices.age", readers["prices"])
        check_conflated(readers["prices"].of("prices.age"), published)
        assert await node.metric("broker_queue_age_seconds_count") > 0


@pytest.mark.parametrize("name", ["oldest", "newest", "prices", "cut"])
async def test_memory_rises_by_no_more_than_the_bounds(site: Site, nats: NatsServer, name: str) -> None:
    """Each has a topic of its own, so that nothing that waits is shared."""
    node = site.start_node(nats, {"topics": LIVE, "limits": {"queue_bytes": QUEUE_BYTES}})
    source = Source(node)
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(node.port, f"{name}.{number}")) for number in range(READERS)]
        # what a node takes for good when it is used for the first time
        async with reading(node.port, f"{name}.warm", receive_bytes=None) as warm:
            await source.publish(f"{name}.warm", 500, padding=LARGE)
            await last_arrived(source, f"{name}.warm", warm)
        before = rss_bytes(node.pid)
        for reader in readers:
            reader.stop()
        peak = before
        for number in range(READERS):
            # more than the kernel takes for one connection, and the queue
            await source.publish(f"{name}.{number}", 220, padding=LARGE, keys=_many(number))
            peak = max(peak, rss_bytes(node.pid))
        if name != "cut":

            async def all_slow() -> bool:
                return await node.metric("broker_slow_connections") == READERS

            await eventually(all_slow)
            peak = max(peak, rss_bytes(node.pid))
        assert await node.metric("broker_queued_bytes") <= READERS * QUEUE_BYTES

    assert peak - before <= READERS * (QUEUE_BYTES + WRITE_BUFFER) + OVERHEAD, f"{(peak - before) / 2**20:.0f} MiB"
    if name != "cut":
        assert peak - before > READERS * QUEUE_BYTES // 4, "the queues were never full, so this shows nothing"


def _many(number: int) -> list[str]:
    return [f"{number}.{key}" for key in range(200)]


async def test_the_nodes_budget_relieves_the_largest_first(site: Site, nats: NatsServer) -> None:
    budget = 1_048_576
    node = site.start_node(nats, {"topics": LIVE, "limits": {"queue_bytes": 1_048_576, "node_queue_bytes": budget}})
    source = Source(node)
    async with reading(node.port, "cut.small") as small, reading(node.port, "oldest.large") as large:
        small.stop()
        await source.until_slow("cut.small")
        await source.publish("cut.small", 30, padding=PADDING)
        few = await node.metric("broker_queued_bytes")
        assert 200_000 < few < budget // 2
        large.stop()
        await source.until_slow("oldest.large", connections=2)
        for _ in range(20):
            await source.publish("oldest.large", 20, padding=PADDING)
            assert await node.metric("broker_queued_bytes") <= budget
        assert await node.metric("broker_slow_connections") == 2
        for slow in (small, large):
            slow.go_on()
        await calm(node)
        for topic in ("cut.small", "oldest.large"):
            await source.publish(topic)
        await last_arrived(source, "cut.small", small)
        await last_arrived(source, "oldest.large", large)

    check_all(small.of("cut.small"), len(source.published["cut.small"]))
    assert check_declared(large.of("oldest.large"), len(source.published["oldest.large"])) > 200


async def test_a_flood_of_pings_ends_who_does_not_read_the_answers_and_nobody_else(
    site: Site, nats: NatsServer
) -> None:
    node = site.start_node(nats, {"topics": LIVE, "limits": {"queue_bytes": QUEUE_BYTES, "stall_seconds": 1}})
    pings = masked(os.urandom(125), PING) * 500
    before = rss_bytes(node.pid)
    async with reading(node.port) as flooding, reading(node.port, "cut.a") as other:
        flooding.stop()

        async def given_up() -> bool:
            if flooding.backlog < 1_000_000:
                flooding.send_bytes(pings)
            return await node.metric('broker_closes_total{code="3008"') == 1

        await eventually(given_up, 30)
        assert rss_bytes(node.pid) - before < OVERHEAD
        source = Source(node)
        await source.publish("cut.a", 3)
        await last_arrived(source, "cut.a", other)
        check_all(other.arrivals, 3)


async def test_replies_overtake_what_waits(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"topics": LIVE, "limits": {"queue_bytes": 4 * 1_048_576}})
    source, topic = Source(node), "oldest.a"
    async with reading(node.port, topic) as slow:
        slow.stop()
        await source.until_slow(topic)
        await source.publish(topic, 400, padding=PADDING)
        assert await node.metric("broker_queued_bytes") > 2 * 1_048_576
        command: dict[str, Any] = {"publish": {"channel": "cut.b", "data": {"n": 0}}}
        slow.send(command)
        slow.go_on()
        await slow.reply(command["id"])
        await last_arrived(source, topic, slow)

    at = next(index for index, line in enumerate(slow.events) if line.get("id") == command["id"])
    behind = sum("push" in line for line in slow.events[at:])
    assert behind > 200, f"only {behind} publications came behind a reply that 400 of them had to let pass"
    check_all(slow.of(topic), len(source.published[topic]))


async def test_pings_and_pongs_pass_while_a_connection_is_always_behind(site: Site, nats: NatsServer) -> None:
    node = site.start_node(
        nats,
        {
            "topics": LIVE,
            "limits": {"queue_bytes": QUEUE_BYTES},
            "ping": {"interval_seconds": 2, "pong_timeout_seconds": 1.9},
        },
    )
    source, topic = Source(node), "oldest.a"
    async with reading(node.port, topic) as slow:
        slow.bytes_per_second = 6_000_000

        async def flood() -> None:
            while slow.pings < 4:
                await source.publish(topic, 100, padding=4 * PADDING)

        await asyncio.wait_for(flood(), 60)
        assert slow.end is None
        slow.bytes_per_second = None
        await calm(node)
        await source.publish(topic)
        await last_arrived(source, topic, slow)

    assert check_declared(slow.of(topic), len(source.published[topic])) > 0, "it never was behind"


async def test_settings_that_cannot_work_are_refused_by_name(site: Site, nats: NatsServer) -> None:
    node = site.add_node(nats, {"topics": [policy("bad", "catch_up")]})
    node.start()
    assert await node.ended() == 2
    assert "topics[0].overflow" in node.log()
