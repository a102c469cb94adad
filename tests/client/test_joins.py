"""Who joins and who leaves, as the subscribers of a topic are told."""

from __future__ import annotations

import random

import pytest
from msgspec import Raw

from broker.fan_out import SLICE_WRITES
from broker.operations import Disconnect, Subscribe, Unsubscribe
from tests.client.conversing import Line, staged
from tests.client.members import ROOM, TOPICS, assert_nothing_is_left, kinds, member, news, present, stages, told
from tests.harness.nats import NatsServer
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_the_joiner_sees_its_reply_and_then_its_own_join_as_the_others_do(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        witness = await member(there, "eve")
        ann = await here.connect(token("ann", info={"colour": "red"}))
        ticket = token("ann", channel=ROOM, info={"seat": 7})
        ann.say({"id": 5, "subscribe": {"channel": ROOM, "token": ticket}})
        info = {"user": "ann", "client": ann.client.id, "conn_info": {"colour": "red"}, "chan_info": {"seat": 7}}
        join: Line = {"push": {"channel": ROOM, "join": {"info": info}}}
        await eventually(lambda: ann.lines[2:] == [join])
        assert ann.lines[1]["id"] == 5
        await told(witness, ("join", witness), ("join", ann))
        assert witness.lines[-1] == join


async def test_everybody_but_who_leaves_is_told_of_it_on_all_nodes(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        ann, eve = await member(here, "ann"), await member(there, "eve")
        bob = await member(here, "bob")
        await told(bob, ("join", bob))
        await bob.call("unsubscribe", channel=ROOM)
        await told(ann, ("join", ann), ("join", eve), ("join", bob), ("leave", bob))
        await told(eve, ("join", eve), ("join", bob), ("leave", bob))
        await told(bob, ("join", bob))
        assert ann.lines[-1] == {"push": {"channel": ROOM, "leave": {"info": {"user": "bob", "client": bob.client.id}}}}


@pytest.mark.parametrize("how", ["lost", "server unsubscribe", "disconnect", "subscription token", "connection token"])
async def test_whatever_ends_a_subscription_is_a_leave(nats: NatsServer, how: str) -> None:
    async with stages(nats, 2) as (here, there):
        witness = await member(there)
        expiring = how == "connection token"
        bob = await here.connect(token("bob", ttl_seconds=60 if expiring else 3600))
        ticket = {"token": token("bob", channel=ROOM, ttl_seconds=60)} if how == "subscription token" else {}
        await bob.call("subscribe", channel=ROOM, **ticket)
        await told(witness, ("join", witness), ("join", bob))
        if how == "lost":
            bob.client.lost()
        elif how == "server unsubscribe":
            await there.node.operations.everywhere(Unsubscribe(user="bob", channel=ROOM))
        elif how == "disconnect":
            await there.node.operations.everywhere(Disconnect(user="bob"))
            bob.client.lost()
        else:
            here.clock.ahead += 120
            bob.client.wake(here.node.clock())
            assert (bob.closed is not None) is expiring
            if expiring:
                bob.client.lost()
        await told(witness, ("join", witness), ("join", bob), ("leave", bob))


async def test_server_side_subscriptions_are_members_too(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        witness = await member(there)
        ann, bob = here.open(), await here.connect(token("bob"))
        await ann.call("connect", token=token("ann", subs={ROOM: {"info": {"seat": 1}}, "room.2": {}}))
        await told(ann, ("join", ann))
        assert "connect" in ann.lines[0]
        (join,) = [push["join"] for push in ann.pushes if push["channel"] == ROOM]
        assert join["info"]["chan_info"] == {"seat": 1}
        await there.node.operations.everywhere(Subscribe(user="bob", channel=ROOM, info=Raw(b'{"seat":\n2}')))
        await told(bob, ("join", bob))
        assert "subscribe" in bob.pushes[0]
        assert bob.pushes[1]["join"]["info"]["chan_info"] == {"seat": 2}
        await told(witness, ("join", witness), ("join", ann), ("join", bob))


async def test_joins_and_leaves_keep_their_place_among_publications(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        near, far = await member(here), await member(there)
        await eventually(lambda: len(news(near)) == 2)
        for _ in range(30):
            passing = await here.connect()
            passing.say(
                {"id": 1, "publish": {"channel": ROOM, "data": "before"}},
                {"id": 2, "subscribe": {"channel": ROOM}},
                {"id": 3, "publish": {"channel": ROOM, "data": "between"}},
                {"id": 4, "unsubscribe": {"channel": ROOM}},
                {"id": 5, "publish": {"channel": ROOM, "data": "after"}},
            )
            for id_ in (4, 5):
                await passing.reply(id_)
            expected = ["before", "join", "between", "leave", "after"]
            for one in (near, far):
                await eventually(lambda one=one, expected=expected: kinds(one)[-5:] == expected)  # type: ignore[misc]
            assert kinds(passing)[-2:] == ["join", "between"]


async def test_who_was_there_before_is_no_news_but_its_leaving_is(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        before = [await member(here) for _ in range(3)]
        await eventually(lambda: len(news(before[0])) == 3)
        late = await member(there)
        await told(late, ("join", late))
        for one in before:
            one.client.lost()
        await told(late, ("join", late), *(("leave", one) for one in before))


async def test_topics_without_join_leave_tell_nothing_and_cost_no_interest(nats: NatsServer) -> None:
    async with staged(nats, topics=TOPICS) as stage:
        one, other = await member(stage, topic="a"), await member(stage, topic="a")
        await member(stage, topic="seen.1")
        other.client.lost()
        await stage.publish("a", "the end")
        await one.heard("a", "the end")
        assert len(one.pushes) == 1
        assert len(stage.node.membership.members) == 1  # of the topic with presence
        assert not [subject for subject in stage.node.connection._sinks if ".ctl.member." in subject]


async def test_joins_are_no_publications_in_the_metrics(nats: NatsServer) -> None:
    async with staged(nats, topics=TOPICS) as stage:
        people = [await member(stage) for _ in range(3)]
        await eventually(lambda: len(news(people[0])) == 3)
        await stage.publish(ROOM, 1)
        for one in people:
            await one.heard(ROOM, 1)
        stage.node.observe()
        page = stage.node.metrics.exposition()[0].decode()
        assert 'broker_delivered_total{policy="rooms"} 3.0' in page
        assert "broker_members 3.0" in page
        assert "broker_publish_to_write_seconds_count 1.0" in page


async def test_a_crowd_comes_and_goes_and_everybody_who_stays_knows_the_same(nats: NatsServer) -> None:
    async with stages(nats, 2) as all_:
        watchers = [await member(stage) for stage in all_]
        people = [await all_[number % 2].connect() for number in range(SLICE_WRITES + 20)]
        for one in people:
            one.say({"id": 1, "subscribe": {"channel": ROOM}})
        for one in people[::3]:
            one.say({"id": 2, "unsubscribe": {"channel": ROOM}})
        for one in people[1::3]:
            await one.reply(1)
            one.client.lost()
        staying = {one.client.id for one in people[2::3]}
        for watcher, theirs in zip(watchers, ({watchers[0].client.id, watchers[1].client.id}, set()), strict=True):
            wanted = staying | theirs | {watcher.client.id}
            await eventually(lambda w=watcher, wanted=wanted: present(w) == wanted)  # type: ignore[misc]
        for one in [*watchers, *people[2::3]]:
            one.client.lost()
        await eventually(lambda: not any(stage.node.hub.topics for stage in all_))
        assert_nothing_is_left(all_)


async def test_churn_leaves_nothing_behind(nats: NatsServer) -> None:
    drawn = random.Random(7)  # noqa: S311 - no secret
    async with stages(nats, 2) as all_:
        for _ in range(200):
            stage, topic = drawn.choice(all_), drawn.choice([ROOM, "room.2", "seen.1"])
            conversation = stage.open()
            made = token("ann", channels=["room.3"]) if drawn.random() < 0.3 else token("ann")
            conversation.say({"id": 1, "connect": {"token": made}}, {"id": 2, "subscribe": {"channel": topic}})
            if drawn.random() < 0.5:
                await conversation.reply(2)
            if drawn.random() < 0.5:
                conversation.say({"id": 3, "unsubscribe": {"channel": topic}})
            conversation.client.lost()
        await eventually(lambda: not any(stage.node.hub.topics for stage in all_))
        assert_nothing_is_left(all_)
