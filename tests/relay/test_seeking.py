"""What clients get that come back: from the ring, or by as few reads as can be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.core.ring import RingLimits
from broker.relay import seeking as module
from broker.relay.errors import RelayError, RelayTimeoutError
from broker.relay.flow import Flow
from broker.relay.history import Archive
from broker.relay.jetstream import Batch
from broker.relay.seeking import Gone, Missed, Seeker
from broker.relay.stored import REMOVED
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually
from tests.relay.durably import Bench, Found, bench, durable_policy, recovered

pytestmark = pytest.mark.anyio

SMALL = RingLimits(5, 1_000_000)


def data(answer: list[tuple[int, Any]] | Gone | RelayError) -> list[Any]:
    assert isinstance(answer, list), answer
    return [one for _, one in answer]


async def test_who_missed_what_the_ring_holds_gets_it_at_once(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("t", "before")
        flow = await made.follow()
        offsets = await made.store("t", *range(5))
        await made.heard("t", *range(5))
        told: list[Found] = []
        made.seeker.seek(flow, offsets[1], told.append)
        assert isinstance(told[0], Missed)
        assert [one for _, one in recovered(flow, told[0], offsets[1])] == [2, 3, 4]
        assert await made.seek(flow, offsets[-1]) == []
        assert data(await made.seek(flow, offsets[0] - 1)) == [0, 1, 2, 3, 4]
        assert made.jetstream.reads == []


async def test_who_missed_more_gets_the_rest_from_the_stream(nats: NatsServer) -> None:
    async with bench(nats, ring=SMALL) as made:
        offsets = []
        for number in range(30):
            offsets += await made.store("t", number)
            await made.store("other", "x")
        flow = await made.follow()
        await made.store("t", *range(30, 40))
        await made.heard("t", *range(30, 40))
        for seen in (0, 7, 28, 29):
            assert data(await made.seek(flow, offsets[seen])) == list(range(seen + 1, 40))
        assert data(await made.seek(flow, 0)) == list(range(40))
        assert len(flow.ring) == 5


async def test_what_was_read_is_kept_as_far_as_there_is_room(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", *range(20))
        flow = await made.follow()
        assert data(await made.seek(flow, offsets[4])) == list(range(5, 20))
        reads = len(made.jetstream.reads)
        assert data(await made.seek(flow, offsets[4])) == list(range(5, 20))
        assert data(await made.seek(flow, offsets[9])) == list(range(10, 20))
        assert len(made.jetstream.reads) == reads
        assert made.relay.budget.size_bytes == flow.ring.size_bytes > 0


async def test_a_thousand_who_wait_are_served_by_one_read_and_in_slices(nats: NatsServer) -> None:
    async with bench(nats, ring=SMALL) as made:
        offsets = await made.store("t", *range(50))
        flow = await made.follow()
        told: list[list[Any]] = []

        def wait_from(after: int) -> None:
            def found(answer: Found) -> None:
                assert isinstance(answer, Missed)
                told.append([one for _, one in recovered(flow, answer, after)])

            made.seeker.seek(flow, after, found)

        expected = []
        for number in range(1000):
            seen = number % 40
            wait_from(offsets[seen])
            expected.append(list(range(seen + 1, 50)))
        most, before = 0, 0
        while len(told) < 1000:
            await asyncio.sleep(0)
            most, before = max(most, len(told) - before), len(told)
        assert sorted(told) == sorted(expected)
        assert len(made.jetstream.reads) == 1
        assert most <= module.SERVED_AT_ONCE


async def test_live_messages_during_a_read_are_part_of_what_was_missed(nats: NatsServer) -> None:
    async with bench(nats, ring=SMALL) as made:
        offsets = await made.store("t", *range(10))
        flow = await made.follow()
        gate = asyncio.Event()
        made.jetstream.before_read = gate.wait
        seeking = asyncio.create_task(made.seek(flow, offsets[2]))
        await eventually(lambda: made.jetstream.reads)
        assert flow.ring.pinned
        await made.store("t", *range(10, 30))  # more than the ring holds
        await made.heard("t", *range(10, 30))
        gate.set()
        assert data(await seeking) == list(range(3, 30))
        await eventually(lambda: not flow.ring.pinned)
        assert len(flow.ring) == 5


async def test_who_comes_during_a_read_and_is_farther_back_gets_another_one(nats: NatsServer) -> None:
    async with bench(nats, ring=SMALL) as made:
        offsets = await made.store("t", *range(10))
        flow = await made.follow()
        gate = asyncio.Event()
        made.jetstream.before_read = gate.wait
        first = asyncio.create_task(made.seek(flow, offsets[4]))
        await eventually(lambda: made.jetstream.reads)
        nearer, farther = (asyncio.create_task(made.seek(flow, offsets[seen])) for seen in (6, 1))
        await asyncio.sleep(0)
        gate.set()
        assert data(await first) == list(range(5, 10))
        assert data(await nearer) == list(range(7, 10))
        assert data(await farther) == list(range(2, 10))
        assert len(made.jetstream.reads) == 2


async def test_who_keeps_coming_during_reads_is_served_however_long_it_goes_on(nats: NatsServer) -> None:
    async with bench(nats, ring=SMALL) as made:
        offsets = await made.store("t", *range(30))
        flow = await made.follow()
        waiting: list[asyncio.Task[Any]] = []
        left = list(range(20))  # each farther back than all before it

        async def another_comes() -> None:
            if left:
                seen = left.pop()
                waiting.append(asyncio.create_task(made.seek(flow, offsets[seen])))
                await asyncio.sleep(0)

        made.jetstream.before_read = another_comes
        await another_comes()
        await eventually(lambda: not left and all(one.done() for one in waiting))
        for number, one in enumerate(waiting):
            assert data(one.result()) == list(range(20 - number, 30))


async def test_who_is_too_far_back_is_told_and_the_others_are_served(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=10), ring=SMALL) as made:
        offsets = await made.store("t", *range(30))
        flow = await made.follow()
        answers = await asyncio.gather(*(made.seek(flow, offsets[seen]) for seen in (2, 18, 19, 25)))
        assert [isinstance(one, Gone) for one in answers] == [True, True, False, False]
        assert data(answers[2]) == list(range(20, 30))
        assert data(answers[3]) == list(range(26, 30))


async def test_what_is_too_much_for_one_client_is_told(nats: NatsServer) -> None:
    async with bench(nats, ring=SMALL) as made:
        offsets = await made.store("t", *("x" * 10_000 for _ in range(300)))
        flow = await made.follow()
        seeker = Seeker(made.relay, 500_000, made.clock)
        told: list[Found] = []
        for seen in (0, 280):
            seeker.seek(flow, offsets[seen], told.append)
        await eventually(lambda: len(told) == 2)
        gone, missed = sorted(told, key=lambda one: isinstance(one, Missed))
        assert isinstance(gone, Gone)
        assert isinstance(missed, Missed)
        assert len(recovered(flow, missed, offsets[280])) == 19


async def test_what_was_removed_is_missed_by_those_who_had_not_seen_it(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", 0, 1, 2)
        await Archive(made.jetstream, made.streams, made.subjects, 1000).remove(made.policy, "t")
        await made.store("t", 3)
        flow = await made.follow()
        await made.store("t", 4)
        await made.heard("t", 4)
        assert isinstance(await made.seek(flow, offsets[1]), Gone)
        assert data(await made.seek(flow, offsets[2])) == [3, 4]


async def test_a_removal_while_others_are_served_leaves_no_holes(nats: NatsServer) -> None:
    async with bench(nats, ring=RingLimits(1000, 1_000_000)) as made:
        offsets = await made.store("t", *range(5))
        flow = await made.follow()
        await made.store("t", *range(5, 10))
        await made.heard("t", *range(5, 10))
        told: list[list[int] | None] = []

        def found(answer: Found) -> None:
            told.append([one for _, one in recovered(flow, answer, offsets[0])] if isinstance(answer, Missed) else None)

        for _ in range(5 * module.SERVED_AT_ONCE):
            made.seeker.seek(flow, offsets[0], found)
        await eventually_at_once(lambda: len(told) >= module.SERVED_AT_ONCE)
        assert len(told) < 5 * module.SERVED_AT_ONCE
        # the mark of a removal comes, while some have their answer and some have not
        flow.ring.clear(offsets[0] + 10, 0)
        flow.top = flow.sure = offsets[0] + 10
        await eventually(lambda: len(told) == 5 * module.SERVED_AT_ONCE)
        assert all(one in (list(range(1, 10)), None) for one in told), told


async def eventually_at_once(condition: Any) -> None:
    """Let the loop turn until it is so, without a pause."""
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError


async def test_an_offset_beyond_everything_is_no_position(nats: NatsServer) -> None:
    async with bench(nats) as made:
        (offset,) = await made.store("t", 1)
        flow = await made.follow()
        await made.store("other", *range(5))
        for beyond in (offset + 6, 10**15):
            assert isinstance(await made.seek(flow, beyond), Gone)
        # where the stream stood somebody may have been told that the topic does
        assert data(await made.seek(flow, offset + 5)) == []
        await made.store("t", 2)
        await made.heard("t", 2)


async def test_what_was_asked_of_a_stream_says_nothing_of_a_topic_that_began_anew(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats) as made:
        await made.store("other", *range(5))
        flow = await made.follow()
        last, asked, gate = made.jetstream.last, asyncio.Event(), asyncio.Event()

        async def answers_late(stream: str, subject: str) -> Any:
            message = await last(stream, subject)
            if not asked.is_set():
                asked.set()
                await gate.wait()
            return message

        monkeypatch.setattr(made.jetstream, "last", answers_late)
        seeking = asyncio.create_task(made.seek(flow, 5))
        await asked.wait()
        made.relay.lose(flow)
        await eventually(lambda: flow.started)
        sure = flow.sure
        gate.set()
        assert isinstance(await seeking, Gone)
        assert flow.sure == sure


async def test_one_who_has_seen_more_than_this_node_waits_until_the_node_has_seen_it(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        made.connection.drop()
        offsets = await made.store("t", *range(5))
        assert flow.top == 0
        told: list[tuple[list[Any], int]] = []

        def found(answer: Found) -> None:
            assert isinstance(answer, Missed)
            told.append((recovered(flow, answer, offsets[3]), flow.top))

        made.seeker.seek(flow, offsets[3], found)
        await made.heard("t", *range(5))
        assert told == [([], offsets[3])]  # what came behind it comes to everybody


async def test_a_read_that_fails_is_said_to_all_who_wait_and_the_next_one_works(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats, ring=SMALL) as made:
        await made.store("t", *range(10))
        flow = await made.follow()

        async def failing(*_: Any, **__: Any) -> Batch:
            raise RelayTimeoutError("not now")

        with monkeypatch.context() as patch:
            patch.setattr(made.jetstream, "read", failing)
            answers = await asyncio.gather(*(made.seek(flow, 1) for _ in range(3)))
        assert [type(one) for one in answers] == [RelayTimeoutError] * 3
        assert not flow.reading
        assert data(await made.seek(flow, 1)) == list(range(1, 10))


async def test_who_comes_while_others_are_told_of_a_failure_is_told_too(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats, ring=SMALL) as made:
        await made.store("t", *range(10))
        flow = await made.follow()

        async def failing(*_: Any, **__: Any) -> Batch:
            raise RelayTimeoutError("not now")

        monkeypatch.setattr(made.jetstream, "read", failing)
        told: list[Found] = []

        def found(answer: Found) -> None:
            told.append(answer)
            if len(told) == 1:  # which comes again at once
                made.seeker.seek(flow, 1, found)

        for _ in range(2 * module.SERVED_AT_ONCE):
            made.seeker.seek(flow, 1, found)
        await eventually(lambda: len(told) == 2 * module.SERVED_AT_ONCE + 1)
        assert not flow.reading


async def test_a_replica_that_is_behind_is_asked_again(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nats, ring=SMALL) as made:
        await made.store("t", *range(10))
        flow = await made.follow()
        read = made.jetstream.read
        behind = iter([0, 5, 9])

        async def read_behind(stream: str, subject: str, **request: int) -> Batch:
            batch = await read(stream, subject, **request)
            reached = next(behind, 1000)
            return Batch([one for one in batch.messages if one.offset <= reached], 0)

        monkeypatch.setattr(made.jetstream, "read", read_behind)
        assert data(await made.seek(flow, 1)) == list(range(1, 10))


async def test_an_empty_topics_past_is_found_empty_without_delay(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("other", *range(50))
        flow = await made.follow()
        for after in (40, 30, 20, 10, 0):
            assert await made.seek(flow, after) == []
        assert len(made.jetstream.reads) <= 5  # so none was waited for and repeated


async def test_what_is_no_publication_is_no_part_of_what_was_missed(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", 0, 1)
        await made.put("t", b"no json")
        await made.store("t", 2)
        flow = await made.follow()
        assert data(await made.seek(flow, offsets[0])) == [1, 2]
        assert made.down.bad == 0  # counted where it came live


async def test_a_wildcards_past_is_read_with_its_topics(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=5), ring=SMALL) as made:
        offsets = []
        for number in range(10):
            offsets += await made.store(f"a.{number % 2}", number)
            await made.store("b", "x")
        flow = await made.follow("a.*")
        await made.store("a.0", 10)
        await made.heard("a.*", 10)
        assert data(await made.seek(flow, offsets[3])) == list(range(4, 11))
        assert isinstance(await made.seek(flow, 0), Gone)


async def test_a_topic_that_ends_during_a_read_tells_those_who_wait(nats: NatsServer) -> None:
    async with bench(nats, ring=SMALL) as made:
        await made.store("t", *range(10))
        flow = await made.follow()
        gate = asyncio.Event()
        made.jetstream.before_read = gate.wait
        seeking = asyncio.create_task(made.seek(flow, 1))
        await eventually(lambda: made.jetstream.reads)
        await made.api(f"STREAM.DELETE.{made.stream}")
        made.checker._checks[0].due = 0.0
        await eventually(lambda: made.down.losses == ["t"] and flow.started)
        made.jetstream.before_read = None
        await made.store("t", *range(100, 120))
        await eventually(lambda: flow.top == 20)
        gate.set()
        answer = await seeking
        assert isinstance(answer, Gone), answer


async def test_a_budget_of_all_rings_takes_from_the_one_that_is_quiet(nats: NatsServer) -> None:
    async with bench(nats) as made:
        made.relay.budget._limit_bytes = 3000
        flows: list[Flow] = [await made.follow(name) for name in ("a", "b")]
        offsets = await made.store("a", *range(10))
        await made.heard("a", *range(10))
        await made.store("b", *range(20))
        await made.heard("b", *range(20))
        assert len(flows[0].ring) == 0
        assert made.relay.budget.size_bytes <= 3000
        assert data(await made.seek(flows[0], offsets[0])) == list(range(1, 10))


async def test_a_mark_that_is_read_is_no_publication(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", 1, 2)
        await made.store("t", None, headers={REMOVED: str(offsets[0])})
        await made.store("t", 3)
        flow = await made.follow()
        assert data(await made.seek(flow, offsets[0])) == [2, 3]


async def test_what_is_told_of_one_node_recovers_on_another(nats: NatsServer) -> None:
    async with bench(nats) as one, bench(nats, prefix=one.subjects.prefix) as other:
        told = await one.follow()
        top = told.top
        await one.store("t", *range(5))
        flow = await other.follow()
        assert data(await other.seek(flow, top)) == list(range(5))
        await other.store("t", 5)
        await keep_in_step(one, other, flow)
        assert data(await other.seek(flow, top)) == list(range(6))


async def keep_in_step(one: Bench, other: Bench, flow: Flow) -> None:
    await eventually(lambda: flow.top == one.relay.flows["t"].top)
    assert other.down.losses == []
