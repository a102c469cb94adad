"""What a node is sent by those who do not know the protocol, or mean it ill. Each ends its own connection at most."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.harness.client import WireClient, connected, opened
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.raw import BINARY, PING, PONG, TEXT, dialled, masked, upgrade, upgraded
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually
from tests.harness.web import request

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

CONNECT = b'{"id":1,"connect":{}}'


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    """A node of little patience."""
    return module_site.start_node(
        nats,
        {
            "http": {"host": "127.0.0.1", "allowed_origins": ["https://app.example.com"]},
            "limits": {"connect_seconds": 1, "handshake_seconds": 1, "message_bytes": 1024, "header_bytes": 4096},
        },
    )


@pytest.fixture
async def bystander(node: BrokerNode) -> AsyncIterator[WireClient]:
    """A client that has nothing to do with it, and notices nothing."""
    async with connected(node.websocket_url, topics=("peace",)) as client:
        yield client
        await node.publish("peace", "quiet")
        assert await client.publication("peace") == "quiet"
        assert node.running


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        ("{", 3501, "bad request: malformed JSON"),
        ("", 3501, "bad request"),
        ("[]", 3501, "bad request"),
        ("null", 3501, "bad request"),
        ('{"id":1,"connect":{}}\n\n', 3501, "bad request"),
        ('{"id":1,"subscribe":{"channel":"a"}}', 3501, "bad request: the first command must be connect"),
        ('{"id":0,"connect":{}}', 3501, "bad request"),
        ("{}", 3501, "bad request"),
        ('{"id":1,"connect":{"token":7}}', 3501, "bad request"),
        ('{"id":1,"connect":{"token":"x.y.z"}}', 3500, "invalid token"),
        ("x" * 1025, 1009, ""),
        (b"\x00", 3506, "inappropriate protocol"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, str | bytes) else None,
)
async def test_a_first_message_that_is_none(
    node: BrokerNode, bystander: WireClient, sent: str | bytes, code: int, reason: str
) -> None:
    async with opened(node.websocket_url) as client:
        await client.websocket.send(sent)
        closed = await client.closed()

    assert closed[0] == code
    assert closed[1].startswith(reason)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("{", 3501),
        ('{"id":2,"connect":{}}', 3501),
        ("{}", 3501),
        ('{"subscribe":{"channel":"a"}}', 3501),
        ('{"send":{"data":1}}', 3508),
        (b"{}", 3506),
        (json.dumps({"id": 2, "subscribe": {"channel": "closed", "token": token("bob", channel="other")}}), 3500),
    ],
    ids=["malformed", "connect twice", "unasked pong", "no id", "send", "binary", "another topic's token"],
)
async def test_a_later_message_that_ends_the_connection(
    node: BrokerNode, bystander: WireClient, sent: str | bytes, code: int
) -> None:
    async with connected(node.websocket_url, token("bob")) as client:
        await client.websocket.send(sent)

        assert (await client.closed())[0] == code


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ({"subscribe": {"channel": ""}}, 107, "subscribe.channel"),
        ({"subscribe": {"channel": "a..b"}}, 107, "subscribe.channel"),
        ({"subscribe": {"channel": "a b"}}, 107, "subscribe.channel"),
        ({"subscribe": {"channel": "$SYS.x"}}, 107, "subscribe.channel"),
        ({"subscribe": {"channel": "x" * 256}}, 107, "subscribe.channel"),
        ({"subscribe": {"channel": 7}}, 107, "subscribe.channel"),
        ({"publish": {"channel": "a.>", "data": 1}}, 107, "publish.channel"),
        ({"publish": {"channel": "a"}}, 107, "publish.data"),
        ({"dance": {}}, 104, "method not found"),
        ({"rpc": {"method": "x"}}, 108, "not available"),
        ({"presence": {"channel": "a"}}, 108, "not available"),
        ({"refresh": {}}, 107, "refresh.token"),
        ({"sub_refresh": {"channel": "a"}}, 103, "sub_refresh.channel"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else None,
)
async def test_a_command_that_is_refused_leaves_the_connection_open(
    node: BrokerNode, bystander: WireClient, command: dict[str, object], code: int, says: str
) -> None:
    async with connected(node.websocket_url) as client:
        await client.send({"id": 7, **command})
        error = (await client.reply(7))["error"]

        assert error["code"] == code
        assert says in error["message"]
        await client.call("subscribe", channel="still.works")


async def test_a_topic_is_subscribed_once(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("news",)) as client:
        assert (await client.refused("subscribe", channel="news"))[0] == 105
        await client.call("unsubscribe", channel="news")
        await client.call("unsubscribe", channel="news")
        await client.call("subscribe", channel="news")


async def test_commands_in_one_frame_are_answered_in_order(node: BrokerNode) -> None:
    async with opened(node.websocket_url) as client:
        await client.send(
            {"id": 1, "connect": {}},
            {"id": 2, "subscribe": {"channel": "one.frame"}},
            {"id": 3, "publish": {"channel": "one.frame", "data": "x"}},
            {"id": 4, "unsubscribe": {"channel": "one.frame"}},
            {"id": 5, "publish": {"channel": "one.frame", "data": "y"}},
        )
        await client.reply(5)
        said = [line.get("id") or line["push"]["pub"]["data"] for line in client.lines]

    assert said.index("x") < said.index(3)
    assert sorted(one for one in said if isinstance(one, int)) == [1, 2, 3, 4, 5]
    assert "y" not in said


async def test_who_says_nothing_is_sent_away(node: BrokerNode) -> None:
    async with opened(node.websocket_url) as client:
        assert await client.closed() == (3502, "stale: no connect command in time")


async def test_who_does_not_answer_pings_is_sent_away_and_who_does_stays(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"ping": {"interval_seconds": 1, "pong_timeout_seconds": 0.5}})
    async with connected(node.websocket_url) as good, connected(node.websocket_url, pongs=False) as bad:
        assert await bad.closed() == (3012, "no pong")
        await eventually(lambda: good.lines.count({}) >= 2)
        assert good.is_open
        assert good.lines[0]["connect"]["ping"] == 1
    assert await node.metric('broker_closes_total{code="3012"') == 1


@pytest.mark.parametrize(
    ("path", "changes", "status", "header"),
    [
        ("/elsewhere", {}, 404, None),
        ("/connection/websocket", {"Origin": "https://evil.example.com"}, 403, None),
        ("/connection/websocket", {"Sec-WebSocket-Version": "12"}, 426, ("sec-websocket-version", "13")),
        ("/connection/websocket", {"Sec-WebSocket-Version": None}, 426, ("sec-websocket-version", "13")),
        ("/connection/websocket", {"Sec-WebSocket-Key": "short"}, 400, None),
        ("/connection/websocket", {"Host": None}, 400, None),
        ("/connection/websocket", {"X-Long": "x" * 5000}, 431, None),
        ("/connection/websocket", {f"X-{number}": "x" for number in range(2000)}, 431, None),
    ],
    ids=["path", "origin", "version", "no version", "key", "no host", "long header", "many headers"],
)
async def test_handshakes_are_refused_with_a_proper_answer(
    node: BrokerNode,
    bystander: WireClient,
    path: str,
    changes: dict[str, str | None],
    status: int,
    header: tuple[str, str] | None,
) -> None:
    async with dialled(node.port) as connection:
        await connection.send(upgrade(path, changes))
        answered, headers = await connection.head()
        body = await connection.rest()

    assert (answered, headers["content-type"]) == (status, "application/problem+json")
    assert json.loads(body)["status"] == status
    assert header is None or headers[header[0]] == header[1]


async def test_pages_that_are_allowed_may_connect(node: BrokerNode) -> None:
    async with dialled(node.port) as connection:
        await connection.send(upgrade(changes={"Origin": "https://app.example.com"}))
        assert (await connection.head())[0] == 101


async def test_a_page_that_is_opened_in_the_browser_says_what_is_wanted(node: BrokerNode) -> None:
    answer = await request("GET", f"{node.url}/connection/websocket")

    assert (answer.status, answer.headers["sec-websocket-version"]) == (426, "13")


@pytest.mark.parametrize("begun", [b"", b"GET /connection/websocket HTTP/1.1\r\nHo"], ids=["silence", "half a head"])
async def test_a_head_that_does_not_come_in_time_is_not_waited_for(node: BrokerNode, begun: bytes) -> None:
    async with dialled(node.port) as connection:
        await connection.send(begun)
        answer = await connection.rest()

    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


async def test_what_is_no_http_is_refused(node: BrokerNode, bystander: WireClient) -> None:
    async with dialled(node.port) as connection:
        await connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert (await connection.rest()).startswith(b"HTTP/1.1 400 ")


async def test_frames_that_come_with_the_upgrade_request_are_not_lost(node: BrokerNode) -> None:
    async with dialled(node.port) as connection:
        subscribe = masked(b'{"id":2,"subscribe":{"channel":"early"}}')
        await connection.send(upgrade() + masked(CONNECT) + subscribe)
        assert (await connection.head())[0] == 101
        replies = b""
        while b'"id":2' not in replies:
            replies += (await connection.frame())[1]
        assert b'"connect":{' in replies


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (masked(b"", length=1025), 1009),
        (masked(b"", length=2**62), 1009),
        (masked(b"\xff\xfe"), 1007),
        (b"\x81\x02{}", 1002),
        (masked(b"", 3), 1002),
        (masked(b"x" * 126, PING), 1002),
        (masked(b"x", BINARY), 3506),
    ],
    ids=["too long", "absurdly long", "no UTF-8", "not masked", "reserved opcode", "long ping", "binary"],
)
async def test_frames_against_the_rules_get_their_close_code(
    node: BrokerNode, bystander: WireClient, sent: bytes, code: int
) -> None:
    async with upgraded(node.port) as connection:
        await connection.send(sent)

        assert await connection.close_code() == code


async def test_a_ping_of_the_websocket_itself_is_answered(node: BrokerNode) -> None:
    async with upgraded(node.port) as connection:
        await connection.send(masked(b"hello", PING))
        assert await connection.frame() == (PONG, b"hello")


async def test_a_message_of_exactly_the_limit_is_taken(node: BrokerNode) -> None:
    async with upgraded(node.port) as connection:
        await connection.send(masked(CONNECT + b" " * (1024 - len(CONNECT))))
        opcode, payload = await connection.frame()

    assert opcode == TEXT
    assert b'"connect"' in payload


async def test_a_slow_reader_is_sent_away_while_the_others_go_on(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"limits": {"queue_bytes": 200_000}})
    async with connected(node.websocket_url, topics=("flood",)) as good, upgraded(node.port) as slow:
        await slow.send(masked(CONNECT) + masked(b'{"id":2,"subscribe":{"channel":"flood"}}'))
        replies = b""
        while b'"id":2' not in replies:
            replies += (await slow.frame())[1]
        # from here it reads nothing more, until the node has given up on it
        text = "x" * 60_000
        sent = 0

        async def given_up() -> bool:
            nonlocal sent
            await node.publish("flood", [sent, text])
            sent += 1
            return await node.metric('broker_closes_total{code="3008"') == 1 or (
                await node.metric('broker_dropped_total{policy="default",reason="slow"') > 0
            )

        await eventually(given_up, seconds=30)
        assert await slow.close_code() == 3008
        assert [(await good.publication("flood"))[0] for _ in range(sent)] == list(range(sent))
    await eventually(lambda: asyncio.ensure_future(_is(node, "broker_queued_bytes", 0)))
    assert await node.metric("broker_slow_connections") == 0


async def _is(node: BrokerNode, metric: str, value: float) -> bool:
    return await node.metric(metric) == value


async def test_the_api_says_what_is_wrong(node: BrokerNode, bystander: WireClient) -> None:
    async def post(path: str, body: bytes, **headers: str) -> tuple[int, object]:
        sent = {"X-API-Key": "an-api-key-that-no-log-may-show", **headers}
        answer = await request("POST", f"{node.url}{path}", body, sent)
        decoded = answer.json()
        return answer.status, decoded.get("error", {}).get("code", decoded.get("status"))

    assert await post("/api/publish", b"{}") == (200, 107)
    assert await post("/api/publish", b'{"channel":"a","b64data":"eA=="}') == (200, 107)
    assert await post("/api/publish", b'{"channel":"a.*","data":1}') == (200, 107)
    assert await post("/api/publish", b'{"channel":"a","data":"' + b"x" * 2000 + b'"}') == (200, 106)
    assert await post("/api/publish", b"[1]") == (400, 400)
    assert await post("/api/publish", b"{") == (400, 400)
    assert await post("/api/dance", b"{}") == (404, 404)
    assert await post("/api/publish", b"{}", **{"X-API-Key": "wrong"}) == (401, 401)
    assert (await request("GET", f"{node.url}/api/publish")).status == 405
    assert (await request("GET", f"{node.url}/nothing")).status == 404
