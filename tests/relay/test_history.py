"""Histories, read from real streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from broker.relay.errors import RelayLostError, RelayTimeoutError
from broker.relay.history import UNRECOVERABLE, Archive, History, Since, Unrecoverable
from broker.relay.jetstream import Batch
from tests.harness.nats import NatsServer
from tests.relay.durably import Bench, bench, durable_policy

pytestmark = pytest.mark.anyio


def archive(made: Bench, size_bytes: int = 1_000_000) -> Archive:
    return Archive(made.jetstream, made.streams, made.subjects, size_bytes)


async def read(
    made: Bench,
    topic: str = "t",
    *,
    limit: int = 1000,
    since: int | None = None,
    reverse: bool = False,
    epoch: str = "",
    size_bytes: int = 1_000_000,
) -> History | Unrecoverable:
    position = None if since is None else Since(since, epoch)
    return await archive(made, size_bytes).read(made.policy, topic, limit=limit, since=position, reverse=reverse)


async def data(made: Bench, topic: str = "t", **request: Any) -> list[Any] | Unrecoverable:
    found = await read(made, topic, **request)
    return [json.loads(one.payload) for one in found.messages] if isinstance(found, History) else found


async def fill(made: Bench, *topics: str, times: int = 1, payload: bytes = b"0") -> None:
    """Publish to these topics, in this order, so often; fast."""
    waiting = []
    for _ in range(times):
        for topic in topics:
            subject = made.subjects.stored(made.policy.name, topic)
            waiting.append(made.jetstream.publish(made.stream, subject, payload, None))
            if len(waiting) >= 500:
                await asyncio.gather(*waiting)
                waiting = []
    await asyncio.gather(*waiting)


async def test_a_history_begins_with_the_oldest_or_the_newest(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", *range(5))
        found = await read(made)
        assert isinstance(found, History)
        assert [one.offset for one in found.messages] == offsets
        assert (found.offset, found.epoch) == (offsets[-1], made.streams.by_policy["kept"].epoch)
        assert await data(made) == [0, 1, 2, 3, 4]
        assert await data(made, limit=2) == [0, 1]
        assert await data(made, reverse=True) == [4, 3, 2, 1, 0]
        assert await data(made, limit=2, reverse=True) == [4, 3]


async def test_without_a_limit_there_is_the_position_only(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("t", 1, 2)
        for reverse in (False, True):
            found = await read(made, limit=0, reverse=reverse)
            assert isinstance(found, History)
            assert (found.messages, found.offset) == ([], 2)


async def test_a_topic_that_was_never_published_to_has_an_epoch_and_no_offset(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("other", 1)
        for reverse in (False, True):
            found = await read(made, reverse=reverse)
            assert isinstance(found, History)
            assert (found.messages, found.offset) == ([], 0)
            assert found.epoch == made.streams.by_policy["kept"].epoch


async def test_since_goes_on_both_ways(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = []
        for number in range(6):
            offsets += await made.store("t", number)
            await made.store("other", "x")
        assert await data(made, since=offsets[2]) == [3, 4, 5]
        assert await data(made, since=offsets[2], limit=1) == [3]
        assert await data(made, since=offsets[5]) == []
        assert await data(made, since=0) == [0, 1, 2, 3, 4, 5]
        assert await data(made, since=offsets[2], reverse=True) == [1, 0]
        assert await data(made, since=offsets[2], reverse=True, limit=1) == [1]
        assert await data(made, since=offsets[0], reverse=True) == []
        assert await data(made, since=offsets[5] + 1, reverse=True, limit=2) == [5, 4]
        # between two of its own
        assert await data(made, since=offsets[2] + 1) == [3, 4, 5]
        assert await data(made, since=offsets[2] + 1, reverse=True) == [2, 1, 0]


async def test_a_position_that_never_was_is_refused(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", 1, 2)
        epoch = made.streams.by_policy["kept"].epoch
        for reverse in (False, True):
            assert await data(made, since=offsets[1], epoch="other", reverse=reverse) is UNRECOVERABLE
            assert await data(made, since=offsets[1] + 2, epoch=epoch, reverse=reverse) is UNRECOVERABLE
            assert await data(made, since=offsets[1] + 2, limit=0, reverse=reverse) is UNRECOVERABLE
        assert await data(made, since=offsets[1] + 1) is UNRECOVERABLE
        assert await data(made, since=offsets[0], epoch=epoch) == [2]


async def test_pages_are_one_history(nats: NatsServer) -> None:
    async with bench(nats) as made:
        for number in range(25):
            await made.store("t", number)
            await made.store("other", "x")
        for reverse in (False, True):
            seen: list[int] = []
            since = None
            while True:
                found = await read(made, limit=4, since=since, reverse=reverse)
                assert isinstance(found, History)
                if not found.messages:
                    break
                seen += [json.loads(one.payload) for one in found.messages]
                since = found.messages[-1].offset
            assert seen == (list(reversed(range(25))) if reverse else list(range(25)))


async def test_the_witness_is_not_shown_and_what_is_behind_it_is_whole(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=3)) as made:
        offsets = await made.store("t", *range(3))
        assert await data(made) == [0, 1, 2]
        offsets += await made.store("t", 3)
        assert await data(made) == [1, 2, 3]
        assert await data(made, limit=2) == [1, 2]
        assert await data(made, reverse=True) == [3, 2, 1]
        assert await data(made, reverse=True, since=offsets[2]) == [1]
        assert await data(made, since=offsets[0]) == [1, 2, 3]  # which still stands there
        offsets += await made.store("t", 4)
        assert await data(made, since=offsets[0]) is UNRECOVERABLE
        assert await data(made, since=offsets[1]) == [2, 3, 4]
        assert await data(made) == [2, 3, 4]


async def test_what_was_cut_off_by_age_or_bytes_is_not_passed_over(nats: NatsServer) -> None:
    async with bench(nats) as made:
        offsets = await made.store("t", *range(4))
        await made.api(f"STREAM.PURGE.{made.stream}", {"seq": offsets[2]})
        assert await data(made) == [2, 3]
        assert await data(made, since=offsets[0]) is UNRECOVERABLE
        assert await data(made, since=offsets[1]) == [2, 3]  # it saw the last one that has gone
        assert await data(made, since=offsets[2]) == [3]


async def test_backwards_finds_the_newest_among_many_other_topics(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("t", *range(30))
        await fill(made, *(f"other.{number}" for number in range(200)), times=15)
        await made.store("t", 30)
        await fill(made, "other.x", times=900)
        await made.store("t", *range(31, 35))
        made.jetstream.reads.clear()
        assert await data(made, reverse=True, limit=3) == [34, 33, 32]
        assert await data(made, reverse=True, limit=10) == list(range(34, 24, -1))
        assert await data(made, reverse=True, limit=1000) == list(range(34, -1, -1))
        assert await data(made, "other.7", reverse=True, limit=2) == [0, 0]
        assert len(made.jetstream.reads) < 80
        for limit in (1, 2, 5, 17, 35, 36):
            assert await data(made, reverse=True, limit=limit) == list(range(34, -1, -1))[:limit]


async def test_long_histories_are_read_in_several_parts(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=2000)) as made:
        await fill(made, "t", times=1500)
        for limit in (511, 512, 513, 600, 1024, 1200, 1499, 1500, 1501, 5000):
            for request in ({}, {"since": 1}, {"since": 0}, {"reverse": True}, {"reverse": True, "since": 1500}):
                found = await read(made, limit=limit, **request)
                assert isinstance(found, History)
                there = 1499 if request.get("since") in (1, 1500) else 1500
                assert len(found.messages) == min(limit, there), (limit, request)
                offsets = [one.offset for one in found.messages]
                assert offsets == sorted(offsets, reverse=bool(request.get("reverse")))
                assert len(set(offsets)) == len(offsets)


async def test_an_answer_is_bounded_in_bytes_but_never_empty(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("t", *("x" * 10_000 for _ in range(10)))
        for reverse in (False, True):
            for size, count in ((35_000, 3), (1, 1), (10_002, 1), (10_000_000, 10)):
                found = await read(made, reverse=reverse, size_bytes=size)
                assert isinstance(found, History)
                assert len(found.messages) == count
                newest = found.messages[0].offset
                assert newest == (10 if reverse else 1)
            offsets: list[int] = []
            since = None
            while True:  # page by page
                found = await read(made, reverse=reverse, size_bytes=25_000, since=since)
                assert isinstance(found, History)
                if not found.messages:
                    break
                offsets += [one.offset for one in found.messages]
                since = offsets[-1]
            assert sorted(offsets) == list(range(1, 11))


async def test_a_wildcard_reads_several_topics_in_one_order(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=2)) as made:
        for number in range(3):
            await made.store("a.x", f"x{number}")
            await made.store("b", "other")
            await made.store("a.y", f"y{number}")
        # of a wildcard's topics the witnesses can't be told from what else is there
        assert await data(made, "a.*") == ["x0", "y0", "x1", "y1", "x2", "y2"]
        assert await data(made, "a.*", reverse=True, limit=3) == ["y2", "x2", "y1"]
        assert await data(made, "a.*", since=6) == ["x2", "y2"]
        assert await data(made, "a.*", since=3) == ["x1", "y1", "x2", "y2"]


async def test_a_removed_history_is_empty_and_keeps_its_position(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("other", "o")
        offsets = await made.store("t", 1, 2, 3)
        await archive(made).remove(made.policy, "t")
        for reverse in (False, True):
            found = await read(made, reverse=reverse)
            assert isinstance(found, History)
            assert (found.messages, found.offset) == ([], offsets[-1])
        assert await data(made, "other") == ["o"]
        assert await data(made, since=offsets[-1]) == []
        assert await data(made, since=offsets[1]) is UNRECOVERABLE
        more = await made.store("t", 4, 5)
        assert await data(made) == [4, 5]
        assert await data(made, reverse=True, limit=1) == [5]
        assert await data(made, since=offsets[-1]) == [4, 5]
        assert await data(made, since=more[0]) == [5]
        assert await data(made, since=offsets[1]) is UNRECOVERABLE
        info = await made.jetstream.info(made.stream)
        assert info.state.messages == 1 + 1 + 2  # the other topic's, the mark, and the two


async def test_removing_twice_or_nothing_changes_nothing(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await archive(made).remove(made.policy, "t")
        (offset,) = await made.store("t", 1)
        for _ in range(3):
            await archive(made).remove(made.policy, "t")
            found = await read(made)
            assert isinstance(found, History)
            assert (found.messages, found.offset) == ([], offset)
        assert (await made.jetstream.info(made.stream)).state.last_seq == 2


async def test_a_removal_that_was_interrupted_can_be_repeated(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats) as made:
        await made.store("t", 1, 2, 3)

        async def interrupted(method: str, body: Any = None) -> bytes:
            del body
            assert method.startswith("STREAM.PURGE")
            raise RelayLostError("the connection was lost")

        last = await made.jetstream.last(made.stream, made.subjects.stored("kept", "t"))
        with monkeypatch.context() as patch:
            patch.setattr(made.jetstream, "last", lambda *_: asyncio.sleep(0, last))
            patch.setattr(made.jetstream, "call", interrupted)
            with pytest.raises(RelayLostError):
                await archive(made).remove(made.policy, "t")
        await archive(made).remove(made.policy, "t")
        assert await data(made) == []
        assert (await made.jetstream.info(made.stream)).state.messages == 1


async def test_what_is_published_during_a_removal_stays(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nats) as made:
        await made.store("t", 1, 2)
        last = made.jetstream.last
        between = iter([3, 4])

        async def and_somebody_publishes(stream: str, subject: str) -> Any:
            found = await last(stream, subject)
            for one in between:
                await made.store("t", one)
                break
            return found

        monkeypatch.setattr(made.jetstream, "last", and_somebody_publishes)
        await archive(made).remove(made.policy, "t")
        monkeypatch.undo()
        assert await data(made) == []  # they came before the removal
        await made.store("t", 5)
        assert await data(made) == [5]


async def test_a_topic_that_never_rests_is_not_removed(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nats) as made:
        await made.store("t", 1)
        last = made.jetstream.last

        async def and_somebody_publishes(stream: str, subject: str) -> Any:
            found = await last(stream, subject)
            await made.store("t", 2)
            return found

        monkeypatch.setattr(made.jetstream, "last", and_somebody_publishes)
        with pytest.raises(RelayTimeoutError, match="nothing was removed"):
            await archive(made).remove(made.policy, "t")
        monkeypatch.undo()
        assert (await data(made))[0] == 1  # type: ignore[index]


async def test_a_replica_that_is_behind_is_asked_again(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nats) as made:
        await made.store("t", 1, 2, 3)
        behind = iter([1, 2])
        original = made.jetstream.read

        async def read_behind(stream: str, subject: str, **request: int) -> Batch:
            batch = await original(stream, subject, **request)
            reached = next(behind, None)
            if reached is None:
                return batch
            return Batch([one for one in batch.messages if one.offset <= reached], 0)

        monkeypatch.setattr(made.jetstream, "read", read_behind)
        assert await data(made) == [1, 2, 3]


async def test_before_the_stream_is_there_a_history_is_an_error(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        with pytest.raises(RelayTimeoutError, match="not there yet"):
            await read(made)


async def test_a_topic_without_messages_can_be_read_from_where_a_subscriber_was_told_it_stands(
    nats: NatsServer,
) -> None:
    async with bench(nats) as made:
        await made.store("other", 1, 2, 3)
        flow = await made.follow("quiet")
        assert await data(made, "quiet", since=flow.top) == []
        assert await data(made, "quiet", since=1_000) is UNRECOVERABLE
        await made.api(f"STREAM.PURGE.{made.stream}")
        await made.store("other", 4, 5)
        await made.api(f"STREAM.PURGE.{made.stream}")
        assert await data(made, "quiet", since=1) is UNRECOVERABLE  # perhaps something was there
