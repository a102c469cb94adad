"""Clients that are faster than they may: what is refused, and when enough is enough."""

from __future__ import annotations

from typing import Any

import pytest

from broker.client.pacing import OFFENCES_OF_AN_ADDRESS
from tests.client.conversing import Conversation, Line, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.tokens import token

pytestmark = pytest.mark.anyio

HOLIDAY = 1000.0
"""Seconds in which all is forgiven."""


def frozen(stage: Stage) -> None:
    """Let time pass only where a test says so."""
    now = stage.clock()
    stage.clock._clock = lambda: now


def ask(conversation: Conversation, count: int, method: str = "rpc", **request: Any) -> list[Line]:
    """Commands in one frame; what is answered at once."""
    before = len(conversation.lines)
    conversation.say(*({"id": 100 + number, method: request} for number in range(count)))
    return conversation.lines[before:]


def codes(replies: list[Line]) -> list[int]:
    return [reply.get("error", {}).get("code", 0) for reply in replies]


RAN = 108
"""What an rpc is answered with that was run."""


async def test_commands_beyond_the_rate_are_refused_with_what_it_is_and_when_to_try_again(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 4}) as stage:
        frozen(stage)
        client = await stage.connect()
        assert codes(ask(client, 6)) == [RAN] * 4 + [111] * 2
        (error,) = ask(client, 1)
        assert error["error"] == {
            "code": 111,
            "message": "too many requests: at most 4 commands per second on this connection; try again in 0.25 s",
            "temporary": True,
        }
        stage.clock.ahead += 0.25
        assert codes(ask(client, 2)) == [RAN, 111]
        stage.clock.ahead += HOLIDAY
        assert codes(ask(client, 5)) == [RAN] * 4 + [111]
        assert stage.node.metrics.errors.labels("websocket", "111")._value.get() == 5
        assert client.closed is None


async def test_what_can_not_be_decoded_counts_too(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 2}) as stage:
        frozen(stage)
        client = await stage.connect()
        assert codes(ask(client, 3, "publish", channel=7)) == [107, 107, 111]


async def test_pongs_and_connect_do_not_count(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 1}, ping={"interval_seconds": 20}) as stage:
        frozen(stage)
        client = stage.open()
        client.say({"id": 1, "connect": {}}, {"id": 2, "rpc": {}})
        assert codes([await client.reply(1), await client.reply(2)]) == [0, RAN]
        now = stage.clock()
        for _ in range(30):
            now += 20  # of pings only: the rate's clock stands still
            client.client.wake(now)
            client.say({})
        assert (client.closed, codes(ask(client, 1))) == (None, [111])


async def test_all_subscriptions_may_be_taken_up_at_once(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 1, "topics_per_connection": 50}) as stage:
        frozen(stage)
        client = await stage.connect()
        client.say(*({"id": 1 + number, "subscribe": {"channel": f"t.{number}"}} for number in range(50)))
        assert codes([await client.reply(1 + number) for number in range(50)]) == [0] * 50
        assert codes(ask(client, 2)) == [RAN, 111]
        assert await client.refused("subscribe", channel="t.0") == (
            111,
            "too many requests: at most 1 commands per second on this connection; try again in 1 s",
        )


async def test_commands_that_wait_in_line_were_counted_when_they_came(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 3}) as stage:
        frozen(stage)
        client = await stage.connect()
        client.say(
            {"id": 1, "subscribe": {"channel": "a"}},
            {"id": 2, "publish": {"channel": "a", "data": 1}},  # waits for it
            *({"id": 3 + number, "publish": {"channel": "a", "data": 2}} for number in range(3)),
        )
        assert codes(client.lines[1:]) == [111]
        assert client.lines[1]["id"] == 5
        await client.heard("a", 1, 2, 2)


async def test_publications_beyond_the_rate_are_refused_and_counted(nats: NatsServer) -> None:
    async with staged(nats, limits={"publish_rate": 2}) as stage:
        frozen(stage)
        client = await stage.connect()
        for data in (1, 2):
            await client.call("publish", channel="a", data=data)
        assert await client.refused("publish", channel="a", data=3) == (
            111,
            "too many requests: at most 2 publications per second on this connection; try again in 0.5 s",
        )
        assert codes(ask(client, 20)) == [RAN] * 20  # commands have no limit here
        stage.clock.ahead += 0.5
        await client.call("publish", channel="a", data=4)
        stage.node.observe()
        assert stage.node.metrics.published.labels("default", "websocket", "rate_limited")._value.get() == 1
        assert stage.node.metrics.published.labels("default", "websocket", "ok")._value.get() == 3


async def test_what_is_refused_for_another_reason_costs_no_publication(nats: NatsServer) -> None:
    topics = [
        {"name": "closed", "match": ["closed"]},
        {"name": "full", "match": ["full"], "publish": "anyone", "publish_rate": 0.001},
        {"name": "small", "match": ["small"], "publish": "anyone", "message_bytes": 10},
    ]
    async with staged(nats, topics=topics, limits={"publish_rate": 2}) as stage:
        frozen(stage)
        client = await stage.connect()
        await client.call("publish", channel="full", data=1)
        for code, channel, data in (
            (103, "closed", 1),
            (106, "small", "x" * 20),
            (102, "nowhere", 1),
            (111, "full", 2),
        ):
            for _ in range(5):
                assert (await client.refused("publish", channel=channel, data=data))[0] == code
        assert (await client.refused("publish", channel="small"))[0] == 107
        await client.call("publish", channel="small", data=1)
        code, text = await client.refused("publish", channel="small", data=1)
        assert (code, "on this connection" in text) == (111, True)


