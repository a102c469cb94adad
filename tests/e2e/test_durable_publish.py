"""Receipts: what a back end is told that publishes to a durable topic, and what it may do when it is told nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness.accounting import Receipt
from tests.harness.client import connected
from tests.harness.cluster import SIZE, NatsCluster
from tests.harness.nats import NatsServer
from tests.harness.node import EVERYTHING, BrokerNode
from tests.harness.site import Site
from tests.harness.streams import Streams, stream_name, streams_at
from tests.harness.traffic import FAULT_SECONDS, durable, durable_settings
from tests.harness.waiting import eventually
from tests.harness.web import Answer

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

MAY_BE_STORED = re.compile(r"unknown|may have been|or not")


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    return module_site.start_node(nats, {"topics": [durable(), *EVERYTHING]})


@pytest.fixture
async def streams(nats: NatsServer) -> AsyncIterator[Streams]:
    async with streams_at(nats.url) as streams:
        yield streams


def receipt_of(result: dict[str, Any]) -> Receipt:
    assert sorted(result) == ["epoch", "offset"], result
    return Receipt(result["offset"], result["epoch"])


async def history(node: BrokerNode, topic: str) -> list[tuple[int, Any]]:
    """What is kept of a topic: offsets and data."""
    answer = await node.api("history", {"channel": topic, "limit": -1})
    return [(pub["offset"], pub["data"]) for pub in answer.json()["result"].get("publications") or []]


def error_of(answer: Answer) -> tuple[int, str]:
    """The code and the message of an answer that must be an error."""
    error = answer.json()["error"]
    return error["code"], error["message"]


def assert_unavailable(answer: Answer) -> str:
    """It must be a 503 after which to try again; its text."""
    code, message = error_of(answer)
    assert (answer.status, code) == (503, 100), answer
    assert int(answer.headers["retry-after"]) >= 1
    return message


# receipts


async def test_a_receipt_says_where_the_publication_stands(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("chat.receipt",)) as client:
        receipts = [await node.store("chat.receipt", number) for number in range(5)]
        pubs = [(await client.push())["pub"] for _ in receipts]

    offsets = [receipt.offset for receipt in receipts]
    assert offsets == sorted(set(offsets))
    assert offsets[0] > 0
    assert len({receipt.epoch for receipt in receipts}) == 1
    assert [(pub["offset"], pub["data"]) for pub in pubs] == list(zip(offsets, range(5), strict=True))
    assert await history(node, "chat.receipt") == list(zip(offsets, range(5), strict=True))


async def test_offsets_rise_in_each_of_several_topics_and_the_epoch_is_one(node: BrokerNode) -> None:
    topics = [f"chat.many.{number}" for number in range(3)]
    receipts = {topic: [await node.store(topic, number) for number in range(3)] for topic in topics}

    for of_topic in receipts.values():
        offsets = [receipt.offset for receipt in of_topic]
        assert offsets == sorted(set(offsets))
    assert len({receipt.epoch for of_topic in receipts.values() for receipt in of_topic}) == 1


async def test_receipts_of_publications_at_once_are_all_different(node: BrokerNode) -> None:
    receipts = await asyncio.gather(*(node.store("chat.atonce", number) for number in range(50)))
    kept = await history(node, "chat.atonce")

    assert sorted(receipt.offset for receipt in receipts) == [offset for offset, _ in kept]
    assert {receipts[data].offset: data for _, data in kept} == dict(kept)


async def test_the_epoch_is_there_before_the_first_publication(node: BrokerNode) -> None:
    async with connected(node.websocket_url) as client:
        before = await client.call("subscribe", channel="chat.fresh")
    receipt = await node.store("chat.fresh", 1)

    assert (before.get("offset", 0), before["epoch"]) == (0, receipt.epoch)
    assert (before["recoverable"], before["positioned"]) == (True, True)


async def test_a_live_topic_has_no_receipt(node: BrokerNode) -> None:
    answer = await node.api("publish", {"channel": "news", "data": 1, "idempotency_key": "k"})

    assert (answer.status, answer.json()) == (200, {"result": {}})


async def test_what_skips_the_history_has_no_receipt_and_reaches_subscribers(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("chat.skip",)) as client:
        first = await node.store("chat.skip", "kept")
        answer = await node.api("publish", {"channel": "chat.skip", "data": "not kept", "skip_history": True})
        assert answer.json() == {"result": {}}
        pubs = {pub["data"]: pub.get("offset", 0) for pub in [(await client.push())["pub"] for _ in range(2)]}

    assert pubs == {"kept": first.offset, "not kept": 0}
    assert await history(node, "chat.skip") == [(first.offset, "kept")]


async def test_a_client_has_its_own_publication_before_the_reply(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("chat.own",)) as client:
        await client.send(
            *({"id": 100 + number, "publish": {"channel": "chat.own", "data": number}} for number in (0, 1))
        )
        replies = [await client.reply(100), await client.reply(101)]
        said = [line["id"] if "id" in line else line["push"]["pub"]["data"] for line in client.lines if line][2:]

    assert [reply["publish"] for reply in replies] == [{}, {}]
    assert said.index(0) < said.index(100)
    assert said.index(1) < said.index(101)
    assert [data for _, data in await history(node, "chat.own")] == [0, 1]


# idempotency


@pytest.mark.parametrize("where", ["body", "header", "both"])
async def test_a_repeated_key_gets_the_receipt_of_the_first(node: BrokerNode, where: str) -> None:
    topic = f"chat.key.{where}"

    async def publish(data: str, key: str) -> Receipt:
        body = {"channel": topic, "data": data, **({"idempotency_key": key} if where != "header" else {})}
        headers = {"Idempotency_Key": key} if where != "body" else {}
        answer = await node.api("publish", body, **headers)
        assert answer.status == 200
        return receipt_of(answer.json()["result"])

    async with connected(node.websocket_url, topics=(topic,)) as client:
        first = await publish("first", "one")
        assert await publish("again", "one") == first
        assert await publish("and again", "one") == first
        second = await publish("second", "two")
        pubs = [(await client.push())["pub"] for _ in range(2)]

    assert [(pub["offset"], pub["data"]) for pub in pubs] == [(first.offset, "first"), (second.offset, "second")]
    assert second.offset > first.offset
    assert await history(node, topic) == [(first.offset, "first"), (second.offset, "second")]


async def test_a_key_written_in_the_header_and_in_the_body_is_the_same(node: BrokerNode) -> None:
    body = {"channel": "chat.samekey", "data": 1}
    first = await node.store("chat.samekey", 1, idempotency_key="k")
    answer = await node.api("publish", body, Idempotency_Key="k")

    assert receipt_of(answer.json()["result"]) == first


async def test_two_different_keys_in_one_request_are_a_mistake(node: BrokerNode) -> None:
    body = {"channel": "chat.twokeys", "data": 1, "idempotency_key": "one"}
    answer = await node.api("publish", body, Idempotency_Key="other")
    code, message = error_of(answer)

    assert (answer.status, code) == (200, 107)
    assert "idempotency" in message.lower()
    assert await history(node, "chat.twokeys") == []


async def test_a_key_counts_for_its_topic_only(node: BrokerNode) -> None:
    one = await node.store("chat.apart.one", 1, idempotency_key="k")
    other = await node.store("chat.apart.other", 2, idempotency_key="k")

    assert one != other
    assert await history(node, "chat.apart.one") == [(one.offset, 1)]
    assert await history(node, "chat.apart.other") == [(other.offset, 2)]


async def test_keys_and_topics_that_look_alike_when_written_together_are_different(node: BrokerNode) -> None:
    one = await node.store("chat.like.a", 1, idempotency_key="b.c")
    other = await node.store("chat.like.a.b", 2, idempotency_key="c")

    assert one.offset != other.offset
    assert await history(node, "chat.like.a.b") == [(other.offset, 2)]


async def test_a_key_repeated_at_another_node_is_the_same(site: Site, nats: NatsServer) -> None:
    one, other = site.start_nodes(2, nats, durable_settings())
    first = await one.store("chat.room", 1, idempotency_key="k")

    assert await other.store("chat.room", 1, idempotency_key="k") == first
    again = await asyncio.gather(
        *(node.store("chat.room", 2, idempotency_key="at once") for node in (one, other) for _ in range(10))
    )
    assert len(set(again)) == 1


@pytest.mark.parametrize("key", ["ü 🙂", "a\r\nNats-Msg-Id: b", "a\nb", "x" * 10_000, " a ", "\x00"], ids=ascii)
async def test_any_key_is_taken_for_what_it_is_or_refused(
    node: BrokerNode, streams: Streams, module_site: Site, key: str
) -> None:
    body = {"channel": "chat.oddkeys", "data": key[:20], "idempotency_key": key}
    answer = await node.api("publish", body)
    if "error" in answer.json():
        assert (answer.status, error_of(answer)[0]) == (200, 107)
        return
    receipt = receipt_of(answer.json()["result"])
    stored = await streams.call(f"STREAM.MSG.GET.{stream_name(module_site.prefix, 'chat')}", {"seq": receipt.offset})
    names = [
        line.partition(b":")[0] for line in base64.b64decode(stored["message"].get("hdrs", "")).split(b"\r\n")[1:-2]
    ]
    assert names == [b"Nats-Msg-Id"]
    assert receipt_of((await node.api("publish", body)).json()["result"]) == receipt


async def test_the_id_of_a_direct_publisher_counts(node: BrokerNode, streams: Streams, module_site: Site) -> None:
    subject = f"{module_site.prefix}.chat.in.chat.direct"
    async with connected(node.websocket_url, topics=("chat.direct",)) as client:
        first = await streams.store(subject, b'"first"', {"Nats-Msg-Id": "one"})
        again = await streams.store(subject, b'"again"', {"Nats-Msg-Id": "one"})
        second = await streams.store(subject, b'"second"', {"Nats-Msg-Id": "two", "Broker-Tags": '{"a":"b"}'})
        pubs = [(await client.push())["pub"] for _ in range(2)]

    assert (again.sequence, again.duplicate) == (first.sequence, True)
    assert [(pub["offset"], pub["data"]) for pub in pubs] == [(first.sequence, "first"), (second.sequence, "second")]
    assert pubs[1]["tags"] == {"a": "b"}


# many at once


async def test_a_broadcast_gives_a_receipt_or_an_error_for_each_topic(node: BrokerNode) -> None:
    channels = ["chat.cast.one", "news", "chat..bad", "chat.cast.two"]
    body = {"channels": channels, "data": {"to": "all"}, "idempotency_key": "k"}
    responses = (await node.api("broadcast", body)).json()["result"]["responses"]
    again = (await node.api("broadcast", body)).json()["result"]["responses"]

    one, other = receipt_of(responses[0]["result"]), receipt_of(responses[3]["result"])
    assert one != other
    assert responses[1] == {"result": {}}
    assert responses[2]["error"]["code"] == 107
    assert [again[0], again[3]] == [responses[0], responses[3]]
    assert await history(node, "chat.cast.one") == [(one.offset, {"to": "all"})]


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_batch_gives_a_receipt_or_an_error_for_each_command(node: BrokerNode, *, parallel: bool) -> None:
    topic = f"chat.batch.{parallel}".lower()
    commands = [
        {"publish": {"channel": topic, "data": 1, "idempotency_key": "k"}},
        {"publish": {"channel": topic}},
        {"publish": {"channel": topic, "data": 2}},
        {"broadcast": {"channels": [topic, f"{topic}.other"], "data": 3}},
        {"publish": {"channel": "news", "data": 4}},
    ]
    replies = (await node.api("batch", {"commands": commands, "parallel": parallel})).json()["replies"]
    receipts = [
        receipt_of(result)
        for result in (replies[0]["publish"], replies[2]["publish"], replies[3]["broadcast"]["responses"][0]["result"])
    ]

    assert len(set(receipts)) == 3
    assert replies[1]["error"]["code"] == 107
    assert replies[4] == {"publish": {}}
    assert await node.store(topic, 1, idempotency_key="k") == receipts[0]
    if not parallel:
        assert [offset for offset, _ in await history(node, topic)] == [receipt.offset for receipt in receipts]


# when NATS is not there, or does not answer


async def test_without_nats_a_publication_is_refused_and_may_be_repeated(site: Site) -> None:
    server = site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})
    node = site.start_node(server, durable_settings())
    before = await node.store("chat.room", "before", idempotency_key="before")
    async with connected(node.websocket_url, topics=("chat.room",)) as client:
        server.kill()
        body = {"channel": "chat.room", "data": "meanwhile", "idempotency_key": "meanwhile"}

        async def known() -> bool:
            return (await node.health()).status == 503

        await eventually(known, FAULT_SECONDS)
        message = assert_unavailable(await node.api("publish", body))
        assert not MAY_BE_STORED.search(message), message
        reply = await client.ask("publish", channel="chat.room", data="meanwhile")
        assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)
        server.start()
        await node.ready()
        receipt = await eventually(lambda: node.store(**_as_store(body)), FAULT_SECONDS)

        pub = (await client.push())["pub"]
        assert (pub["offset"], pub["data"]) == (receipt.offset, "meanwhile")
    assert receipt.epoch == before.epoch
    assert await node.store("chat.room", "before", idempotency_key="before") == before
    assert await history(node, "chat.room") == [(before.offset, "before"), (receipt.offset, "meanwhile")]


def _as_store(body: dict[str, Any]) -> dict[str, Any]:
    return {"topic": body["channel"], "data": body["data"], "idempotency_key": body["idempotency_key"]}


@pytest.mark.slow
async def test_without_a_majority_the_outcome_is_unknown_and_the_same_key_makes_it_safe(
    cluster: NatsCluster, site: Site
) -> None:
    stream = stream_name(site.prefix, "chat")
    site.start_node(cluster.url, durable_settings(replicas=SIZE))
    leader = await cluster.leader_of(stream)
    # connected to the one server that will be left, which takes the publication and finds nobody to agree with
    node = site.start_node(leader, durable_settings(replicas=SIZE))
    await cluster.current(stream)
    first = await node.store("chat.room", "first")
    others = cluster.others(leader)
    body = {"channel": "chat.room", "data": "in doubt", "idempotency_key": "k"}
    async with connected(node.websocket_url, topics=("chat.room",)) as client:
        for server in others:
            server.pause()
        message = assert_unavailable(await node.api("publish", body))
        assert MAY_BE_STORED.search(message), message
        assert re.search("idempotency|same key", message), message
        # JetStream says "duplicate message id is in process" now, which is no more of an answer
        message = assert_unavailable(await node.api("publish", body))
        assert MAY_BE_STORED.search(message), message
        for server in others:
            server.resume()
        await cluster.current(stream)
        receipt = await eventually(lambda: node.store(**_as_store(body)), FAULT_SECONDS)
        assert await node.store(**_as_store(body)) == receipt
        last = await node.store("chat.room", "last")
        pubs = [(await client.push())["pub"] for _ in range(2)]

    assert [(pub["offset"], pub["data"]) for pub in pubs] == [(receipt.offset, "in doubt"), (last.offset, "last")]
    kept = [(first.offset, "first"), (receipt.offset, "in doubt"), (last.offset, "last")]
    assert await history(node, "chat.room") == kept


@pytest.mark.slow
async def test_a_server_that_falls_silent_leaves_the_outcome_unknown(site: Site) -> None:
    server = site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})
    node = site.start_node(server, durable_settings())
    await node.store("chat.room", "first")
    body = {"channel": "chat.room", "data": "in doubt", "idempotency_key": "k"}
    server.pause()
    message = assert_unavailable(await node.api("publish", body))
    assert MAY_BE_STORED.search(message), message
    server.resume()
    receipt = await eventually(lambda: node.store(**_as_store(body)), FAULT_SECONDS)

    assert [data for _, data in await history(node, "chat.room")] == ["first", "in doubt"]
    assert await node.store(**_as_store(body)) == receipt


async def test_what_is_published_is_counted_by_how_it_ended(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, durable_settings())
    for _ in range(3):
        await node.store("chat.room", json.loads("[1]"))

    assert await node.metric('broker_published_total{policy="chat",result="ok",source="http"') == 3
