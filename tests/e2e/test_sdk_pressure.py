"""What an application sees whose process was stopped for a while: the SDKs for JavaScript and Python, as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.javascript import JavaScriptClient, led_client
from tests.e2e.pressing import LIVE, PADDING, kept
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.reader import DROPPED_TAG, Arrival
from tests.harness.site import Site
from tests.harness.source import Source, check_all, check_conflated, check_declared
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

PYTHON_CLIENT = Path(__file__).parent / "python_client.py"
QUEUE_BYTES = 65_536
QUEUED = QUEUE_BYTES // PADDING
"""As many publications fill the queue."""
FLOOD = 5 * QUEUED
POLICIES = [*LIVE, kept("durable", "disconnect"), kept("brief", history_messages=10), kept("keep")]

Start = Callable[[str], AbstractAsyncContextManager[JavaScriptClient]]


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    return module_site.start_node(nats, {"topics": POLICIES, "limits": {"queue_bytes": QUEUE_BYTES}})


@pytest.fixture(params=["javascript", "python"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Starts a client of an SDK, in a process."""
    if request.param == "javascript":
        directory: Path = request.getfixturevalue("javascript")
        command: Sequence[str] = ("node", "client.mjs")
    else:
        directory, command = tmp_path, (sys.executable, str(PYTHON_CLIENT))
    return lambda url: led_client(command, directory, url)


def arrivals(client: JavaScriptClient) -> list[Arrival]:
    found = []
    for one in client.of("publication"):
        data, tags = one["data"], one.get("tags") or {}
        missing = int(tags.get(DROPPED_TAG, "0"))
        found.append(Arrival(data["t"], data["n"], data.get("k"), missing, one.get("offset") or 0))
    return found


async def stopped_for_a_while(
    client: JavaScriptClient, source: Source, topic: str, *, flood: int = FLOOD, keys: Sequence[str] | None = None
) -> None:
    client.pause()
    try:
        await source.until_slow(topic, keys=keys, step=2)
        await source.publish(topic, flood, padding=PADDING, keys=keys)
    finally:
        client.resume()


async def has_the_last(client: JavaScriptClient, source: Source, topic: str) -> None:
    last = len(source.published[topic]) - 1

    def have() -> bool:
        came: list[dict[str, Any]] = client.of("publication")
        return any(one["data"]["n"] == last for one in came[-100:])

    await eventually(have, 30)


async def calm(node: BrokerNode) -> None:
    async def nothing() -> bool:
        return await node.metric("broker_slow_connections") == 0

    await eventually(nothing, 30)


async def test_it_sees_how_many_are_missing(node: BrokerNode, start: Start) -> None:
    source, topic = Source(node), "oldest.sdk"
    async with start(node.websocket_url) as client:
        await client.subscribe(topic)
        await stopped_for_a_while(client, source, topic)
        await calm(node)
        await source.publish(topic)
        await has_the_last(client, source, topic)

        assert check_declared(arrivals(client), len(source.published[topic])) > FLOOD // 2
        assert len(client.of("connecting")) == len(client.of("subscribing")) == 1


async def test_it_sees_how_many_were_replaced(node: BrokerNode, start: Start) -> None:
    source, topic = Source(node), "prices.sdk"
    async with start(node.websocket_url) as client:
        await client.subscribe(topic)
        await stopped_for_a_while(client, source, topic, keys=("a", "b"))
        await has_the_last(client, source, topic)
        await calm(node)

        assert check_conflated(arrivals(client), source.published[topic]) > FLOOD // 2


async def test_closed_for_being_slow_it_comes_back_and_recovers(node: BrokerNode, start: Start) -> None:
    source, topic = Source(node), "durable.sdk"
    async with start(node.websocket_url) as client:
        await client.subscribe(topic)
        await stopped_for_a_while(client, source, topic, flood=FLOOD)
        await client.at_least(2, "subscribed")
        await source.publish(topic)
        await has_the_last(client, source, topic)

        assert [one["code"] for one in client.of("connecting")] == [0, 3008]
        assert client.of("subscribed")[1]["recovered"] is True
        check_all(arrivals(client), len(source.published[topic]))


async def test_it_catches_up_and_notices_nothing(node: BrokerNode, start: Start) -> None:
    source, topic = Source(node), "keep.sdk"
    async with start(node.websocket_url) as client:
        await client.subscribe(topic)
        await stopped_for_a_while(client, source, topic)
        await has_the_last(client, source, topic)

        check_all(arrivals(client), len(source.published[topic]))
        assert len(client.of("connecting")) == len(client.of("subscribing")) == 1


async def test_past_the_history_it_subscribes_again_and_learns_the_truth(node: BrokerNode, start: Start) -> None:
    source, topic = Source(node), "brief.sdk"
    async with start(node.websocket_url) as client:
        await client.subscribe(topic)
        await stopped_for_a_while(client, source, topic)
        first, again = await client.at_least(2, "subscribed")
        begin = len(source.published[topic])
        await source.publish(topic, 2)
        await has_the_last(client, source, topic)

        assert [one["code"] for one in client.of("subscribing")] == [0, 2500]
        assert (again["wasRecovering"], again["recovered"]) == (True, False)
        assert len(client.of("connecting")) == 1
        before = [one for one in arrivals(client) if one.number < begin]
        check_all(before, len(before))
        check_all([one for one in arrivals(client) if one.number >= begin], begin + 2, begin)
        assert first["recovered"] is False
