"""A node that has more to do than it can: what it says, and whom it lets in."""

from __future__ import annotations

import logging
import re

import pytest

from broker.core.overload import OverloadLimits
from broker.metrics import Metrics
from broker.overload import OverloadWatch
from tests.client.conversing import staged
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


def test_it_says_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    watch = OverloadWatch(OverloadLimits(0.5, 1000, 3.0), metrics)
    queued = 950
    watch.queued_bytes = lambda: queued
    now = 0.0
    for _ in range(100):
        watch.observe(now, 0.02)
        now += 0.1
    assert (watch.active, metrics.overloaded._value.get()) == (True, 1)
    queued = 0
    for _ in range(100):
        watch.observe(now, 0.02)
        now += 0.1

    assert (watch.active, metrics.overloaded._value.get()) == (False, 0)
    assert [re.sub(r"[0-9.]+ s", "… s", record.getMessage()) for record in caplog.records] == [
        "overloaded for … s (20 ms late, 950 bytes queued); nobody new is let in",
        "not overloaded any more after … s (20 ms late, 0 bytes queued)",
    ]


async def test_an_overloaded_node_is_not_ready_and_lets_nobody_in_but_publishes(nats: NatsServer) -> None:
    async with staged(nats, limits={"overload_lag_seconds": 1, "node_queue_bytes": 268_435_456}) as stage:
        node, edge = stage.node, stage.app.edge
        listener = await stage.connect()
        await listener.call("subscribe", channel="news")
        assert edge.unavailable() is None
        node.overload.observe(stage.clock(), 3.1)

        reason = edge.unavailable()
        assert reason is not None
        assert (reason.result, reason.spread_seconds) == ("overload", 3)
        assert node.reasons_against_readiness() == ["the node is overloaded"]
        await stage.publish("news", 1)
        await listener.heard("news", 1)


async def test_the_node_looks_at_its_own_lag_and_queues(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        stage.app.edge.pressure.queued_bytes = 77
        assert stage.node.overload.queued_bytes() == 77
        assert not stage.node.overload.active

        stage.clock.ahead += 3.5  # its next tick is as late as that
        await eventually(lambda: stage.node.overload.active)
