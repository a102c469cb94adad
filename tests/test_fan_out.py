"""What a node does when NATS brings more than it can write."""

from __future__ import annotations

import json
import logging

import pytest

from broker.core.hub import Topic
from broker.core.policy import Overflow
from broker.fan_out import FanOut
from broker.metrics import Metrics
from broker.wire.replies import publication_push
from tests.core.hub_runner import Reader
from tests.core.queueing import policy_of
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


class Flooded:
    """A fan-out of which nothing more than `pending_bytes` may wait."""

    def __init__(self, pending_bytes: int = 2000) -> None:
        self.metrics = Metrics()
        self.ended: list[str] = []
        self.fan_out = FanOut(self.metrics, lambda: 0.0, pending_bytes, self.end)
        self.readers: dict[str, Reader] = {}

    def end(self, name: str) -> None:
        self.ended.append(name)
        self.fan_out.hub.remove(name, self.readers[name])

    def topic(self, name: str, overflow: Overflow) -> Topic:
        self.readers[name] = Reader()
        return self.fan_out.hub.add(name, policy_of(overflow), self.readers[name])

    def publish(self, topic: Topic, *numbers: int) -> None:
        for number in numbers:
            if topic.name not in self.fan_out.hub.topics:
                break  # whoever brings messages looks there first
            self.fan_out.push(topic, publication_push(topic.head, b"%d" % number, None, None))

    def told(self, name: str) -> list[tuple[int, int]]:
        """What the subscriber got, each with how many are missing before it."""
        found = []
        for frame in self.readers[name].written:
            for line in frame[frame.index(b"{") :].split(b"\n"):
                publication = json.loads(line)["push"]["pub"]
                found.append((publication["data"], int(publication.get("tags", {}).get("broker.dropped", "0"))))
        return found

    def dropped(self, policy: str) -> float:
        return float(self.metrics.dropped.labels(policy, "shed")._value.get())


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.CONFLATE])
async def test_a_flood_is_bounded_and_what_gives_way_is_declared(overflow: Overflow) -> None:
    flooded = Flooded()
    topic = flooded.topic("t", overflow)
    for number in range(500):
        flooded.publish(topic, number)
        assert flooded.fan_out.hub.pending_bytes <= 2100
    flooded.publish(topic, 500)
    await eventually(lambda: flooded.fan_out.hub.pending_messages == 0)
    flooded.publish(topic, 501)
    await eventually(lambda: flooded.told("t")[-1][0] == 501)
    told = flooded.told("t")
    assert [data for data, _ in told] == sorted(data for data, _ in told)
    position = -1
    for data, missing in told:
        position += missing + 1
        assert data == position  # whatever is missing is missing right there
    assert flooded.dropped(overflow.value) == 502 - len(told) > 0


async def test_the_topic_that_brings_most_gives_way() -> None:
    flooded = Flooded()
    quiet, loud = flooded.topic("quiet", Overflow.DROP_OLDEST), flooded.topic("loud", Overflow.DROP_NEWEST)
    flooded.publish(quiet, 1, 2, 3)
    flooded.publish(loud, *range(300))
    await eventually(lambda: flooded.told("quiet"))
    assert flooded.told("quiet") == [(1, 0), (2, 0), (3, 0)]
    assert flooded.dropped("drop_newest") > 200


async def test_where_nothing_may_be_missing_subscriptions_end() -> None:
    flooded = Flooded()
    topic = flooded.topic("t", Overflow.DISCONNECT)
    flooded.publish(topic, *range(100))
    assert flooded.ended == ["t"]
    assert flooded.fan_out.hub.pending_bytes <= 2000
    assert flooded.dropped("disconnect") > 0


async def test_durable_topics_are_left_alone_and_told_to_wait() -> None:
    flooded = Flooded()
    topic = flooded.topic("t", Overflow.CATCH_UP)
    flooded.publish(topic, *range(20))
    assert not flooded.fan_out.congested
    flooded.publish(topic, *range(20, 100))
    assert flooded.fan_out.congested
    await eventually(lambda: not flooded.fan_out.congested)
    assert [data for data, _ in flooded.told("t")] == list(range(100))


async def test_falling_behind_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    flooded = Flooded()
    topic = flooded.topic("t", Overflow.DROP_OLDEST)
    with caplog.at_level(logging.WARNING):
        flooded.publish(topic, *range(1000))
        flooded.fan_out.observe()
        assert flooded.metrics.pending_bytes._value.get() == flooded.fan_out.hub.pending_bytes > 0
        await eventually(lambda: flooded.fan_out.hub.pending_messages == 0)
        flooded.fan_out.observe()
        flooded.fan_out.observe()
    assert len(caplog.records) == 2
    assert "falls behind NATS" in caplog.messages[0]
    assert "keeps up with NATS again" in caplog.messages[1]
