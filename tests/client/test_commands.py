"""What each command answers, in its own situation."""

from __future__ import annotations

from typing import Any

import pytest

from broker import __version__
from tests.client.conversing import staged
from tests.harness.nats import NatsServer
from tests.harness.tokens import token

pytestmark = pytest.mark.anyio

PRIVATE = [
    {"name": "mine", "match": ["mine.>"]},
    {"name": "users", "match": ["users.>"], "subscribe": "authenticated", "publish": "authenticated"},
    {"name": "locked", "match": ["locked"], "subscribe": "nobody", "publish": "nobody"},
    {"name": "open", "match": ["open", "open.>"], "subscribe": "anyone", "publish": "anyone", "message_bytes": 100},
]


async def test_connecting_tells_who_one_is_and_where(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        (line,) = conversation.lines
        assert line["connect"] == {
            "client": conversation.client.id,
            "version": __version__,
            "ping": 25,
            "pong": True,
            "node": "here",
        }
        assert list(stage.node.clients) == [conversation.client.id]


async def test_connecting_twice_closes(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        conversation.say({"id": 2, "connect": {}})
        assert conversation.closed == (3501, "bad request: connected already")


@pytest.mark.parametrize(
    "first",
    [{"id": 1, "subscribe": {"channel": "a"}}, {"id": 1, "publish": {"channel": "a", "data": 1}}, {}, {"send": {}}],
)
async def test_the_first_command_must_be_connect(nats: NatsServer, first: Any) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.say(first)
        assert conversation.closed == (3501, "bad request: the first command must be connect")
        assert conversation.lines == []


@pytest.mark.parametrize(
    "frame", [b"", b"\n", b"{", b"[]", b"1", b"null", b'{"id":1,"connect":{}}\n\n', b"\xff", b'{"id":-1,"connect":{}}']
)
async def test_what_is_no_frame_of_commands_closes(nats: NatsServer, frame: bytes) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.client.received(frame)
        assert conversation.closed is not None
        assert conversation.closed[0] == 3501


async def test_commands_before_a_malformed_line_are_answered(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.client.received(b'{"id":1,"connect":{}}\n{"id":2,"unsubscribe":{"channel":"a"}}\n{"id"')
        assert [line["id"] for line in conversation.lines] == [1, 2]
        assert conversation.closed == (3501, "bad request: malformed JSON")


async def test_without_a_token_where_one_is_needed_the_connection_is_closed(nats: NatsServer) -> None:
    async with staged(nats, auth={"anonymous": False}) as stage:
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {}})
        assert conversation.closed == (3501, "bad request: connect.token: missing")
        nobody = stage.open()
        nobody.say({"id": 1, "connect": {"token": token()}})
        assert nobody.closed is not None
        assert nobody.closed[0] == 3500
        assert stage.node.clients == {}


@pytest.mark.parametrize(
    ("made", "reply", "close"),
    [
        (token("ann", ttl_seconds=-60), 109, None),
        (token("ann", secret="another secret of more than 32 bytes!!"), None, 3500),
        ("rubbish", None, 3500),
        (token("ann", ttl_seconds=None), None, 3500),
        (token("ann", channel="a"), None, 3500),
    ],
    ids=["expired", "signature", "malformed", "no exp", "a subscription token"],
)
async def test_connection_tokens_by_the_table(
    nats: NatsServer, made: str, reply: int | None, close: int | None
) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {"token": made}})
        assert [line["error"]["code"] for line in conversation.lines] == ([reply] if reply else [])
        assert (conversation.closed[0] if conversation.closed else None) == close
        assert stage.node.clients == {}


