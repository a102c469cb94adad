"""Connections that have reached `drain.max_connection_age_seconds`. The node's clock is put forward."""

from __future__ import annotations

from math import inf

import pytest

from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer

pytestmark = pytest.mark.anyio

AGE = 1000.0
PING = {"interval_seconds": 86_400.0, "pong_timeout_seconds": 80_000.0}


def wake(stage: Stage, conversations: list[Conversation]) -> list[float]:
    """Wake the clients as their transports would; when each that stays is to be woken again, in seconds from now."""
    now = stage.node.clock()
    again = [(one, one.client.wake(now) - now) for one in conversations if one.closed is None]
    return [seconds for one, seconds in again if one.closed is None]


async def test_each_connection_is_asked_to_reconnect_at_an_age_of_its_own(nats: NatsServer) -> None:
    async with staged(nats, drain={"max_connection_age_seconds": AGE, "rate_per_second": 1000}, ping=PING) as stage:
        clients = [await stage.connect() for _ in range(20)]
        for one in clients:
            assert 0 <= one.outlet.wakes[-1] - one.client.since <= 1.25 * AGE
        stage.clock.ahead += 0.74 * AGE
        again = wake(stage, clients)
        assert not any(one.closed for one in clients)
        assert all(0 < seconds <= 0.52 * AGE for seconds in again)
        assert len({round(seconds) for seconds in again}) > 10
        stage.clock.ahead += 0.26 * AGE
        wake(stage, clients)
        stage.clock.ahead += 0.5  # for all of them to have their turn
        wake(stage, clients)
        closed = [one.closed for one in clients if one.closed]
        assert 2 <= len(closed) <= 18
        assert set(closed) == {(3011, "force reconnect")}
        stage.clock.ahead += 0.26 * AGE
        wake(stage, clients)
        stage.clock.ahead += 0.5
        wake(stage, clients)
        assert all(one.closed for one in clients)


async def test_no_more_go_in_a_second_than_the_rate(nats: NatsServer) -> None:
    async with staged(nats, drain={"max_connection_age_seconds": AGE, "rate_per_second": 20}, ping=PING) as stage:
        clients = [await stage.connect() for _ in range(30)]
        stage.clock.ahead += 1.3 * AGE
        again = wake(stage, clients)
        assert sum(one.closed is not None for one in clients) == 1
        assert 1.2 < max(again) < 2
        stage.clock.ahead += 0.5
        wake(stage, clients)
        assert 9 <= sum(one.closed is not None for one in clients) <= 12
        stage.clock.ahead += 100
        before = sum(one.closed is not None for one in clients)
        wake(stage, clients)
        assert sum(one.closed is not None for one in clients) <= before + 2  # however late they are looked at
        for one in clients:
            one.client.lost()
        assert stage.node.aging is not None
        assert not len(stage.node.aging)


async def test_none_goes_while_the_node_drains_anyway(nats: NatsServer) -> None:
    async with staged(nats, drain={"max_connection_age_seconds": AGE}, ping=PING) as stage:
        one = await stage.connect()
        stage.node.drains(draining=True)
        stage.clock.ahead += 1.3 * AGE
        wake(stage, [one])
        assert one.closed is None
        stage.node.drains(draining=False)
        wake(stage, [one])
        assert one.closed == (3011, "force reconnect")


async def test_without_the_setting_nobody_is_asked(nats: NatsServer) -> None:
    async with staged(nats, ping=PING) as stage:
        one = await stage.connect()
        stage.clock.ahead += 1e4
        wake(stage, [one])
        assert one.closed is None
        assert stage.node.aging is None
        assert one.client.session is not None
        assert one.client.session.ends_at == inf
