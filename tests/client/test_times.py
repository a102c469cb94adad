"""Deadlines, pings, and what expires. The node's clock is put forward; nothing is waited for."""

from __future__ import annotations

import pytest

from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.tokens import token

pytestmark = pytest.mark.anyio

PING = 25
PONG = 8


def wake(stage: Stage, conversation: Conversation, ahead: float) -> float:
    """Put the clock forward and wake the client, as its transport would."""
    stage.clock.ahead += ahead
    return conversation.client.wake(stage.node.clock()) - stage.node.clock()


def pings(conversation: Conversation) -> int:
    return sum(line == {} for line in conversation.lines)


async def test_who_does_not_connect_in_time_is_closed(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        assert conversation.outlet.wakes[0] - stage.node.clock() == pytest.approx(10, abs=1)
        wake(stage, conversation, 9.5)
        assert conversation.closed is None
        wake(stage, conversation, 1)
        assert conversation.closed == (3502, "stale: no connect command in time")


async def test_first_pings_are_spread_and_then_come_regularly(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        firsts = []
        for _ in range(40):
            conversation = await stage.connect()
            firsts.append(conversation.outlet.wakes[-1] - stage.node.clock())
        assert all(-1 < first < PING for first in firsts)
        assert min(firsts) < PING / 2 < max(firsts)
        for number in range(1, 4):
            wake(stage, conversation, PING)
            assert pings(conversation) == number
            conversation.say({})
            assert conversation.closed is None


async def test_no_pong_closes_with_3012(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        wake(stage, conversation, PING)
        wake(stage, conversation, PONG - 1)
        assert conversation.closed is None
        wake(stage, conversation, 1.5)
        assert conversation.closed == (3012, "no pong")


async def test_who_is_behind_is_excused_from_answering_a_ping_it_cannot_have_seen(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        wake(stage, conversation, PING)
        conversation.outlet.blocked = True
        wake(stage, conversation, PONG + 1)
        assert conversation.closed is None
        conversation.outlet.blocked = False
        wake(stage, conversation, PONG + 1)
        assert conversation.closed == (3012, "no pong")


async def test_a_pong_nobody_asked_for_closes(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        conversation.say({})
        assert conversation.closed == (3501, "bad request: a pong that nobody asked for")
        other = await stage.connect()
        wake(stage, other, PING)
        other.say({})
        other.say({})
        assert other.closed == (3501, "bad request: a pong that nobody asked for")


async def test_a_connection_ends_with_its_token_and_some_leeway(nats: NatsServer) -> None:
    async with staged(nats, auth={"leeway_seconds": 5}) as stage:
        conversation = await stage.connect(token("ann", ttl_seconds=10))
        wake(stage, conversation, 13)
        assert conversation.closed is None
        wake(stage, conversation, 3)
        assert conversation.closed == (3005, "connection expired")


async def test_a_refreshed_connection_goes_on(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect(token("ann", ttl_seconds=10, caps=[{"channels": ["a"], "allow": ["sub"]}]))
        caps = [{"channels": ["b"], "allow": ["sub"]}]
        result = await conversation.call("refresh", token=token("ann", ttl_seconds=100, info=1, caps=caps))
        assert (result["client"], result["expires"]) == (conversation.client.id, True)
        assert 95 <= result["ttl"] <= 100
        wake(stage, conversation, 20)
        assert conversation.closed is None
        session = conversation.client.session
        assert session is not None
        assert session.info == b"1"
        wake(stage, conversation, 100)
        assert conversation.closed is not None


@pytest.mark.parametrize(
    ("made", "error", "close"),
    [
        ("", (107, "bad request: refresh.token: missing"), None),
        (token("ann", ttl_seconds=-60), (109, "token expired"), None),
        (token("bob"), None, (3500, "invalid token: sub: the token is for another user")),
        ("rubbish", None, (3500, "")),
        (token("ann", channel="a"), None, (3500, "")),
    ],
)
async def test_tokens_that_do_not_refresh(
    nats: NatsServer, made: str, error: tuple[int, str] | None, close: tuple[int, str] | None
) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect(token("ann"))
        conversation.say({"id": 5, "refresh": {"token": made}})
        if error is not None:
            reply = (await conversation.reply(5))["error"]
            assert (reply["code"], reply["message"], conversation.closed) == (*error, None)
        else:
            assert close is not None
            assert conversation.closed is not None
            assert conversation.closed[0] == close[0]
            assert conversation.closed[1].startswith(close[1])


async def test_a_subscription_ends_with_its_token_and_the_connection_stays(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect(token("ann"))
        result = await conversation.call("subscribe", channel="a", token=token("ann", channel="a", ttl_seconds=10))
        assert result["expires"] is True
        assert 8 <= result["ttl"] <= 10
        wake(stage, conversation, 9)
        assert conversation.pushes == []
        wake(stage, conversation, 3)
        assert conversation.pushes == [
            {"channel": "a", "unsubscribe": {"code": 2501, "reason": "subscription expired"}}
        ]
        assert (conversation.closed, stage.node.hub.topics) == (None, {})


async def test_a_refreshed_subscription_goes_on(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect(token("ann"))
        await conversation.call("subscribe", channel="a", token=token("ann", channel="a", ttl_seconds=5))
        result = await conversation.call("sub_refresh", channel="a", token=token("ann", channel="a", ttl_seconds=60))
        assert result["expires"] is True
        assert 55 <= result["ttl"] <= 60
        wake(stage, conversation, 20)
        assert conversation.pushes == []
        assert "a" in stage.node.hub.topics


async def test_subscription_tokens_by_the_table(nats: NatsServer) -> None:
    topics = [{"name": "mine", "match": [">"]}]
    async with staged(nats, topics=topics) as stage:
        for method in ("subscribe", "sub_refresh"):
            for made, error, close in (
                (token("ann", channel="a", ttl_seconds=-60), 109, None),
                (token("ann", channel="a", secret="another secret of more than 32 bytes!!"), 103, None),
                ("rubbish", 103, None),
                (token("ann"), 103, None),
                (token("ann", channel="a", allow=["pub"]), 103, None),
                (token("ann", channel="b"), None, 3500),
                (token("bob", channel="a"), None, 3500),
                (token("", channel="a"), None, 3500),
                (token("ann", channel="a", client="another"), None, 3500),
            ):
                conversation = await stage.connect(token("ann"))
                if method == "sub_refresh":
                    await conversation.call("subscribe", channel="a", token=token("ann", channel="a"))
                conversation.say({"id": 5, method: {"channel": "a", "token": made}})
                if error is None:
                    assert conversation.closed is not None
                    assert conversation.closed[0] == close
                else:
                    assert (await conversation.reply(5))["error"]["code"] == error
                    assert conversation.closed is None


async def test_a_token_may_name_the_client_and_what_it_allows(nats: NatsServer) -> None:
    async with staged(nats, topics=[{"name": "mine", "match": [">"]}]) as stage:
        ann = await stage.connect(token("ann"))
        named = token("ann", channel="a", client=ann.client.id, allow=["sub", "pub"])
        await ann.call("subscribe", channel="a", token=named)
        await ann.call("publish", channel="a", data=1)
        await ann.call("subscribe", channel="b", token=token("ann", channel="b"))
        assert (await ann.refused("publish", channel="b", data=1))[0] == 103
        nobody = await stage.connect()
        await nobody.call("subscribe", channel="a", token=token("", channel="a"))


async def test_what_is_not_subscribed_cannot_be_refreshed(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect(token("ann"))
        refused = await conversation.refused("sub_refresh", channel="a", token=token("ann", channel="a"))
        assert refused == (103, "permission denied: sub_refresh.channel: not subscribed")
        await conversation.call("subscribe", channel="a")
        assert (await conversation.refused("sub_refresh", channel="a"))[0] == 107


async def test_without_an_end_nothing_expires(nats: NatsServer) -> None:
    async with staged(nats, auth={"require_exp": False}) as stage:
        conversation = await stage.connect(token("ann", ttl_seconds=None))
        assert "expires" not in conversation.lines[0]["connect"]
        wake(stage, conversation, PING)
        conversation.say({})
        assert conversation.closed is None
