"""Subscriptions that the server makes: by token, by setting, and by the API's operations."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec import Raw

from broker.operations import Disconnect, Operations, Refresh, Subscribe, Unsubscribe
from tests.client.conversing import staged
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """For a test that pauses it."""
    return site.start_nats()


LOCKED = [{"name": "locked", "match": [">"], "subscribe": "nobody", "publish": "nobody"}]


async def test_topics_of_the_token_are_subscribed_before_the_reply(nats: NatsServer) -> None:
    subs = {"b": {"data": {"hello": 1}, "info": {"seat": 2}}}
    async with staged(nats, topics=LOCKED) as stage:
        for number in range(20):
            topic = f"a.{number}"
            conversation = stage.open()
            made = token("ann", channels=[topic], subs=subs)
            result = await conversation.call("connect", token=made)
            assert result["subs"] == {topic: {}, "b": {"data": {"hello": 1}}}
            await stage.publish(topic, number)
            await conversation.heard(topic, number)
            assert (await conversation.refused("subscribe", channel=topic))[0] == 105
        session = conversation.client.session
        assert session is not None
        assert session.client_info("b").chan_info == b'{"seat":2}'


async def test_other_commands_wait_for_the_connect_that_waits(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.say(
            {"id": 1, "connect": {"token": token("ann", channels=["a"])}}, {"id": 2, "unsubscribe": {"channel": "x"}}
        )
        conversation.say({"id": 3, "unsubscribe": {"channel": "a"}})
        assert conversation.lines == []
        await conversation.reply(3)
        assert [line["id"] for line in conversation.lines] == [1, 2, 3]


async def test_topics_of_the_token_that_cannot_be_are_an_error_of_connect(nats: NatsServer) -> None:
    topics = [{"name": "a", "match": ["a.>"]}]
    async with staged(nats, topics=topics, limits={"topics_per_connection": 2}) as stage:
        conversation = stage.open()
        assert (await conversation.refused("connect", token=token("ann", channels=["unheard.of"])))[0] == 102
        many = token("ann", channels=["a.1", "a.2", "a.3"])
        assert (await conversation.refused("connect", token=many))[0] == 106
        assert stage.node.clients == {}


async def test_without_nats_a_connect_with_topics_is_to_come_again(site: Site) -> None:
    server = site.start_nats()
    async with staged(server) as stage:
        server.kill()
        await eventually(lambda: not stage.node.connection.connected)
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {"token": token("ann", channels=["a", "b"])}})
        await eventually(lambda: conversation.closed)
        assert conversation.closed is not None
        assert conversation.closed[0] == 3010
        conversation.client.lost()
        assert (stage.node.clients, stage.node.users, stage.node.hub.topics) == ({}, {}, {})


async def test_each_user_has_its_personal_topic_and_nobody_else_in_it(nats: NatsServer) -> None:
    async with staged(nats, auth={"personal_topic": "#{sub}"}, topics=LOCKED) as stage:
        ann, tricky, nobody = stage.open(), stage.open(), stage.open()
        assert (await ann.call("connect", token=token("ann")))["subs"] == {"#ann": {}}
        assert (await tricky.call("connect", token=token("ann.>")))["subs"] == {"#ann%2E%3E": {}}
        assert "subs" not in await nobody.call("connect")
        await stage.publish("#ann", 1)
        await ann.heard("#ann", 1)
        assert (await nobody.refused("subscribe", channel="#ann"))[0] == 103
        assert tricky.pushes == []


async def test_all_connections_of_a_user_are_subscribed_and_unsubscribed_on_all_nodes(nats: NatsServer) -> None:
    async with staged(nats, topics=LOCKED) as stage, staged(nats, stage.node.options.prefix, topics=LOCKED) as other:
        await eventually(lambda: stage.node.control.peers and other.node.control.peers)
        operations = Operations(stage.node)
        Operations(other.node)
        here, there, bob = [
            await at.connect(token(who)) for at, who in ((stage, "ann"), (other, "ann"), (stage, "bob"))
        ]
        await operations.everywhere(Subscribe(user="ann", channel="a", data=Raw(b'{"x":1}'), info=Raw(b"2")))
        for one in (here, there):
            await eventually(lambda one=one: one.pushes == [{"channel": "a", "subscribe": {"data": {"x": 1}}}])  # type: ignore[misc]
        await other.publish("a", "to ann")
        await here.heard("a", "to ann")
        await there.heard("a", "to ann")
        await operations.everywhere(Unsubscribe(user="ann", channel="a"))
        for one in (here, there):
            assert one.pushes[-1] == {"channel": "a", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
        assert bob.pushes == []
        assert (stage.node.hub.topics, other.node.hub.topics) == ({}, {})


async def test_payloads_on_several_lines_stay_on_one(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        operations = Operations(stage.node)
        ann, bob = await stage.connect(token("ann")), await stage.connect()
        pretty = Raw(b'{\n  "x": 1\r\n}')
        await operations.everywhere(Subscribe(user="ann", channel="a", data=pretty, info=pretty))
        assert ann.pushes == [{"channel": "a", "subscribe": {"data": {"x": 1}}}]
        await bob.call("subscribe", channel="a")
        await ann.call("publish", channel="a", data=1)
        await bob.heard("a", 1)
        assert bob.pushes[0]["pub"]["info"]["chan_info"] == {"x": 1}


async def test_one_client_of_a_user_can_be_named(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        operations = Operations(stage.node)
        one, two = await stage.connect(token("ann")), await stage.connect(token("ann"))
        await operations.everywhere(Disconnect(user="ann", client=one.client.id))
        assert (one.closed, two.closed) == ((3503, "force disconnect"), None)
        await operations.everywhere(Disconnect(user="bob", client=two.client.id))
        assert two.closed is None


async def test_those_on_the_whitelist_stay_and_the_anonymous_are_a_user_too(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        operations = Operations(stage.node)
        one, two, ann = await stage.connect(), await stage.connect(), await stage.connect(token("ann"))
        await operations.everywhere(Disconnect(user="", whitelist=[two.client.id], code=4001, reason="over"))
        assert (one.closed, two.closed, ann.closed) == ((4001, "over"), None, None)


async def test_unsubscribing_without_a_topic_leaves_all(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        ann = await stage.connect(token("ann", channels=["a"]))
        await ann.call("subscribe", channel="b")
        await Operations(stage.node).everywhere(Unsubscribe(user="ann"))
        assert {push["channel"] for push in ann.pushes} == {"a", "b"}
        assert stage.node.hub.topics == {}


async def test_an_operation_can_end_or_extend_connections(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        operations = Operations(stage.node)
        ann, bob = await stage.connect(token("ann", ttl_seconds=60)), await stage.connect(token("bob"))
        soon = int(time.time()) + 600
        await operations.everywhere(Refresh(user="ann", expire_at=soon))
        assert ann.lines[-1]["push"]["refresh"]["expires"] is True
        stage.clock.ahead += 120
        ann.client.wake(stage.node.clock())
        assert ann.closed is None
        await operations.everywhere(Refresh(user="ann"))
        assert ann.lines[-1] == {"push": {"refresh": {}}} or ann.closed is not None
        await operations.everywhere(Refresh(user="bob", expired=True))
        assert bob.closed == (3005, "connection expired")


async def test_operations_on_somebody_absent_or_half_connected_succeed(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        operations = Operations(stage.node)
        stage.open()  # has said nothing yet
        for operation in (Subscribe(channel="a"), Unsubscribe(channel="a"), Disconnect(), Refresh(user="x")):
            answers, unanswered = await operations.everywhere(operation)
            assert (answers, unanswered) == ([b"{}"], [])


async def test_a_disconnect_within_the_moment_of_the_connect_reply_is_not_lost(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        operations = Operations(stage.node)
        for _ in range(100):
            ann = stage.open()
            ann.say({"id": 1, "connect": {"token": token("ann", channels=["a"])}})
            await operations.everywhere(Disconnect(user="ann"))
            assert ann.closed == (3503, "force disconnect")
            ann.client.lost()
        await eventually(lambda: not stage.node.hub.topics)


async def test_nothing_comes_before_the_answer_to_connect(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        await (await stage.connect(token("bob"))).call("subscribe", channel="hot")
        for number in range(30):
            conversation = stage.open()
            # the one has subscribers here already, the other has to be asked for
            made = token("ann", channels=["hot", f"cold.{number}"])
            conversation.say({"id": 1, "connect": {"token": made}})
            await stage.publish("hot", number)
            await conversation.reply(1)
            await stage.publish("hot", "behind it")
            await eventually(lambda c=conversation: "behind it" in [p["pub"]["data"] for p in c.pushes])  # type: ignore[misc]
            assert conversation.lines[0]["id"] == 1
            assert [push["pub"]["data"] for push in conversation.pushes] in ([number, "behind it"], ["behind it"])
            conversation.client.lost()


async def test_what_the_api_does_meanwhile_comes_behind_the_answer_to_connect(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        await (await stage.connect(token("bob"))).call("subscribe", channel="hot")
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {"token": token("ann", channels=["cold"])}})
        operations = Operations(stage.node)
        await operations.everywhere(Subscribe(user="ann", channel="hot"))
        await stage.publish("hot", 1)
        await conversation.heard("hot", 1)
        first, *others = conversation.lines
        assert first["id"] == 1
        assert [next(iter(line["push"].keys() - {"channel"})) for line in others] == ["subscribe", "pub"]


async def test_a_client_that_ends_while_it_is_subscribed_holds_nobody_up(own_nats: NatsServer) -> None:
    async with staged(own_nats) as stage:
        conversation = await stage.connect(token("ann"))
        own_nats.pause()
        asked = asyncio.create_task(Operations(stage.node).everywhere(Subscribe(user="ann", channel="new")))
        await eventually(lambda: "new" in stage.node.hub.topics)
        conversation.client.lost()
        own_nats.resume()
        async with asyncio.timeout(10):
            await asked
        assert stage.node.hub.topics == {}


async def test_a_client_that_ends_while_its_answer_waits_leaves_nothing(own_nats: NatsServer) -> None:
    async with staged(own_nats) as stage:
        keeper = await stage.connect(token("bob"))
        await keeper.call("subscribe", channel="hot")
        own_nats.pause()
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {"token": token("ann", channels=["hot", "cold"])}})
        conversation.client.lost()
        own_nats.resume()
        await eventually(lambda: stage.node.hub.subscriptions == 1)
        keeper.client.lost()
        assert stage.node.hub.topics == {}
