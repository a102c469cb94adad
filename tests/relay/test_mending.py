"""How what is missing is found, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from broker.relay import checking
from broker.relay import mending as module
from broker.relay.connection import confirmed
from broker.relay.errors import RelayTimeoutError
from broker.relay.history import Archive
from broker.relay.jetstream import Batch
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.relay.durably import Bench, bench, durable_policy

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """For a test that stops it."""
    return site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})


# lost tails


async def test_a_lost_tail_is_found_from_time_to_time(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "CHECK_SECONDS", 0.2)
    async with bench(nats) as made:
        await made.follow("t")
        await made.follow("other")
        made.connection.drop()
        await made.store("t", 1, 2, 3)
        await made.store("other", 4)
        await made.heard("t", 1, 2, 3)
        await made.heard("other", 4)
        assert made.down.gaps == ["repaired", "repaired"]
        made.down.gaps.clear()
        await made.checked()
        assert made.down.gaps == []


async def test_a_quiet_stream_is_compared_without_a_read(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nats) as made:
        await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)
        await made.checked()
        asked: list[Sequence[str]] = []
        lasts = made.jetstream.lasts

        async def counted(stream: str, subjects: Sequence[str], size: int) -> Batch:
            asked.append(subjects)
            return await lasts(stream, subjects, size)

        monkeypatch.setattr(made.jetstream, "lasts", counted)
        await made.checked()
        assert (asked, made.jetstream.reads) == ([], [])
        await made.store("other", 1)
        await made.checked()
        assert len(asked) == 1


async def test_a_lost_tail_is_found_by_the_publishers_own_ack(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.checked()
        flow = await made.follow()
        made.connection.drop()
        (offset,) = await made.store("t", 1)
        made.mender.expect(flow, offset)
        await made.heard("t", 1)
        assert made.down.gaps == ["repaired"]


async def test_what_comes_within_its_grace_is_not_fetched(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        for number in range(20):
            made.mender.expect(flow, number + 1)
            await made.store("t", number)
        await made.heard("t", *range(20))
        await eventually(lambda: not made.mender._expected)
        assert (made.jetstream.reads, made.down.gaps) == ([], [])


async def test_a_wildcards_lost_tail_is_found(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow("a.*")
        made.connection.drop()
        await made.store("a.x", 1)
        await made.store("b", 0)
        await made.store("a.y", 2)
        await made.checked()
        await made.heard("a.*", 1, 2)


async def test_what_was_published_while_the_node_was_cut_off_is_fetched(own_nats: NatsServer) -> None:
    async with bench(own_nats) as made, bench(own_nats, prefix=made.subjects.prefix) as other:
        for name in ("t", "u", "a.*"):
            await made.follow(name)
        await made.store("t", 0)
        await made.heard("t", 0)
        lives = made.lives
        made.connection.drop()
        await other.store("t", 1, 2)
        await other.store("a.x", 3)
        made.connection._ended.set()  # the connection ends, and another begins
        await eventually(lambda: made.lives > lives)
        made.connection.pass_on()
        await made.heard("t", 0, 1, 2)
        await made.heard("a.*", 3)
        assert made.down.losses == []


async def test_after_an_outage_all_goes_on(own_nats: NatsServer) -> None:
    async with bench(own_nats) as made:
        flow = await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)
        made.connection.drop()
        await made.store("t", 2)
        own_nats.kill()
        await eventually(lambda: not made.connection.connected)
        made.mender.mend(flow)  # which can't be done now
        own_nats.start()
        made.connection.pass_on()
        await made.heard("t", 1, 2)
        await eventually(lambda: made.connection.connected)
        await made.store("t", 3)
        await made.heard("t", 1, 2, 3)
        assert made.down.losses == []


async def test_a_reconnect_while_a_comparison_runs_asks_for_another_one_at_once(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats) as made:
        await made.checked()
        check = made.checker._checks[0]
        gate, inside = asyncio.Event(), asyncio.Event()
        look = check.stream.look

        async def slow() -> Any:
            info = await look()
            inside.set()
            await gate.wait()
            return info

        monkeypatch.setattr(check.stream, "look", slow)
        check.due = 0.0
        await inside.wait()
        made.checker.reconnected()
        inside.clear()
        gate.set()
        async with asyncio.timeout(5):
            await inside.wait()


async def test_many_topics_are_compared_in_few_requests(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "LAST_SUBJECTS", 50)
    async with bench(nats) as made:
        names = [f"t{number}" for number in range(120)]
        await asyncio.gather(*(made.follow(name) for name in names))
        made.connection.drop()
        await asyncio.gather(*(made.store(name, 1) for name in names))
        made.connection.pass_on()
        await made.checked()
        for name in names:
            await made.heard(name, 1)


async def test_a_replica_that_is_behind_proves_nothing(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nats) as made:
        await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)
        before = await made.jetstream.lasts(made.stream, [made.subjects.stored("kept", "t")], 1000)
        await made.checked()
        made.connection.drop()
        await made.store("t", 2)
        lasts = made.jetstream.lasts
        answers = iter([before, Batch([], 0)])

        async def behind(stream: str, subjects: Sequence[str], size: int) -> Batch:
            return next(answers, None) or await lasts(stream, subjects, size)

        monkeypatch.setattr(made.jetstream, "lasts", behind)
        for _ in range(3):
            made.checker._checks[0].due = 0.0
            await made.checked()
        await made.heard("t", 1, 2)


async def test_a_read_by_a_replica_that_is_behind_is_repeated(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats) as made:
        await made.follow()
        read = made.jetstream.read
        behind = iter([0, 0, 2, 3])

        async def read_behind(stream: str, subject: str, **request: int) -> Batch:
            batch = await read(stream, subject, **request)
            reached = next(behind, 1000)
            return Batch([one for one in batch.messages if one.offset <= reached], 0)

        monkeypatch.setattr(made.jetstream, "read", read_behind)
        made.connection.drop(0, 1, 2, 3)
        await made.store("t", *range(6))
        await made.heard("t", *range(6))


async def test_a_read_that_fails_is_repeated(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(nats) as made:
        await made.follow()
        read = made.jetstream.read
        failures = iter(range(3))

        async def failing(stream: str, subject: str, **request: int) -> Batch:
            if next(failures, None) is not None:
                raise RelayTimeoutError("not now")
            return await read(stream, subject, **request)

        monkeypatch.setattr(made.jetstream, "read", failing)
        made.connection.drop(0)
        await made.store("t", 1, 2)
        await made.heard("t", 1, 2)


# what can't be had


async def test_what_was_cut_off_by_number_is_told(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=5)) as made:
        flow = await made.follow()
        await made.store("t", 0)
        await made.heard("t", 0)
        made.connection.drop(*range(7))
        await made.store("t", *range(1, 9))
        await eventually(lambda: made.down.losses == ["t"])
        assert made.down.data() == [0]
        assert made.down.gaps == ["lost"]
        await eventually(lambda: flow.started)
        await made.store("t", 9)
        await eventually(lambda: made.down.data()[-1] == 9)
        assert made.down.losses == ["t"]


async def test_as_many_as_are_kept_are_not_lost(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=5)) as made:
        await made.follow()
        await made.store("t", 0)
        await made.heard("t", 0)
        made.connection.drop(*range(4))
        await made.store("t", *range(1, 6))
        await made.heard("t", *range(6))
        assert made.down.losses == []


async def test_what_was_removed_unseen_is_told_and_what_was_seen_is_not(nats: NatsServer) -> None:
    async with bench(nats) as made:
        archive = Archive(made.jetstream, made.streams, made.subjects, 1_000_000)
        await made.follow("seen")
        await made.follow("unseen")
        for name in ("seen", "unseen"):
            await made.store(name, 1)
            await made.heard(name, 1)
        made.connection.drop()
        await made.store("unseen", 2)
        for name in ("seen", "unseen"):
            await archive.remove(made.policy, name)
        made.connection.pass_on()
        for name in ("seen", "unseen"):
            await made.store(name, 3)
        await made.heard("seen", 1, 3)
        await eventually(lambda: made.down.losses == ["unseen"])


async def test_what_went_by_age_unseen_is_told(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_seconds=3600.0)) as made:
        await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)
        made.checker._checks[0].due = made.clock() + 1e6
        made.connection.drop()
        (offset,) = await made.store("t", 2)
        await made.api(f"STREAM.PURGE.{made.stream}", {"seq": offset + 1})
        made.ahead += 3600
        made.connection.pass_on()
        await made.store("t", 3)
        await eventually(lambda: made.down.losses == ["t"])
        assert made.down.data() == [1]


async def turn_over(made: Bench) -> None:
    """Publish to another topic until the stream has forgotten all it had."""
    before = (await made.jetstream.info(made.stream)).state.last_seq
    while (await made.jetstream.info(made.stream)).state.first_seq <= before + 1:
        await made.store("other", "x" * 2000)


async def test_what_went_by_bytes_unseen_is_told_when_the_next_one_comes(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_bytes=20_000)) as made:
        await made.checked()
        await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)
        made.connection.drop()
        await made.store("t", 2)
        await turn_over(made)
        made.connection.pass_on()
        await made.store("t", 3)
        await eventually(lambda: made.down.losses == ["t"])
        assert made.down.data() == [1]


async def test_a_quiet_topic_of_a_busy_stream_is_not_lost(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_bytes=20_000)) as made:
        await made.follow()
        await made.follow("empty")
        await made.store("t", 1)
        await made.heard("t", 1)
        for _ in range(6):
            await made.checked()  # more often than the stream turns over
            await made.store("other", *["x" * 2000] * 4)
        assert (await made.jetstream.info(made.stream)).state.first_seq > 10
        await made.store("t", 2)
        await made.store("empty", 3)
        await eventually(lambda: made.down.losses or (made.down.data() == [1, 2] and made.down.data("empty") == [3]))
        assert made.down.losses == []
        assert made.down.gaps == []


async def test_a_stream_that_turns_over_between_two_looks_may_have_lost_something(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_bytes=20_000)) as made:
        await made.follow()
        await made.checked()
        await turn_over(made)
        await made.checked()
        assert made.down.losses == ["t"]


async def test_what_went_by_age_unseen_from_an_empty_topic_is_told(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_seconds=3600.0)) as made:
        await made.checked()
        await made.follow()
        made.checker._checks[0].due = made.clock() + 1e6
        made.connection.drop()
        (offset,) = await made.store("t", 1)
        await made.api(f"STREAM.PURGE.{made.stream}", {"seq": offset + 1})
        made.ahead += 3600
        made.connection.pass_on()
        await made.store("t", 2)
        await eventually(lambda: made.down.losses == ["t"])
        assert made.down.data() == []


async def test_a_stream_made_anew_ends_all_subscriptions_and_its_topics_begin_again(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        await made.follow("other")
        stream = made.streams.by_policy["kept"]
        await made.store("t", 1, 2)
        await made.heard("t", 1, 2)
        epoch = stream.epoch
        await made.api(f"STREAM.DELETE.{made.stream}")
        made.checker._checks[0].due = 0.0
        await eventually(lambda: sorted(made.down.losses) == ["other", "t"])
        assert stream.epoch != epoch
        await eventually(lambda: flow.started)
        assert flow.top == 0
        await made.store("t", 3)
        await made.heard("t", 1, 2, 3)
        assert made.down.offsets() == [1, 2, 1]
        assert sorted(made.down.losses) == ["other", "t"]


async def test_a_stream_that_somebody_else_made_anew_is_noticed(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.follow()
        await made.store("t", 1, 2)
        await made.heard("t", 1, 2)
        await made.api(f"STREAM.DELETE.{made.stream}")
        await made.api(f"STREAM.CREATE.{made.stream}", made.streams.by_policy["kept"].config)
        await made.checked()
        await eventually(lambda: made.down.losses == ["t"])


# hearsay


async def test_hearsay_from_far_ahead_neither_blocks_a_topic_nor_is_delivered(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)
        await made.fake("t", b'"fake"', Nats_Sequence=10**15, Nats_Last_Sequence=10**15 - 1)
        await made.store("t", 2)
        await made.heard("t", 1, 2)
        await eventually(lambda: not flow.busy)
        await made.store("t", 3)
        await made.heard("t", 1, 2, 3)
        assert (flow.behind <= flow.top, made.down.losses) == (True, [])


async def test_hearsay_that_seems_to_follow_is_found_out_and_told(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        await made.store("t", 1)
        await made.heard("t", 1)
        await made.checked()
        await made.fake("t", b'"fake"', Nats_Sequence=10**15, Nats_Last_Sequence=1)
        await made.heard("t", 1, "fake")
        await made.checked()
        await eventually(lambda: made.down.losses == ["t"])
        await eventually(lambda: flow.started)
        assert flow.top == 1
        await made.store("t", 2)
        await made.heard("t", 1, "fake", 2)


async def test_hearsay_of_a_wildcard_neither_blocks_it_nor_is_delivered(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow("a.*")
        await made.fake("a.x", b'"fake"', Nats_Sequence=10**15, Nats_Last_Sequence=0)
        await made.store("a.x", 1)
        await made.heard("a.*", 1)
        await eventually(lambda: not flow.busy)
        await made.store("a.y", 2)
        await made.heard("a.*", 1, 2)
        assert made.down.losses == []


async def test_a_topic_dropped_during_a_repair_leaves_nothing_running(nats: NatsServer) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        gate = asyncio.Event()
        made.jetstream.before_read = gate.wait
        made.connection.drop(0)
        await made.store("t", 1, 2)
        await eventually(lambda: flow.busy)
        made.down.wanted.clear()
        made.relay.sweep()
        made.ahead += 10
        made.relay.sweep()
        assert made.relay.flows == {}
        gate.set()
        await eventually(lambda: not made.relay._tasks)
        assert made.down.data() == []
        made.connection.pass_on()
        await made.follow()
        await made.store("t", 3)
        await made.heard("t", 3)


async def test_a_repair_begun_before_the_stream_was_made_anew_delivers_nothing_of_the_old_one(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats) as made:
        flow = await made.follow()
        read = made.jetstream.read
        gate, inside = asyncio.Event(), asyncio.Event()

        async def slow(stream: str, subject: str, **request: int) -> Batch:
            batch = await read(stream, subject, **request)
            if not gate.is_set():
                inside.set()
                await gate.wait()
            return batch

        monkeypatch.setattr(made.jetstream, "read", slow)
        made.connection.drop(0)
        await made.store("t", "old 1", "old 2")
        await inside.wait()
        await made.api(f"STREAM.DELETE.{made.stream}")
        made.checker._checks[0].due = 0.0
        await eventually(lambda: made.down.losses == ["t"] and flow.started)
        gate.set()
        await made.store("t", "new 1", "new 2", "new 3")
        await made.heard("t", "new 1", "new 2", "new 3")
        await confirmed(made.connection.publish("nobody", b""))


# a node that falls behind


@pytest.mark.parametrize("name", ["t", "t.*"])
async def test_what_a_node_can_not_take_waits_in_the_stream_and_is_fetched_in_order(
    nats: NatsServer, name: str
) -> None:
    async with bench(nats) as made:
        flow = await made.follow(name)
        topic = name.replace("*", "a")
        await made.store(topic, 1)
        await made.heard(name, 1)
        made.down.full = True
        await made.store(topic, *range(2, 40))
        await eventually(lambda: len(flow.held) == 38)
        assert made.down.data(name) == [1]
        made.down.full = False
        await made.heard(name, *range(1, 40))
        await made.store(topic, 40)
        await made.heard(name, *range(1, 41))
