"""Conversations with a real node on a real NATS server, but for the socket: what would go out is kept."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from broker.app import App, create_app
from broker.client.client import Client
from broker.core.batch import Batch
from broker.core.behind import CatchUpLane
from broker.core.hub import Topic
from broker.core.policy import TopicPolicy
from broker.core.ring import Entry
from broker.fan_out import LINES
from broker.node import Node
from broker.settings import load
from broker.wire.codes import Close
from tests.harness.nats import NatsServer
from tests.harness.node import settings_with
from tests.harness.waiting import eventually

Line = dict[str, Any]


def _no_history(_: Recorder, lane: CatchUpLane) -> None:
    raise AssertionError(f"nobody knows what comes behind {lane.position} of {lane.name}")


class Recorder:
    """An outlet that keeps everything."""

    def __init__(self) -> None:
        self.ready = True
        self.write: Callable[[bytes], object] = self._write
        self.payloads: list[bytes] = []
        """What was sent, frame by frame."""
        self.closes: list[Close] = []
        self.wakes: list[float] = []
        self.reading = True
        self.address = "192.0.2.7"
        self.blocked = False
        self.behind: set[str] = set()
        """Topics whose past it is still being given."""
        self.read_on: Callable[[Recorder, CatchUpLane], None] = _no_history
        self.queued_bytes = 0
        self.dropped = 0

    def _write(self, frame: bytes) -> None:
        """A frame of the hub's: its header is short or of 16 bits."""
        self.payloads.append(frame[2:] if frame[1] < 126 else frame[4:])

    def deliver(self, topic: Topic, batch: Batch) -> None:
        if topic.name not in self.behind:
            self._write(batch.frame)

    def send(self, payload: bytes) -> None:
        assert not self.closes, "sent behind the close"
        self.payloads.append(payload)

    def send_batch(self, topic: Topic, batch: Batch) -> None:
        self.deliver(topic, batch)

    def begin_behind(self, topic: str, policy: TopicPolicy, after: int, owed: int) -> None:
        """It takes whatever it is given, at once."""
        self.ready = False
        self.behind.add(topic)
        lane = CatchUpLane(topic, policy, LINES, after, behind_since=0.0, owed=owed)
        asyncio.get_running_loop().call_soon(self.read_on, self, lane)

    def caught_up(self, lane: CatchUpLane, after: int, entries: Sequence[Entry], until: int, *, live: bool) -> None:
        assert lane.position == after
        self.payloads += [line for _, line in entries]
        lane.position = until
        if live:
            self.behind.discard(lane.name)
            self.ready = not self.behind
        else:
            self.read_on(self, lane)

    def fell_behind(self, lane: CatchUpLane) -> None:
        raise AssertionError(f"the past of {lane.name} has gone")

    def forget(self, topic: str) -> None:
        """Nothing waits here."""

    def close(self, close: Close) -> None:
        self.closes.append(close)

    def wake_by(self, when: float) -> None:
        self.wakes.append(when)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for payload in self.payloads for line in payload.split(b"\n")]


class Conversation:
    """A client's side of it. Ids are given by who speaks."""

    def __init__(self, node: Node) -> None:
        self.outlet = Recorder()
        self.outlet.read_on = node.durability.catch_up.want
        self.client = Client(node, self.outlet)
        self._ids: Iterator[int] = iter(range(1_000, 1_000_000))

    @property
    def lines(self) -> list[Line]:
        return self.outlet.lines

    def say(self, *commands: Any) -> None:
        """Send commands in one frame."""
        self.client.received(b"\n".join(json.dumps(command).encode() for command in commands))

    async def reply(self, ident: int) -> Line:
        """The reply with this id, when it comes."""
        found: list[Line] = await eventually(lambda: [line for line in self.lines if line.get("id") == ident])
        (line,) = found
        return line

    async def ask(self, method: str, /, **request: Any) -> Line:
        ident = next(self._ids)
        self.say({"id": ident, method: request})
        return await self.reply(ident)

    async def call(self, method: str, /, **request: Any) -> Line:
        """A command that must succeed; its result."""
        reply = await self.ask(method, **request)
        assert "error" not in reply, reply
        result: Line = reply[method]
        return result

    async def refused(self, method: str, /, **request: Any) -> tuple[int, str]:
        """A command that must fail; code and message."""
        error = (await self.ask(method, **request))["error"]
        assert error.get("temporary", False) is (error["code"] in {100, 111, 113})
        return error["code"], error["message"]

    @property
    def closed(self) -> tuple[int, str] | None:
        """How the server has ended it."""
        assert len(self.outlet.closes) <= 1
        return (self.outlet.closes[0].code, self.outlet.closes[0].reason) if self.outlet.closes else None

    @property
    def pushes(self) -> list[Line]:
        return [line["push"] for line in self.lines if "push" in line]

    async def heard(self, topic: str, *data: Any) -> None:
        """Wait until exactly this was published in the topic."""
        expected = list(data)
        await eventually(
            lambda: [one["pub"]["data"] for one in self.pushes if one["channel"] == topic and "pub" in one] == expected
        )


class Clock:
    """The node's clock, which can be put forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.ahead = 0.0

    def __call__(self) -> float:
        return self._clock() + self.ahead


class Stage:
    """A running node and its clock."""

    def __init__(self, app: App) -> None:
        self.node = app.node
        self.app = app
        self.clock = self.node.clock = self.node.publisher.clock = Clock(self.node.clock)

    def open(self) -> Conversation:
        return Conversation(self.node)

    async def connect(self, token: str = "", **request: Any) -> Conversation:
        conversation = self.open()
        await conversation.call("connect", **({"token": token} if token else {}), **request)
        return conversation

    async def publish(self, topic: str, data: Any) -> None:
        """As a back end does."""
        policy = self.node.locate(topic)
        outcome = self.node.publisher.publish(policy, topic, json.dumps(data).encode(), source="http")  # type: ignore[arg-type]
        await outcome  # type: ignore[misc]


@asynccontextmanager
async def staged(nats: NatsServer, prefix: str = "", **settings: Any) -> AsyncIterator[Stage]:
    """A node with these settings beside the defaults of tests."""
    tree = settings_with(settings)
    tree["nats"] = {"prefix": prefix or f"t{secrets.token_hex(4)}"}
    app = create_app(load(None, {}, tree), nats_url=nats.url, name="here")
    stage = Stage(app)
    app.node.start()
    try:
        await eventually(lambda: not app.node.reasons_against_readiness())
        yield stage
    finally:
        await app.node.stop()
