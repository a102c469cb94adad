"""The JavaScript SDK, as it is on npm, under Node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.javascript import javascript_client
from tests.harness.nats import NatsServer
from tests.harness.node import EVERYTHING, BrokerNode
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    return module_site.start_node(nats, {"topics": [{"name": "closed", "match": ["closed.>"]}, *EVERYTHING]})


async def test_it_connects_subscribes_receives_and_publishes(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url, token=token("ann", info={"age": 7})) as client:
        await client.subscribe("news")
        answer = await node.api("publish", {"channel": "news", "data": {"text": "grüße"}, "tags": {"a": "b"}})
        assert answer.status == 200
        client.do("publish", channel="news", data=[1, None])
        await client.first("published")

    over_http, own = client.of("publication")
    assert (over_http["data"], over_http["tags"]) == ({"text": "grüße"}, {"a": "b"})
    assert (own["data"], own["info"]["user"], own["info"]["connInfo"]) == ([1, None], "ann", {"age": 7})
    # a client that publishes where it is subscribed has its publication before the reply
    assert client.events.index(own) < client.events.index(client.of("published")[0])


async def test_a_wildcard_is_a_subscription_like_any_other(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url) as client:
        await client.subscribe("rooms.*.>")
        for topic in ("rooms.1", "rooms.1.a", "rooms.2.a.b"):
            await node.publish(topic, topic)
        (first, second) = await client.at_least(2, "publication")

    assert [(one["channel"], one["data"]) for one in (first, second)] == [
        ("rooms.*.>", "rooms.1.a"),
        ("rooms.*.>", "rooms.2.a.b"),
    ]


async def test_it_connects_without_a_token_where_the_anonymous_are_let_in(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url) as client:
        await client.first("connected")
        client.do("publish", channel="closed.room", data=1)

        assert (await client.first("refused"))["code"] == 103


async def test_its_tokens_are_renewed(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url, renewed=True) as client:
        await client.first("token wanted")
        client.do("token", token=token("ann", ttl_seconds=2))
        await client.first("connected")
        client.do("subscribe", channel="closed.room", renewed=True)
        await eventually(lambda: any(one["channel"] for one in client.of("token wanted")))
        client.do("token", token=token("ann", channel="closed.room"))
        await client.first("subscribed")
        await client.at_least(3, "token wanted")
        client.do("token", token=token("ann", ttl_seconds=3600))
        await node.publish("closed.room", "still here")

        assert (await client.first("publication"))["data"] == "still here"
        assert len(client.of("connecting")) == len(client.of("subscribing")) == 1


async def test_a_topic_that_is_not_allowed_ends_the_subscription_only(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url) as client:
        client.do("subscribe", channel="closed.room")
        assert (await client.first("unsubscribed"))["code"] == 103
        await client.subscribe("news")


async def test_unsubscribing_works_from_both_sides(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url, token=token("una")) as client:
        for topic in ("by.client", "by.server", "kept"):
            await client.subscribe(topic)
        client.do("unsubscribe", channel="by.client")
        await client.first("unsubscribed")
        await node.api("unsubscribe", {"user": "una", "channel": "by.server"})
        await client.at_least(2, "unsubscribed")
        for topic in ("by.client", "by.server", "kept"):
            await node.publish(topic, topic)
        await client.first("publication")

    assert [(one["channel"], one["code"]) for one in client.of("unsubscribed")] == [
        ("by.client", 0),
        ("by.server", 2000),
    ]
    assert [one["channel"] for one in client.of("publication")] == ["kept"]


async def test_server_side_subscriptions_are_its_too(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url, token=token("sue", channels=["closed.sue"])) as client:
        await client.first("server subscribed")
        await node.publish("closed.sue", "yours")

        assert await client.first("server publication") == {
            "event": "server publication",
            "channel": "closed.sue",
            "data": "yours",
        }


async def test_it_honours_close_codes(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url, token=token("jo")) as client:
        await client.first("connected")
        await node.api("disconnect", {"user": "jo", "disconnect": {"code": 3001, "reason": "shutdown"}})
        await client.at_least(2, "connected")
        await node.api("disconnect", {"user": "jo"})
        ended = await client.first("disconnected")

    assert (ended["code"], ended["reason"]) == (3503, "force disconnect")
    assert [one["code"] for one in client.of("connecting")] == [0, 3001]


async def test_a_bad_token_is_final(node: BrokerNode, javascript: Path) -> None:
    async with javascript_client(javascript, node.websocket_url, token=token("ann", secret="z" * 32)) as client:
        assert (await client.first("disconnected"))["code"] == 3500


async def test_it_comes_back_to_a_node_that_was_killed(site: Site, nats: NatsServer, javascript: Path) -> None:
    node = site.start_node(nats)
    async with javascript_client(javascript, node.websocket_url) as client:
        await client.subscribe("news")
        node.kill()
        await client.at_least(2, "connecting")
        node.start()
        await node.ready()
        await client.at_least(2, "subscribed")
        await node.publish("news", "back")

        assert (await client.first("publication"))["data"] == "back"
