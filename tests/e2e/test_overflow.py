"""Readers that stop: what each policy leaves out is what it says it has left out, and nobody else notices."""

from __future__ import annotations

import json

import nats as nats_client
import pytest

from tests.e2e.pressing import FLOOD, LIVE, PADDING, QUEUE_BYTES, SYMBOLS, calm, closed, dropped
from tests.harness.client import connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.reader import reading
from tests.harness.site import Site
from tests.harness.source import Source, check_all, check_conflated, check_declared, last_arrived
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    return module_site.start_node(nats, {"topics": LIVE, "limits": {"queue_bytes": QUEUE_BYTES}})


async def test_disconnect_closes_who_is_behind_and_the_others_miss_nothing(node: BrokerNode) -> None:
    source, topic, before = Source(node), "cut.a", await dropped(node, "cut", "slow")
    async with reading(node.port, topic) as slow, reading(node.port, topic, receive_bytes=None) as fast:
        slow.stop()
        await source.until_slow(topic)
        await source.publish(topic, FLOOD, padding=PADDING)
        total = len(source.published[topic])
        await last_arrived(source, topic, fast)
        slow.go_on()

        assert await closed(slow) == (3008, "slow")
        check_all(fast.of(topic), total)
        check_all(slow.of(topic), len(slow.of(topic)))
    await calm(node)
    assert await dropped(node, "cut", "slow") - before >= QUEUE_BYTES // PADDING // 2


@pytest.mark.parametrize("name", ["oldest", "newest"])
async def test_what_is_dropped_is_declared_in_its_place(node: BrokerNode, name: str) -> None:
    source, topic, before = Source(node), f"{name}.a", await dropped(node, name, "dropped")
    async with reading(node.port, topic) as slow, reading(node.port, topic, receive_bytes=None) as fast:
        slow.stop()
        await source.until_slow(topic)
        await source.publish(topic, FLOOD, padding=PADDING)
        last = len(source.published[topic]) - 1
        assert await node.metric("broker_queued_bytes") <= QUEUE_BYTES
        await last_arrived(source, topic, fast)
        slow.go_on()
        await calm(node)
        await source.publish(topic)  # what is missing at the end is declared with the next one
        await last_arrived(source, topic, slow, fast)

        missing = check_declared(slow.of(topic), last + 2)
        check_all(fast.of(topic), last + 2)
        assert slow.end is None
        assert missing == await dropped(node, name, "dropped") - before
        assert FLOOD - QUEUE_BYTES // PADDING <= missing < FLOOD + QUEUE_BYTES // PADDING
        gaps = [one.number for one in slow.of(topic) if one.dropped]
        if name == "newest":
            assert gaps == [last + 1]
        else:
            # one gap, and everything after it
            (gap,) = gaps
            assert [one.number for one in slow.of(topic) if one.number >= gap] == list(range(gap, last + 2))


async def test_the_newest_of_each_key_is_kept(node: BrokerNode) -> None:
    source, topic, before = Source(node), "prices.a", await dropped(node, "prices", "conflated")
    async with reading(node.port, topic) as slow, reading(node.port, topic, receive_bytes=None) as fast:
        slow.stop()
        await source.until_slow(topic, keys=SYMBOLS)
        await source.publish(topic, FLOOD, padding=PADDING, keys=SYMBOLS)
        keys = source.published[topic]
        await last_arrived(source, topic, fast)
        # of five keys there is never more than one each
        assert await node.metric("broker_queued_bytes") < (len(SYMBOLS) + 1) * (PADDING + 400)
        slow.go_on()
        await last_arrived(source, topic, slow)
        await calm(node)

        missing = check_conflated(slow.of(topic), keys)
        check_all(fast.of(topic), len(keys))
        assert missing == await dropped(node, "prices", "conflated") - before > FLOOD // 2


