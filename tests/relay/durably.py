"""Durable topics on real NATS: a relay with everything that keeps it whole, and losses where they are wanted."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from broker.core.policy import TopicPolicy
from broker.core.ring import RingLimits
from broker.core.topic import parse_pattern
from broker.publications import make_push, publication_problem
from broker.relay.checking import Checker
from broker.relay.connection import Confirmation, NatsConnection, confirmed
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError
from broker.relay.flow import Flow
from broker.relay.inbox import Inbox
from broker.relay.jetstream import Ack, Batch, JetStream, Stored
from broker.relay.mending import Mender
from broker.relay.options import NatsOptions
from broker.relay.parser import Sink
from broker.relay.seeking import Gone, Missed, Seeker
from broker.relay.streams import Streams
from broker.relay.subjects import Subjects
from broker.wire.replies import publication_head
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually

TICK_SECONDS = 0.02
ROOMY = RingLimits(1000, 1_000_000)

Found = Missed | Gone | RelayError
Live = tuple[bytes, bytes, bytes | None]
"""A message as NATS hands it over."""


def durable_policy(name: str = "kept", **changes: Any) -> TopicPolicy:
    return TopicPolicy(name, (parse_pattern(">"),), **{"durable": True, "history_messages": 1000, **changes})


class Lossy(NatsConnection):
    """A connection whose live messages pass through a hand that may keep them.

    Answers to requests and all else come unhindered.
    """

    def __init__(self, options: NatsOptions, on_change: Callable[[bool], None]) -> None:
        super().__init__(options, on_change)
        self.hand: Callable[[Sink, Live], None] = lambda sink, message: sink(*message)

    def subscribe(self, subject: str, sink: Sink) -> Confirmation:
        if ".live." in subject:
            return super().subscribe(subject, lambda *message: self.hand(sink, message))
        return super().subscribe(subject, sink)

    def drop(self, *numbers: int) -> None:
        """Lose the live messages with these places, counted from now on; without any, all."""
        count = iter(range(1_000_000))

        def hand(sink: Sink, message: Live) -> None:
            if numbers and next(count) not in numbers:
                sink(*message)

        self.hand = hand

    def pass_on(self) -> None:
        """Lose nothing any more."""
        self.hand = lambda sink, message: sink(*message)


class CountingJetStream(JetStream):
    """Counts what is read, and can be made to answer something else."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox)
        self.reads: list[int] = []
        """From where."""
        self.before_read: Callable[[], Awaitable[Any]] | None = None

    async def read(self, stream: str, subject: str, *, start: int, messages: int, size: int) -> Batch:
        self.reads.append(start)
        if self.before_read is not None:
            await self.before_read()
        return await super().read(stream, subject, start=start, messages=messages, size=size)


class Recording:
    """A downstream that keeps everything."""

    def __init__(self) -> None:
        self.pushed: dict[str, list[tuple[int, Any]]] = {}
        """Offsets and data, by flow."""
        self.losses: list[str] = []
        self.gaps: list[str] = []
        self.faked = 0
        self.bad = 0
        self.wanted: set[str] = set()
        self.full = False

    def encode(self, flow: Flow, message: Stored, topic: str, *, first: bool) -> bytes | None:
        if publication_problem(flow.policy, message.payload) is not None:
            self.bad += first
            return None
        concrete = topic if flow.wildcard else None
        return make_push(flow.head, message.payload, message.headers, offset=message.offset, topic=concrete)

    def push(self, flow: Flow, line: bytes, offset: int) -> None:
        pub = json.loads(line)["push"]["pub"]
        assert pub["offset"] == offset
        self.pushed.setdefault(flow.name, []).append((offset, pub["data"]))

    def flushed(self, flow: Flow) -> asyncio.Future[None]:
        del flow
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def lost(self, flow: Flow) -> None:
        self.losses.append(flow.name)

    def gap(self, outcome: str) -> None:
        self.gaps.append(outcome)

    def congested(self) -> bool:
        return self.full

    def followed(self, flow: Flow) -> bool:
        return flow.name in self.wanted

    def unexpected(self, flow: Flow) -> None:
        del flow
        self.faked += 1

    def data(self, name: str = "t") -> list[Any]:
        return [data for _, data in self.pushed.get(name, [])]

    def offsets(self, name: str = "t") -> list[int]:
        return [offset for offset, _ in self.pushed.get(name, [])]


