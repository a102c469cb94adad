"""TLS, the internal port, and what the logs tell."""

from __future__ import annotations

import json
import ssl

import pytest

from tests.harness.client import connected, opened
from tests.harness.nats import NatsServer
from tests.harness.raw import dialled
from tests.harness.recorder import sdk_client, subscribed
from tests.harness.site import Site
from tests.harness.tls import Authority
from tests.harness.tokens import API_KEY, token
from tests.harness.waiting import eventually, free_port
from tests.harness.web import request

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


async def test_a_node_speaks_tls_by_itself(site: Site, nats: NatsServer) -> None:
    authority = Authority(site.directory)
    own = authority.issue("broker")
    node = site.add_node(nats, {"http": {"tls_cert": str(own.certificate), "tls_key": str(own.key)}})
    node.start()
    trusting = authority.trusting()

    async def ready() -> bool:
        return (await request("GET", f"{node.url}/health/ready", tls=trusting)).status == 200

    await eventually(ready)
    async with connected(node.websocket_url, topics=("news",), tls=trusting) as client:
        answer = await request(
            "POST", f"{node.url}/api/publish", b'{"channel":"news","data":1}', {"X-API-Key": API_KEY}, tls=trusting
        )
        assert answer.status == 200
        assert await client.publication("news") == 1
    async with sdk_client(node.websocket_url, ssl_context=trusting) as sdk:
        await subscribed(sdk, "news")
    with pytest.raises(ssl.SSLCertVerificationError):
        async with opened(node.websocket_url, tls=ssl.create_default_context()):
            pass
    async with dialled(node.port) as plain:
        await plain.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not (await plain.rest()).startswith(b"HTTP/1.1 200")


async def test_what_is_for_operators_can_have_a_port_of_its_own(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"http": {"internal_port": free_port()}})
    key = {"X-API-Key": API_KEY}
    async with connected(node.websocket_url, topics=("news",)) as client:
        await node.publish("news", 1)
        assert await client.publication("news") == 1
        assert await node.metric("broker_connections") == 1
    for method, path in (
        ("POST", "/api/publish"),
        ("POST", "/api"),
        ("GET", "/metrics"),
        ("GET", "/health/ready"),
        ("GET", "/health/live"),
        ("GET", "/openapi.json"),
    ):
        body = b'{"channel":"news","data":1}' if method == "POST" else None
        assert (await request(method, f"{node.url}{path}", body, key)).status == 404
        assert (await request(method, f"{node.operations_url}{path}", body, key)).status in (200, 400)
    assert (await request("GET", f"{node.url}/")).status == 200
    internal = node.operations_url.replace("http:", "ws:")
    with pytest.raises(Exception, match="HTTP 4"):
        async with opened(f"{internal}/connection/websocket"):
            pass
    assert await node.stopped() == 0


async def test_logs_in_json_are_one_object_a_line_with_the_node_s_name(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"log": {"format": "json", "level": "debug"}})
    name = node.name
    async with connected(node.websocket_url, token("ann"), topics=("news",)) as client:
        await node.publish("news", 1)
        await client.publication("news")
        await client.send_text("not JSON")
        await client.closed()
    async with opened(f"{node.websocket_url}?token={token('in the query')}") as client:
        await client.send({"id": 1, "connect": {"token": token("ann", secret="w" * 32)}})
        assert (await client.closed())[0] == 3500
    await node.api("publish", {"channel": "news", "data": 1}, key="a-wrong-key-that-is-secret-elsewhere")
    assert await node.stopped() == 0

    lines = [json.loads(line) for line in node.log().splitlines()]
    assert lines
    for line in lines:
        assert line["node"] == name
        assert {"time", "level", "logger", "message"} <= line.keys()
    assert any(line["message"] == "SIGTERM: draining" for line in lines)
    assert "a-wrong-key-that-is-secret-elsewhere" not in node.log()
    # and no token, as the site itself looks for


async def test_every_answer_that_has_one_says_the_same_name(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats)
    async with connected(node.websocket_url) as client:
        names = {
            client.lines[0]["connect"]["node"],
            (await node.health()).json()["node"],
            (await node.api("info", {})).json()["result"]["nodes"][0]["name"],
        }
        page = (await request("GET", node.url)).body.decode()

    assert names == {node.name}
    assert node.name in page


async def test_the_openapi_document_names_every_method(site: Site, nats: NatsServer) -> None:
    document = (await request("GET", f"{site.start_node(nats).url}/openapi.json")).json()

    assert document["openapi"].startswith("3.1")
    assert {"/api/publish", "/api/broadcast", "/api/batch", "/api/info"} <= document["paths"].keys()
