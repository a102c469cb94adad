"""Wildcard subscriptions to durable topics: order, history and recovery, as for a single one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.client.conversing import staged
from tests.client.test_durable import DURABLE, back_at, data_of, heard, stored
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.anyio]

LATEST = [{**DURABLE[0], "recovery": "latest"}]


async def test_a_publication_says_which_topic_it_is_of(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="chat.*")
        (offset,) = await stored(stage, "chat.a", "x")
        await eventually(lambda: heard(conversation, "chat.*") == [(offset, "x")])
        assert conversation.pushes[-1]["pub"]["channel"] == "chat.a"


async def test_messages_of_many_topics_come_in_the_order_of_the_stream(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="chat.*")
        await asyncio.gather(
            *(stored(stage, f"{kind}.{n}", *range(20)) for kind in ("chat", "other") for n in range(5))
        )
        await eventually(lambda: len(heard(conversation, "chat.*")) == 100)
        offsets = [offset for offset, _ in heard(conversation, "chat.*")]
        assert offsets == sorted(set(offsets))


async def test_who_comes_back_to_a_wildcard_gets_what_it_missed_of_all_its_topics(nats: NatsServer) -> None:
    async with staged(nats, prefix="two5", topics=DURABLE) as one, staged(nats, prefix="two5", topics=DURABLE) as two:
        position = await (await one.connect()).call("subscribe", channel="chat.>")
        for n in range(5):
            await stored(one, f"chat.{n}", n)
            await stored(one, f"other.{n}", "no")
        result = await (await two.connect()).call("subscribe", channel="chat.>", **back_at(position))
        assert (result["recovered"], data_of(result)) == (True, [0, 1, 2, 3, 4])
        assert [pub["channel"] for pub in result["publications"]] == [f"chat.{n}" for n in range(5)]


async def test_who_missed_more_of_one_topic_than_is_kept_is_told(nats: NatsServer) -> None:
    async with staged(nats, prefix="two6", topics=DURABLE) as one, staged(nats, prefix="two6", topics=DURABLE) as two:
        position = await (await one.connect()).call("subscribe", channel="chat.>")
        await stored(one, "chat.a", *range(11))
        await stored(one, "chat.b", 0)
        result = await (await two.connect()).call("subscribe", channel="chat.>", **back_at(position))
        assert result.get("recovered", False) is False


async def test_the_history_of_a_wildcard_is_that_of_all_its_topics(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        offsets = [(await stored(stage, f"{kind}.{n}", n))[0] for n in range(3) for kind in ("chat", "other")]
        conversation = await stage.connect()
        result = await conversation.call("history", channel="chat.*", limit=-1)
        assert [(pub["channel"], pub["data"]) for pub in result["publications"]] == [(f"chat.{n}", n) for n in range(3)]
        assert result["offset"] == offsets[-2]
        newest = await conversation.call("history", channel="chat.*", limit=2, reverse=True)
        assert data_of(newest) == [2, 1]


async def test_a_dashboard_gets_the_newest_of_each_topic(nats: NatsServer) -> None:
    async with staged(nats, topics=LATEST) as stage:
        for n in range(3):
            await stored(stage, f"price.{n}", "old", f"new {n}")
        conversation = await stage.connect()
        result: dict[str, Any] = await conversation.call("subscribe", channel="price.*")
        assert data_of(result) == ["new 0", "new 1", "new 2"]
        again = await (await stage.connect()).call("subscribe", channel="price.1")
        assert data_of(again) == ["new 1"]
        await stored(stage, "price.1", "newer")
        await eventually(lambda: [data for _, data in heard(conversation, "price.*")] == ["newer"])
        late = await (await stage.connect()).call("subscribe", channel="price.*")
        assert data_of(late) == ["new 0", "new 2", "newer"]


async def test_whoever_publishes_where_a_wildcard_reaches_sees_its_own_publication_first(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="chat.*")
        for n in range(50):
            await conversation.call("publish", channel="chat.a", data=n)
            assert [data for _, data in heard(conversation, "chat.*")][-1] == n