async def test_a_token_that_expired_can_be_replaced_on_the_same_connection(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        assert await conversation.refused("connect", token=token("ann", ttl_seconds=-60)) == (109, "token expired")
        result = await conversation.call("connect", token=token("ann"))
        assert (result["expires"], 3590 < result["ttl"] <= 3600) == (True, True)


async def test_topics_that_cannot_be_are_told_with_their_field(nats: NatsServer) -> None:
    async with staged(nats, topics=PRIVATE) as stage:
        conversation = await stage.connect()
        for topic in (
            "",
            "a..b",
            ".a",
            "open.>.x",
            "open*",
            "open:*",
            "a b",
            "$SYS",
            "_INBOX.x",
            "a" * 256,
            ".".join("a" * 17),
        ):
            for method, request in (("subscribe", {}), ("publish", {"data": 1})):
                code, message = await conversation.refused(method, channel=topic, **request)
                assert (code, message.startswith(f"bad request: {method}.channel: ")) == (107, True), topic
        assert await conversation.refused("subscribe", channel="unheard.of") == (102, "unknown channel")
        assert await conversation.refused("publish", channel="unheard.of", data=1) == (102, "unknown channel")
        assert conversation.closed is None


async def test_policies_say_who_may_subscribe_and_publish(nats: NatsServer) -> None:
    async with staged(nats, topics=PRIVATE) as stage:
        anonymous = await stage.connect()
        ann = await stage.connect(token("ann"))
        for topic, of_anonymous, of_ann in (
            ("open", True, True),
            ("users.x", False, True),
            ("mine.x", False, False),
            ("locked", False, False),
        ):
            for one, allowed in ((anonymous, of_anonymous), (ann, of_ann)):
                for method, request in (("subscribe", {}), ("publish", {"data": 1})):
                    reply = await one.ask(method, channel=topic, **request)
                    assert (reply.get("error", {"code": 0})["code"] == 103) is not allowed, (topic, method)


async def test_caps_of_the_token_grant_what_they_name_and_no_more(nats: NatsServer) -> None:
    caps = [{"channels": ["mine.{sub}.>"], "allow": ["sub", "pub"]}, {"channels": ["mine.read.*"], "allow": ["sub"]}]
    async with staged(nats, topics=PRIVATE) as stage:
        ann = await stage.connect(token("ann", caps=caps))
        await ann.call("subscribe", channel="mine.ann.x")
        await ann.call("publish", channel="mine.ann.x", data=1)
        await ann.call("subscribe", channel="mine.read.x")
        for method, topic in (("publish", "mine.read.x"), ("subscribe", "mine.bob.x"), ("subscribe", "mine.ann")):
            assert await ann.refused(method, channel=topic, data=1) == (103, "permission denied")
        sly = await stage.connect(token("bob.>", caps=caps))
        assert await sly.refused("subscribe", channel="mine.bob.x") == (103, "permission denied")
        await sly.call("subscribe", channel="mine.bob%2E%3E.x")
        nobody = await stage.connect(token("", caps=caps))
        assert await nobody.refused("subscribe", channel="mine.ann.x") == (103, "permission denied")


async def test_subscribing_twice_is_105_and_unsubscribing_twice_is_fine(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        assert await conversation.call("subscribe", channel="a") == {}
        assert await conversation.refused("subscribe", channel="a") == (105, "already subscribed")
        for _ in range(2):
            assert await conversation.call("unsubscribe", channel="a") == {}
        await conversation.call("subscribe", channel="a")
        await stage.publish("a", 1)
        await conversation.heard("a", 1)


async def test_a_client_may_have_so_many_topics(nats: NatsServer) -> None:
    async with staged(nats, limits={"topics_per_connection": 2}) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="a")
        await conversation.call("subscribe", channel="b")
        assert (await conversation.refused("subscribe", channel="c"))[0] == 106
        await conversation.call("unsubscribe", channel="a")
        await conversation.call("subscribe", channel="c")


async def test_a_publication_says_who_made_it_and_keeps_its_json(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        ann = await stage.connect(token("ann", info={"name": "Åsa"}))
        await ann.call("subscribe", channel="a", token=token("ann", channel="a", info=[1, 2]))
        bob = await stage.connect()
        await bob.call("subscribe", channel="a")
        ann.client.received(b'{"id":7,"publish":{"channel":"a","data": {"b" :\t1.50,\r "a":"\\u00e5"} }}')
        await ann.reply(7)
        await bob.heard("a", {"b": 1.5, "a": "å"})
        assert b'"data":{"b" :\t1.50, "a":"\\u00e5"}' in bob.outlet.payloads[-1]
        info = {"user": "ann", "client": ann.client.id, "conn_info": {"name": "Åsa"}, "chan_info": [1, 2]}
        assert bob.pushes[-1]["pub"]["info"] == info


async def test_publishing_needs_data_within_the_limit_and_null_is_data(nats: NatsServer) -> None:
    async with staged(nats, topics=PRIVATE) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="open")
        assert await conversation.refused("publish", channel="open") == (107, "bad request: publish.data: missing")
        await conversation.call("publish", channel="open", data="x" * 98)
        code, message = await conversation.refused("publish", channel="open", data="x" * 99)
        assert (code, message) == (106, "limit exceeded: publish.data: 101 bytes, at most 100 are allowed")
        await conversation.call("publish", channel="open", data=None)
        await conversation.heard("open", "x" * 98, None)


@pytest.mark.parametrize("method", ["presence", "presence_stats", "history"])
async def test_what_no_policy_has_is_not_available(nats: NatsServer, method: str) -> None:
    async with staged(nats, topics=PRIVATE) as stage:
        conversation = await stage.connect()
        assert (await conversation.refused(method, channel="open"))[0] == 108
        assert (await conversation.refused(method, channel="unheard.of"))[0] == 102
        assert (await conversation.refused(method, channel="a..b"))[0] == 107


async def test_rpc_is_not_available_and_send_ends_the_connection(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        assert (await conversation.refused("rpc", method="x", data={}))[0] == 108
        conversation.say({"send": {"data": {}}})
        assert conversation.closed == (3508, "not available: send: nothing handles it here")


async def test_methods_that_do_not_exist_are_104(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        assert await conversation.refused("frobnicate") == (104, "method not found: 'frobnicate'")
        conversation.say({"id": 9})
        assert (await conversation.reply(9))["error"]["code"] == 104


async def test_a_command_without_an_id_closes(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        conversation.say({"subscribe": {"channel": "a"}})
        assert conversation.closed == (3501, "bad request: command without id")


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("subscribe", {"channel": 1}, "subscribe.channel: "),
        ("subscribe", {"channel": "a", "recover": "yes"}, "subscribe.recover: "),
        ("publish", {"channel": ["a"], "data": 1}, "publish.channel: "),
        ("history", {"channel": "a", "limit": "1"}, "history.limit: "),
        ("history", {"channel": "a", "since": {"offset": "x"}}, "history.since.offset: "),
        ("refresh", {"token": 1}, "refresh.token: "),
        ("sub_refresh", {"channel": {}}, "sub_refresh.channel: "),
        ("unsubscribe", [], "unsubscribe: "),
    ],
)
async def test_a_wrong_type_is_told_with_its_field(nats: NatsServer, method: str, request_: Any, field: str) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        conversation.say({"id": 5, method: request_})
        error = (await conversation.reply(5))["error"]
        assert (error["code"], error["message"].startswith(f"bad request: {field}")) == (107, True), error
        assert conversation.closed is None


async def test_a_wrong_type_in_connect_closes_and_names_the_field(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {"token": 1}})
        assert conversation.closed is not None
        assert conversation.closed[1].startswith("bad request: connect.token: ")


async def test_unknown_fields_are_passed_over(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {"future": {"a": [1]}, "data": {}, "name": "js"}, "more": 1})
        await conversation.reply(1)
        result = await conversation.call("subscribe", channel="a", tf={"op": "x"}, flag=3, delta="fossil", zzz=None)
        assert result == {}


async def test_a_subscription_that_wants_to_recover_is_told_that_it_was(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        result = await conversation.call("subscribe", channel="a", recover=True, epoch="x", offset=5)
        assert result == {"was_recovering": True}
