"""What waits for NATS, what does not, and in which order things are said."""

from __future__ import annotations

import asyncio

import pytest

from broker.client.client import MAX_IN_FLIGHT
from broker.fan_out import SLICE_WRITES
from broker.relay.live import LINGER_SECONDS
from tests.client.conversing import Conversation, staged
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """A server that can be stopped."""
    return site.start_nats()


def ids(conversation: Conversation) -> list[int]:
    return [line["id"] for line in conversation.lines if "id" in line]


async def test_commands_of_one_frame_run_in_order_and_each_is_answered(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.say(
            {"id": 1, "connect": {}},
            {"id": 2, "subscribe": {"channel": "a"}},
            {"id": 3, "publish": {"channel": "a", "data": "x"}},
            {"id": 4, "unsubscribe": {"channel": "a"}},
            {"id": 5, "subscribe": {"channel": "b"}},
        )
        await conversation.reply(5)
        await conversation.reply(3)
        assert ids(conversation)[:2] == [1, 2]
        assert sorted(ids(conversation)) == [1, 2, 3, 4, 5]
        assert not any("error" in line for line in conversation.lines)


async def test_answers_that_are_there_at_once_leave_in_one_frame(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = stage.open()
        conversation.say({"id": 1, "connect": {}}, *({"id": n, "unsubscribe": {"channel": "a"}} for n in (2, 3)))
        assert len(conversation.outlet.payloads) == 1
        assert ids(conversation) == [1, 2, 3]


async def test_a_publisher_gets_its_own_publication_before_the_reply(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        noise = await stage.connect()
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="a")
        for number in range(1, 101):
            for _ in range(5):  # other traffic in the same topic and in others
                noise.say({"id": 1, "publish": {"channel": "a", "data": "noise"}})
                noise.say({"id": 1, "publish": {"channel": "b", "data": "noise"}})
            conversation.say({"id": number, "publish": {"channel": "a", "data": number}})
        await conversation.reply(100)
        await eventually(lambda: len(ids(conversation)) == 102)
        seen: set[int] = set()
        for line in conversation.lines[2:]:
            if "push" in line:
                seen.add(line["push"]["pub"]["data"] if line["push"]["pub"]["data"] != "noise" else 0)
            else:
                assert line["id"] in seen, "answered before the publication came"
        assert ids(conversation)[2:] == list(range(1, 101))


async def test_a_publisher_gets_its_own_publication_first_in_a_crowd_too(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        crowd = [await stage.connect() for _ in range(4 * SLICE_WRITES)]
        for conversation in crowd:
            conversation.say({"id": 1, "subscribe": {"channel": "a"}})
        await eventually(lambda: all(ids(conversation)[-1:] == [1] for conversation in crowd))
        for number, conversation in enumerate(crowd[:12]):  # whoever they are, most are not in the first slice
            conversation.say({"id": 2, "publish": {"channel": "a", "data": number}})
            await conversation.reply(2)
            at = conversation.lines.index({"id": 2, "publish": {}})
            assert conversation.lines[at - 1]["push"]["pub"]["data"] == number


async def test_the_order_of_publications_is_kept(nats: NatsServer) -> None:
    async with staged(nats) as stage, staged(nats, stage.node.options.prefix) as other:
        here, there = await stage.connect(), await other.connect()
        await here.call("subscribe", channel="a")
        await there.call("subscribe", channel="a")
        here.say(*({"id": number + 1, "publish": {"channel": "a", "data": number}} for number in range(200)))
        await here.heard("a", *range(200))
        await there.heard("a", *range(200))


async def test_subscribers_of_all_nodes_get_what_is_published_right_after_the_reply(nats: NatsServer) -> None:
    async with staged(nats) as stage, staged(nats, stage.node.options.prefix) as other:
        here = await stage.connect()
        for number in range(100):
            await here.call("subscribe", channel=f"a.{number}")
            await other.publish(f"a.{number}", number)
            await here.heard(f"a.{number}", number)
            await here.call("unsubscribe", channel=f"a.{number}")


async def test_concurrent_first_subscribers_both_get_the_first_message(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        for number in range(50):
            one, two = await stage.connect(), await stage.connect()
            topic = f"a.{number}"
            for conversation in (one, two):
                conversation.say({"id": 1, "subscribe": {"channel": topic}})
            await one.reply(1)
            await stage.publish(topic, "first")
            await two.reply(1)
            await one.heard(topic, "first")
            await two.heard(topic, "first")


async def test_nothing_of_a_topic_comes_before_its_subscribe_is_answered(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        publisher = await stage.connect()
        for number in range(50):
            conversation = await stage.connect()
            publisher.say(*({"id": n + 1, "publish": {"channel": f"a.{number}", "data": n}} for n in range(20)))
            conversation.say({"id": 5, "subscribe": {"channel": f"a.{number}"}})
            publisher.say(*({"id": n + 1, "publish": {"channel": f"a.{number}", "data": n}} for n in range(20, 40)))
            await eventually(lambda c=conversation: 39 in [p["pub"]["data"] for p in c.pushes])  # type: ignore[misc]
            assert conversation.lines[1] == {"id": 5, "subscribe": {}}
            data = [push["pub"]["data"] for push in conversation.pushes]
            assert data == list(range(data[0], 40))


async def test_while_a_subscribe_waits_other_topics_go_on_and_the_same_one_waits(own_nats: NatsServer) -> None:
    async with staged(own_nats) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="b")
        own_nats.pause()
        conversation.say({"id": 1, "subscribe": {"channel": "a"}}, {"id": 2, "unsubscribe": {"channel": "b"}})
        await conversation.reply(2)
        assert conversation.outlet.reading
        conversation.say({"id": 3, "unsubscribe": {"channel": "a"}}, {"id": 4, "unsubscribe": {"channel": "b"}})
        conversation.say({"id": 5, "rpc": {"method": "behind them"}})
        assert not conversation.outlet.reading
        assert ids(conversation)[2:] == [2]
        own_nats.resume()
        await conversation.reply(5)
        assert ids(conversation)[2:] == [2, 1, 3, 4, 5]
        assert conversation.outlet.reading
        assert stage.node.hub.topics == {}


async def test_a_client_has_so_many_publications_under_way_and_no_more_is_read(own_nats: NatsServer) -> None:
    async with staged(own_nats) as stage:
        conversation = await stage.connect()
        own_nats.pause()
        conversation.say(*({"id": n + 1, "publish": {"channel": "a", "data": n}} for n in range(MAX_IN_FLIGHT + 2)))
        assert not conversation.outlet.reading
        own_nats.resume()
        await eventually(lambda: len(ids(conversation)) == MAX_IN_FLIGHT + 3)
        assert ids(conversation)[1:] == list(range(1, MAX_IN_FLIGHT + 3))
        assert conversation.outlet.reading


async def test_a_client_that_goes_during_its_subscribe_leaves_nothing_behind(own_nats: NatsServer) -> None:
    async with staged(own_nats) as stage:
        conversation, other = await stage.connect(), await stage.connect()
        own_nats.pause()
        conversation.say({"id": 1, "subscribe": {"channel": "a"}}, {"id": 2, "unsubscribe": {"channel": "a"}})
        before = len(conversation.lines)
        conversation.client.lost()
        own_nats.resume()
        await other.call("subscribe", channel="b")
        assert set(stage.node.hub.topics) == {"b"}
        assert list(stage.node.clients) == [other.client.id]
        assert len(conversation.lines) == before
        live = stage.node._live
        assert set(live._leaving) == {"a"}
        live._leaving["a"] -= LINGER_SECONDS
        live.sweep()
        assert set(live._interests) == {"b"}


async def test_the_server_can_unsubscribe_during_a_subscribe(own_nats: NatsServer) -> None:
    async with staged(own_nats) as stage:
        conversation = await stage.connect()
        own_nats.pause()
        conversation.say({"id": 1, "subscribe": {"channel": "a"}})
        conversation.client.unsubscribed("a", 2000, "server unsubscribe")
        own_nats.resume()
        error = (await conversation.reply(1))["error"]
        assert error["code"] == 103
        assert conversation.pushes == [{"channel": "a", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}]
        assert stage.node.hub.topics == {}
        await conversation.call("subscribe", channel="a")
        await stage.publish("a", 1)
        await conversation.heard("a", 1)


async def test_without_nats_commands_fail_in_a_way_that_is_retried_and_nothing_is_left(own_nats: NatsServer) -> None:
    async with staged(own_nats) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="kept")
        own_nats.kill()
        await eventually(lambda: not stage.node.connection.connected)
        assert (await conversation.refused("subscribe", channel="a"))[0] == 100
        assert (await conversation.refused("publish", channel="kept", data=1))[0] == 100
        newcomer = await stage.connect()  # connecting needs no NATS
        assert (set(stage.node.hub.topics), conversation.closed, newcomer.closed) == ({"kept"}, None, None)
        own_nats.start()
        await eventually(lambda: stage.node.connection.connected)
        await conversation.call("subscribe", channel="a")
        await stage.publish("kept", 1)
        await conversation.heard("kept", 1)


async def test_too_much_for_a_subscription_that_waits_is_an_error(
    own_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(own_nats, limits={"queue_bytes": 1000}) as stage:
        conversation = await stage.connect()
        conversation.say({"id": 1, "subscribe": {"channel": "a"}})
        topic = stage.node.hub.topics["a"]
        for _ in range(20):
            stage.node.hub.push(topic, b'{"push":{"channel":"a","pub":{"data":"%b"}}}' % (b"x" * 100), 0)
            stage.node.hub.run()
        assert (await conversation.reply(1))["error"]["code"] == 100
        await asyncio.sleep(0)
        assert stage.node.hub.topics == {}
        await conversation.call("subscribe", channel="a")
