"""Durable topics and those who do not know what they do, or know it too well: clients, and publishers on NATS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness.accounting import Accounting
from tests.harness.client import WireClient, connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.site import Site
from tests.harness.streams import Streams, stream_name, streams_at
from tests.harness.subscriber import subscriber
from tests.harness.traffic import durable
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

AT_MOST = 20
"""Publications that one history request is answered with."""
MESSAGE_BYTES = 1000
TOPICS = 128


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    policy = durable(history_messages=50, message_bytes=MESSAGE_BYTES, read="anyone")
    limits = {"history_messages": AT_MOST, "topics_per_connection": TOPICS}
    return module_site.start_node(nats, {"topics": [policy], "limits": limits})


@pytest.fixture
async def bystander(node: BrokerNode) -> AsyncIterator[WireClient]:
    """A client that has nothing to do with it, and notices nothing."""
    async with connected(node.websocket_url, topics=("chat.peace",)) as client:
        yield client
        receipt = await node.store("chat.peace", "quiet")
        pub = (await client.push())["pub"]
        assert (pub["data"], pub["offset"]) == ("quiet", receipt.offset)


@pytest.fixture
async def streams(nats: NatsServer) -> AsyncIterator[Streams]:
    async with streams_at(nats.url) as streams:
        yield streams


@pytest.fixture
def prefix(module_site: Site) -> str:
    return module_site.prefix


async def filled(node: BrokerNode, topic: str, count: int) -> tuple[list[int], str]:
    """Publish 0, 1, … to a topic; their offsets, and the epoch."""
    receipts = [await node.store(topic, number) for number in range(count)]
    return [receipt.offset for receipt in receipts], receipts[0].epoch


# positions that cannot be


@pytest.mark.parametrize(
    ("topic", "beyond"), [("chat.beyond.one", 1), ("chat.beyond.far", 10**6), ("chat.beyond.all", 2**63)]
)
async def test_an_offset_beyond_the_top_is_not_recovered(
    node: BrokerNode, bystander: WireClient, topic: str, beyond: int
) -> None:
    offsets, epoch = await filled(node, topic, 3)
    async with connected(node.websocket_url) as client:
        result = await client.call("subscribe", channel=topic, recover=True, offset=offsets[-1] + beyond, epoch=epoch)
        assert (result.get("recovered", False), result["was_recovering"]) == (False, True)
        assert (result["offset"], result["epoch"]) == (offsets[-1], epoch)
        assert not result.get("publications")
        # and it does not hold back what comes now, whatever its offset is
        receipt = await node.store(topic, "next")
        pub = (await client.push())["pub"]
        assert (pub["data"], pub["offset"]) == ("next", receipt.offset)


async def test_an_offset_below_what_is_kept_is_not_recovered(node: BrokerNode, bystander: WireClient) -> None:
    offsets, epoch = await filled(node, "chat.below", 55)
    async with connected(node.websocket_url) as client:
        result = await client.call("subscribe", channel="chat.below", recover=True, offset=offsets[0], epoch=epoch)
        assert not result.get("recovered")
        assert (result["offset"], result["epoch"]) == (offsets[-1], epoch)
        await client.call("unsubscribe", channel="chat.below")
        code, _ = await client.refused(
            "subscribe", channel="chat.below", recover=True, offset=offsets[0], epoch=epoch, flag=2
        )
        assert code == 112


@pytest.mark.parametrize("epoch", ["other", "_", "x" * 5000, "é🙂", '"', "0"], ids=lambda epoch: ascii(epoch[:8]))
async def test_an_unknown_epoch_is_not_recovered(node: BrokerNode, bystander: WireClient, epoch: str) -> None:
    offsets, known = await filled(node, "chat.epochs", 2)
    async with connected(node.websocket_url) as client:
        result = await client.call("subscribe", channel="chat.epochs", recover=True, offset=offsets[0], epoch=epoch)
        assert (result.get("recovered", False), result["was_recovering"]) == (False, True)
        assert (result["offset"], result["epoch"]) == (offsets[-1], known)
        await client.call("unsubscribe", channel="chat.epochs")
        code, _ = await client.refused(
            "subscribe", channel="chat.epochs", recover=True, offset=offsets[0], epoch=epoch, flag=2
        )
        assert code == 112


async def test_without_a_position_everything_is_recovered_if_it_is_still_there(
    node: BrokerNode, bystander: WireClient
) -> None:
    await filled(node, "chat.whole", 5)
    await filled(node, "chat.cut", 55)
    async with connected(node.websocket_url) as client:
        whole = await client.call("subscribe", channel="chat.whole", recover=True)
        cut = await client.call("subscribe", channel="chat.cut", recover=True)
        empty = await client.call("subscribe", channel="chat.nothing.yet", recover=True)

    assert whole["recovered"]
    assert [pub["data"] for pub in whole["publications"]] == list(range(5))
    assert not cut.get("recovered")
    assert empty["recovered"]
    assert not empty.get("publications")


@pytest.mark.parametrize(
    "position",
    [{"offset": "1"}, {"offset": 1.5}, {"offset": None}, {"epoch": 7}, {"recover": "yes"}],
    ids=json.dumps,
)
async def test_a_position_that_is_none_is_refused(
    node: BrokerNode, bystander: WireClient, position: dict[str, Any]
) -> None:
    async with connected(node.websocket_url) as client:
        code, message = await client.refused("subscribe", channel="chat.none", **{"recover": True, **position})

        assert code == 107
        assert "subscribe." in message
        await client.call("subscribe", channel="chat.none")


@pytest.mark.parametrize("offset", [-1, -(2**63), 2**64, 2**100])
async def test_an_offset_that_no_stream_can_have_is_refused_or_not_recovered(
    node: BrokerNode, bystander: WireClient, offset: int
) -> None:
    topic = f"chat.impossible.{offset}"
    _, epoch = await filled(node, topic, 2)
    async with connected(node.websocket_url) as client:
        reply = await client.ask("subscribe", channel=topic, recover=True, offset=offset, epoch=epoch)
        assert reply.get("error", {}).get("code", 107) == 107
        assert not reply.get("subscribe", {}).get("recovered")
        assert client.is_open


# history


@pytest.mark.parametrize("limit", [-1, -(2**31), AT_MOST + 1, 10**6, 2**31 - 1])
async def test_history_has_a_limit_whatever_is_asked_for(node: BrokerNode, bystander: WireClient, limit: int) -> None:
    topic = f"chat.limits.{limit}"
    offsets, epoch = await filled(node, topic, AT_MOST + 5)
    async with connected(node.websocket_url) as client:
        result = await client.call("history", channel=topic, limit=limit)
        newest = await client.call("history", channel=topic, limit=limit, reverse=True)
    over_http = (await node.api("history", {"channel": topic, "limit": limit})).json()["result"]

    assert [pub["data"] for pub in result["publications"]] == list(range(AT_MOST))
    assert [pub["data"] for pub in over_http["publications"]] == list(range(AT_MOST))
    assert [pub["data"] for pub in newest["publications"]] == list(range(AT_MOST + 4, 4, -1))
    assert (result["offset"], result["epoch"]) == (offsets[-1], epoch)


@pytest.mark.parametrize("limit", [2**70, -(2**70)])
async def test_a_limit_that_no_machine_number_holds_is_refused_or_cut(
    node: BrokerNode, bystander: WireClient, limit: int
) -> None:
    await filled(node, f"chat.numbers.{limit}", AT_MOST + 1)
    async with connected(node.websocket_url) as client:
        reply = await client.ask("history", channel=f"chat.numbers.{limit}", limit=limit)
    answer = await node.api("history", {"channel": f"chat.numbers.{limit}", "limit": limit})

    for either, result in ((reply, reply.get("history")), (answer.json(), answer.json().get("result"))):
        assert either.get("error", {}).get("code", 107) == 107
        assert len((result or {}).get("publications") or []) <= AT_MOST


async def test_history_without_a_limit_is_the_position_only(node: BrokerNode, bystander: WireClient) -> None:
    offsets, epoch = await filled(node, "chat.position", 3)
    async with connected(node.websocket_url) as client:
        for request in ({}, {"limit": 0}):
            result = await client.call("history", channel="chat.position", **request)
            assert not result.get("publications")
            assert (result["offset"], result["epoch"]) == (offsets[-1], epoch)


@pytest.mark.parametrize(
    "request_", [{"limit": "1"}, {"limit": 1.5}, {"limit": 1, "since": {"offset": "1"}}, {"since": 7}]
)
async def test_history_that_makes_no_sense_is_refused(
    node: BrokerNode, bystander: WireClient, request_: dict[str, Any]
) -> None:
    async with connected(node.websocket_url) as client:
        assert (await client.refused("history", channel="chat.nonsense", **request_))[0] == 107
        await client.call("subscribe", channel="chat.nonsense")
    answer = await node.api("history", {"channel": "chat.nonsense", **request_})
    assert (answer.status, answer.json()["error"]["code"]) == (200, 107)


async def test_history_since_a_position_that_cannot_be(node: BrokerNode, bystander: WireClient) -> None:
    offsets, epoch = await filled(node, "chat.since", 3)
    async with connected(node.websocket_url) as client:
        since = {"offset": offsets[0], "epoch": "other"}
        assert (await client.refused("history", channel="chat.since", limit=-1, since=since))[0] == 112
        beyond = {"offset": offsets[-1] + 1000, "epoch": epoch}
        reply = await client.ask("history", channel="chat.since", limit=-1, since=beyond)
        # nothing is there; whether that is an error is not settled
        assert reply.get("error", {}).get("code", 112) == 112
        assert not reply.get("history", {}).get("publications")


# too much at once


async def test_a_thousand_subscriptions_in_one_frame_are_answered_one_by_one(
    node: BrokerNode, bystander: WireClient
) -> None:
    async with connected(node.websocket_url) as client:
        await client.send(
            *({"id": 10 + number, "subscribe": {"channel": f"chat.k.{number}"}} for number in range(1000))
        )
        replies = [await client.reply(10 + number) for number in range(1000)]

        assert all(reply["subscribe"]["epoch"] for reply in replies[:TOPICS])
        assert {reply.get("error", {}).get("code") for reply in replies[TOPICS:]} == {106}
        receipts = [await node.store(f"chat.k.{number}", number) for number in (0, TOPICS, TOPICS - 1)]
        pubs = [(await client.push())["pub"] for _ in range(2)]
        assert [(pub["data"], pub["offset"]) for pub in pubs] == [
            (0, receipts[0].offset),
            (TOPICS - 1, receipts[2].offset),
        ]
        assert client.is_open


# publishers on NATS


async def dropped(node: BrokerNode, reason: str) -> float:
    return await node.metric(f'broker_dropped_total{{policy="chat",reason="{reason}"')


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("text", b"not JSON", "not_json"),
        ("half", b'{"half":', "not_json"),
        ("empty", b"", "not_json"),
        ("binary", b"\xff\xfe\x00", "not_json"),
        ("lines", b'{"a":1}\n{"b":2}', "not_json"),
        ("large", b'"' + b"x" * MESSAGE_BYTES + b'"', "too_large"),
    ],
)
async def test_what_no_client_could_take_is_counted_and_passed_over(
    node: BrokerNode, bystander: WireClient, streams: Streams, prefix: str, name: str, payload: bytes, reason: str
) -> None:
    topic = f"chat.raw.{name}"
    before = await dropped(node, reason)
    async with connected(node.websocket_url, topics=(topic,)) as client:
        first = await node.store(topic, "first")
        for _ in range(3):
            await streams.store(f"{prefix}.chat.in.{topic}", payload)
        second = await node.store(topic, "second")
        pubs = [(await client.push())["pub"] for _ in range(2)]
        expected = [("first", first.offset), ("second", second.offset)]
        assert [(pub["data"], pub["offset"]) for pub in pubs] == expected
        assert await dropped(node, reason) - before >= 3

        # it is in the stream, and in nobody's way
        history = await client.call("history", channel=topic, limit=-1)
        assert [(pub["data"], pub["offset"]) for pub in history["publications"]] == expected
        await client.call("unsubscribe", channel=topic)
        position = {"offset": first.offset, "epoch": first.epoch}
        result = await client.call("subscribe", channel=topic, recover=True, **position)
        assert result["recovered"]
        assert [(pub["data"], pub["offset"]) for pub in result["publications"]] == expected[1:]


async def test_what_no_client_could_take_at_the_end_of_a_topic_is_not_missed_again_and_again(
    node: BrokerNode, bystander: WireClient, streams: Streams, prefix: str
) -> None:
    first = await node.store("chat.tail", "first")
    await streams.store(f"{prefix}.chat.in.chat.tail", b"not JSON")
    async with connected(node.websocket_url) as client:
        for _ in range(2):
            result = await client.call(
                "subscribe", channel="chat.tail", recover=True, offset=first.offset, epoch=first.epoch
            )
            assert result["recovered"]
            assert not result.get("publications")
            await client.call("unsubscribe", channel="chat.tail")


IMITATIONS = {
    "Nats-Stream": "OTHER",
    "Nats-Subject": "other.subject",
    "Nats-Sequence": "999999",
    "Nats-Last-Sequence": "999998",
    "Nats-Time-Stamp": "2001-01-01T00:00:00Z",
    "Nats-Num-Pending": "7",
}
"""Headers that NATS itself adds to what it republishes and to what is read from a stream."""


async def test_headers_like_those_of_nats_have_no_effect_on_what_is_stored(
    node: BrokerNode, bystander: WireClient, streams: Streams, prefix: str
) -> None:
    topic = "chat.imitation"
    async with connected(node.websocket_url, topics=(topic,)) as client:
        first = await node.store(topic, "first")
        imitated = await streams.store(f"{prefix}.chat.in.{topic}", b'"imitated"', IMITATIONS)
        last = await node.store(topic, "last")
        expected = [("first", first.offset), ("imitated", imitated.sequence), ("last", last.offset)]
        pubs = [(await client.push())["pub"] for _ in range(3)]
        assert [(pub["data"], pub["offset"]) for pub in pubs] == expected

        history = await client.call("history", channel=topic, limit=-1)
        assert [(pub["data"], pub["offset"]) for pub in history["publications"]] == expected
        await client.call("unsubscribe", channel=topic)
        position = {"offset": first.offset, "epoch": first.epoch}
        result = await client.call("subscribe", channel=topic, recover=True, **position)
        assert [(pub["data"], pub["offset"]) for pub in result["publications"]] == expected[1:]


async def test_what_is_published_past_the_stream_has_no_offset(
    node: BrokerNode, bystander: WireClient, streams: Streams, prefix: str
) -> None:
    topic = "chat.past"
    async with connected(node.websocket_url, topics=(topic,)) as client:
        first = await node.store(topic, "first")
        for headers in (
            {},
            IMITATIONS,
            {"Nats-Sequence": "x"},
            {**IMITATIONS, "Nats-Last-Sequence": str(first.offset)},
        ):
            await streams.send(f"{prefix}.chat.live.{topic}", b'"past"', headers)
        last = await node.store(topic, "last")

        async def has_the_last() -> bool:
            return any(pub["data"] == "last" for pub in pubs_of(client))

        await eventually(has_the_last)
        # a live message may come, for it is one; nothing may come that says it was stored and was not
        stored = [(pub["data"], pub["offset"]) for pub in pubs_of(client) if pub.get("offset")]
        assert stored == [("first", first.offset), ("last", last.offset)]
        history = await client.call("history", channel=topic, limit=-1)
        assert [pub["data"] for pub in history["publications"]] == ["first", "last"]


def pubs_of(client: WireClient) -> list[dict[str, Any]]:
    return [line["push"]["pub"] for line in client.lines if "pub" in line.get("push", {})]


async def test_a_perfect_imitation_of_a_stored_message_does_not_keep_real_ones_back(
    node: BrokerNode, bystander: WireClient, streams: Streams, prefix: str
) -> None:
    # who may publish to the live subjects may lie; but a topic must survive it
    topic = "chat.perfect"
    accounting = Accounting(topic)
    log = accounting.log("ann")
    async with subscriber(log, topic, [node]):
        await eventually(lambda: log.started)
        first = await node.store(topic, {"id": "first"})
        headers = {
            "Nats-Stream": stream_name(prefix, "chat"),
            "Nats-Subject": f"{prefix}.chat.in.{topic}",
            "Nats-Sequence": str(first.offset + 1_000_000),
            "Nats-Last-Sequence": str(first.offset),
            "Nats-Time-Stamp": "2030-01-01T00:00:00Z",
        }
        await streams.send(f"{prefix}.chat.live.{topic}", b'{"id":"forged"}', headers)

        async def a_real_one_arrives() -> bool:
            await node.store(topic, {"id": "real"})
            return "real" in log.idents

        await eventually(a_real_one_arrives)
    kept = (await node.api("history", {"channel": topic, "limit": -1})).json()["result"]["publications"]
    assert "forged" not in {pub["data"]["id"] for pub in kept}
