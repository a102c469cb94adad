"""Presence and its numbers, as clients ask for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.core.policy import TopicPolicy
from broker.core.session import Session
from broker.relay.control import GONE_SECONDS
from broker.wire.codes import CommandError
from tests.client.conversing import Conversation, Stage, staged
from tests.client.members import die
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

ROOM = "room.1"


def policy(name: str, read: str = "subscribers", **more: Any) -> dict[str, Any]:
    return {"name": name, "match": [f"{name}.>"], "subscribe": "anyone", "presence": True, "read": read, **more}


TOPICS = [
    policy("room"),
    policy("granted", "granted"),
    policy("users", "authenticated"),
    policy("anyone", "anyone"),
    policy("nobody", "nobody"),
    policy("blind", "anyone", presence=False, join_leave=True),
]


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """For a test that stops it."""
    return site.start_nats()


@asynccontextmanager
async def two_stages(nats: NatsServer, **settings: Any) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two nodes that know each other."""
    async with (
        staged(nats, topics=TOPICS, **settings) as one,
        staged(nats, one.node.options.prefix, topics=TOPICS, **settings) as other,
    ):
        await eventually(lambda: one.node.control.peers and other.node.control.peers)
        yield one, other


async def member(stage: Stage, user: str = "", topic: str = ROOM, **claims: Any) -> Conversation:
    conversation = await stage.connect(token(user, **claims) if user else "")
    await conversation.call("subscribe", channel=topic)
    return conversation


async def numbers(conversation: Conversation, topic: str = ROOM) -> tuple[int, int]:
    """How many connections there are, and of how many users."""
    result = await conversation.call("presence_stats", channel=topic)
    assert result.keys() == {"num_clients", "num_users"}
    return result["num_clients"], result["num_users"]


async def clients(conversation: Conversation, topic: str = ROOM) -> set[str]:
    return set((await conversation.call("presence", channel=topic))["presence"])


def add_members(stage: Stage, count: int, *, users: int, info: bytes | None = None) -> None:
    """So many members at once, without connections."""
    located = stage.node.locate(ROOM)
    assert isinstance(located, TopicPolicy)
    for number in range(count):
        session = Session(f"{stage.node.uid[:13]}-{number}", f"user {number % users}", info=info)
        stage.node.membership.entered(session, ROOM, located)


async def test_presence_shows_the_members_of_all_nodes_with_their_infos(nats: NatsServer) -> None:
    async with two_stages(nats) as (here, there):
        ann = await member(here, "ann", info={"colour": "red"})
        bob = await there.connect(token("bob"))
        await bob.call("subscribe", channel=ROOM, token=token("bob", channel=ROOM, info={"seat": 7}))
        nobody = await member(there)
        expected = {
            ann.client.id: {"user": "ann", "client": ann.client.id, "conn_info": {"colour": "red"}},
            bob.client.id: {"user": "bob", "client": bob.client.id, "chan_info": {"seat": 7}},
            nobody.client.id: {"user": "", "client": nobody.client.id},
        }
        for one in (ann, bob, nobody):
            assert await one.call("presence", channel=ROOM) == {"presence": expected}
            assert await numbers(one) == (3, 3)


async def test_a_user_counts_once_however_many_connections_it_has_wherever(nats: NatsServer) -> None:
    async with two_stages(nats) as (here, there):
        one = await member(here, "ann")
        assert await numbers(one) == (1, 1)
        people = [await member(at, who) for at in (here, there) for who in ("ann", "", "bob", "ann")]
        assert await numbers(one) == (9, 3)
        for gone in (*people[:3], people[4]):
            gone.client.lost()
        assert await numbers(one) == (5, 3)
        await people[6].call("unsubscribe", channel=ROOM)
        assert await numbers(one) == (4, 2)  # bob was the last one
        await people[7].call("unsubscribe", channel=ROOM)
        assert await numbers(one) == (3, 2)