class Bench:
    """One node's durable side, and a back end's way into the stream."""

    def __init__(self, server: NatsServer, policies: tuple[TopicPolicy, ...], prefix: str, ring: RingLimits) -> None:
        self.subjects = Subjects(prefix)
        self.ahead = 0.0
        self.policy = policies[0]
        self.connection = Lossy(NatsOptions(servers=(server.url,), name="test"), self._changed)
        self.inbox = Inbox(self.connection, self.subjects, secrets.token_hex(4), self.clock)
        self.jetstream = CountingJetStream(self.inbox)
        self.streams = Streams(self.jetstream, self.subjects, policies, 1)
        self.down = Recording()
        self.relay = DurableRelay(
            self.connection,
            self.jetstream,
            self.streams,
            self.subjects,
            self.down,
            self.clock,
            ring_limits=ring,
            rings_bytes=10_000_000,
            make_head=publication_head,
        )
        self.mender = Mender(self.relay, self.clock)
        self.checker = Checker(self.relay, self.connection, self.clock)
        self.seeker = Seeker(self.relay, 1_000_000, self.clock)
        self.lives = 0

    def clock(self) -> float:
        return time.monotonic() + self.ahead

    def _changed(self, connected: bool) -> None:  # noqa: FBT001 - a callback's one argument
        if connected:
            self.lives += 1
            self.checker.reconnected()
        else:
            self.inbox.lost()

    @property
    def stream(self) -> str:
        return self.subjects.stream(self.policy.name)

    async def keep_time(self) -> None:
        while True:
            self.inbox.sweep()
            self.mender.tick()
            self.checker.tick()
            self.relay.sweep()
            await asyncio.sleep(TICK_SECONDS)

    async def store(self, topic: str, *data: Any, headers: dict[str, str] | None = None) -> list[int]:
        """Publish, one after another, past all that this node knows; the offsets."""
        return [(await self.put(topic, json.dumps(one).encode(), headers)).offset for one in data]

    async def put(self, topic: str, payload: bytes, headers: dict[str, str] | None = None) -> Ack:
        subject = self.subjects.stored(self.policy.name, topic)
        return await confirmed(self.jetstream.publish(self.stream, subject, payload, headers))

    async def fake(self, topic: str, payload: bytes, **headers: Any) -> None:
        """Publish straight to the live subject, as if it came from the stream."""
        made = {
            "Nats-Stream": self.stream,
            "Nats-Subject": self.subjects.stored(self.policy.name, topic),
            **{name.replace("_", "-"): str(value) for name, value in headers.items()},
        }
        await confirmed(self.connection.publish(self.subjects.live(self.policy.name, topic), payload, made))

    async def follow(self, name: str = "t") -> Flow:
        """The flow of a topic that somebody is subscribed to, started."""
        self.down.wanted.add(name)
        flow = self.relay.follow(self.policy, name)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ready(error: RelayError | None) -> None:
            if error is None:
                started.set_result(None)
            else:
                started.set_exception(error)

        self.relay.when_started(flow, ready)
        await started
        return flow

    async def seek(self, flow: Flow, after: int) -> list[tuple[int, Any]] | Gone | RelayError:
        """What a client that comes back from an offset is given, offsets and data."""
        found: asyncio.Future[list[tuple[int, Any]] | Gone | RelayError] = asyncio.get_running_loop().create_future()

        def answered(answer: Found) -> None:
            found.set_result(recovered(flow, answer, after) if isinstance(answer, Missed) else answer)

        self.seeker.seek(flow, after, answered)
        return await found

    async def heard(self, name: str, *data: Any) -> None:
        """Wait until exactly this was delivered."""
        await eventually(lambda: self.down.data(name) == list(data))

    async def checked(self) -> None:
        """Wait for a whole comparison with the stream, that begins now."""
        for check in self.checker._checks:
            await eventually(lambda check=check: not check.running)  # type: ignore[misc]
            check.due = 0.0
            await eventually(lambda check=check: check.due > 0 and not check.running)  # type: ignore[misc]

    async def api(self, method: str, body: dict[str, Any] | None = None) -> bytes:
        return await self.jetstream.call(method, body)


def recovered(flow: Flow, missed: Missed, after: int) -> list[tuple[int, Any]]:
    """All that somebody gets at this moment: as the durable side of a node puts it together."""
    floor = flow.ring.floor
    lines = [line for offset, line in missed.entries if after < offset <= floor]
    lines += flow.ring.between(max(after, floor), flow.top)
    pubs = [json.loads(line)["push"]["pub"] for line in lines]
    return [(pub["offset"], pub["data"]) for pub in pubs]


@asynccontextmanager
async def bench(
    server: NatsServer,
    *policies: TopicPolicy,
    prefix: str = "",
    ring: RingLimits = ROOMY,
    settle: bool = True,
) -> AsyncIterator[Bench]:
    """A durable side that runs, with its streams there unless told otherwise."""
    made = Bench(server, policies or (durable_policy(),), prefix or f"t{secrets.token_hex(4)}", ring)
    made.inbox.start()
    running = [asyncio.create_task(made.connection.run()), asyncio.create_task(made.keep_time())]
    try:
        await eventually(lambda: made.connection.connected)
        if settle:
            await made.streams.settle()
        yield made
    finally:
        with suppress(RelayError):
            for stream in made.streams.by_policy.values():
                await made.api(f"STREAM.DELETE.{stream.name}")
        await made.relay.stop()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
