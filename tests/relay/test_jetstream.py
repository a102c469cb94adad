"""What we use of JetStream's API, against a real server."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

from broker.relay import jetstream as module
from broker.relay.connection import confirmed
from broker.relay.errors import (
    JetStreamError,
    NoStreamError,
    RelayLostError,
    RelayTimeoutError,
    RelayTooLargeError,
    RelayUnavailableError,
)
from broker.relay.jetstream import Ack
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.relay.durably import Bench, bench, durable_policy

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """For a test that stops it."""
    return site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})


def subject(made: Bench, topic: str) -> str:
    return made.subjects.stored(made.policy.name, topic)


async def test_a_message_is_acked_with_its_place(nats: NatsServer) -> None:
    async with bench(nats) as made:
        assert [await made.put("a", b"1"), await made.put("b", b"2")] == [
            Ack(1, duplicate=False),
            Ack(2, duplicate=False),
        ]


async def test_a_repeat_gets_the_first_ones_ack(nats: NatsServer) -> None:
    async with bench(nats) as made:
        key = {"Nats-Msg-Id": "once"}
        first, again = await made.put("a", b"1", key), await made.put("a", b"other", key)
        assert (first, again) == (Ack(1, duplicate=False), Ack(1, duplicate=True))
        batch = await made.jetstream.read(made.stream, subject(made, "a"), start=0, messages=10, size=1000)
        assert [one.payload for one in batch.messages] == [b"1"]


async def test_without_a_stream_nothing_is_stored_and_that_is_said(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        with pytest.raises(NoStreamError, match=f"no stream {made.stream}; nothing was stored"):
            await made.put("a", b"1")
        with pytest.raises(NoStreamError):
            await made.jetstream.read(made.stream, "x", start=0, messages=1, size=1000)
        with pytest.raises(NoStreamError):
            await made.jetstream.lasts(made.stream, ["x"], 1000)
        with pytest.raises(JetStreamError) as failure:
            await made.jetstream.info(made.stream)
        assert (failure.value.code, failure.value.number) == (404, 10059)
        with pytest.raises(JetStreamError):
            await made.jetstream.last(made.stream, "x")


async def test_a_server_without_jetstream_says_so(own_server: NatsServer) -> None:
    async with bench(own_server, settle=False) as made:
        with pytest.raises(NoStreamError, match="is it enabled"):
            await made.jetstream.info(made.stream)


async def test_what_jetstream_refuses_is_an_error_with_its_number(nats: NatsServer) -> None:
    async with bench(nats) as made:
        with pytest.raises(JetStreamError) as failure:
            await made.put("a", b"1", {"Nats-Expected-Last-Subject-Sequence": "7"})
        assert failure.value.number == 10071
        assert "wrong last sequence" in failure.value.description
        with pytest.raises(RelayTooLargeError):
            made.jetstream.publish(made.stream, subject(made, "a"), b"x" * 2_000_000, None)


@pytest.mark.parametrize("answer", [b"", b"thanks", b"[]", b"{}", b'{"seq":"x"}'])
async def test_what_is_no_ack_is_not_taken_for_one(nats: NatsServer, answer: bytes) -> None:
    async with bench(nats, settle=False) as made:
        # somebody else answers what is sent to this subject
        await confirmed(
            made.connection.subscribe(
                subject(made, "a"),
                lambda *_: made.connection.send(f"{made.inbox._base}.1", answer),
            )
        )
        with pytest.raises(RelayTimeoutError, match="no ack"):
            await made.put("a", b"1")


async def test_who_waits_for_an_ack_does_not_wait_for_ever(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        await confirmed(made.connection.subscribe(subject(made, "a"), lambda *_: None))
        acked = made.jetstream.publish(made.stream, subject(made, "a"), b"1", None)
        made.ahead += module.ACK_SECONDS
        with pytest.raises(RelayTimeoutError):
            await confirmed(acked)


async def test_a_lost_connection_leaves_it_open_whether_it_was_stored(own_nats: NatsServer) -> None:
    async with bench(own_nats) as made:
        own_nats.pause()
        acked = made.jetstream.publish(made.stream, subject(made, "a"), b"1", None)
        reading = asyncio.create_task(made.jetstream.read(made.stream, subject(made, "a"), start=0, messages=1, size=9))
        await asyncio.sleep(0)
        own_nats.kill()
        for waiting in (acked, reading):
            with pytest.raises(RelayLostError):
                await waiting
        await eventually(lambda: not made.connection.connected)
        with pytest.raises(RelayUnavailableError):
            made.jetstream.publish(made.stream, subject(made, "a"), b"1", None)
        with pytest.raises(RelayUnavailableError):
            await made.jetstream.info(made.stream)


async def test_acks_that_nobody_waits_for_make_no_noise(own_nats: NatsServer) -> None:
    async with bench(own_nats) as made:
        own_nats.pause()
        made.jetstream.publish(made.stream, subject(made, "a"), b"1", None)
        asking = asyncio.create_task(made.jetstream.info(made.stream))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        own_nats.kill()
        await eventually(lambda: len(made.inbox) == 0)


async def test_a_read_brings_a_subjects_messages_in_order_from_a_place_on(nats: NatsServer) -> None:
    async with bench(nats) as made:
        for number in range(6):
            await made.put("a", b"%d" % number, {"X": f"{number}"})
            await made.put("b", b"other")
        batch = await made.jetstream.read(made.stream, subject(made, "a"), start=4, messages=3, size=100_000)
        assert [(one.offset, one.payload) for one in batch.messages] == [(5, b"2"), (7, b"3"), (9, b"4")]
        assert batch.messages[0].headers["X"] == "2"
        assert {one.subject for one in batch.messages} == {subject(made, "a")}
        assert batch.remaining == 1
        rest = await made.jetstream.read(made.stream, subject(made, "a"), start=10, messages=3, size=100_000)
        assert ([one.payload for one in rest.messages], rest.remaining) == ([b"5"], 0)


async def test_a_read_of_nothing_is_empty(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.put("a", b"1")
        for topic, start in (("b", 0), ("a", 2), ("a", 1_000_000), ("*.*", 0)):
            batch = await made.jetstream.read(made.stream, subject(made, topic), start=start, messages=5, size=1000)
            assert (batch.messages, batch.remaining) == ([], 0)


async def test_a_pattern_reads_several_topics(nats: NatsServer) -> None:
    async with bench(nats) as made:
        for topic in ("a.x", "b", "a.y"):
            await made.put(topic, topic.encode())
        batch = await made.jetstream.read(made.stream, subject(made, "a.*"), start=0, messages=5, size=1000)
        assert [one.payload for one in batch.messages] == [b"a.x", b"a.y"]


async def test_large_messages_come_in_parts_and_one_at_least(nats: NatsServer) -> None:
    async with bench(nats) as made:
        for number in range(5):
            await made.put("a", b"%d" % number + b"x" * 10_000)
        start, seen, parts = 0, [], 0
        while True:
            batch = await made.jetstream.read(made.stream, subject(made, "a"), start=start, messages=100, size=25_000)
            assert batch.messages
            parts += 1
            seen += [one.payload[:1] for one in batch.messages]
            if not batch.remaining:
                break
            assert batch.remaining == 5 - len(seen)
            start = batch.messages[-1].offset + 1
        assert seen == [b"0", b"1", b"2", b"3", b"4"]
        assert parts > 1
        alone = await made.jetstream.read(made.stream, subject(made, "a"), start=0, messages=100, size=1)
        assert (len(alone.messages), alone.remaining) == (1, 4)


async def test_payloads_and_headers_come_back_as_they_were(nats: NatsServer) -> None:
    async with bench(nats) as made:
        payload = b'{"\xf0\x9f\x8e\x88":"\\r\\n"}\r\n\x00'
        await made.put("a", payload, {"Broker-Tags": '{"ä":"1: 2"}', "Nats-Msg-Id": "k"})
        last = await made.jetstream.last(made.stream, subject(made, "a"))
        batch = await made.jetstream.read(made.stream, subject(made, "a"), start=0, messages=1, size=1000)
        for one in (last, batch.messages[0]):
            assert one is not None
            assert (one.offset, one.subject, one.payload) == (1, subject(made, "a"), payload)
            assert one.headers["Broker-Tags"] == '{"ä":"1: 2"}'
        await made.put("b", b"without headers")
        last = await made.jetstream.last(made.stream, subject(made, "b"))
        assert last is not None
        assert (last.payload, last.headers) == (b"without headers", {})


async def test_the_last_message_of_a_topic_or_of_none(nats: NatsServer) -> None:
    async with bench(nats) as made:
        assert await made.jetstream.last(made.stream, subject(made, "a")) is None
        for number in range(3):
            await made.put("a", b"%d" % number)
        await made.put("b", b"")
        last = await made.jetstream.last(made.stream, subject(made, "a"))
        assert last is not None
        assert (last.offset, last.payload) == (3, b"2")
        newest = await made.jetstream.last(made.stream, subject(made, ">"))
        assert newest is not None
        assert (newest.offset, newest.payload) == (4, b"")


async def test_the_last_messages_of_many_topics(nats: NatsServer) -> None:
    async with bench(nats) as made:
        names = [f"t{number}" for number in range(300)]
        acks = [made.jetstream.publish(made.stream, subject(made, name), b"old", None) for name in names]
        acks += [made.jetstream.publish(made.stream, subject(made, name), b"new", None) for name in names]
        await asyncio.gather(*acks)
        asked = [subject(made, name) for name in [*names, "unheard.of"]]
        batch = await made.jetstream.lasts(made.stream, asked, 1_000_000)
        assert {one.subject: one.offset for one in batch.messages} == {
            subject(made, f"t{n}"): 301 + n for n in range(300)
        }
        assert (batch.remaining, batch.up_to) == (0, 600)
        assert (await made.jetstream.lasts(made.stream, [subject(made, "unheard.of")], 1000)).messages == []


async def test_the_last_messages_come_in_chunks_where_they_are_large(nats: NatsServer) -> None:
    async with bench(nats) as made:
        names = [f"t{number}" for number in range(20)]
        for name in names:
            await made.put(name, name.encode() + b"x" * 10_000)
        asked = [subject(made, name) for name in names]
        batch = await made.jetstream.lasts(made.stream, asked, 30_000)
        assert sorted(one.offset for one in batch.messages) == list(range(1, 21))
        assert batch.remaining == 0
        # of a pattern only what fits
        some = await made.jetstream.lasts(made.stream, [subject(made, ">")], 30_000)
        assert 0 < len(some.messages) < 20
        assert some.remaining == 20 - len(some.messages)


async def test_too_many_last_messages_are_refused(nats: NatsServer) -> None:
    async with bench(nats) as made:
        acks = [made.jetstream.publish(made.stream, subject(made, f"t{n}"), b"", None) for n in range(1025)]
        await asyncio.gather(*acks)
        with pytest.raises(JetStreamError) as failure:
            await made.jetstream.lasts(made.stream, [subject(made, ">")], 1_000_000)
        assert failure.value.code == 413


async def test_a_stream_describes_itself(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_messages=3)) as made:
        for number in range(5):
            await made.put("a", b"%d" % number)
        info = await made.jetstream.info(made.stream)
        assert (info.state.messages, info.state.first_seq, info.state.last_seq) == (4, 2, 5)
        assert info.config["max_msgs_per_subject"] == 4
        assert info.created


async def test_reads_and_publishes_of_many_at_once_do_not_mix(nats: NatsServer) -> None:
    async with bench(nats) as made:

        async def one(topic: str) -> list[Any]:
            for number in range(5):
                await made.put(topic, f"{topic}:{number}".encode())
            batch = await made.jetstream.read(made.stream, subject(made, topic), start=0, messages=10, size=10_000)
            return [message.payload for message in batch.messages]

        names = [secrets.token_hex(3) for _ in range(20)]
        for name, seen in zip(names, await asyncio.gather(*map(one, names)), strict=True):
            assert seen == [f"{name}:{number}".encode() for number in range(5)]
