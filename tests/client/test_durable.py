"""Durable topics, as a client sees them: positions, history, recovery."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.anyio]

DURABLE: list[dict[str, Any]] = [
    {
        "name": "kept",
        "match": [">"],
        "durable": True,
        "history_messages": 10,
        "subscribe": "anyone",
        "publish": "anyone",
        "read": "anyone",
    }
]


async def stored(stage: Stage, topic: str, *data: Any, key: str = "") -> list[int]:
    """Publish, one after another; the offsets."""
    policy = stage.node.locate(topic)
    offsets = []
    for one in data:
        outcome = stage.node.publish(policy, topic, json.dumps(one).encode(), key=key, source="http")  # type: ignore[arg-type]
        offsets.append((await outcome).offset)  # type: ignore[misc]
    return offsets


def back_at(position: dict[str, Any]) -> dict[str, Any]:
    """What a client says that comes back to a position it was told."""
    return {"recover": True, "offset": position.get("offset", 0), "epoch": position["epoch"]}


def data_of(result: dict[str, Any]) -> list[Any]:
    return [one["data"] for one in result.get("publications", [])]


def heard(conversation: Conversation, topic: str) -> list[tuple[int, Any]]:
    """Offset and data of all publications that were pushed."""
    return [
        (push["pub"]["offset"], push["pub"]["data"])
        for push in conversation.pushes
        if push["channel"] == topic and "pub" in push
    ]


async def test_who_subscribes_is_told_where_the_topic_stands(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        (offset,) = await stored(stage, "a", 1)
        conversation = await stage.connect()
        result = await conversation.call("subscribe", channel="a")
        assert result["recoverable"] is True
        assert result["positioned"] is True
        assert result["offset"] == offset
        assert result["epoch"]


async def test_publications_come_with_their_offsets(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="a")
        offsets = await stored(stage, "a", "x", "y")
        await eventually(lambda: heard(conversation, "a") == [(offsets[0], "x"), (offsets[1], "y")])


async def test_who_comes_back_gets_what_it_missed(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        first = await conversation.call("subscribe", channel="a")
        await stored(stage, "a", *range(5))
        again = await stage.connect()
        result = await again.call("subscribe", channel="a", **back_at(first))
        assert result["recovered"] is True
        assert result["was_recovering"] is True
        assert data_of(result) == [0, 1, 2, 3, 4]
        await stored(stage, "a", 5)
        await eventually(lambda: [data for _, data in heard(again, "a")] == [5])


async def test_another_node_gives_what_was_missed_from_the_stream(nats: NatsServer) -> None:
    async with staged(nats, prefix="two1", topics=DURABLE) as one, staged(nats, prefix="two1", topics=DURABLE) as two:
        conversation = await one.connect()
        first = await conversation.call("subscribe", channel="a")
        offsets = await stored(one, "a", *range(10))
        again = await two.connect()
        result = await again.call("subscribe", channel="a", **back_at(first))
        assert (result["recovered"], data_of(result)) == (True, list(range(10)))
        late = await two.connect()
        result = await late.call("subscribe", channel="a", recover=True, offset=offsets[3], epoch=first["epoch"])
        assert (result["recovered"], data_of(result)) == (True, [4, 5, 6, 7, 8, 9])


async def test_who_missed_more_than_is_kept_is_told(nats: NatsServer) -> None:
    async with staged(nats, prefix="two3", topics=DURABLE) as one, staged(nats, prefix="two3", topics=DURABLE) as two:
        first = await (await one.connect()).call("subscribe", channel="a")
        offsets = await stored(one, "a", *range(11))
        position = {"recover": True, "offset": first.get("offset", 0), "epoch": first["epoch"]}
        result = await (await two.connect()).call("subscribe", channel="a", **position)
        assert result.get("recovered", False) is False
        assert "publications" not in result
        assert result["offset"] == offsets[-1]
        code, _ = await (await two.connect()).refused("subscribe", channel="a", flag=2, **position)
        assert code == 112
        whole = await (await two.connect()).call("subscribe", channel="a", **{**position, "offset": offsets[0]})
        assert (whole["recovered"], data_of(whole)) == (True, list(range(1, 11)))


@pytest.mark.parametrize("epoch", ["other", "_"])
async def test_an_epoch_of_another_stream_recovers_nothing(nats: NatsServer, epoch: str) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "a", 1)
        result = await (await stage.connect()).call("subscribe", channel="a", recover=True, offset=0, epoch=epoch)
        assert result.get("recovered", False) is False


async def test_from_the_beginning_of_any_epoch_is_all_there_is(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "a", 1, 2)
        result = await (await stage.connect()).call("subscribe", channel="a", recover=True)
        assert (result["recovered"], data_of(result)) == (True, [1, 2])


async def test_an_offset_beyond_the_top_is_no_position(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "a", 1, 2)
        conversation = await stage.connect()
        result = await conversation.call("subscribe", channel="a", recover=True, offset=1_000_000)
        assert result.get("recovered", False) is False
        await stored(stage, "a", 3)
        await eventually(lambda: [data for _, data in heard(conversation, "a")] == [3])


async def test_recovery_and_live_messages_make_one_sequence(nats: NatsServer) -> None:
    async with staged(nats, prefix="two2", topics=DURABLE) as one, staged(nats, prefix="two2", topics=DURABLE) as two:
        position = await (await one.connect()).call("subscribe", channel="a")
        publishing = asyncio.create_task(stored(one, "a", *range(300)))
        seen: list[int] = []
        offset = position.get("offset", 0)
        while not publishing.done():
            conversation = await two.connect()
            result = await conversation.call(
                "subscribe", channel="a", recover=True, offset=offset, epoch=position["epoch"]
            )
            assert result["recovered"] is True
            got = [(pub["offset"], pub["data"]) for pub in result.get("publications", [])]
            await conversation.call("unsubscribe", channel="a")
            got += heard(conversation, "a")
            conversation.client.lost()
            seen += [data for _, data in got]
            offset = got[-1][0] if got else offset
            await asyncio.sleep(0)
        result = await (await two.connect()).call(
            "subscribe", channel="a", recover=True, offset=offset, epoch=position["epoch"]
        )
        seen += data_of(result)
        assert seen == list(range(300))
