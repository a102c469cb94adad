"""The Python SDK (`centrifuge-python`), as it is on PyPI."""

from __future__ import annotations

import json

import pytest
from centrifuge import Client, ClientState, ReplyError, SubscriptionState

from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.recorder import Recorder, sdk_client, subscribed
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

POLICIES = [
    {"name": "closed", "match": ["closed.>"]},
    {"name": "read-only", "match": ["read.>"], "subscribe": "anyone", "publish": "nobody"},
    {"name": "users", "match": ["users.>"], "subscribe": "authenticated", "publish": "authenticated"},
    {"name": "open", "match": ["open.>"], "subscribe": "anyone", "publish": "anyone"},
]


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    return module_site.start_node(nats, {"topics": POLICIES, "auth": {"personal_topic": "open.personal.{sub}"}})


@pytest.mark.parametrize("user", ["", "ann"], ids=["anonymous", "with a token"])
async def test_what_is_published_over_http_reaches_a_subscriber(node: BrokerNode, user: str) -> None:
    async with sdk_client(node.websocket_url, token=token(user) if user else "") as client:
        news = await subscribed(client, "open.news")
        await node.publish("open.news", {"text": "grüße", "big": 2**60, "none": None})

        assert (await news.first("publication")).pub.data == {"text": "grüße", "big": 2**60, "none": None}


async def test_a_client_sees_its_own_publication_before_the_reply_to_it(node: BrokerNode) -> None:
    async with sdk_client(node.websocket_url, token=token("ann", info={"colour": "red"})) as client:
        news = await subscribed(client, "open.own")
        for number in range(20):
            await client.publish("open.own", {"n": number})
            assert len(news.data) == number + 1
        info = news.of("publication")[0].pub.info

    assert news.data == [{"n": number} for number in range(20)]
    assert (info.user, info.conn_info) == ("ann", {"colour": "red"})


async def test_a_wildcard_is_a_subscription_like_any_other(node: BrokerNode) -> None:
    async with sdk_client(node.websocket_url, token=token("ann")) as client:
        all_rooms, one_room = await subscribed(client, "open.rooms.*"), await subscribed(client, "open.rooms.1")
        for room in (1, 2, 3):
            await node.publish(f"open.rooms.{room}", {"room": room})
        await client.publish("open.rooms.2", "own")
        assert all_rooms.data == [{"room": 1}, {"room": 2}, {"room": 3}, "own"]
        assert one_room.data == [{"room": 1}]

        await client.get_subscription("open.rooms.*").unsubscribe()
        await node.publish("open.rooms.1", "after")
        await one_room.at_least(2, "publication")
        assert len(all_rooms.data) == 4
        assert (await _refusal(client, "*.rooms"))[0] == 103
        assert (await _refusal(client, "open.r*"))[0] == 107


async def test_after_an_unsubscribe_nothing_comes_any_more(node: BrokerNode) -> None:
    async with sdk_client(node.websocket_url) as client:
        left = await subscribed(client, "open.left")
        kept = await subscribed(client, "open.kept")
        await client.get_subscription("open.left").unsubscribe()
        await node.publish("open.left", "unheard")
        await node.publish("open.kept", "heard")
        await kept.first("publication")

        assert left.data == []
        assert await eventually(lambda: left.of("unsubscribed"))
        assert client.state is ClientState.CONNECTED


async def test_a_token_that_expires_is_renewed_by_the_callback(node: BrokerNode) -> None:
    asked: list[str] = []

    async def renew() -> str:
        asked.append("connection")
        return token("ann", ttl_seconds=2)

    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder, get_token=renew) as client:
        await client.ready()
        await eventually(lambda: len(asked) >= 3)

        assert client.state is ClientState.CONNECTED
        assert len(recorder.of("connecting")) == 1


async def test_a_token_that_has_expired_already_makes_the_sdk_fetch_another(node: BrokerNode) -> None:
    async def renew() -> str:
        return token("ann")

    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder, token=token("ann", ttl_seconds=-60), get_token=renew):
        await recorder.first("connected")


async def test_a_connection_that_nobody_renews_is_ended(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"auth": {"leeway_seconds": 0}})
    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder, token=token("ann", ttl_seconds=2)) as client:
        await recorder.first("connected")
        # without get_token the SDK has nothing to come back with
        await recorder.first("disconnected")

        assert client.state is ClientState.DISCONNECTED
    assert await node.metric('broker_closes_total{code="3005"') == 1


async def test_a_subscription_token_lets_in_and_is_renewed(node: BrokerNode) -> None:
    asked: list[str] = []

    async def renew(topic: str) -> str:
        asked.append(topic)
        return token("ann", channel=topic, ttl_seconds=2)

    async with sdk_client(node.websocket_url, token=token("ann")) as client:
        room = await subscribed(client, "closed.room", get_token=renew)
        await eventually(lambda: len(asked) >= 3)
        await node.publish("closed.room", "still here")

        assert (await room.first("publication")).pub.data == "still here"
        assert len(room.of("subscribing")) == 1


async def test_a_subscription_whose_token_expires_is_taken_up_again(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"auth": {"leeway_seconds": 0}, "topics": POLICIES})
    asked: list[str] = []

    async def late(topic: str) -> str:
        asked.append(topic)
        if len(asked) == 1:
            return token("ann", channel=topic, ttl_seconds=2)
        # the SDK asks when the first has expired; the answer comes when the server has ended the subscription
        await eventually(lambda: room.of("subscribing")[1:])
        return token("ann", channel=topic)

    room = Recorder()
    async with sdk_client(node.websocket_url, token=token("ann")) as client:
        subscription = client.new_subscription("closed.room", events=room, get_token=late)
        await subscription.subscribe()
        (_, again) = await room.at_least(2, "subscribing")
        await room.at_least(2, "subscribed")

        assert again.code == 2501
        assert client.state is ClientState.CONNECTED