async def test_without_a_key_the_newest_of_the_topic_is_kept(node: BrokerNode) -> None:
    source, one, two = Source(node), "state.one", "state.two"
    async with reading(node.port, one, two) as slow:
        slow.stop()
        await source.until_slow(one)
        for _ in range(FLOOD // 10):
            await source.publish(one, 10, padding=PADDING)
            await source.publish(two, 10, padding=PADDING)
        slow.go_on()
        await last_arrived(source, one, slow)
        await last_arrived(source, two, slow)
        await calm(node)

    for topic in (one, two):
        check_conflated(slow.of(topic), [None] * len(source.published[topic]))
        assert slow.of(topic)[-1].dropped > 0


async def test_a_publication_without_the_key_is_never_replaced(node: BrokerNode) -> None:
    source, topic = Source(node), "prices.plain"
    async with reading(node.port, topic) as slow:
        slow.stop()
        await source.until_slow(topic, keys=SYMBOLS)
        for _ in range(5):
            await source.publish(topic, 10, padding=100, keys=SYMBOLS)
            await source.publish(topic, 2, padding=100)
        keys = source.published[topic]
        slow.go_on()
        await last_arrived(source, topic, slow)
        await calm(node)

    assert check_conflated(slow.of(topic), keys) >= 40
    assert [one.number for one in slow.of(topic) if one.key is None] == [
        number for number, key in enumerate(keys) if key is None
    ]


async def test_a_wildcard_keeps_the_newest_of_each_topic_and_key(node: BrokerNode) -> None:
    source, topics = Source(node), ("prices.w.one", "prices.w.two")
    async with reading(node.port, "prices.w.*") as slow:
        slow.stop()
        await source.until_slow(topics[0], keys=SYMBOLS)
        for _ in range(FLOOD // 20):
            for topic in topics:
                await source.publish(topic, 10, padding=PADDING, keys=SYMBOLS)
        slow.go_on()
        for topic in topics:
            await last_arrived(source, topic, slow)
        await calm(node)

    for topic in topics:
        assert check_conflated(slow.of(topic), source.published[topic]) > 0


async def test_too_many_keys_are_dropped_the_oldest_first_and_declared(node: BrokerNode) -> None:
    source, topic, before = Source(node), "prices.many", await dropped(node, "prices", "conflated")
    keys = [f"k{number}" for number in range(3 * QUEUE_BYTES // PADDING)]
    async with reading(node.port, topic) as slow:
        slow.stop()
        await source.until_slow(topic, keys=SYMBOLS)
        await source.publish(topic, len(keys), padding=PADDING, keys=keys)
        assert await node.metric("broker_queued_bytes") <= QUEUE_BYTES
        slow.go_on()
        await calm(node)
        await source.publish(topic, keys=["last"])
        published = source.published[topic]
        await last_arrived(source, topic, slow)

    came = slow.of(topic)
    missing = sum(one.dropped for one in came)
    assert len(came) + missing == len(published)
    assert missing > len(keys) // 2
    assert await dropped(node, "prices", "conflated") - before > len(keys) // 2
    # what was kept is the newest
    assert [one.number for one in came][-10:] == list(range(len(published) - 10, len(published)))


async def test_on_one_connection_each_topic_has_its_own_policy(node: BrokerNode) -> None:
    source, topics = Source(node), ("oldest.m", "newest.m", "prices.m", "state.m")
    async with reading(node.port, *topics) as slow, reading(node.port, *topics, receive_bytes=None) as fast:
        slow.stop()
        await source.until_slow("oldest.m")
        for _ in range(FLOOD // 10):
            for topic in topics:
                await source.publish(topic, 10, padding=PADDING, keys=SYMBOLS if topic == "prices.m" else None)
        slow.go_on()
        await calm(node)
        for topic in topics:
            await source.publish(topic, keys=["a"] if topic == "prices.m" else None)
        counts = {topic: len(source.published[topic]) for topic in topics}
        for topic in topics:
            await last_arrived(source, topic, slow, fast)

    assert check_declared(slow.of("oldest.m"), counts["oldest.m"]) > 0
    assert check_declared(slow.of("newest.m"), counts["newest.m"]) > 0
    for topic in ("prices.m", "state.m"):
        came, keys = slow.of(topic), source.published[topic]
        assert len(came) + sum(one.dropped for one in came) == len(keys)
    for topic in topics:
        check_all(fast.of(topic), counts[topic])


async def test_who_unsubscribes_gets_nothing_of_what_waited(node: BrokerNode) -> None:
    source, topic, other = Source(node), "oldest.leave", "oldest.stay"
    before = await dropped(node, "oldest", "unsubscribed")
    async with reading(node.port, topic, other) as slow:
        slow.stop()
        await source.until_slow(topic)
        await source.publish(topic, FLOOD, padding=PADDING)
        await source.publish(other, 3)
        leave = {"unsubscribe": {"channel": topic}}
        slow.send(leave)
        slow.go_on()
        await slow.reply(leave["id"])  # type: ignore[arg-type]  # `send` has put a number in
        await calm(node)

        at = next(index for index, line in enumerate(slow.events) if line.get("id") == leave["id"])
        assert not any(line.get("push", {}).get("channel") == topic for line in slow.events[at:])
        assert await dropped(node, "oldest", "unsubscribed") - before > 0
        check_all(slow.of(other), 3)
        # it begins anew: nothing of before is declared
        await slow.call("subscribe", channel=topic)
        begin = len(source.published[topic])
        await source.publish(topic, 2)
        await last_arrived(source, topic, slow)
        check_all([one for one in slow.of(topic) if one.number >= begin], begin + 2, begin)


async def test_the_tags_are_the_brokers_own(node: BrokerNode, nats: NatsServer) -> None:
    body = {"channel": "oldest.tags", "data": 1, "tags": {"broker.dropped": "7"}}
    error = (await node.api("publish", body)).json()["error"]
    assert (error["code"], "tags" in error["message"]) == (107, True)

    async with connected(node.websocket_url, topics=("oldest.tags",)) as client:
        direct = await nats_client.connect(nats.url)
        headers = {"Broker-Tags": json.dumps({"broker.dropped": "7", "mine": "1"})}
        subject = f"{node.settings['nats']['prefix']}.oldest.live.oldest.tags"
        await direct.publish(subject, b'{"n":1}', headers=headers)
        await direct.flush()
        pub = (await client.push())["pub"]
        await direct.close()
    assert (pub["data"], pub["tags"]) == ({"n": 1}, {"mine": "1"})


async def test_pressure_is_told_once_when_it_begins_and_once_when_it_ends(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"topics": LIVE, "limits": {"queue_bytes": QUEUE_BYTES}})
    source, topic, begin = Source(node), "oldest.log", len(node.log())

    def told() -> list[str]:
        return node.log()[begin:].splitlines()

    async with reading(node.port, topic) as slow:
        slow.stop()
        await source.until_slow(topic)
        await source.publish(topic, 3 * FLOOD, padding=PADDING)
        await eventually(lambda: "pressure begins" in node.log())
        await source.publish(topic, FLOOD, padding=PADDING)
        assert len(told()) == 1
        slow.go_on()
        await calm(node)
        await eventually(lambda: "pressure ends" in node.log(), 40)
    assert len(told()) == 2
