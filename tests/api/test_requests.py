"""What comes before any method looks at a request: keys, bodies, statuses."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.harness.node import BrokerNode
from tests.harness.tokens import API_KEY
from tests.harness.web import Answer, fetch

GOOD = b'{"channel":"news.a","data":1}'


def call(node: BrokerNode, path: str, body: bytes, method: str = "POST", **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in ({"X_API_Key": API_KEY} | headers).items()}
    return fetch(method, f"{node.url}{path}", body, {name: value for name, value in sent.items() if value})


def problem(answer: Answer, status: int) -> str:
    """The detail of an RFC 9457 problem, which it must be."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), answer
    body = answer.json()
    assert body["status"] == status
    return str(body["detail"])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X_API_Key": "wrong"},
        {"X_API_Key": "wrong", "Authorization": f"apikey {API_KEY}"},
        {"Authorization": "apikey wrong"},
        {"Authorization": f"Bearer {API_KEY}"},
        {"Authorization": "apikey"},
    ],
)
def test_without_a_good_key_there_is_nothing(node: BrokerNode, headers: dict[str, str]) -> None:
    for path in ("/api/publish", "/api", "/api/info"):
        answer = call(node, path, GOOD, **({"X_API_Key": ""} | headers))
        assert "API key is needed" in problem(answer, 401)
        assert answer.headers["www-authenticate"] == "apikey"


@pytest.mark.parametrize("value", [f"apikey {API_KEY}", f"APIKEY {API_KEY}"])
def test_a_key_may_come_as_authorization(node: BrokerNode, value: str) -> None:
    answer = fetch("POST", f"{node.url}/api/publish", GOOD, {"Authorization": value})
    assert (answer.status, answer.json()) == (200, {"result": {}})


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_the_content_type_is_not_looked_at(node: BrokerNode, content_type: str) -> None:
    assert call(node, "/api/publish", GOOD, Content_Type=content_type).json() == {"result": {}}


@pytest.mark.parametrize(
    "body", [b"[]", b"1", b'"x"', b"{", b'{"channel"}', b"\xff", b'{"channel":"news.a","data":"\xff"}', b"{}{}", b"nul"]
)
@pytest.mark.parametrize("path", ["/api/publish", "/api", "/api/batch"])
def test_a_body_that_is_no_object_is_400(node: BrokerNode, path: str, body: bytes) -> None:
    assert "JSON object" in problem(call(node, path, body), 400)


@pytest.mark.parametrize("body", [b"", b"null", b" null ", b"{}"])
def test_nothing_counts_as_an_empty_object(node: BrokerNode, body: bytes) -> None:
    assert len(call(node, "/api/info", body).json()["result"]["nodes"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"publish": {"channel": "news.a", "data": 1}},
        {"method": "publish", "params": {"channel": "news.a", "data": 1}},
    ],
)
def test_the_method_may_be_named_in_the_body(node: BrokerNode, body: dict[str, Any]) -> None:
    assert call(node, "/api", json.dumps(body).encode()).json() == {"result": {}}


@pytest.mark.parametrize("body", [b"{}", b'{"publish":{},"info":{}}', b'{"method":1}'])
def test_a_body_that_names_no_method_is_400(node: BrokerNode, body: bytes) -> None:
    assert "method" in problem(call(node, "/api", body), 400)


def test_unknown_methods_and_other_verbs(node: BrokerNode) -> None:
    problem(call(node, "/api/frobnicate", b"{}"), 404)
    assert call(node, "/api", b'{"frobnicate":{}}').json()["error"]["code"] == 104
    for path in ("/api/publish", "/api", "/api/info"):
        answer = call(node, path, b"", "GET")
        problem(answer, 405)
        assert answer.headers["allow"] == "POST"
    problem(call(node, "/nowhere", b"", "GET"), 404)


def test_a_slash_too_many_leads_nowhere(node: BrokerNode) -> None:
    answer = call(node, "/api/publish/", GOOD, Host="elsewhere.example")
    problem(answer, 404)
    assert "location" not in answer.headers


@pytest.mark.anyio
async def test_what_no_method_answers_is_counted_too(node: BrokerNode) -> None:
    async def count(status: int) -> float:
        return await node.metric(f'broker_http_requests_total{{method="other",status="{status}"')

    before = [await count(status) for status in (404, 405)]
    problem(call(node, "/nowhere", b"", "GET"), 404)
    problem(call(node, "/api/publish", b"", "GET"), 405)
    assert [await count(status) for status in (404, 405)] == [one + 1 for one in before]


def test_a_body_that_is_too_large_is_413(node: BrokerNode) -> None:
    body = json.dumps({"channel": "news.a", "data": "x" * 100_000}).encode()
    assert "larger than 100000 bytes" in problem(call(node, "/api/publish", body), 413)
    fits = json.dumps({"channel": "news.a", "data": "x" * 65_000}).encode()
    assert call(node, "/api/publish", fits).json() == {"result": {}}


def exchange(node: BrokerNode, *pieces: bytes) -> bytes:
    """Send pieces, each in its segment, and read what comes until the end or for a second request's answer."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=14) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        data = b""
        while piece := connection.recv(65_536):
            data += piece
        return data


HEAD = f"POST /api/publish HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {API_KEY}\r\n".encode()


def test_chunked_bodies_are_read(node: BrokerNode) -> None:
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (GOOD[:5], GOOD[5:])]
    answer = exchange(node, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'{"result":{}}')


def test_a_chunked_body_is_bounded_as_it_comes(node: BrokerNode) -> None:
    chunk = b"%x\r\n%b\r\n" % (60_000, b"x" * 60_000)
    assert exchange(node, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("length", ["Content-Length: 10", "Transfer-Encoding: chunked"])
def test_a_refusal_ahead_of_the_body_is_the_connections_last_answer(node: BrokerNode, length: str) -> None:
    head = f"POST /api/publish HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode()
    answer = exchange(node, head)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_refusal_behind_the_body_keeps_the_connection(node: BrokerNode) -> None:
    head = b"POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n%b\r\n{}"
    answer = exchange(node, head % b"" + head % b"Connection: close\r\n")
    assert answer.count(b"HTTP/1.1 401 ") == 2


def test_a_caller_that_goes_before_its_body_came_disturbs_nobody(node: BrokerNode) -> None:
    with socket.create_connection(("127.0.0.1", node.port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\n{")
    assert call(node, "/api/publish", GOOD).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/api/publish", {"channel": "news.a"}, 400, 107),
        ("/api/publish", {"channel": "unheard.of", "data": 1}, 404, 102),
        ("/api/history", {"channel": "news.a"}, 400, 108),
        ("/api/publish", {"channel": "small", "data": "x" * 20}, 413, 106),
        ("/api", {"frobnicate": {}}, 404, 104),
    ],
)
def test_errors_come_with_a_status_where_that_is_asked_for(
    node: BrokerNode, path: str, body: Any, status: int, code: int
) -> None:
    encoded = json.dumps(body).encode()
    plain = call(node, path, encoded)
    assert (plain.status, plain.json()["error"]["code"], list(plain.json())) == (200, code, ["error"])
    asked = call(node, path, encoded, X_Centrifugo_Error_Mode="transport")
    assert (asked.status, asked.json()) == (status, plain.json()["error"])
