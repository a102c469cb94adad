"""A node to which NATS brings more than it can write: it gives up what it may, says so, and repairs the rest."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import nats as nats_client
import pytest

from tests.e2e.pressing import LIVE, PADDING, SYMBOLS, dropped, kept
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.reader import reading
from tests.harness.site import Site
from tests.harness.source import Source, check_all, check_declared, last_arrived
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

PENDING_BYTES = 20_000
"""Far less than what one read from NATS brings."""
QUEUE_BYTES = 67_108_864
FLOOD = 1500
"""Publications of 8 KB."""


@pytest.fixture
def node(site: Site, nats: NatsServer) -> BrokerNode:
    limits = {"pending_bytes": PENDING_BYTES, "queue_bytes": QUEUE_BYTES}
    return site.start_node(nats, {"topics": [*LIVE, kept("keep")], "limits": limits})


async def nothing_pending(node: BrokerNode) -> bool:
    waiting = [await node.metric(f"broker_{name}") for name in ("pending_bytes", "pending_messages", "queued_bytes")]
    return waiting == [0, 0, 0]


async def flood(node: BrokerNode, source: Source, policy: str, topic: str) -> None:
    """Let NATS have so much for a node that was stopped for that moment."""
    direct = await nats_client.connect(node.settings["nats"]["url"])
    where = "in" if policy == "keep" else "live"
    subject = f"{node.settings['nats']['prefix']}.{policy}.{where}.{topic}"
    node.pause()
    try:
        for number in range(FLOOD):
            key = SYMBOLS[number % len(SYMBOLS)]
            data = {"t": topic, "n": number, "k": key, "p": "x" * PADDING}
            source.published[topic].append(key)
            await direct.publish(subject, json.dumps(data).encode())
        await direct.flush()
    finally:
        node.resume()
        await direct.close()


@pytest.mark.parametrize("name", ["oldest", "newest", "prices"])
async def test_what_it_gives_up_is_declared_to_everybody(node: BrokerNode, name: str) -> None:
    source, topic = Source(node), f"{name}.flood"
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(node.port, topic, receive_bytes=None)) for _ in range(3)]
        await flood(node, source, name, topic)
        await eventually(lambda: readers[0].arrivals)
        await eventually(lambda: nothing_pending(node))
        await source.publish(topic, keys=["last"])
        await last_arrived(source, topic, *readers, seconds=30)

        count = len(source.published[topic])
        shed = await dropped(node, name, "shed")
        for reader in readers:
            assert reader.end is None
            came = reader.of(topic)
            missing = sum(one.dropped for one in came)
            assert len(came) + missing == count
            if name != "prices":
                check_declared(came, count)
        assert shed > 0, "the node kept up, so this shows nothing"


async def test_durable_topics_are_repaired_from_the_stream(node: BrokerNode) -> None:
    source, topic = Source(node), "keep.flood"
    async with reading(node.port, topic, receive_bytes=None) as reader:
        await flood(node, source, "keep", topic)
        await eventually(lambda: reader.arrivals)
        await source.publish(topic)
        await last_arrived(source, topic, reader, seconds=60)

        check_all(reader.of(topic), len(source.published[topic]))


async def test_where_nothing_may_be_left_out_the_subscription_ends(node: BrokerNode) -> None:
    source, topic = Source(node), "cut.flood"
    async with reading(node.port, topic, receive_bytes=None) as reader:
        await flood(node, source, "cut", topic)
        await eventually(lambda: reader.unsubscribed, 30)
        assert reader.unsubscribed == [(topic, 2500)]
        check_all(reader.of(topic), len(reader.of(topic)))
        # as the SDKs do: perhaps some of the flood is still to come
        subscribed = 1

        async def arrives() -> bool:
            nonlocal subscribed
            if len(reader.unsubscribed) == subscribed:
                await reader.call("subscribe", channel=topic)
                subscribed += 1
            await source.publish(topic)
            last = len(source.published[topic]) - 1
            return bool(reader.of(topic)) and reader.of(topic)[-1].number >= last - 1

        await eventually(arrives, 30)
        assert reader.end is None
