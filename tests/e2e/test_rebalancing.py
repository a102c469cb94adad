"""Nodes behind HAProxy that are drained, restarted one after the other, or let old connections go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tests.e2e.javascript import javascript_subscriber
from tests.harness.crowd import crowd
from tests.harness.haproxy import HAProxy
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.site import Site
from tests.harness.subscriber import sdk_subscriber
from tests.harness.traffic import TOPIC, durable_settings, traffic
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

PEOPLE = 90
RATE = 20.0
"""Of the drain, per second."""
COMING = 15.0
"""As many each node lets in in a second: fewer than another lets go, so that some have to wait at the door."""


def behind(proxy: HAProxy) -> list[BrokerNode]:
    """The proxy in the place of a node, where only its URLs count."""
    return cast("list[BrokerNode]", [proxy])


def settings(**drain: Any) -> dict[str, Any]:
    # the delay is what HAProxy needs to notice, which asks every 200 ms
    return {
        **durable_settings(),
        "drain": {"rate_per_second": RATE, "delay_seconds": 1, "timeout_seconds": 60, **drain},
    }


def assert_paced(times: Sequence[float], rate: float = RATE) -> None:
    """No faster than a rate and a tenth of it, looked at over any second or longer."""
    assert len(times) > rate / 2
    for first, begin in enumerate(times):
        for count, end in enumerate(times[first:]):
            # one more than the rate gives, since a stretch begins and ends with one
            assert count <= rate * 1.1 * max(1.0, end - begin) + 1, f"{count} in {end - begin:.2f} s"


async def drains(node: BrokerNode, asked: BrokerNode, **request: Any) -> dict[str, Any]:
    """Ask a node to have another one drain; the result."""
    answer = await asked.api("drain", {"node": node.name, **request})
    assert list(answer.json()) == ["result"], answer
    result: dict[str, Any] = answer.json()["result"]
    return result


@pytest.mark.slow
async def test_a_rolling_restart_under_load_loses_nothing_and_doubles_nothing(
    site: Site, nats: NatsServer, program: Callable[[str], str]
) -> None:
    program("haproxy")
    nodes = site.start_nodes(3, nats, settings() | {"limits": {"connections_per_second": COMING}})
    names = [node.name for node in nodes]
    proxy = site.start_haproxy(nodes, patient=True)
    async with (
        traffic(behind(proxy), publish_to=nodes, subscribers=9, rate=60) as running,
        crowd(proxy.websocket_url, PEOPLE) as people,
    ):
        running.publisher.nodes[:] = behind(proxy)
        logs = [running.accounting.log(f"Python SDK {number + 1}") for number in range(3)]
        for log in logs:
            await running.joined_by(sdk_subscriber(log, TOPIC, proxy.websocket_url))
        for node, name in zip(nodes, names, strict=True):
            ended = len(people.ends_at(name))
            assert people.at(name) > PEOPLE / 10
            node.terminate()
            assert await node.ended(90) == 0
            assert_paced(people.ends_at(name)[ended:])
            assert "drain.timeout_seconds" not in node.log()
            await people.complete(PEOPLE)
            await running.goes_on()
            node.start()
            await node.ready()
            await running.goes_on()

        assert {end.code for end in people.ends} == {3001}
        for name in names:
            assert_paced(people.beginnings_at(name), COMING)
        # everybody was on one of the three, so everybody has come back at least once
        assert all(log.recoveries and all(log.recoveries) for log in running.accounting.logs)


async def test_a_node_is_emptied_by_hand_and_taken_back(
    site: Site, nats: NatsServer, program: Callable[[str], str]
) -> None:
    program("haproxy")
    one, two = site.start_nodes(2, nats, settings())
    proxy = site.start_haproxy([one, two], patient=True)
    async with crowd(proxy.websocket_url, PEOPLE) as people:
        before = people.at(one.name)
        assert await drains(one, two) == {"node": one.name, "draining": True, "connections": before}
        await eventually(lambda: len(people.ends) >= RATE / 2)
        assert (await drains(one, two, cancel=True))["draining"] is False
        closed = await one.metric('broker_closes_total{code="3001"}')
        assert 0 < closed < before
        assert (await one.health()).status == 200
        await people.complete(PEOPLE)
        # those that were not closed have stayed, and new ones come again
        assert await one.metric('broker_closes_total{code="3001"}') == closed
        stayed = before - closed
        assert people.at(one.name) >= stayed

        ended = len(people.ends_at(one.name))
        await drains(one, two)
        await eventually(lambda: people.at(two.name) == PEOPLE, 60)
        assert_paced(people.ends_at(one.name)[ended:])
        # it is empty, and there: it has not ended
        assert (await drains(one, one))["connections"] == 0
        assert (await one.health("live")).status == 200
        assert {end.code for end in people.ends} == {3001}
        one.terminate()
        assert await one.ended() == 0


@pytest.mark.slow
async def test_old_connections_move_to_a_node_that_came_later(
    site: Site, nats: NatsServer, program: Callable[[str], str], javascript: Path
) -> None:
    program("haproxy")
    nodes = [site.add_node(nats, settings(max_connection_age_seconds=6)) for _ in range(2)]
    nodes[0].start()
    nodes[0].wait_ready()
    proxy = site.start_haproxy(nodes, patient=True)
    async with (
        traffic(behind(proxy), publish_to=nodes[:1], subscribers=2, rate=30) as running,
        crowd(proxy.websocket_url, PEOPLE) as people,
    ):
        logs = [running.accounting.log(f"{kind} SDK") for kind in ("Python", "JavaScript")]
        await running.joined_by(sdk_subscriber(logs[0], TOPIC, proxy.websocket_url))
        script = await running.joined_by(javascript_subscriber(javascript, logs[1], TOPIC, proxy.websocket_url))
        nodes[1].start()
        await nodes[1].ready()
        name = nodes[1].name
        await eventually(lambda: people.at(name) > PEOPLE / 3, 60)
        await eventually(lambda: all(log.recoveries for log in running.accounting.logs), 60)
        assert_paced(people.ends_at(nodes[0].name))
        assert {end.code for end in people.ends} == {3011}
        assert {event["code"] for event in script.of("connecting")[1:]} == {3011}
        assert not script.of("disconnected")
        # and nobody is told that it misses anything
        assert all(all(log.recoveries) for log in running.accounting.logs)
