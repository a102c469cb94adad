"""Repeated publications: the same key, the same publication."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

from tests.api.test_history import fill, read
from tests.api.test_methods import error, result
from tests.harness.client import connected
from tests.harness.node import BrokerNode

pytestmark = pytest.mark.anyio


@pytest.fixture
def topic() -> str:
    """One of its own for each test."""
    return f"kept.{secrets.token_hex(4)}"


async def publish(node: BrokerNode, topic: str, data: Any, body: str | None = None, header: str | None = None) -> Any:
    headers = {} if header is None else {"Idempotency_Key": header}
    answer = await node.api("publish", {"channel": topic, "data": data, "idempotency_key": body}, **headers)
    return answer.json()["result"]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"body": "k"}, {"body": "k"}),
        ({"header": "k"}, {"header": "k"}),
        ({"body": "k"}, {"header": "k"}),
        ({"body": "k"}, {"header": '"k"'}),
        ({"body": "k", "header": '"k"'}, {"body": "k"}),
        ({"body": "ä b\n☃"}, {"body": "ä b\n☃"}),
        ({"body": "k" * 256}, {"body": "k" * 256}),
    ],
)
async def test_a_repeat_is_answered_like_the_first_and_not_stored(
    node: BrokerNode, topic: str, first: dict[str, str], again: dict[str, str]
) -> None:
    stored = await publish(node, topic, 1, **first)
    assert await publish(node, topic, 2, **again) == stored
    assert await read(node, topic, limit=-1) == [1]


async def test_a_repeat_reaches_no_subscriber(node: BrokerNode, topic: str) -> None:
    async with connected(node.websocket_url, topics=(topic,)) as client:
        await asyncio.gather(*(publish(node, topic, 1, "k") for _ in range(5)))
        await publish(node, topic, 2)
        assert [await client.publication(topic) for _ in range(2)] == [1, 2]


async def test_other_keys_and_none_are_other_publications(node: BrokerNode, topic: str) -> None:
    for number, key in enumerate(["a", "A", "a ", None, None, ""]):
        await publish(node, topic, number, key)
    assert await read(node, topic, limit=-1) == [0, 1, 2, 3, 4, 5]


async def test_a_key_counts_within_its_topic(node: BrokerNode, topic: str) -> None:
    other = f"{topic}.other"
    one, two = await publish(node, topic, 1, "k"), await publish(node, other, 2, "k")
    assert one != two
    assert (await read(node, topic, limit=-1), await read(node, other, limit=-1)) == ([1], [2])


async def test_a_broadcast_can_be_repeated(node: BrokerNode, topic: str) -> None:
    topics = [topic, f"{topic}.other"]
    request = {"channels": topics, "data": 1, "idempotency_key": "k"}
    first = await result(node, "broadcast", **request)
    assert await result(node, "broadcast", **request) == first
    for name in topics:
        assert await read(node, name, limit=-1) == [1]


async def test_a_header_counts_for_all_of_a_batch(node: BrokerNode, topic: str) -> None:
    commands = [{"publish": {"channel": f"{topic}.{number}", "data": 1}} for number in range(2)]
    for _ in range(2):
        answer = await node.api("batch", {"commands": commands}, Idempotency_Key="k")
        assert all("offset" in one["publish"] for one in answer.json()["replies"])
    for number in range(2):
        assert await read(node, f"{topic}.{number}", limit=-1) == [1]


async def test_two_keys_that_differ_are_a_mistake(node: BrokerNode, topic: str) -> None:
    request = {"channel": topic, "data": 1, "idempotency_key": "a"}
    code, text = await error(node, "publish", request, Idempotency_Key="b")
    assert (code, "idempotency_key: is another one than" in text) == (107, True)
    code, text = await error(node, "publish", {**request, "idempotency_key": "k" * 257})
    assert (code, "257 characters" in text) == (107, True)
    assert await read(node, topic, limit=-1) == []


async def test_a_key_of_what_was_refused_can_be_used_again(node: BrokerNode, topic: str) -> None:
    assert (await error(node, "publish", {"channel": topic, "idempotency_key": "k"}))[0] == 107
    await publish(node, topic, 1, "k")
    assert await read(node, topic, limit=-1) == [1]


async def test_live_topics_take_keys_and_answer_as_ever(node: BrokerNode) -> None:
    assert await publish(node, "news.a", 1, "k") == {}
    assert await publish(node, "news.a", 1, "k") == {}


async def test_duplicates_are_counted_as_such(node: BrokerNode, topic: str) -> None:
    before = await node.metric('broker_published_total{policy="kept",result="duplicate"')
    await publish(node, topic, 1, "k")
    await publish(node, topic, 1, "k")
    await fill(node, topic, 2)
    assert await node.metric('broker_published_total{policy="kept",result="duplicate"') == before + 1
