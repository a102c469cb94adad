"""Who is too fast, on real sockets: over HTTP, with a WebSocket of its own making, and with the SDKs."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from centrifuge import ClientState, ReplyError

from tests.e2e.javascript import javascript_client
from tests.harness.client import WireClient, connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.raw import TEXT, masked, upgraded
from tests.harness.recorder import Recorder, sdk_client, subscribed
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually
from tests.harness.web import Answer

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SLOW, FAST = "a-key-with-a-rate", "a-key-without-one"
KEYS = [{"name": "slow", "key": SLOW, "publish_rate": 20}, {"name": "fast", "key": FAST}]
TOPICS = [
    {"name": "held", "match": ["held.>"], "subscribe": "anyone", "publish": "anyone", "publish_rate": 0.5},
    {"name": "news", "match": ["news.>"], "subscribe": "anyone", "publish": "anyone"},
]


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    limits = {"command_rate": 5, "publish_rate": 3}
    return module_site.start_node(nats, {"topics": TOPICS, "api": {"keys": KEYS}, "limits": limits})


async def publish(node: BrokerNode, topic: str, key: str) -> Answer:
    return await node.api("publish", {"channel": topic, "data": 1}, key)


async def test_a_policy_s_rate_is_429_with_when_to_come_again(node: BrokerNode) -> None:
    assert (await publish(node, "held.a", FAST)).status == 200
    refused = await publish(node, "held.b", FAST)
    assert (refused.status, refused.headers["retry-after"]) == (429, "2")
    assert refused.json()["error"]["code"] == 111
    assert await node.metric('broker_published_total{policy="held",result="rate_limited"') == 1
    assert await node.metric('broker_http_requests_total{method="publish",status="429"') >= 1


async def test_a_key_that_floods_is_held_to_its_rate_and_another_one_gets_all_through(node: BrokerNode) -> None:
    begin = time.monotonic()
    slow: Counter[int] = Counter()
    fast: Counter[int] = Counter()

    async def flood() -> None:
        while slow[200] < 80:
            refused = await publish(node, "news.a", SLOW)
            slow[refused.status] += 1
            assert (refused.status == 429) is (refused.headers.get("retry-after") == "1")

    async def others() -> None:
        while slow[200] < 80:
            fast[(await publish(node, "news.a", FAST)).status] += 1

    await asyncio.gather(flood(), flood(), others())
    assert slow[200] <= 20 + 20 * (time.monotonic() - begin) + 2  # two of them may be on their way
    assert slow[429] > 0
    assert set(fast) == {200}


async def end_of_a_flood(node: BrokerNode, command: Mapping[str, object]) -> tuple[list[int], int]:
    """What a client is told that sends more and more of this, whatever it is told; and how it ends."""
    async with upgraded(node.port) as connection:
        await connection.send(masked(json.dumps({"id": 1, "connect": {"token": token("raw")}}).encode()))
        await connection.frame()
        lines = [json.dumps({"id": 2 + number, **command}) for number in range(200)]
        await connection.send(b"".join(masked(line.encode()) for line in lines))
        told: list[int] = []
        while True:
            opcode, payload = await connection.frame()
            if opcode != TEXT:
                return told, int.from_bytes(payload[:2])
            replies = [json.loads(line) for line in payload.split(b"\n")]
            told += [reply["error"]["code"] for reply in replies if "error" in reply]


async def test_who_goes_on_is_told_then_closed_and_in_the_end_for_good(node: BrokerNode) -> None:
    before = {code: await node.metric(f'broker_closes_total{{code="{code}"') for code in (3013, 3509)}
    command = {"presence": {"channel": "news.a"}}
    for end in (3013, 3013, 3509):
        told, code = await end_of_a_flood(node, command)
        assert code == end
        assert told[:5] == [108] * 5
        assert told.count(111) == 26  # five seconds' worth, and one too many
    closed = {code: await node.metric(f'broker_closes_total{{code="{code}"') - count for code, count in before.items()}
    assert closed == {3013: 2, 3509: 1}


async def test_the_python_sdk_comes_back_until_it_is_final(node: BrokerNode) -> None:
    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder, token=token("python")) as client:
        news = await subscribed(client, "news.python")
        for time_ in (1, 2, 3):
            outcomes = await asyncio.gather(
                *(client.publish("news.elsewhere", number) for number in range(100)), return_exceptions=True
            )
            refused = [one for one in outcomes if isinstance(one, ReplyError)]
            assert {one.code for one in refused} == {111}
            assert all(one.temporary for one in refused)
            if time_ < 3:
                await news.at_least(time_ + 1, "subscribed")
        ended = await recorder.first("disconnected")
        assert client.state is ClientState.DISCONNECTED

    assert [one.code for one in recorder.of("connecting")] == [0, 3013, 3013]
    assert (ended.code, ended.reason) == (3509, "too many errors: sent away for too many requests before")


async def test_the_javascript_sdk_comes_back_until_it_is_final(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url, token=token("javascript")) as client:
        await client.subscribe("news.javascript")
        for time_ in (1, 2, 3):
            for number in range(100):
                client.do("publish", channel="news.elsewhere", data=number)
            if time_ < 3:
                await client.at_least(time_ + 1, "subscribed")
        ended = await client.first("disconnected")

    assert 111 in {one["code"] for one in client.of("refused")}
    assert [one["code"] for one in client.of("connecting")] == [0, 3013, 3013]
    assert (ended["code"], ended["reason"]) == (3509, "too many errors: sent away for too many requests before")


async def test_ten_thousand_publishes_of_clients_do_not_pile_up_while_nats_stands_still(site: Site) -> None:
    nats = site.start_nats()
    node = site.start_node(nats, {"topics": TOPICS})
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(node.websocket_url)) for _ in range(50)]
        nats.pause()
        commands = [{"id": 100 + number, "publish": {"channel": "news.a", "data": number}} for number in range(200)]
        await asyncio.gather(*(client.send(*commands) for client in clients))

        def errors() -> list[int]:
            return [error for client in clients for error in codes(client) if error]

        await eventually(lambda: len(errors()) == 10_000 - 4096)
        assert set(errors()) == {100}
        assert await node.metric("broker_publishes_in_flight") == 4096
        assert await node.metric('broker_published_total{policy="news",result="busy"') == 10_000 - 4096
        nats.resume()
        await eventually(lambda: sum(len(codes(client)) for client in clients) == 10_000)
        assert len(errors()) == 10_000 - 4096
        assert await node.metric("broker_publishes_in_flight") == 0


def codes(client: WireClient) -> list[int]:
    """Of a client's replies to publishes; 0 for success."""
    return [line.get("error", {}).get("code", 0) for line in client.lines if line.get("id", 0) >= 100]