async def test_a_publication_that_nats_is_not_there_for_costs_none(nats: NatsServer) -> None:
    topics = [{"name": "t", "match": [">"], "publish": "anyone", "publish_rate": 2}]
    async with staged(nats, topics=topics, limits={"publish_rate": 1}) as stage:
        frozen(stage)
        client = await stage.connect()
        connection, stage.node.connection._client = stage.node.connection._client, None
        for _ in range(5):
            assert (await client.refused("publish", channel="a", data=1))[0] == 100
        stage.node.connection._client = connection
        await client.call("publish", channel="a", data=1)


async def test_a_policy_s_rate_holds_for_clients_and_back_ends_together_and_takes_no_patience(nats: NatsServer) -> None:
    topics = [
        {"name": "held", "match": ["held.>"], "publish": "anyone", "publish_rate": 3},
        {"name": "free", "match": ["free"], "publish": "anyone"},
    ]
    async with staged(nats, topics=topics) as stage:
        frozen(stage)
        client, other = await stage.connect(), await stage.connect()
        await client.call("publish", channel="held.a", data=1)
        await other.call("publish", channel="held.b", data=1)
        await stage.publish("held.c", 1)
        for _ in range(100):
            assert await client.refused("publish", channel="held.a", data=2) == (
                111,
                "too many requests: at most 3 publications per second to topics of policy held; try again in 0.333 s",
            )
        await client.call("publish", channel="free", data=1)
        assert client.closed is None


async def test_who_goes_on_is_closed_and_the_third_time_for_good(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 10}) as stage:
        frozen(stage)
        for end in (
            (3013, "too many requests: refused, and went on"),
            (3013, "too many requests: refused, and went on"),
            (3509, "too many errors: sent away for too many requests before"),
        ):
            client = await stage.connect(token("ann"))
            replies = ask(client, 1000)
            assert codes(replies) == [RAN] * 10 + [111] * 51  # five seconds' worth, and one too many
            assert client.closed == end
            client.client.lost()
        bob = await stage.connect(token("bob"))
        ask(bob, 1000)
        assert bob.closed is not None
        assert bob.closed[0] == 3013
        stage.clock.ahead += 300
        client = await stage.connect(token("ann"))
        ask(client, 1000)
        assert client.closed is not None
        assert client.closed[0] == 3013


async def test_the_anonymous_are_known_by_their_address(nats: NatsServer) -> None:
    async with staged(nats, limits={"publish_rate": 1}) as stage:
        frozen(stage)

        async def end(address: str) -> int:
            client = await stage.connect()
            client.outlet.address = address
            ask(client, 100, "publish", channel="a", data=1)
            assert client.closed is not None
            return client.closed[0]

        often = OFFENCES_OF_AN_ADDRESS - 1  # more than of a user, since many may share an address
        assert [await end("192.0.2.1") for _ in range(often)] == [3013] * often
        assert await end("192.0.2.2") == 3013
        assert await end("192.0.2.1") == 3509
        assert [await end("") for _ in range(often + 2)] == [3013] * (often + 2)  # whoever that is, they may be many


async def test_who_slows_down_in_between_is_not_closed(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 1}) as stage:
        frozen(stage)
        client = await stage.connect()
        for _ in range(20):
            assert codes(ask(client, 21)) == [RAN] + [111] * 20
            stage.clock.ahead += 1
        assert client.closed is None


async def test_an_operator_can_throttle_a_connection_and_lift_that(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 100}) as stage:
        frozen(stage)
        client = await stage.connect()
        client.client.throttle(2, 1)
        assert codes(ask(client, 3)) == [RAN, RAN, 111]
        stage.clock.ahead += 1
        await client.call("publish", channel="a", data=1)
        assert (await client.refused("publish", channel="a", data=1))[0] == 111
        client.client.throttle(None, None)
        assert codes(ask(client, 101)) == [RAN] * 100 + [111]
        client.client.throttle(None, 1)
        assert codes(ask(client, 101)) == [RAN] * 100 + [111]


async def test_where_nothing_is_limited_nothing_is_kept(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        client = await stage.connect()
        await client.call("publish", channel="a", data=1)
        ask(client, 1000)
        assert (client.client.rates, client.client.pace) == (None, None)
        client.client.throttle(1, None)
        assert codes(ask(client, 2)) == [RAN, 111]
        client.client.throttle(None, None)
        assert (client.client.rates, client.client.pace) == (None, None)


async def test_who_only_listens_has_no_buckets(nats: NatsServer) -> None:
    async with staged(nats, limits={"command_rate": 5, "publish_rate": 5}) as stage:
        client = await stage.connect()
        assert client.client.pace is None
        await client.call("subscribe", channel="a")
        assert client.client.pace is not None
        assert client.client.pace._commands is None
        assert client.client.pace._publications is None