async def test_who_has_just_subscribed_is_present_and_who_has_just_left_is_not(nats: NatsServer) -> None:
    async with two_stages(nats) as (here, there):
        witness = await member(there, topic="anyone.1")
        passing = await here.connect()
        for _ in range(50):
            await passing.call("subscribe", channel="anyone.1")
            assert await clients(passing, "anyone.1") == {witness.client.id, passing.client.id}
            assert await clients(witness, "anyone.1") == {witness.client.id, passing.client.id}
            await passing.call("unsubscribe", channel="anyone.1")
            assert await clients(passing, "anyone.1") == await clients(witness, "anyone.1") == {witness.client.id}


async def test_what_nobody_is_subscribed_to_is_empty_and_not_absent(nats: NatsServer) -> None:
    async with two_stages(nats) as (here, _):
        stranger = await here.connect()
        assert await stranger.call("presence", channel="anyone.1") == {"presence": {}}
        assert await numbers(stranger, "anyone.1") == (0, 0)


@pytest.mark.parametrize("method", ["presence", "presence_stats"])
async def test_what_there_is_not_is_refused_with_its_reason(nats: NatsServer, method: str) -> None:
    async with staged(nats, topics=TOPICS) as stage:
        conversation = await stage.connect()
        assert (await conversation.refused(method, channel="unheard.of"))[0] == 102
        code, message = await conversation.refused(method, channel="a..b")
        assert (code, message) == (107, f"bad request: {method}.channel: holds an empty token")
        code, message = await conversation.refused(method, channel="blind.1")
        assert (code, message) == (108, f"not available: {method}.channel: its policy has no presence")


@pytest.mark.parametrize("method", ["presence", "presence_stats"])
async def test_who_may_look_is_what_the_policy_and_the_tokens_say(nats: NatsServer, method: str) -> None:
    async with staged(nats, topics=TOPICS) as stage:
        caps = [{"channels": [">"], "allow": ["prs"]}]
        people = {
            "anonymous": await stage.connect(),
            "user": await stage.connect(token("ann")),
            "capable": await stage.connect(token("bob", caps=caps)),
            "other caps": await stage.connect(token("bob", caps=[{"channels": [">"], "allow": ["hst", "sub", "pub"]}])),
            "subscribed": await stage.connect(),
            "by token": await stage.connect(token("eve")),
        }
        may: dict[str, set[str]] = {}
        for name in ("room", "granted", "users", "anyone", "nobody"):
            topic = f"{name}.1"
            await people["subscribed"].call("subscribe", channel=topic)
            ticket = token("eve", channel=topic, allow=["sub", "prs"])
            await people["by token"].call("subscribe", channel=topic, token=ticket)
            may[name] = set()
            for who, conversation in people.items():
                reply = await conversation.ask(method, channel=topic)
                assert reply.get("error", {"code": 103})["code"] == 103
                may[name] |= {who} if "error" not in reply else set()
        assert may == {
            "room": {"capable", "subscribed", "by token"},
            "granted": {"capable", "by token"},
            "users": {"capable", "by token", "user", "other caps"},
            "anyone": set(people),
            "nobody": set(),
        }


async def test_a_topic_with_many_members_is_listed_and_counted_and_holds_nobody_up(nats: NatsServer) -> None:
    async with two_stages(nats) as (here, there):
        one = await member(here, "ann")
        for stage in (here, there):
            add_members(stage, 5_000, users=3_000, info=b'{"colour":"red"}')
        assert await numbers(one) == (10_001, 3_001)
        listed = await one.call("presence", channel=ROOM)
        assert len(listed["presence"]) == 10_001
        assert all(info["client"] == client for client, info in listed["presence"].items())


async def test_more_than_may_be_listed_is_an_error_that_says_how_many_there_are(nats: NatsServer) -> None:
    async with two_stages(nats, limits={"presence_members": 10}) as (here, there):
        one = await member(here, "ann")
        add_members(here, 4, users=4)
        add_members(there, 5, users=5)
        assert len(await clients(one)) == 10
        await member(there)
        said = "limit exceeded: channel: 11 members, at most 10 are listed; presence_stats gives the numbers"
        assert await one.refused("presence", channel=ROOM) == (106, said)
        assert await numbers(one) == (11, 7)
        add_members(there, 20, users=20)
        assert (await one.refused("presence", channel=ROOM))[0] == 106
        # and what would not be listed does not travel
        answer = await there.node.operations.handle("presence", b'{"channel":"%b"}' % ROOM.encode())
        assert (len(answer) < 100, json.loads(answer)["clients"]) == (True, 21)


