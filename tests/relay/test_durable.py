"""The live way of durable topics: once each, in order, and nothing missing, whatever becomes of messages on the way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from broker.core.policy import Recovery
from broker.core.ring import RingLimits
from broker.relay import durable as module
from broker.relay.errors import RelayError, RelayTimeoutError
from broker.relay.live import LINGER_SECONDS
from broker.relay.stored import REMOVED
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.relay.durably import Bench, Live, bench, durable_policy

pytestmark = pytest.mark.anyio


async def test_what_is_stored_is_delivered_once_and_in_order(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        offsets = []
        for number in range(20):
            offsets += await made.store("t", number)
            await made.store("other", "x")
        await made.heard("t", *range(20))
        assert made.down.offsets() == offsets
        assert (flow.top, made.down.gaps, made.jetstream.reads) == (offsets[-1], [], [])


async def test_a_topic_begins_where_it_stands(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", 1, 2)
        await made.store("other", "x")
        flow = await made.follow()
        assert (flow.top, flow.sure) == (offsets[-1], offsets[-1])
        empty = await made.follow("empty")
        assert empty.top in (0, offsets[-1] + 1)
        await made.store("t", 3)
        await made.store("empty", 4)
        await made.heard("t", 3)
        await made.heard("empty", 4)
        assert made.jetstream.reads == []


@pytest.mark.parametrize("head_start", range(6))
async def test_what_is_published_while_a_topic_begins_is_delivered_behind_its_position(
    nats: NatsServer, head_start: int
) -> None:
    async with bench(nats) as made:
        made.down.wanted.add("t")
        publishing = asyncio.create_task(made.store("t", *range(30)))
        for _ in range(head_start):
            await asyncio.sleep(0)
        flow = made.relay.follow(made.policy, "t")
        position: list[int] = []
        made.relay.when_started(flow, lambda _: position.append(flow.top))
        offsets = await publishing
        await eventually(lambda: flow.top == offsets[-1])
        delivered = made.down.offsets()
        # and perhaps some before it, which nobody was there for yet
        assert delivered == offsets[len(offsets) - len(delivered) :]
        assert set(delivered) >= {offset for offset in offsets if offset > position[0]}


async def test_all_who_wait_for_a_topic_are_told_and_some_in_each_turn(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = made.relay.follow(made.policy, "t")
        told: list[RelayError | None] = []
        for _ in range(100):
            made.relay.when_started(flow, told.append)
        seen = set()
        while len(told) < 100:
            seen.add(len(told))
            await asyncio.sleep(0)
        assert {0, module.SERVED_AT_ONCE, 2 * module.SERVED_AT_ONCE, 3 * module.SERVED_AT_ONCE} <= seen
        assert set(told) == {None}
        made.relay.when_started(flow, told.append)
        assert len(told) == 101


async def test_nobody_waits_for_a_position_for_ever(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:  # the stream is never there
        flow = made.relay.follow(made.policy, "t")
        told: list[RelayError | None] = []
        made.relay.when_started(flow, told.append)
        made.ahead += module.READY_SECONDS
        await eventually(lambda: told)
        assert [type(error) for error in told] == [RelayTimeoutError]


async def test_a_topic_whose_position_cant_be_had_tells_those_who_wait_and_can_be_followed_again(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats) as made:

        async def fail(*_: Any) -> Any:
            raise RelayTimeoutError("not now")

        with monkeypatch.context() as patch:
            patch.setattr(made.jetstream, "last", fail)
            with pytest.raises(RelayTimeoutError):
                await made.follow()
        assert made.relay.flows == {}
        await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)


async def test_a_topic_nobody_follows_lingers_and_goes(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        made.down.wanted.clear()
        made.ahead += LINGER_SECONDS - 1
        made.relay.sweep()
        await made.store("t", 1)
        await made.heard("t", 1)
        assert made.relay.follow(made.policy, "t") is flow
        made.relay.sweep()
        made.ahead += LINGER_SECONDS
        made.relay.sweep()
        assert (made.relay.flows, made.relay.budget.size_bytes) == ({}, 0)
        assert list(made.connection._sinks) == [f"{made.inbox._base}.*"]
        made.down.pushed.clear()
        assert made.relay.follow(made.policy, "t") is not flow
        again = await made.follow()
        await made.store("t", 2)
        await made.heard("t", 2)
        assert again.ring.between(1, 2) != []


async def test_who_waits_for_a_message_of_a_topic_that_goes_is_told(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        told: list[str] = []
        made.relay.when_reached(flow, flow.top + 1000, lambda: told.append("never"))
        made.down.wanted.clear()
        made.relay.sweep()
        assert told == []
        made.ahead += LINGER_SECONDS
        made.relay.sweep()
        assert told == ["never"]


async def test_an_offset_that_is_reached_is_told_when_it_is(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        told: list[int] = []
        for offset in (3, 1, 2):
            made.relay.when_reached(flow, offset, lambda offset=offset: told.append(offset))  # type: ignore[misc]
        for number in (1, 2, 3):
            await made.store("t", number)
            await eventually(lambda number=number: told == list(range(1, number + 1)))  # type: ignore[misc]
        made.relay.when_reached(flow, 2, lambda: told.append(2))
        assert told[-1] == 2


# messages that are lost, come twice, or in another order


async def test_what_was_lost_on_the_way_is_fetched_before_what_comes_next(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()
        await made.store("t", 0)
        await made.heard("t", 0)
        made.connection.drop(0, 1, 4, 9)
        await made.store("t", *range(1, 15))
        await made.heard("t", *range(15))
        assert 1 <= len(made.down.gaps) <= 3
        assert set(made.down.gaps) == {"repaired"}
        assert made.down.losses == []


async def test_a_first_message_that_was_lost_is_fetched(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()
        made.connection.drop(0)
        await made.store("t", 0, 1)
        await made.heard("t", 0, 1)


async def test_messages_that_come_twice_are_delivered_once(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()

        def twice(sink: Any, message: Live) -> None:
            sink(*message)
            sink(*message)

        made.connection.hand = twice
        await made.store("t", *range(10))
        await made.heard("t", *range(10))
        assert (made.down.gaps, made.jetstream.reads) == ([], [])


async def test_messages_that_come_in_another_order_are_delivered_in_theirs(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()
        waiting: list[Live] = []

        def reverse_by_three(sink: Any, message: Live) -> None:
            waiting.append(message)
            if len(waiting) == 3:
                while waiting:
                    sink(*waiting.pop())

        made.connection.hand = reverse_by_three
        await made.store("t", *range(30))
        await made.heard("t", *range(30))


async def test_messages_that_come_late_are_known_by_then(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()
        kept: list[tuple[Any, Live]] = []
        made.connection.hand = lambda sink, message: kept.append((sink, message))
        await made.store("t", 0, 1, 2)
        made.connection.pass_on()
        await made.store("t", 3)
        await made.heard("t", 0, 1, 2, 3)
        for sink, message in kept:
            sink(*message)
        await made.store("t", 4)
        await made.heard("t", 0, 1, 2, 3, 4)


async def test_more_than_can_be_held_during_a_gap_is_fetched(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.relay.flow.HELD_MESSAGES", 5)
    async with bench(nats) as made:
        flow = await made.follow()
        gate = asyncio.Event()
        made.jetstream.before_read = gate.wait
        made.connection.drop(0)
        await made.store("t", *range(40))
        await eventually(lambda: flow.behind == 40)
        assert len(flow.held) == 5
        assert made.down.data() == []
        gate.set()
        await made.heard("t", *range(40))
        assert (flow.held, flow.held_bytes, made.down.gaps) == ([], 0, ["repaired"])


async def test_a_large_gap_is_fetched_in_parts(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.relay.mending.BATCH_MESSAGES", 7)
    async with bench(nats) as made:
        await made.follow()
        made.connection.drop(*range(50))
        await made.store("t", *range(51))
        await made.heard("t", *range(51))
        assert len(made.jetstream.reads) >= 8
        assert made.down.gaps == ["repaired"]


async def test_losses_of_many_topics_disturb_none_of_the_others(nats: NatsServer) -> None:
    async with bench(nats) as made:
        names = [f"t{number}" for number in range(10)]
        for name in names:
            await made.follow(name)
        made.connection.drop(*range(3, 200, 4))
        for number in range(20):
            await asyncio.gather(*(made.store(name, number) for name in names))
        made.connection.pass_on()
        for name in names:
            await made.store(name, 20)
            await made.heard(name, *range(21))


async def test_a_wildcards_messages_come_once_and_in_order_with_their_topic(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow("a.*")
        made.connection.drop(3, 4, 11)
        for number in range(10):
            await made.store(f"a.{number % 3}", number)
            await made.store("b", "other")
        made.connection.pass_on()
        await made.store("a.0", 10)
        await made.heard("a.*", *range(11))
        assert made.down.losses == []


# what is no publication


async def test_what_did_not_come_by_the_stream_is_counted_and_not_delivered(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()
        live = made.subjects.live("kept", "t")
        await made.connection.publish(live, b"1")
        await made.connection.publish(live, b"1", {"X": "y"})
        await made.connection.publish(live, b"1", {"Nats-Stream": "OTHER", "Nats-Sequence": "1"})
        await made.connection.publish(live, b"1", {"Nats-Stream": made.stream})
        await made.fake("t", b"1", Nats_Sequence="x", Nats_Last_Sequence=0)
        await made.store("t", 1)
        await made.heard("t", 1)
        assert made.down.faked == 5


async def test_bad_json_in_the_stream_is_counted_once_and_passed_over(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()
        await made.store("t", 1)
        await made.put("t", b'{"half":')
        await made.store("t", 2)
        await made.heard("t", 1, 2)
        assert made.down.bad == 1
        made.connection.drop(0)
        await made.put("t", b"\xff")
        await made.store("t", 3)
        await made.heard("t", 1, 2, 3)
        assert made.down.bad == 2


@pytest.mark.parametrize("mark", ["", "x", "-1", "٣", "9" * 5000, "9" * 9, "1 2"])
async def test_a_senseless_mark_of_a_removal_is_no_mark(nats: NatsServer, mark: str) -> None:
    async with bench(nats) as made:
        await made.follow()
        await made.store("t", 1, headers={REMOVED: mark})
        await made.store("t", 2)
        await made.heard("t", 1, 2)
        made.connection.drop(0)
        await made.store("t", 3, headers={REMOVED: mark})
        await made.store("t", 4)
        await made.heard("t", 1, 2, 3, 4)


async def test_a_removal_empties_the_ring_and_is_no_publication(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        offsets = await made.store("t", 1, 2)
        await made.store("t", None, headers={REMOVED: str(offsets[-1])})
        await made.store("t", 3)
        await made.heard("t", 1, 2, 3)
        assert len(flow.ring) == 1
        assert flow.ring.floor == offsets[-1] + 1


# the newest only


async def test_the_newest_publication_is_kept_where_nobody_wants_more(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(recovery=Recovery.LATEST)) as made:
        await made.store("t", 1, 2)
        flow = await made.follow()
        subject = made.subjects.stored("kept", "t")

        def newest() -> dict[str, tuple[int, Any]]:
            assert flow.newest is not None
            return {
                name: (offset, json.loads(line)["push"]["pub"]["data"]) for name, (offset, line) in flow.newest.items()
            }

        assert newest() == {subject: (2, 2)}
        await made.store("t", 3)
        await made.heard("t", 3)
        assert newest() == {subject: (3, 3)}
        assert len(flow.ring) == 0
        await made.put("t", b"no json")
        await made.store("t", None, headers={REMOVED: "4"})
        await eventually(lambda: flow.top == 5)
        assert newest() == {}


async def test_a_wildcard_keeps_the_newest_of_each_topic(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(recovery=Recovery.LATEST)) as made:
        await made.store("a.x", 1, 2)
        await made.store("a.y", 3)
        await made.store("b", 4)
        flow = await made.follow("a.*")
        assert flow.newest is not None
        assert [offset for offset, _ in flow.newest.values()] == [2, 3]
        await made.store("a.x", 5)
        await made.heard("a.*", 5)
        assert [offset for offset, _ in flow.newest.values()] == [3, 5]


# bounds


async def test_rings_stay_within_their_limits(nats: NatsServer) -> None:
    async with bench(nats, ring=RingLimits(5, 1_000_000)) as made:
        flow = await made.follow()
        offsets = await made.store("t", *range(20))
        await made.heard("t", *range(20))
        assert (len(flow.ring), flow.ring.floor) == (5, offsets[14])
        assert made.relay.budget.size_bytes == flow.ring.size_bytes


async def test_a_mistake_in_a_task_is_logged_and_ends_nothing(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(nats) as made:

        async def fail() -> None:
            raise ValueError("a mistake")

        made.relay.run(fail())
        await eventually(lambda: "a mistake in the relay" in caplog.text)
        await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)


async def test_two_nodes_see_the_same(nats: NatsServer) -> None:
    async with bench(nats) as one, bench(nats, prefix=one.subjects.prefix) as other:
        for made in (one, other):
            await made.follow()
        other.connection.drop(2, 5, 6)
        await one.store("t", *range(10))
        for made in (one, other):
            await made.heard("t", *range(10))
        assert one.down.offsets() == other.down.offsets()


async def keep_publishing(made: Bench, name: str, count: int) -> None:
    for number in range(count):
        await made.store(name, number)


async def test_ten_topics_under_every_kind_of_loss_at_once(nats: NatsServer) -> None:
    async with bench(nats) as made:
        names = [f"t{number}" for number in range(10)]
        for name in names:
            await made.follow(name)
        late: list[tuple[Any, Live]] = []
        count = 0

        def hand(sink: Any, message: Live) -> None:
            nonlocal count
            count += 1
            if count % 7 == 0:
                return
            if count % 5 == 0:
                late.append((sink, message))
                return
            sink(*message)
            if count % 3 == 0:
                sink(*message)
            if len(late) > 4:
                delayed, one = late.pop(0)
                delayed(*one)

        made.connection.hand = hand
        await asyncio.gather(*(keep_publishing(made, name, 60) for name in names))
        made.connection.pass_on()
        await asyncio.gather(*(made.store(name, 60) for name in names))
        for name in names:
            await made.heard(name, *range(61))
            assert made.down.offsets(name) == sorted(set(made.down.offsets(name)))
        assert made.down.losses == []


async def test_a_gap_of_messages_larger_than_a_read_is_fetched(site: Site) -> None:
    server = site.start_nats({"max_payload": 4_000_000, "jetstream": {"store_dir": str(site.directory / "store")}})
    async with bench(server, durable_policy(message_bytes=4_000_000)) as made:
        await made.follow()
        large = ["x" * 1_200_000 + str(number) for number in range(4)]
        await made.store("t", large[0])
        await made.heard("t", large[0])
        made.connection.drop(0, 1)
        await made.store("t", *large[1:])
        await made.heard("t", *large)
        assert len(made.jetstream.reads) < 10
