"""The history command: who may use it, and what it answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.client.conversing import Stage, staged
from tests.client.test_durable import data_of, stored
from tests.harness.nats import NatsServer
from tests.harness.tokens import token

pytestmark = pytest.mark.anyio


def kept(read: str = "anyone", **changes: Any) -> list[dict[str, Any]]:
    policy = {"name": "kept", "match": [">"], "durable": True, "subscribe": "anyone", "read": read}
    return [{"name": "live", "match": ["live.>"], "subscribe": "anyone", "read": "anyone"}, {**policy, **changes}]


async def allowed(stage: Stage, made: str = "", *, subscribe: bool = False, topic: str = "a") -> bool:
    """Whether somebody may read a topic's history."""
    conversation = await stage.connect(made)
    if subscribe:
        await conversation.call("subscribe", channel=topic)
    reply = await conversation.ask("history", channel=topic, limit=1)
    if "error" in reply:
        assert reply["error"]["code"] == 103
        return False
    return True


@pytest.mark.parametrize(
    ("read", "nobody", "user", "subscriber", "granted"),
    [
        ("subscribers", False, False, True, True),
        ("nobody", False, False, False, False),
        ("granted", False, False, False, True),
        ("authenticated", False, True, True, True),
        ("anyone", True, True, True, True),
    ],
)
async def test_the_policy_says_who_may_read(
    nats: NatsServer,
    read: str,
    *,
    nobody: bool,
    user: bool,
    subscriber: bool,
    granted: bool,
) -> None:
    async with staged(nats, topics=kept(read)) as stage:
        await stored(stage, "a", 1)
        assert await allowed(stage) is nobody
        assert await allowed(stage, token("ann")) is user
        assert await allowed(stage, token("ann"), subscribe=True) is subscriber
        caps = [{"channels": ["a"], "allow": ["hst"]}]
        assert await allowed(stage, token("ann", caps=caps)) is granted
        for other in ([{"channels": ["b"], "allow": ["hst"]}], [{"channels": ["a"], "allow": ["prs", "sub", "pub"]}]):
            assert await allowed(stage, token("ann", caps=other)) is user


async def test_a_subscriptions_token_can_allow_it(nats: NatsServer) -> None:
    async with staged(nats, topics=kept("granted", subscribe="granted")) as stage:
        await stored(stage, "a", 1)
        for allow, code in ((["hst"], 0), ([], 103)):
            ann = await stage.connect(token("ann"))
            await ann.call("subscribe", channel="a", token=token("ann", channel="a", allow=["sub", *allow]))
            reply = await ann.ask("history", channel="a", limit=1)
            assert reply.get("error", {"code": 0})["code"] == code


async def test_it_answers_with_publications_and_the_position(nats: NatsServer) -> None:
    async with staged(nats, topics=kept()) as stage:
        conversation = await stage.connect()
        empty = await conversation.call("history", channel="a", limit=10)
        assert empty == {"publications": [], "epoch": empty["epoch"], "offset": 0}
        offsets = await stored(stage, "a", *range(5))
        position = await conversation.call("history", channel="a")
        assert position == {"publications": [], "epoch": empty["epoch"], "offset": offsets[-1]}
        result = await conversation.call("history", channel="a", limit=2)
        assert result["publications"] == [{"data": 0, "offset": offsets[0]}, {"data": 1, "offset": offsets[1]}]
        since = {"offset": offsets[1], "epoch": empty["epoch"]}
        assert data_of(await conversation.call("history", channel="a", limit=2, since=since)) == [2, 3]
        assert data_of(await conversation.call("history", channel="a", limit=-1, since=since)) == [2, 3, 4]
        assert data_of(await conversation.call("history", channel="a", limit=-1, since=since, reverse=True)) == [0]
        assert data_of(await conversation.call("history", channel="a", limit=2, reverse=True)) == [4, 3]


async def test_publishers_and_tags_are_part_of_it(nats: NatsServer) -> None:
    async with staged(nats, topics=kept(publish="anyone")) as stage:
        ann = await stage.connect(token("ann", info={"n": 1}))
        await ann.call("publish", channel="a", data=1)
        (publication,) = (await ann.call("history", channel="a", limit=1))["publications"]
        assert publication["info"] == {"user": "ann", "client": ann.client.id, "conn_info": {"n": 1}}


async def test_limits_are_limited(nats: NatsServer) -> None:
    async with staged(nats, topics=kept(), limits={"history_messages": 3}) as stage:
        await stored(stage, "a", *range(5))
        conversation = await stage.connect()
        for limit in (-1, -1_000_000, 3, 4, 2**31 - 1):
            assert data_of(await conversation.call("history", channel="a", limit=limit)) == [0, 1, 2]
        assert data_of(await conversation.call("history", channel="a", limit=-1, reverse=True)) == [4, 3, 2]


async def test_what_cant_be_asked_is_refused_with_a_reason(nats: NatsServer) -> None:
    async with staged(nats, topics=kept()) as stage:
        (offset,) = await stored(stage, "a", 1)
        conversation = await stage.connect()

        async def refused(**request: Any) -> tuple[int, str]:
            return await conversation.refused("history", **{"channel": "a", "limit": 1, **request})

        assert await refused(channel="live.a") == (108, "not available: history.channel: its policy keeps no history")
        for name in ("", "a*", "a..b"):
            code, text = await refused(channel=name)
            assert (code, "history.channel" in text) == (107, True)
        assert (await refused(since={"offset": offset, "epoch": "other"}))[0] == 112
        assert (await refused(since={"offset": offset + 1}))[0] == 112
        assert (await refused(since={"offset": -1}))[0] == 107
        assert (await refused(since={"offset": 0}, reverse=True))[0] == 107
        assert (await refused(since={"offset": 2**63}))[0] in (107, 112)
        assert conversation.closed is None


async def test_a_client_that_goes_meanwhile_is_not_answered(nats: NatsServer) -> None:
    async with staged(nats, topics=kept()) as stage:
        await stored(stage, "a", 1)
        conversation = await stage.connect()
        before = len(conversation.lines)
        conversation.say({"id": 1, "history": {"channel": "a", "limit": 1}})
        conversation.client.lost()
        other = await stage.connect()
        await other.call("history", channel="a", limit=1)
        assert len(conversation.lines) == before


async def test_many_histories_at_once_are_all_answered(nats: NatsServer) -> None:
    async with staged(nats, topics=kept()) as stage:
        await stored(stage, "a", *range(20))
        conversation = await stage.connect()
        conversation.say(*({"id": number, "history": {"channel": "a", "limit": 5}} for number in range(1, 501)))
        replies = await asyncio.gather(*(conversation.reply(number) for number in range(1, 501)))
        assert all(data_of(one["history"]) == [0, 1, 2, 3, 4] for one in replies)
        assert conversation.outlet.reading
