"""Who joins and who leaves, as the subscribers of a topic are told."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from msgspec import Raw

from broker.core.policy import TopicPolicy
from broker.core.session import Session
from broker.node import SLICE_WRITES
from broker.operations import Disconnect, Subscribe, Unsubscribe
from broker.relay.control import GONE_SECONDS
from broker.relay.live import LINGER_SECONDS
from tests.client.conversing import Conversation, Line, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

TOPICS = [
    {"name": "rooms", "match": ["room.>"], "subscribe": "anyone", "publish": "anyone", "join_leave": True},
    {"name": "seen", "match": ["seen.>"], "subscribe": "anyone", "publish": "anyone", "presence": True},
    {"name": "rest", "match": [">"], "subscribe": "anyone", "publish": "anyone"},
]
ROOM = "room.1"


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """For a test that stops it."""
    return site.start_nats()


@asynccontextmanager
async def stages(nats: NatsServer, count: int) -> AsyncIterator[list[Stage]]:
    """Nodes that know each other."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(staged(nats, topics=TOPICS))
        prefix = first.node.options.prefix
        others = [await stack.enter_async_context(staged(nats, prefix, topics=TOPICS)) for _ in range(count - 1)]
        all_ = [first, *others]
        await eventually(lambda: all(len(stage.node.control.peers) == count - 1 for stage in all_))
        yield all_


async def member(stage: Stage, user: str = "", topic: str = ROOM) -> Conversation:
    conversation = await stage.connect(token(user) if user else "")
    await conversation.call("subscribe", channel=topic)
    return conversation


def news(conversation: Conversation, topic: str = ROOM) -> list[tuple[str, str]]:
    """What a client was told of a topic's members: who has come and who has gone, by client."""
    return [
        (kind, push[kind]["info"]["client"])
        for push in conversation.pushes
        if push["channel"] == topic
        for kind in ("join", "leave")
        if kind in push
    ]


def present(conversation: Conversation, topic: str = ROOM) -> set[str]:
    """Who is there, as far as a client knows that looks at joins and leaves only."""
    found: set[str] = set()
    for kind, client in news(conversation, topic):
        if kind == "join":
            assert client not in found
            found.add(client)
        else:
            found.remove(client)
    return found


def kinds(conversation: Conversation) -> list[Any]:
    """What came, in order: `join` or `leave`, or what was published."""
    return [
        push["pub"]["data"] if "pub" in push else next(iter(push.keys() - {"channel"})) for push in conversation.pushes
    ]


async def told(conversation: Conversation, *expected: tuple[str, Conversation]) -> None:
    """Wait until a client was told exactly this."""
    clients = [(kind, who.client.id) for kind, who in expected]
    await eventually(lambda: news(conversation) == clients)


def assert_nothing_is_left(all_: Sequence[Stage]) -> None:
    for stage in all_:
        membership, live = stage.node.membership, stage.node._live
        live._leaving = dict.fromkeys(live._leaving, 0.0)
        live.sweep()
        assert (len(membership.members), membership.members.total, membership._rosters) == (0, 0, {})
        assert (stage.node.hub.topics, live._interests) == ({}, {})


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


# nodes that die, and connections that break


async def test_the_members_of_a_node_that_dies_are_seen_to_leave(nats: NatsServer) -> None:
    async with stages(nats, 3) as (here, there, dying):
        one, other = await member(here), await member(there)
        doomed = [await member(dying) for _ in range(3)]
        for watcher in (one, other):
            await eventually(lambda w=watcher: {d.client.id for d in doomed} <= present(w))  # type: ignore[misc]
        await die(dying)
        for stage in (here, there):
            await eventually(lambda s=stage: len(s.node.control.peers) == 1, GONE_SECONDS + 3)  # type: ignore[misc]
        for watcher in (one, other):
            await eventually(lambda w=watcher: not {d.client.id for d in doomed} & present(w))  # type: ignore[misc]
        assert one.client.id in present(one)


async def test_a_node_that_ends_in_order_is_not_told_twice(nats: NatsServer) -> None:
    async with stages(nats, 1) as (here,):
        one = await member(here)
        async with staged(nats, here.node.options.prefix, topics=TOPICS) as ending:
            other, stuck = await member(ending), await member(ending)
            await told(one, ("join", one), ("join", other), ("join", stuck))
            other.client.lost()
        # the one that was still open when the node said goodbye leaves by that
        await told(one, ("join", one), ("join", other), ("join", stuck), ("leave", other), ("leave", stuck))


