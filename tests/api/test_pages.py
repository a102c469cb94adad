"""What operators and people look at: health, metrics, the API's description, the front page; and life without NATS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from broker.api.methods import METHODS
from tests.harness.client import connected, opened
from tests.harness.node import BrokerNode
from tests.harness.site import Site
from tests.harness.tokens import API_KEY
from tests.harness.waiting import at_last, eventually
from tests.harness.web import fetch

SERIES = {
    "broker_connections": "gauge",
    "broker_connections_waiting": "gauge",
    "broker_connects_total": "counter",
    "broker_closes_total": "counter",
    "broker_subscriptions": "gauge",
    "broker_topics": "gauge",
    "broker_published_total": "counter",
    "broker_delivered_total": "counter",
    "broker_dropped_total": "counter",
    "broker_queued_bytes": "gauge",
    "broker_slow_connections": "gauge",
    "broker_publish_to_write_seconds": "histogram",
    "broker_loop_lag_seconds": "histogram",
    "broker_relay_connected": "gauge",
    "broker_relay_gaps_total": "counter",
    "broker_relay_reads_total": "counter",
    "broker_recoveries_total": "counter",
    "broker_members": "gauge",
    "broker_http_requests_total": "counter",
    "broker_draining": "gauge",
    "broker_overloaded": "gauge",
}


def references(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        if "$ref" in document:
            yield document["$ref"]
        for value in document.values():
            yield from references(value)
    elif isinstance(document, list):
        for value in document:
            yield from references(value)


def test_the_api_describes_itself(node: BrokerNode) -> None:
    answer = fetch("GET", f"{node.url}/openapi.json")
    document = answer.json()
    assert (answer.status, document["openapi"]) == (200, "3.1.0")
    assert set(document["info"]) >= {"title", "version"}
    assert set(document["paths"]) == {f"/api/{name}" for name in METHODS} | {"/api"}
    for reference in references(document):
        target: Any = document
        assert reference.startswith("#/")
        for part in reference[2:].split("/"):
            target = target[part]
    idents = [operation["post"]["operationId"] for operation in document["paths"].values()]
    assert len(idents) == len(set(idents))
    for path in document["paths"].values():
        operation = path["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"]
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d|default", status)
            assert "$ref" in response or "description" in response
    publish = document["components"]["schemas"]["Publish"]
    assert {"channel", "data", "tags", "idempotency_key"} <= set(publish["properties"])
    assert set(document["components"]["securitySchemes"]) == set().union(*document["security"])


@pytest.mark.parametrize("which", ["live", "ready", "startup"])
def test_health_says_yes_with_who_says_so(node: BrokerNode, which: str) -> None:
    answer = fetch("GET", f"{node.url}/health/{which}")
    assert answer.status == 200
    assert (answer.json()["reasons"], answer.json()["node"]) == ([], node.name)


def test_the_start_and_info_tell_how_the_streams_are(node: BrokerNode) -> None:
    assert set(fetch("GET", f"{node.url}/health/startup").json()["streams"].values()) == {"ready"}
    answer = fetch("POST", f"{node.url}/api/info", b"{}", {"X-API-Key": API_KEY})
    (stream,) = answer.json()["result"]["streams"]
    assert (stream["policy"], stream["ready"], stream["replicas"], stream["behind"]) == ("kept", True, 1, [])
    assert stream["name"].endswith("_KEPT")
    assert re.fullmatch("[0-9a-f]{12}", stream["epoch"])
    assert {"messages", "bytes", "first_offset", "last_offset", "leader"} <= stream.keys()


def test_the_front_page_says_what_runs_here(node: BrokerNode) -> None:
    answer = fetch("GET", f"{node.url}/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert node.name in answer.body.decode()


@pytest.mark.anyio
async def test_metrics_have_the_names_and_kinds_they_are_known_by(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("news.a",)) as client:
        before = await node.metric("broker_delivered_total")
        await node.publish("news.a", 1)
        await client.publication("news.a")
        assert await node.metric("broker_connections") == 1
        assert await node.metric("broker_topics") == 1
        assert await node.metric("broker_subscriptions") == 1
        assert await node.metric("broker_delivered_total") == before + 1
        assert await node.metric('broker_published_total{policy="some",result="ok",source="http"') >= 1
    answer = fetch("GET", f"{node.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", answer.body.decode(), re.MULTILINE))
    assert SERIES.items() <= kinds.items(), SERIES.items() - kinds.items()
    assert all(name.startswith("broker_") for name in kinds)
    assert not re.search(r"(channel|topic|user|client)=", answer.body.decode())


def test_the_websockets_path_tells_a_plain_request_what_it_is(node: BrokerNode) -> None:
    answer = fetch("GET", f"{node.url}/connection/websocket")
    assert (answer.status, answer.headers["sec-websocket-version"]) == (426, "13")


@pytest.mark.anyio
async def test_without_nats_the_api_says_come_again_and_the_node_stays_alive(site: Site) -> None:
    server = site.start_nats()
    node = site.start_node(server)
    server.kill()
    await eventually(lambda: fetch("GET", f"{node.url}/health/ready").status == 503)
    health = await node.health()
    assert health.json()["reasons"] == ["NATS is not connected"]
    assert (await node.health("live")).status == (await node.health("startup")).status == 200
    assert await node.metric("broker_relay_connected") == 0
    calls: list[tuple[str, Any]] = [
        ("publish", {"channel": "a", "data": 1}),
        ("info", {}),
        ("channels", {}),
        ("disconnect", {"user": "ann"}),
    ]
    for method, body in calls:
        answer = await node.api(method, body)
        assert (answer.status, answer.headers["retry-after"], answer.json()["error"]["code"]) == (503, "1", 100), method
        answer = await node.api(method, body, X_Centrifugo_Error_Mode="transport")
        assert (answer.status, answer.json()["code"]) == (503, 100)
    broadcast = await node.api("broadcast", {"channels": ["a"], "data": 1})
    assert broadcast.json()["result"]["responses"][0]["error"]["code"] == 100
    async with opened(node.websocket_url) as client:
        await client.call("connect")
        assert (await client.refused("publish", channel="a", data=1))[0] == 100
    server.start()
    await node.ready()
    await node.publish("a", 1)


def test_before_nats_is_reached_the_node_has_not_started(site: Site) -> None:
    node = site.add_node("nats://127.0.0.1:1")
    node.start()
    at_last(lambda: fetch("GET", f"{node.url}/health/live").status == 200)
    for which in ("ready", "startup"):
        answer = fetch("GET", f"{node.url}/health/{which}")
        assert answer.status == 503
        assert any("NATS" in reason for reason in answer.json()["reasons"])
    assert node.stop() == 0