async def test_infos_that_are_too_large_to_list_are_an_error_too(nats: NatsServer) -> None:
    async with two_stages(nats, limits={"presence_members": 10}) as (here, there):
        one = await member(here)
        add_members(there, 5, users=5, info=b'"%b"' % (b"x" * 1500))
        assert len(await clients(one)) == 6
        add_members(here, 3, users=5, info=b'"%b"' % (b"x" * 1500))
        code, message = await one.refused("presence", channel=ROOM)
        assert (code, message.startswith("limit exceeded: channel: 9 members with 1")) == (106, True)


async def test_a_listing_larger_than_a_nats_message_arrives_whole(own_nats: NatsServer) -> None:
    own_nats.kill()
    own_nats.configure({"max_payload": 4096})
    own_nats.start()
    own_nats.wait_ready()
    async with two_stages(own_nats) as (here, there):
        one = await member(here)
        add_members(there, 200, users=200)
        assert len(await clients(one)) == 201
        assert await numbers(one) == (201, 201)


async def test_those_who_ask_together_are_one_question_to_the_others(nats: NatsServer) -> None:
    async with two_stages(nats) as (here, there):
        people = [await member(here) for _ in range(100)]
        asked: list[str] = []
        handle = there.node.control.handle
        assert handle is not None

        async def counting(name: str, arguments: bytes) -> bytes:
            asked.append(name)
            return await handle(name, arguments)

        there.node.control.handle = counting
        answers = await asyncio.gather(*(clients(one) for one in people))
        assert all(answer == {one.client.id for one in people} for answer in answers)
        assert len(asked) <= 3


async def test_a_member_of_a_dead_node_is_gone_in_time_and_meanwhile_the_rest_is_told(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.relay.control.ANSWER_SECONDS", 0.3)
    async with two_stages(nats) as (here, dying):
        one, doomed = await member(here, "ann"), await member(dying, "bob")
        assert await clients(one) == {one.client.id, doomed.client.id}
        await die(dying)
        assert await clients(one) == {one.client.id}
        listed = await here.node.presence.members(ROOM)
        assert not isinstance(listed, CommandError)
        assert [peer.uid for peer in listed.unanswered] == [dying.node.uid]
        assert [peer.uid for peer in (await here.node.presence.numbers(ROOM)).unanswered] == [dying.node.uid]
        await eventually(lambda: not here.node.control.peers, GONE_SECONDS + 3)
        listed = await here.node.presence.members(ROOM)
        assert not isinstance(listed, CommandError)
        assert listed.unanswered == []


async def test_without_nats_it_is_an_error_that_passes(own_nats: NatsServer) -> None:
    async with staged(own_nats, topics=TOPICS) as stage:
        one = await member(stage)
        own_nats.kill()
        await eventually(lambda: not stage.node.connection.connected)
        for method in ("presence", "presence_stats"):
            code, message = await one.refused(method, channel=ROOM)
            assert (code, "the other nodes can't be asked" in message) == (100, True)
        own_nats.start()
        await eventually(lambda: stage.node.connection.connected)
        assert await clients(one) == {one.client.id}


async def test_who_goes_while_its_question_is_out_disturbs_nobody(nats: NatsServer) -> None:
    async with two_stages(nats) as (here, _):
        one, other = await member(here), await member(here)
        one.say({"id": 1, "presence": {"channel": ROOM}})
        one.client.lost()
        assert await clients(other) == {other.client.id}
        assert not any(line.get("id") == 1 for line in one.lines)
        assert here.node.presence._listings._current == {}


async def test_a_mistake_of_ours_is_an_error_and_stands_in_the_log(
    nats: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(nats, topics=TOPICS) as stage:
        one = await member(stage)
        monkeypatch.setattr(stage.node.membership.members, "_topics", None)
        assert await one.refused("presence", channel=ROOM) == (100, "internal server error")
        monkeypatch.undo()
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["presence failed"]
        assert await clients(one) == {one.client.id}
