"""What subscribers are told of members when nodes die, and when connections break."""

from __future__ import annotations

import pytest

from broker.core.policy import TopicPolicy
from broker.core.session import Session
from broker.relay.control import GONE_SECONDS
from broker.relay.live import LINGER_SECONDS
from tests.client.conversing import staged
from tests.client.members import ROOM, TOPICS, cut_off, die, member, news, present, stages, told
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """For a test that stops it."""
    return site.start_nats()


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
