"""Histories over HTTP: read and removed."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from tests.api.test_methods import error, result
from tests.harness.node import BrokerNode

pytestmark = pytest.mark.anyio

PASTS = "a-key-for-some-pasts"


@pytest.fixture
def topic() -> str:
    """One of its own for each test."""
    return f"kept.{secrets.token_hex(4)}"


async def fill(node: BrokerNode, topic: str, *data: Any) -> list[int]:
    return [(await result(node, "publish", channel=topic, data=one))["offset"] for one in data]


async def read(node: BrokerNode, topic: str, **request: Any) -> list[Any]:
    found = await result(node, "history", channel=topic, **request)
    return [one["data"] for one in found["publications"]]


async def test_a_publication_says_where_it_is(node: BrokerNode, topic: str) -> None:
    one = await result(node, "publish", channel=topic, data=1)
    assert sorted(one) == ["epoch", "offset"]
    other = await result(node, "publish", channel=topic, data=2)
    assert other["offset"] > one["offset"]
    assert other["epoch"] == one["epoch"]
    answers = (await result(node, "broadcast", channels=[topic, "news.a", "nowhere"], data=3))["responses"]
    assert answers[0]["result"] == {"offset": other["offset"] + 1, "epoch": one["epoch"]}
    assert answers[1] == {"result": {}}
    assert answers[2]["error"]["code"] == 102


async def test_a_history_is_read_both_ways(node: BrokerNode, topic: str) -> None:
    offsets = await fill(node, topic, *range(5))
    found = await result(node, "history", channel=topic, limit=2)
    assert [one["data"] for one in found["publications"]] == [0, 1]
    assert [one["offset"] for one in found["publications"]] == offsets[:2]
    assert found["offset"] == offsets[-1]
    since = {"offset": offsets[1], "epoch": found["epoch"]}
    assert await read(node, topic, limit=-1) == [0, 1, 2, 3, 4]
    assert await read(node, topic, limit=-1, since=since) == [2, 3, 4]
    assert await read(node, topic, limit=1, since=since) == [2]
    assert await read(node, topic, limit=-1, reverse=True) == [4, 3, 2, 1, 0]
    assert await read(node, topic, limit=-1, reverse=True, since=since) == [0]


async def test_without_a_limit_there_is_the_position_only(node: BrokerNode, topic: str) -> None:
    empty = await result(node, "history", channel=topic)
    assert empty == {"publications": [], "epoch": empty["epoch"], "offset": 0}
    assert empty["epoch"]
    offsets = await fill(node, topic, 1)
    for request in ({}, {"limit": 0}, {"limit": None, "since": None, "reverse": None}):
        found = await result(node, "history", channel=topic, **request)
        assert found == {"publications": [], "epoch": empty["epoch"], "offset": offsets[-1]}


async def test_as_many_as_the_policy_says_are_kept(node: BrokerNode, topic: str) -> None:
    offsets = await fill(node, topic, *range(15))
    assert await read(node, topic, limit=2**31) == list(range(5, 15))
    answer = await error(node, "history", {"channel": topic, "limit": -1, "since": {"offset": offsets[2]}})
    assert answer[0] == 112


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        ({"channel": "news.a", "limit": 1}, 108, "keeps no history"),
        ({"channel": "nowhere", "limit": 1}, 102, "unknown channel"),
        ({"channel": "kept.a*", "limit": 1}, 107, "channel: mixes a wildcard"),
        ({"limit": 1}, 107, "channel: must not be empty"),
        ({"channel": "kept.x", "limit": 1, "since": {"offset": -1}}, 107, "since.offset"),
        ({"channel": "kept.x", "limit": 1, "since": {"offset": 0}, "reverse": True}, 107, "since.offset"),
        ({"channel": "kept.x", "limit": 1, "since": {"epoch": "other"}}, 112, ""),
        ({"channel": "kept.x", "limit": 1, "since": {"offset": 2**60}}, 112, ""),
        ({"channel": "kept.x", "limit": "1"}, 107, "limit: expected int"),
        ({"channel": "kept.x", "since": 1}, 107, "since: expected object"),
    ],
)
async def test_what_cant_be_read_is_refused(node: BrokerNode, request_: Any, code: int, text: str) -> None:
    told = await error(node, "history", request_)
    assert told[0] == code
    assert text in told[1]


async def test_a_removed_history_is_gone_and_its_position_is_not(node: BrokerNode, topic: str) -> None:
    offsets = await fill(node, topic, 1, 2)
    before = await result(node, "history", channel=topic)
    for _ in range(2):
        assert await result(node, "history_remove", channel=topic) == {}
        assert await result(node, "history", channel=topic, limit=-1) == before
    assert await read(node, topic, limit=-1, since={"offset": offsets[1], "epoch": before["epoch"]}) == []
    assert (await error(node, "history", {"channel": topic, "limit": 1, "since": {"offset": offsets[0]}}))[0] == 112
    await fill(node, topic, 3)
    assert await read(node, topic, limit=-1) == [3]


@pytest.mark.parametrize(
    ("channel", "code"), [("news.a", 108), ("nowhere", 102), ("kept.>", 107), ("", 107), ("kept.never.published", 0)]
)
async def test_what_cant_be_removed_is_refused(node: BrokerNode, channel: str, code: int) -> None:
    answer = await node.api("history_remove", {"channel": channel})
    assert answer.json().get("error", {"code": 0})["code"] == code


async def test_a_key_reads_what_it_is_for(node: BrokerNode) -> None:
    for topic in ("kept.mine.a", "kept.others"):
        await fill(node, topic, 1)
    answer = await node.api("history", {"channel": "kept.mine.a", "limit": 1}, key=PASTS)
    assert len(answer.json()["result"]["publications"]) == 1
    answer = await node.api("history", {"channel": "kept.others", "limit": 1}, key=PASTS)
    assert answer.json()["error"]["code"] == 103
    assert (await node.api("history_remove", {"channel": "kept.mine.a"}, key=PASTS)).status == 403


async def test_errors_have_statuses_where_they_are_asked_for(node: BrokerNode, topic: str) -> None:
    await fill(node, topic, 1)
    for request, status in (
        ({"channel": topic, "limit": 1, "since": {"offset": 2**60}}, 416),
        ({"channel": "news.a"}, 400),
        ({"channel": "nowhere"}, 404),
    ):
        answer = await node.api("history", request, X_Centrifugo_Error_Mode="transport")
        assert answer.status == status


async def test_a_batch_reads_what_it_has_published(node: BrokerNode, topic: str) -> None:
    commands = [{"publish": {"channel": topic, "data": 1}}, {"history": {"channel": topic, "limit": 1}}]
    replies = (await node.api("batch", {"commands": commands})).json()["replies"]
    assert [one["data"] for one in replies[1]["history"]["publications"]] == [1]
