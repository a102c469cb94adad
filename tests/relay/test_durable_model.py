"""The live way against a model: whatever is lost, doubled or reordered, all of it is delivered once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from broker.core.ring import RingLimits
from broker.relay import checking, mending
from broker.relay.checking import Checker
from broker.relay.durable import DurableRelay
from broker.relay.flow import Flow
from broker.relay.jetstream import Batch, Stored, StreamInfo, StreamState
from broker.relay.mending import Mender
from broker.relay.stored import REMOVED
from broker.relay.streams import Streams
from broker.relay.subjects import Subjects
from tests.relay.durably import durable_policy

LIMIT = 6
TOPICS = st.sampled_from(["a", "b"])


class Memory:
    """JetStream in memory: one stream, one replica that may be behind."""

    def __init__(self, subjects: Subjects, policy: str) -> None:
        self.subjects = subjects
        self.policy = policy
        self.all: list[Stored] = []
        self.messages: list[Stored] = []
        self.past: list[list[Stored]] = [[]]
        """What there was when so many had been published."""
        self.behind = 0
        """By how many messages the replica that answers the next read is behind."""

    def subject(self, topic: str) -> str:
        return self.subjects.stored(self.policy, topic)

    def publish(self, topic: str, headers: dict[str, str] | None = None) -> tuple[Stored, int]:
        """Store a message; it, and the offset of the one before it in its topic."""
        subject = self.subject(topic)
        of_topic = [one for one in self.messages if one.subject == subject]
        message = Stored(len(self.all) + 1, subject, b"%d" % (len(self.all) + 1), headers or {})
        self.all.append(message)
        self.messages.append(message)
        if len(of_topic) > LIMIT:
            self.messages.remove(of_topic[0])
        self.past.append(list(self.messages))
        return message, of_topic[-1].offset if of_topic else 0

    async def info(self, _: str) -> StreamInfo:
        first = self.messages[0].offset if self.messages else len(self.all) + 1
        return StreamInfo(
            {"max_msgs_per_subject": LIMIT + 1}, "then", StreamState(len(self.messages), 0, first, len(self.all))
        )

    async def last(self, _: str, subject: str) -> Stored | None:
        return next((one for one in reversed(self.messages) if one.subject == subject or subject.endswith(">")), None)

    async def read(self, _: str, subject: str, *, start: int, messages: int, size: int) -> Batch:
        del size
        there = self.past[max(0, len(self.all) - self.behind)]
        self.behind = 0
        found = [one for one in there if (one.subject == subject or subject.endswith(">")) and start <= one.offset]
        return Batch(found[:messages], len(found[messages:]))

    async def read_on(self, name: str, subject: str, *, last: int, messages: int, size: int) -> Batch:
        return await self.read(name, subject, start=last + 1, messages=messages, size=size)

    async def lasts(self, name: str, subjects: list[str], _: int) -> Batch:
        found = [await self.last(name, subject) for subject in subjects]
        return Batch([one for one in found if one is not None], 0, len(self.all))


class Wire:
    """A connection that only remembers who wants what."""

    connected = True

    def __init__(self) -> None:
        self.sinks: dict[str, Callable[[bytes, bytes, bytes | None], None]] = {}

    def subscribe(self, subject: str, sink: Callable[[bytes, bytes, bytes | None], None]) -> asyncio.Future[bool]:
        self.sinks[subject] = sink
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        done.set_result(True)
        return done


class Heard:
    """What came out, and whether the subscribers were told that something is missing."""

    def __init__(self) -> None:
        self.offsets: dict[str, list[int]] = {}
        self.told: dict[str, list[int]] = {}
        """How much had come, whenever a loss was told."""

    def encode(self, flow: Flow, message: Stored, topic: str, *, first: bool) -> bytes:
        del flow, topic, first
        return message.payload

    def push(self, flow: Flow, line: bytes, offset: int) -> None:
        assert line == b"%d" % offset
        self.offsets.setdefault(flow.name, []).append(offset)

    def flushed(self, flow: Flow) -> asyncio.Future[None]:
        del flow
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def lost(self, flow: Flow) -> None:
        self.told.setdefault(flow.name, []).append(len(self.offsets.get(flow.name, [])))

    def gap(self, outcome: str) -> None:
        del outcome

    def congested(self) -> bool:
        return False

    def followed(self, flow: Flow) -> bool:
        del flow
        return True

    def unexpected(self, flow: Flow) -> None:
        raise AssertionError(flow)


class LiveWay(RuleBasedStateMachine):
    """Messages are published, and come or don't; at the end the tails are looked at, and everything must be there."""

    @initialize(batch=st.integers(1, 5))
    def begin(self, batch: int) -> None:
        self.kept = (mending.BATCH_MESSAGES, mending.GRACE_SECONDS, mending.PAUSE_SECONDS, checking.GRACE_SECONDS)
        checking.GRACE_SECONDS = 0.0
        mending.BATCH_MESSAGES, mending.GRACE_SECONDS, mending.PAUSE_SECONDS = batch, 0.0, (0.0, 0.0)
        self.loop = asyncio.new_event_loop()
        self.waiting: dict[str, list[tuple[Stored, int]]] = {"a": [], "b": []}
        self.now = 0.0
        self.run(self._begin())

    async def _begin(self) -> None:
        subjects, policy = Subjects("p"), durable_policy(history_messages=LIMIT)
        self.stream = Memory(subjects, policy.name)
        self.wire, self.heard = Wire(), Heard()
        jetstream: Any = self.stream
        wire: Any = self.wire
        streams = Streams(jetstream, subjects, (policy,), 1)
        self.relay = DurableRelay(
            wire,
            jetstream,
            streams,
            subjects,
            self.heard,
            lambda: self.now,
            ring_limits=RingLimits(4, 10_000),
            rings_bytes=10_000,
            make_head=str.encode,
        )
        self.mender = Mender(self.relay, lambda: self.now)
        self.checker = Checker(self.relay, wire, lambda: self.now)
        streams.by_policy[policy.name].ready.set()
        self.flows = {topic: self.relay.follow(policy, topic) for topic in "ab"}
        for flow in self.flows.values():
            started: asyncio.Future[object] = self.loop.create_future()
            self.relay.when_started(flow, started.set_result)
            await started

    def run(self, work: Any) -> None:
        self.loop.run_until_complete(work)

    @rule(topic=TOPICS, count=st.integers(1, 4))
    def publish(self, topic: str, count: int) -> None:
        for _ in range(count):
            self.waiting[topic].append(self.stream.publish(topic))

    @rule(topic=TOPICS)
    def remove(self, topic: str) -> None:
        subject = self.stream.subject(topic)
        of_topic = [one for one in self.stream.messages if one.subject == subject]
        if of_topic and REMOVED not in of_topic[-1].headers:
            mark = self.stream.publish(topic, {REMOVED: str(of_topic[-1].offset)})
            self.stream.messages = [
                one for one in self.stream.messages if one.subject != subject or one.offset >= mark[0].offset
            ]
            self.stream.past[-1] = list(self.stream.messages)
            self.waiting[topic].append(mark)

    @rule(topic=TOPICS, which=st.integers(0, 3), again=st.booleans())
    def arrive(self, topic: str, which: int, again: bool) -> None:  # noqa: FBT001 - drawn
        if not self.waiting[topic]:
            return
        at = which % len(self.waiting[topic])
        message, previous = self.waiting[topic][at]
        if not again:
            del self.waiting[topic][at]
        headers = {
            **message.headers,
            "Nats-Stream": self.flows[topic].stream.name,
            "Nats-Subject": message.subject,
            "Nats-Sequence": str(message.offset),
            "Nats-Last-Sequence": str(previous),
        }
        block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        self.run(self._hand_over(topic, message.payload, block.encode()))

    async def _hand_over(self, topic: str, payload: bytes, block: bytes) -> None:
        self.wire.sinks[f"p.kept.live.{topic}"](b"", payload, block)

    @rule(topic=TOPICS, which=st.integers(0, 3))
    def lose(self, topic: str, which: int) -> None:
        if self.waiting[topic]:
            del self.waiting[topic][which % len(self.waiting[topic])]

    @rule(messages=st.integers(1, 4))
    def fall_behind(self, messages: int) -> None:
        self.stream.behind = messages

    @rule(topic=TOPICS)
    def ack(self, topic: str) -> None:
        last = [one for one in self.stream.messages if one.subject == self.stream.subject(topic)]
        if last:
            self.mender.expect(self.flows[topic], last[-1].offset)
            self.now += mending.GRACE_SECONDS
            self.run(self._tick())

    @rule(turns=st.integers(1, 12))
    def time_goes_on(self, turns: int) -> None:
        self.run(self._turns(turns))

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def _tick(self) -> None:
        self.mender.tick()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.run(self._end())
            for topic, flow in self.flows.items():
                self.compare(topic, flow)
        finally:
            self.run(self.relay.stop())
            self.loop.close()
            mending.BATCH_MESSAGES, mending.GRACE_SECONDS, mending.PAUSE_SECONDS, checking.GRACE_SECONDS = self.kept

    async def _end(self) -> None:
        self.stream.behind = 0
        self.checker.reconnected()
        for _ in range(1000):
            self.mender.tick()
            self.checker.tick()
            await asyncio.sleep(0)
            if not self.relay._tasks and all(flow.started and not flow.busy for flow in self.flows.values()):
                return
        raise AssertionError("it never comes to rest")

    def compare(self, topic: str, flow: Flow) -> None:
        came = self.heard.offsets.get(topic, [])
        assert came == sorted(set(came))
        every = [one for one in self.stream.all if one.subject == self.stream.subject(topic)]
        told = self.heard.told.get(topic, [])
        publications = [one.offset for one in every if REMOVED not in one.headers]
        if every:
            assert flow.top == every[-1].offset or told
        missing = [offset for offset in publications if offset not in came]
        # nothing may be missing but where that was told
        for offset in missing:
            place = len([one for one in came if one < offset])
            assert place in told, (offset, came, told)


TestLiveWay = LiveWay.TestCase
TestLiveWay.settings = settings(max_examples=150, stateful_step_count=40)