async def test_the_server_subscribes_to_what_the_token_says_and_to_the_personal_topic(node: BrokerNode) -> None:
    recorder = Recorder()
    with_topics = token("bob", channels=["closed.bob"], subs={"closed.info": {"data": {"hello": 1}}})
    async with sdk_client(node.websocket_url, recorder, token=with_topics):
        await recorder.at_least(3, "subscribed")
        for topic in ("closed.bob", "closed.info", "open.personal.bob"):
            await node.publish(topic, topic)
        await recorder.at_least(3, "publication")

    assert {(one.channel, json.dumps(one.data)) for one in recorder.of("subscribed")} == {
        ("closed.bob", "null"),
        ("closed.info", '{"hello": 1}'),
        ("open.personal.bob", "null"),
    }
    assert sorted(recorder.data) == ["closed.bob", "closed.info", "open.personal.bob"]


async def test_capabilities_in_the_token_open_topics(node: BrokerNode) -> None:
    caps = [{"channels": ["closed.{sub}.>"], "allow": ["sub", "pub"]}]
    async with sdk_client(node.websocket_url, token=token("ann", caps=caps)) as client:
        await subscribed(client, "closed.ann.inbox")
        await client.publish("closed.ann.inbox", "mine")

        with pytest.raises(ReplyError) as refused:
            await client.publish("closed.bob.inbox", "not mine")
        assert refused.value.code == 103


async def _refusal(client: Client, topic: str, **options: object) -> tuple[int, str]:
    """How a subscription ends that is not allowed."""
    recorder = Recorder()
    await client.new_subscription(topic, events=recorder, **options).subscribe()
    ended = await recorder.first("unsubscribed")
    assert client.get_subscription(topic).state is SubscriptionState.UNSUBSCRIBED
    return ended.code, ended.reason


async def test_what_is_not_allowed_is_refused_with_its_code_and_nothing_else_happens(node: BrokerNode) -> None:
    async def for_another(topic: str) -> str:
        return token("ann", channel=topic, secret="x" * 32)

    async with sdk_client(node.websocket_url, token=token("ann")) as client:
        assert (await _refusal(client, "closed.secret"))[0] == 103
        assert (await _refusal(client, "closed.forged", get_token=for_another))[0] == 103
        assert (await _refusal(client, "nowhere"))[0] == 102
        assert (await _refusal(client, "open..empty"))[0] == 107
        for topic, code in (("read.news", 103), ("closed.secret", 103), ("nowhere", 102), ("open.*", 107)):
            with pytest.raises(ReplyError) as refused:
                await client.publish(topic, 1)
            assert refused.value.code == code
        for ask in (client.presence, client.presence_stats, client.history):
            with pytest.raises(ReplyError) as refused:
                await ask("open.news")
            assert refused.value.code == 108
        with pytest.raises(ReplyError) as refused:
            await client.rpc("sum", [1, 2])
        assert refused.value.code == 108

        assert client.state is ClientState.CONNECTED


async def test_the_anonymous_are_kept_out_of_what_is_for_users(node: BrokerNode) -> None:
    async with sdk_client(node.websocket_url) as anonymous:
        assert (await _refusal(anonymous, "users.lounge"))[0] == 103
    async with sdk_client(node.websocket_url, token=token("ann")) as user:
        await subscribed(user, "users.lounge")


@pytest.mark.parametrize(
    ("forged", "code"),
    [(token("ann", secret="y" * 32), 3500), ("not.a.token", 3500)],
    ids=["signed with another secret", "malformed"],
)
async def test_a_bad_token_ends_the_connection_for_good(node: BrokerNode, forged: str, code: int) -> None:
    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder, token=forged):
        ended = await recorder.first("disconnected")

    assert ended.code == code
    assert len(recorder.of("connecting")) == 1


async def test_a_token_is_required_where_the_anonymous_are_not_let_in(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"auth": {"anonymous": False}})
    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder):
        assert (await recorder.first("disconnected")).code == 3501


async def test_a_disconnect_by_the_api_is_final_or_not_as_its_code_says(node: BrokerNode) -> None:
    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder, token=token("eve")):
        await recorder.first("connected")
        await node.api("disconnect", {"user": "eve", "disconnect": {"code": 4000, "reason": "come again"}})
        await recorder.at_least(2, "connected")
        await node.api("disconnect", {"user": "eve"})
        ended = await recorder.first("disconnected")

    assert (recorder.of("connecting")[1].code, recorder.of("connecting")[1].reason) == (4000, "come again")
    assert (ended.code, ended.reason) == (3503, "force disconnect")


async def test_clients_come_back_to_a_node_that_was_restarted(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats)
    recorder = Recorder()
    async with sdk_client(node.websocket_url, recorder) as client:
        news = await subscribed(client, "news")
        assert await node.stopped() == 0
        node.start()
        await node.ready()
        await recorder.at_least(2, "connected")
        await news.at_least(2, "subscribed")
        await node.publish("news", "back")

        assert (await news.first("publication")).pub.data == "back"
    assert recorder.of("connecting")[1].code == 3001
