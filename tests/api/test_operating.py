"""The operators' methods over HTTP: how they are called, by whom, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness.client import connected
from tests.harness.node import BrokerNode
from tests.harness.tokens import API_KEY, token
from tests.harness.waiting import eventually
from tests.harness.web import Answer, request

pytestmark = pytest.mark.anyio

ROOMS, NEWS = "a-key-for-rooms-only", "a-key-for-news-only"
METHODS = ["connections", "kick", "throttle", "slow", "drain"]
NOTHING: dict[str, list[Any]] = {"by_queued_bytes": [], "by_lag": [], "by_drops": []}


async def result(node: BrokerNode, method: str, **asked: Any) -> Any:
    answer = await node.api(method, asked)
    assert list(answer.json()) == ["result"], answer
    return answer.json()["result"]


async def get(node: BrokerNode, path: str, key: str = API_KEY) -> Answer:
    return await request("GET", f"{node.url}/api/{path}", headers={"X-API-Key": key})


@pytest.fixture
async def serving(node: BrokerNode) -> AsyncIterator[BrokerNode]:
    """Whatever a test has done to it, the node takes clients again."""
    yield node
    assert (await result(node, "drain", cancel=True))["draining"] is False


async def test_connections_are_listed_with_what_an_operator_wants_to_know(node: BrokerNode) -> None:
    async with connected(node.websocket_url, token("ann"), topics=("news.a", "room:1")) as client:
        answer = await result(node, "connections", user="ann")
        (entry,) = answer.pop("connections")
        assert answer == {"total": 1}
        assert 0 <= entry.pop("seconds") < 60
        assert entry == {
            "client": client.lines[0]["connect"]["client"],
            "user": "ann",
            "node": node.name,
            "address": "127.0.0.1",
            "topics": 2,
            "queued_bytes": 0,
            "dropped": 0,
        }
    await eventually(lambda: gone(node, "ann"))


async def gone(node: BrokerNode, user: str) -> bool:
    return bool((await result(node, "connections", user=user))["total"] == 0)


async def test_a_kick_ends_the_connections_that_are_meant(node: BrokerNode) -> None:
    async with (
        connected(node.websocket_url, token("ann"), topics=("news.a",)) as ann,
        connected(node.websocket_url, token("ben"), topics=("news.a",)) as ben,
    ):
        assert await result(node, "kick", user="ann", topic="news.a", address="127.0.0.1") == {"kicked": 1}
        assert await ann.closed() == (3503, "force disconnect")
        assert await result(node, "kick", topic="news.a", code=4200, reason="go on elsewhere") == {"kicked": 1}
        assert await ben.closed() == (4200, "go on elsewhere")


async def test_slow_can_be_asked_with_get_and_with_post(node: BrokerNode) -> None:
    expected = {"result": {"connections": NOTHING, "topics": NOTHING}}
    for path in ("slow", "slow?limit=3", "slow?"):
        answer = await get(node, path)
        assert (answer.status, answer.json()) == (200, expected)
    assert (await node.api("slow", {"limit": 3})).json() == expected


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("limit=0", "limit: must be from 1 to 1000"),
        ("limit=-1", "limit: must be from 1 to 1000"),
        ("limit=1001", "limit: must be from 1 to 1000"),
        ("limit=x", "limit: expected"),
        ("limit=", "limit: expected"),
        ("limit=99999999999999999999999", "limit: expected"),
        ("limit=%FF%00", "limit: expected"),
    ],
)
async def test_a_bad_query_is_told_with_the_name_of_the_field(node: BrokerNode, query: str, text: str) -> None:
    error = (await get(node, f"slow?{query}")).json()["error"]
    assert error["code"] == 107
    assert text in error["message"]


async def test_only_what_reads_can_be_asked_with_get(node: BrokerNode) -> None:
    for method in ("kick", "drain", "throttle", "connections", "publish"):
        assert (await get(node, method)).status == 405
    assert (await get(node, "slow", key="wrong")).status == 401
    assert (await get(node, "slow", key=NEWS)).status == 403
    assert (await request("PUT", f"{node.url}/api/slow", headers={"X-API-Key": API_KEY})).status == 405


async def test_slow_is_described_for_both(node: BrokerNode) -> None:
    described = (await request("GET", f"{node.url}/openapi.json")).json()["paths"]["/api/slow"]
    assert set(described) == {"get", "post"}
    assert "requestBody" not in described["get"]
    assert [one["name"] for one in described["get"]["parameters"] if one["in"] == "query"] == ["limit"]


@pytest.mark.parametrize("method", METHODS)
async def test_the_key_decides(serving: BrokerNode, method: str) -> None:
    body = {} if method == "slow" else {"node": serving.name}
    assert (await serving.api(method, body, NEWS)).status == 403  # the method is not among the key's
    refused = (await serving.api(method, body, ROOMS)).json()["error"]
    assert refused == {"code": 103, "message": "permission denied: this API key is for some topics only"}
    assert (await serving.health()).status == 200


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("connections", {"user": 1}),
        ("connections", {"limit": "1"}),
        ("kick", {"user": "ann", "code": "3000"}),
        ("throttle", {"user": "ann", "command_rate": "fast"}),
        ("throttle", {"user": "ann", "publish_rate": -0.5}),
        ("slow", {"limit": 1.5}),
        ("drain", {"cancel": 1}),
        ("drain", {"node": 1}),
        ("drain", {"node": "elsewhere"}),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_name_of_the_field(
    serving: BrokerNode, method: str, body: dict[str, Any]
) -> None:
    error = (await serving.api(method, body)).json()["error"]
    assert error["code"] == 107
    assert list(body)[-1] in error["message"]


async def test_a_drain_by_hand_and_back(serving: BrokerNode) -> None:
    node = serving
    async with connected(node.websocket_url) as client:
        answer = await result(node, "drain")
        assert answer["draining"] is True
        assert answer["connections"] >= 1
        assert (await node.health()).json()["reasons"] == ["the node is draining"]
        assert await node.metric("broker_draining") == 1
        assert await client.closed() == (3001, "shutdown")
    taken_back = (await node.api("drain", {"node": node.name, "cancel": True})).json()["result"]
    assert (taken_back["node"], taken_back["draining"]) == (node.name, False)
    assert (await node.health()).status == 200
    assert await node.metric("broker_draining") == 0
    async with connected(node.websocket_url):
        pass


async def test_they_can_stand_in_a_batch(node: BrokerNode) -> None:
    answer = await node.api("batch", {"commands": [{"slow": {}}, {"connections": {"user": "nobody here"}}]})
    assert json.loads(answer.body)["replies"] == [
        {"slow": {"connections": NOTHING, "topics": NOTHING}},
        {"connections": {"connections": [], "total": 0}},
    ]
