"""Clients that are behind, on a real node with real queues; only the kernel's part is played."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from broker.core.batch import Batch
from broker.core.hub import Topic
from broker.core.lane import Lane
from broker.edge.websocket import WRITE_BUFFER_BYTES
from broker.node import Node
from broker.relay.flow import Flow
from tests.client.conversing import Stage, staged
from tests.client.wired import Wire, Wired
from tests.harness.nats import NatsServer
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

ANYONE = {"subscribe": "anyone", "publish": "anyone"}
KEPT = {"name": "kept", "match": ["kept.>"], "durable": True, "overflow": "catch_up", **ANYONE}
LIVE = {"name": "live", "match": ["live.>"], "overflow": "drop_oldest", **ANYONE}
RING = {"ring_messages": 4000, "ring_bytes": 8_000_000, "message_bytes": 300_000}


def made(nats: NatsServer, *topics: dict[str, Any], **limits: Any) -> Any:
    return staged(nats, auth={"anonymous": True}, topics=list(topics), limits=limits)


async def published(stage: Stage, topic: str, *data: Any) -> None:
    for one in data:
        await stage.publish(topic, one)


def drops(stage: Stage) -> dict[tuple[str, str], float]:
    (family,) = stage.node.metrics.dropped.collect()
    samples = [sample for sample in family.samples if sample.name.endswith("_total")]
    return {(one.labels["policy"], one.labels["reason"]): one.value for one in samples if one.value}


async def test_any_number_of_topics_catches_up(nats: NatsServer) -> None:
    async with made(nats, KEPT, topics_per_connection=500, queue_bytes=65_536) as stage:
        names = [f"kept.{number}" for number in range(200)]
        client = await Wired(stage).connected(*names)
        client.stop()
        for turn in range(3):
            for name in names:
                await stage.publish(name, [turn, "x" * 1000])
        queue = client.socket.queue
        assert queue is not None
        await eventually(lambda: sum(1 for _ in queue.catching_up()) > 100)
        client.go_on()
        await eventually(lambda: client.socket.ready)
        assert all([data[0] for data in client.data(name)] == [0, 1, 2] for name in names)


async def test_a_reconnect_with_many_server_side_topics_recovers_them_all(nats: NatsServer) -> None:
    async with made(nats, KEPT, topics_per_connection=500) as stage:
        names = [f"kept.{number}" for number in range(200)]
        ticket = token("ann", channels=names)
        await Wired(stage).connected(token=ticket)
        for name in names:
            await published(stage, name, *([number, "m" * 1000] for number in range(10)))
        back = await Wired(stage).connected(token=ticket, subs={name: {"recover": True, "offset": 0} for name in names})
        subs = (await back.answer(1))["connect"]["subs"]
        await eventually(lambda: back.socket.ready)
        for name in names:
            recovered = [pub["data"] for pub in subs[name].get("publications", [])] + back.data(name)
            assert [number for number, _ in recovered] == list(range(10))


async def test_no_publication_comes_before_the_answer_to_its_subscribe(nats: NatsServer) -> None:
    async with made(nats, KEPT, **RING) as stage:
        await Wired(stage).connected("kept.a", "kept.b")
        for topic in ("kept.a", "kept.b"):
            await published(stage, topic, *([number, "y" * 200_000] for number in range(5)))
        back = await Wired(stage).connected()
        back.say(
            {"id": 2, "subscribe": {"channel": "kept.a", "recover": True}},
            {"id": 3, "subscribe": {"channel": "kept.b", "recover": True}},
            {"id": 4, "unsubscribe": {"channel": "kept.b"}},
        )
        await eventually(lambda: len(back.data("kept.a")) == 3)
        assert [one.get("id") for one in back.lines[1:]] == [2, 3, 4, None, None, None]
        in_reply = [pub["data"][0] for pub in back.lines[1]["subscribe"]["publications"]]
        assert in_reply + [number for number, _ in back.data("kept.a")] == [0, 1, 2, 3, 4]
        assert back.data("kept.b") == []


async def test_what_a_stand_in_has_held_is_not_sent_twice(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with made(nats, {**KEPT, "overflow": "disconnect"}, LIVE, **RING, queue_bytes=4_000_000) as stage:
        await Wired(stage).connected("kept.a")
        await published(stage, "kept.a", *([number, "y" * 200_000] for number in range(5)))
        waiting: list[Callable[[None], None]] = []

        def when_wanted(interest: object, topic: object, settled: Callable[[None], None]) -> None:
            del interest, topic
            waiting.append(settled)

        monkeypatch.setattr(Node, "when_wanted", staticmethod(when_wanted))
        back = Wired(stage)
        ticket = token("ann", channels=["kept.a", "live.new"])
        back.say({"id": 1, "connect": {"token": ticket, "subs": {"kept.a": {"recover": True, "offset": 0}}}})
        await eventually(lambda: waiting)
        for number in range(5, 8):  # each in a fan-out of its own
            await published(stage, "kept.a", [number, "held"])
            await eventually(lambda: not stage.node.hub.topics["kept.a"].pending)
        for settled in waiting:
            settled(None)
        in_reply = (await back.answer(1))["connect"]["subs"]["kept.a"]["publications"]
        await eventually(lambda: back.socket.ready)
        await published(stage, "kept.a", [8, "live"])
        await eventually(lambda: back.data("kept.a")[-1][0] == 8)
        told = [pub["data"][0] for pub in in_reply] + [number for number, _ in back.data("kept.a")]
        assert told == list(range(9))


class Bystander:
    """A subscriber that takes everything."""

    ready = True

    def write(self, frame: bytes) -> object:
        return frame

    def deliver(self, topic: Topic, batch: Batch) -> None:
        raise AssertionError(f"{topic.name}: {batch}")


async def test_who_has_caught_up_while_a_fan_out_is_under_way_gets_nothing_of_it_twice(nats: NatsServer) -> None:
    async with made(nats, KEPT, queue_bytes=20_000) as stage:
        client = await Wired(stage).connected("kept.a")
        here = stage.node.hub.topics["kept.a"]
        crowd = [Bystander() for _ in range(3000)]
        for one in crowd:
            stage.node.hub.add("kept.a", here.policy, one)
        seen = 0
        for turn in range(5):
            client.stop()
            await published(stage, "kept.a", *([turn, number, "x" * 8000] for number in range(4)))
            await eventually(lambda: _is_behind(client) and here.fanning_out is None)
            publishing = asyncio.create_task(stage.publish("kept.a", [turn, 4, ""]))
            for _ in range(20_000):
                if _is_about_to_be_served(client, here):
                    seen += 1
                    break
                await asyncio.sleep(0)  # a turn of the event loop, and so a slice
            client.go_on()
            await publishing
            await eventually(lambda: client.socket.ready)
        assert seen
        assert [data[:2] for data in client.data("kept.a")] == [
            [turn, number] for turn in range(5) for number in range(5)
        ]
        for one in crowd:
            stage.node.leave("kept.a", one)


def _is_behind(client: Wired) -> bool:
    queue = client.socket.queue
    return queue is not None and any(queue.catching_up())


def _is_about_to_be_served(client: Wired, topic: Topic) -> bool:
    fan_out = topic.fanning_out
    return fan_out is not None and client.socket in fan_out.members[fan_out.position :]


async def slow_client(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[Wired, asyncio.Event]:
    """A client that is behind what the node has at hand, and a gate before what is read for it."""
    gate = asyncio.Event()
    catch_up = stage.node.durability.catch_up
    read = catch_up._read

    async def gated(flow: Flow, after: int) -> Any:
        await gate.wait()
        return await read(flow, after)

    monkeypatch.setattr(catch_up, "_read", gated)
    await Wired(stage).connected("kept.a")
    client = await Wired(stage).connected("kept.a")
    client.stop()
    await published(stage, "kept.a", *([number, "z" * 5000] for number in range(40)))
    await eventually(lambda: stage.node.hub.topics["kept.a"].begun >= 40)
    client.go_on()
    await eventually(lambda: catch_up._waiting)
    return client, gate


async def test_what_was_read_for_an_ended_subscription_is_nothing_to_the_next(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**KEPT, "history_messages": 5}
    async with made(nats, short, ring_messages=2, queue_bytes=65_536) as stage:
        client, gate = await slow_client(stage, monkeypatch)
        client.say({"id": 8, "unsubscribe": {"channel": "kept.a"}}, {"id": 9, "subscribe": {"channel": "kept.a"}})
        await client.answer(9)
        client.stop()
        await published(stage, "kept.a", "new")
        await eventually(lambda: client.socket.queue)
        gate.set()
        await eventually(lambda: not stage.node.durability.catch_up._waiting)
        client.go_on()
        await eventually(lambda: client.data("kept.a") == ["new"])
        assert not any("unsubscribe" in one.get("push", {}) for one in client.lines)


async def test_what_can_not_be_caught_up_with_is_told_and_counted(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**KEPT, "history_messages": 5}
    async with made(nats, short, ring_messages=2, queue_bytes=65_536) as stage:
        client, gate = await slow_client(stage, monkeypatch)
        gate.set()
        told = {"code": 2500, "reason": "insufficient state"}
        await eventually(lambda: any(one.get("push", {}).get("unsubscribe") == told for one in client.lines))
        assert client.data("kept.a") == []
        assert drops(stage) == {("kept", "unsubscribed"): 40}


async def test_a_mistake_of_ours_lets_nobody_wait_for_ever(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with made(nats, KEPT, ring_messages=2, queue_bytes=65_536) as stage:
        client, gate = await slow_client(stage, monkeypatch)
        monkeypatch.setattr("broker.catching_up.trace", None)
        gate.set()
        told = {"code": 2500, "reason": "insufficient state"}
        await eventually(lambda: any(one.get("push", {}).get("unsubscribe") == told for one in client.lines))
    assert "a mistake in the relay of durable topics" in caplog.text


async def test_what_had_still_to_be_read_when_a_connection_ends_is_counted(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with made(nats, KEPT, ring_messages=2, queue_bytes=65_536) as stage:
        client, _ = await slow_client(stage, monkeypatch)
        client.wire.abort()
        await eventually(lambda: drops(stage) == {("kept", "closed"): 40})


async def test_what_a_stream_does_not_keep_is_declared(nats: NatsServer) -> None:
    async with made(nats, KEPT, queue_bytes=20_000) as stage:
        client = await Wired(stage).connected("kept.a")
        client.stop()
        policy = stage.node.locate("kept.a")
        for number in range(6):
            await stage.publish("kept.a", [number, "k" * 5000])
            unkept = stage.node.publisher.publish(policy, "kept.a", b'"passing"', keep=False, source="http")
            await unkept
        await eventually(lambda: drops(stage) == {("kept", "dropped"): 6})
        client.go_on()
        await eventually(lambda: client.socket.ready)
        assert [number for number, _ in client.data("kept.a")] == list(range(6))
        tags = [pub.get("tags", {}) for pub in client.publications("kept.a")]
        assert sum(int(one.get("broker.dropped", "0")) for one in tags) == 6


async def test_a_delivery_costs_the_same_however_many_topics_wait(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with made(nats, LIVE, topics_per_connection=500, queue_bytes=8_000_000) as stage:
        names = [f"live.{number}" for number in range(300)]
        client = await Wired(stage).connected(*names)
        client.stop()
        for name in names:
            await stage.publish(name, 1)
        queue = client.socket.queue
        assert queue is not None
        await eventually(lambda: queue.messages == 300)
        looked_at: list[Lane] = []
        for name in ("ages_since", "waits_since"):
            monkeypatch.setattr(Lane, name, looked_at.append)
        await stage.publish(names[0], 2)
        await eventually(lambda: queue.messages == 301)
        assert looked_at == []


async def test_a_client_that_stalls_is_kept_longer_than_publications_wait(nats: NatsServer) -> None:
    async with made(nats, KEPT, queue_age_seconds=5, stall_seconds=60) as stage:
        client = await Wired(stage).connected("kept.a")
        client.stop()
        await published(stage, "kept.a", 1, 2, 3)
        await eventually(lambda: client.socket.queue is not None and client.socket.queue.messages == 3)
        begun = stage.app.edge.clock()
        for seconds in range(1, 50):
            client.socket.wake(begun + seconds)
        assert not client.socket.closing
        client.go_on()
        await eventually(lambda: client.data("kept.a") == [1, 2, 3])
        client.stop()
        client.socket.send(b"{}")
        client.socket.wake(stage.app.edge.clock() + 61)
        assert client.socket.closing


async def test_who_could_not_see_a_ping_has_its_time_to_answer_from_when_it_can(nats: NatsServer) -> None:
    async with made(nats, LIVE) as stage:
        client = await Wired(stage).connected("live.a")
        client.stop()
        begun = stage.node.clock()
        for seconds in range(1, 40):
            stage.clock.ahead = seconds
            client.socket.wake(begun + seconds)
        assert client.socket.queue is not None
        assert client.socket.queue.control_waits
        client.go_on()
        stage.clock.ahead = 46
        client.socket.wake(begun + 46)
        assert not client.socket.closing
        stage.clock.ahead = 49
        client.socket.wake(begun + 49)
        assert client.socket.closing


@pytest.mark.parametrize(("tls", "limits"), [(True, [WRITE_BUFFER_BYTES]), (False, [])])
async def test_tls_has_no_larger_write_buffer_than_tcp(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, *, tls: bool, limits: list[int]
) -> None:
    given: list[int] = []

    class Encrypted(Wire):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return object() if tls and name == "sslcontext" else super().get_extra_info(name, default)

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            del low
            given.append(high or 0)

    monkeypatch.setattr("tests.client.wired.Wire", Encrypted)
    async with made(nats, LIVE) as stage:
        await Wired(stage).connected("live.a")
    assert given == limits
