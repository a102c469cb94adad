"""What each API method does and refuses, over HTTP, with a client that sees it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.harness.client import connected
from tests.harness.node import BrokerNode
from tests.harness.tokens import token

pytestmark = pytest.mark.anyio

NEWS, ROOMS = "a-key-for-news-only", "a-key-for-rooms-only"
METHODS = {
    "publish",
    "broadcast",
    "subscribe",
    "unsubscribe",
    "disconnect",
    "refresh",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "connections",
    "kick",
    "throttle",
    "slow",
    "drain",
    "batch",
}


async def result(node: BrokerNode, method: str, **request: Any) -> Any:
    answer = await node.api(method, request)
    assert answer.status == 200, answer
    assert list(answer.json()) == ["result"], answer
    return answer.json()["result"]


async def error(node: BrokerNode, method: str, request: Any, **headers: str) -> tuple[int, str]:
    answer = await node.api(method, request, **headers)
    assert answer.status == 200, answer
    assert list(answer.json()) == ["error"], answer
    return answer.json()["error"]["code"], answer.json()["error"]["message"]


async def test_publish_reaches_the_subscribers_with_its_tags(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("news.a",)) as client:
        assert await result(node, "publish", channel="news.a", data={"a": [1.50]}, tags={"λ": "🎈\n"}) == {}
        push = await client.push()
        assert push == {"channel": "news.a", "pub": {"data": {"a": [1.5]}, "tags": {"λ": "🎈\n"}}}
        more = {"skip_history": True, "idempotency_key": "x", "delta": True, "unknown": 1}
        assert await result(node, "publish", channel="news.a", data=None, **more) == {}
        assert await client.publication("news.a") is None


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        ({"channel": "news.a"}, 107, "data: missing"),
        ({"data": 1}, 107, "channel: must not be empty"),
        ({"channel": "news.*", "data": 1}, 107, "channel: wildcards"),
        ({"channel": "news..a", "data": 1}, 107, "channel: holds an empty token"),
        ({"channel": "other", "data": 1}, 102, "unknown channel"),
        ({"channel": 1, "data": 1}, 107, "channel: expected str"),
        ({"channel": "news.a", "b64data": "eA=="}, 107, "b64data: is for bytes"),
        ({"channel": "news.a", "b64data": "", "data": 1}, 107, "b64data: is for bytes"),
        ({"channel": "news.a", "data": 1, "tags": {"a": 1}}, 107, "tags"),
        ({"channel": "small", "data": "x" * 9}, 106, "data: 11 bytes, at most 10 are allowed"),
    ],
)
async def test_publish_refuses_with_the_name_of_the_field(
    node: BrokerNode, request_: Any, code: int, text: str
) -> None:
    told = await error(node, "publish", request_)
    assert told[0] == code
    assert text in told[1]


async def test_broadcast_answers_for_each_topic_in_order(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("news.a", "room:1")) as client:
        answer = await result(node, "broadcast", channels=["news.a", "other", "room:1", ""], data=1)
        codes = [one.get("error", {"code": 0})["code"] for one in answer["responses"]]
        assert codes == [0, 102, 0, 107]
        assert {(await client.push())["channel"] for _ in range(2)} == {"news.a", "room:1"}
    assert (await error(node, "broadcast", {"data": 1}))[0] == 107
    assert (await error(node, "broadcast", {"channels": [], "data": 1}))[0] == 107
    assert (await error(node, "broadcast", {"channels": "news.a", "data": 1}))[0] == 107


async def test_batch_answers_in_order_and_names_each_method(node: BrokerNode) -> None:
    commands = [
        {"publish": {"channel": "news.a", "data": 1}},
        {"frobnicate": {}},
        None,
        {"publish": {"channel": "other", "data": 1}},
        {"publish": {}, "info": {}},
        {"batch": {"commands": []}},
        {"info": None},
    ]
    for parallel in (False, True):
        answer = await node.api("batch", {"commands": commands, "parallel": parallel})
        assert list(answer.json()) == ["replies"]
        replies = answer.json()["replies"]
        assert replies[0] == {"publish": {}}
        assert [one["error"]["code"] for one in replies[1:6]] == [104, 107, 102, 107, 104]
        assert len(replies[6]["info"]["nodes"]) == 1
    empty = await node.api("batch", {}, X_Centrifugo_Error_Mode="transport")
    assert (empty.status, empty.body) == (200, b"{}")


async def test_a_batch_in_order_publishes_in_order(node: BrokerNode) -> None:
    async with connected(node.websocket_url, topics=("news.a",)) as client:
        commands = [{"publish": {"channel": "news.a", "data": number}} for number in range(150)]
        for parallel in (False, True):
            await node.api("batch", {"commands": commands, "parallel": parallel})
            assert [await client.publication("news.a") for _ in commands] == list(range(150))


async def test_a_key_for_some_topics_and_methods_does_no_more(node: BrokerNode) -> None:
    assert (await node.api("publish", {"channel": "news.a", "data": 1}, NEWS)).json() == {"result": {}}
    for method in ("info", "disconnect", "channels", "history"):
        assert (await node.api(method, {}, NEWS)).status == 403
    refused = await node.api("publish", {"channel": "room:1", "data": 1}, NEWS)
    assert refused.json()["error"]["code"] == 103
    commands = [
        {"info": {}},
        {"publish": {"channel": "room:1", "data": 1}},
        {"publish": {"channel": "news.a", "data": 1}},
    ]
    replies = (await node.api("batch", {"commands": commands}, NEWS)).json()["replies"]
    assert [one.get("error", {"code": 0})["code"] for one in replies] == [103, 103, 0]
    responses = (await node.api("broadcast", {"channels": ["room:1", "news.a"], "data": 1}, NEWS)).json()
    assert [one.get("error", {"code": 0})["code"] for one in responses["result"]["responses"]] == [103, 0]
    assert (await node.api("unsubscribe", {"user": "ann"}, ROOMS)).json()["error"]["code"] == 103
    assert (await node.api("subscribe", {"user": "ann", "channel": "news.a"}, ROOMS)).json()["error"]["code"] == 103


async def test_channels_are_those_the_key_may_see_and_the_pattern_fits(node: BrokerNode) -> None:
    async with (
        connected(node.websocket_url, topics=("news.a", "news.b", "room:1")),
        connected(node.websocket_url, topics=("news.a",)),
    ):
        everything = {"news.a": {"num_clients": 2}, "news.b": {"num_clients": 1}, "room:1": {"num_clients": 1}}
        assert (await result(node, "channels"))["channels"] == everything
        assert set((await result(node, "channels", pattern="news.*"))["channels"]) == {"news.a", "news.b"}
        assert (await result(node, "channels", pattern="x*")) == {"channels": {}}
        assert set((await node.api("channels", {}, ROOMS)).json()["result"]["channels"]) == {"room:1"}


async def test_info_counts_clients_users_and_topics(node: BrokerNode) -> None:
    async with (
        connected(node.websocket_url, token("ann"), topics=("news.a",)),
        connected(node.websocket_url, token("ann"), topics=("news.a", "news.b")),
    ):
        (here,) = (await result(node, "info"))["nodes"]
        assert {name: here[name] for name in ("num_clients", "num_users", "num_subs", "num_channels")} == {
            "num_clients": 2,
            "num_users": 1,
            "num_subs": 3,
            "num_channels": 2,
        }
        assert here["uid"]
        assert here["name"] == node.name


async def test_subscribe_and_unsubscribe_act_on_a_users_connections(node: BrokerNode) -> None:
    async with connected(node.websocket_url, token("ann")) as ann, connected(node.websocket_url, token("bob")) as bob:
        assert await result(node, "subscribe", user="ann", channel="news.a", data={"x": "\n"}) == {}
        assert await ann.push() == {"channel": "news.a", "subscribe": {"data": {"x": "\n"}}}
        await node.publish("news.a", 1)
        assert await ann.publication("news.a") == 1
        assert await result(node, "unsubscribe", user="ann", channel="news.a") == {}
        assert (await ann.push())["unsubscribe"] == {"code": 2000, "reason": "server unsubscribe"}
        assert not any("push" in line for line in bob.lines)


async def test_wildcards_are_subscribed_to_listed_and_left_by_their_own_names(node: BrokerNode) -> None:
    async with connected(node.websocket_url, token("ann")) as ann:
        for name in ("news.*", "room:1.>", "news.a"):
            assert await result(node, "subscribe", user="ann", channel=name) == {}
            assert await ann.push() == {"channel": name, "subscribe": {}}
        listed = {"news.*": {"num_clients": 1}, "room:1.>": {"num_clients": 1}, "news.a": {"num_clients": 1}}
        assert (await result(node, "channels"))["channels"] == listed
        assert set((await node.api("channels", {}, ROOMS)).json()["result"]["channels"]) == {"room:1.>"}
        await node.publish("room:1.2.3", "deep")
        assert await ann.push() == {"channel": "room:1.>", "pub": {"data": "deep", "channel": "room:1.2.3"}}
        assert await result(node, "unsubscribe", user="ann", channel="news.*") == {}
        assert (await ann.push())["channel"] == "news.*"
        assert set((await result(node, "channels"))["channels"]) == {"room:1.>", "news.a"}


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe"])
async def test_wildcards_are_refused_with_their_reason(node: BrokerNode, method: str) -> None:
    for name, code, text in (
        ("news.a*", 107, "channel: mixes a wildcard with text in one token"),
        ("news.>.a", 107, "channel: > may stand only at the end"),
        ("*", 103, "* overlaps several policies (small, some); it has to stay within one"),
        ("other.*", 103, "no policy has topics that other.* matches"),
    ):
        refused = await error(node, method, {"user": "ann", "channel": name})
        assert (refused[0], text in refused[1]) == (code, True), refused
    for name, permitted in (("news.*", False), ("room:1.*", True)):
        answer = (await node.api(method, {"user": "ann", "channel": name}, ROOMS)).json()
        assert answer.get("error", {"code": 0})["code"] == (0 if permitted else 103)
    assert (await error(node, "presence", {"channel": "news.*"}))[0] == 107


async def test_disconnect_closes_with_code_and_reason(node: BrokerNode) -> None:
    for more, expected in (
        ({}, (3503, "force disconnect")),
        ({"disconnect": {"code": 4321, "reason": "go away"}}, (4321, "go away")),
        ({"disconnect": {"code": 4321}}, (4321, "force disconnect")),
        ({"code": 3001}, (3001, "shutdown")),
    ):
        async with connected(node.websocket_url, token("ann")) as ann:
            await result(node, "disconnect", user="ann", **more)
            assert (await ann.closed())[0] == expected[0]
            if expected[0] != 4321 or expected[1] == "go away":
                assert (await ann.closed()) == expected


async def test_refresh_tells_the_client_or_ends_it(node: BrokerNode) -> None:
    async with connected(node.websocket_url, token("ann")) as ann:
        assert await result(node, "refresh", user="ann", expire_at=int(time.time()) + 100) == {}
        assert (await ann.push())["refresh"]["expires"] is True
        assert await result(node, "refresh", user="ann", expired=True) == {}
        assert await ann.closed() == (3005, "connection expired")


@pytest.mark.parametrize(
    ("method", "request_", "text"),
    [
        ("subscribe", {"user": "ann", "channel": "a b"}, "channel: holds whitespace"),
        ("subscribe", {"user": "ann", "channel": "news.a", "b64data": "eA=="}, "b64data: "),
        ("subscribe", {"user": "ann", "channel": "news.a", "b64info": "eA=="}, "b64info: "),
        ("subscribe", {"user": "ann", "channel": "news.a", "expire_at": -1}, "expire_at: "),
        ("subscribe", {"user": "ann", "channel": "news.a", "session": "x"}, "session: "),
        ("unsubscribe", {"user": "ann", "channel": ".a"}, "channel: "),
        ("unsubscribe", {"user": 1}, "user: "),
        ("disconnect", {"user": "ann", "disconnect": {"code": 2999}}, "disconnect.code: "),
        ("disconnect", {"user": "ann", "disconnect": {"code": 5000}}, "disconnect.code: "),
        ("disconnect", {"user": "ann", "disconnect": {"reason": "x" * 124}}, "disconnect.reason: "),
        ("disconnect", {"user": "ann", "whitelist": "x"}, "whitelist: "),
        ("refresh", {"user": "ann", "expire_at": -1}, "expire_at: "),
        ("refresh", {"user": "ann", "expire_at": "soon"}, "expire_at: "),
        ("channels", {"pattern": 1}, "pattern: "),
        ("batch", {"commands": {}}, "commands: "),
    ],
)
async def test_bad_input_is_told_with_its_field(node: BrokerNode, method: str, request_: Any, text: str) -> None:
    code, message = await error(node, method, request_)
    assert (code, message.startswith(f"bad request: {text}")) == (107, True), message


@pytest.mark.parametrize("method", ["presence", "presence_stats", "history", "history_remove"])
async def test_what_no_policy_has_is_not_available(node: BrokerNode, method: str) -> None:
    assert (await error(node, method, {"channel": "news.a"}))[0] == 108
    assert (await error(node, method, {"channel": "other"}))[0] == 102
    assert (await error(node, method, {}))[0] == 107


async def test_presence_tells_who_is_there_and_presence_stats_how_many(node: BrokerNode) -> None:
    topic = "room:seen.a"
    assert await result(node, "presence", channel=topic) == {"presence": {}}
    assert await result(node, "presence_stats", channel=topic) == {"num_clients": 0, "num_users": 0}
    async with (
        connected(node.websocket_url, token("ann", info={"n": 1.50}), topics=(topic,)) as ann,
        connected(node.websocket_url, token("ann"), topics=(topic,)),
    ):
        client = ann.lines[0]["connect"]["client"]
        members = (await result(node, "presence", channel=topic))["presence"]
        assert (len(members), members[client]) == (2, {"user": "ann", "client": client, "conn_info": {"n": 1.5}})
        assert await result(node, "presence_stats", channel=topic) == {"num_clients": 2, "num_users": 1}


@pytest.mark.parametrize("method", ["presence", "presence_stats"])
async def test_presence_is_for_keys_that_may_touch_the_topic(node: BrokerNode, method: str) -> None:
    request = {"channel": "room:seen.a"}
    allowed = await node.api(method, request, key=ROOMS)
    assert "result" in allowed.json()
    assert (await node.api(method, request, key=NEWS)).status == 403  # the method is not among this key's
    other = await node.api(method, {"channel": "news.a"}, key=ROOMS)
    assert other.json()["error"]["code"] == 103
    assert await error(node, method, {"channel": "news.a"}) == (
        108,
        "not available: channel: its policy has no presence",
    )


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe", "disconnect", "refresh"])
async def test_acting_on_somebody_absent_succeeds(node: BrokerNode, method: str) -> None:
    assert await result(node, method, user="nobody", channel="news.a", client="x") == {}