async def test_a_node_taken_for_dead_that_is_alive_gets_its_members_back(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        one, other = await member(here), await member(there)
        await told(one, ("join", one), ("join", other))
        here.node.control._clock = here.clock
        here.clock.ahead += GONE_SECONDS + 1
        here.node.control.tick()
        expected = [("join", one), ("join", other), ("leave", other), ("join", other)]
        await told(one, *expected)
        await told(other, ("join", other))


async def test_what_happened_while_nats_was_away_is_told_when_it_is_back(own_nats: NatsServer) -> None:
    async with stages(own_nats, 2) as (here, there):
        one, other = await member(here), await member(there)
        near, far = await member(here), await member(there)
        everybody = [one, other, near, far]
        await eventually(lambda: present(one) == {each.client.id for each in everybody})
        own_nats.kill()
        await eventually(lambda: not here.node.connection.connected and not there.node.connection.connected)
        near.client.lost()
        far.client.lost()
        assert {kind for kind, _ in news(one)} == {"join"}
        own_nats.start()
        for watcher, theirs in ((one, [one, other]), (other, [other])):
            wanted = {each.client.id for each in theirs}
            await eventually(lambda w=watcher, wanted=wanted: present(w) == wanted)  # type: ignore[misc]
            leaves = [client for kind, client in news(watcher) if kind == "leave"]
            assert sorted(leaves) == sorted([near.client.id, far.client.id])


async def test_a_node_that_was_cut_off_learns_who_has_gone_even_if_nobody_is_left_to_tell(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        one, other = await member(here), await member(there)
        await told(one, ("join", one), ("join", other))
        async with cut_off(here):
            other.client.lost()
            live = there.node._live
            live._leaving[ROOM] -= LINGER_SECONDS
            live.sweep()
        await told(one, ("join", one), ("join", other), ("leave", other))


async def test_a_node_that_was_cut_off_tells_the_others_who_has_gone_there(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        one, other, third = await member(here), await member(there), await member(there)
        await told(one, ("join", one), ("join", other), ("join", third))
        async with cut_off(there):
            third.client.lost()
        await told(one, ("join", one), ("join", other), ("join", third), ("leave", third))
        await told(other, ("join", other), ("join", third), ("leave", third))
        new = await member(there)
        await told(one, ("join", one), ("join", other), ("join", third), ("leave", third), ("join", new))


async def test_the_last_one_of_a_node_that_was_cut_off_leaves_for_the_others_too(nats: NatsServer) -> None:
    async with stages(nats, 2) as (here, there):
        one, other = await member(here), await member(there)
        await told(one, ("join", one), ("join", other))
        async with cut_off(there):
            other.client.lost()
        await told(one, ("join", one), ("join", other), ("leave", other))
        again = await member(there)
        there.node.connection._ended.set()  # what is on its way now is lost
        again.client.lost()
        await eventually(lambda: present(one) == {one.client.id})
        await eventually(lambda: not there.node.membership._reconciling)
        assert there.node.membership._unsaid == set()


async def test_what_nats_did_not_take_is_told_later(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stages(nats, 2) as (here, there):
        one, other, third = await member(here), await member(there), await member(there)
        await told(one, ("join", one), ("join", other), ("join", third))
        for leaving in (third, other):  # one of two, and the last one
            with monkeypatch.context() as patched:
                patched.setattr("broker.relay.connection.UNCONFIRMED_BYTES", -1)
                leaving.client.lost()
            await eventually(lambda leaving=leaving: news(one)[-1] == ("leave", leaving.client.id))  # type: ignore[misc]
        await told(one, ("join", one), ("join", other), ("join", third), ("leave", third), ("leave", other))


async def test_members_beyond_one_nats_message_are_all_known_and_seen_to_leave(
    own_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_nats.kill()
    own_nats.configure({"max_payload": 4096})
    own_nats.start()
    own_nats.wait_ready()
    async with stages(own_nats, 2) as (here, dying):
        first = await member(dying)
        policy = dying.node.locate(ROOM)
        assert isinstance(policy, TopicPolicy)
        crowd = [Session(f"client {number}", "user", info=b'"%b"' % (b"x" * 20)) for number in range(300)]
        for session in crowd:
            dying.node.membership.entered(session, ROOM, policy)
        await eventually(lambda: len(news(first)) == 301)
        one = await member(here)
        await eventually(lambda: news(one) == [("join", one.client.id)])
        dying.node.membership.entered(Session("giant", "user", info=b'"%b"' % (b"x" * 5000)), ROOM, policy)
        assert "can't be told of a member" in caplog.text
        await die(dying)
        there = {first.client.id, *(session.client for session in crowd)}
        await eventually(lambda: {client for kind, client in news(one) if kind == "leave"} == there, GONE_SECONDS + 5)


async def test_nobody_is_said_to_have_left_who_was_there_all_the_time(own_nats: NatsServer) -> None:
    async with stages(own_nats, 2) as all_:
        people = [await member(all_[number % 2]) for number in range(10)]
        await eventually(lambda: len(news(people[0])) == len(news(people[1])) + 1 == 10)
        before = [news(one) for one in people]
        for _ in range(2):
            own_nats.kill()
            await eventually(lambda: not any(stage.node.connection.connected for stage in all_))
            own_nats.start()
            await eventually(lambda: all(stage.node.connection.connected for stage in all_))
            await eventually(lambda: not any(stage.node.membership._reconciling for stage in all_))
        assert [news(one) for one in people] == before


async def die(stage: Stage) -> None:
    """End a node's part in the cluster without a word, as SIGKILL would."""
    node = stage.node
    node.control.leave = lambda: None  # type: ignore[method-assign]
    assert node.relaying is not None
    node.relaying.cancel()
    await eventually(lambda: not node.connection.connected)


@asynccontextmanager
async def cut_off(stage: Stage) -> AsyncIterator[None]:
    """A node without NATS, and back again."""
    connection = stage.node.connection
    connect = connection._connect

    async def refuse(_: str) -> Any:
        raise OSError("cut off")

    connection._connect = refuse  # type: ignore[method-assign, assignment]
    connection._ended.set()
    await eventually(lambda: not connection.connected)
    yield
    connection._connect = connect  # type: ignore[method-assign]
    await eventually(lambda: connection.connected)
