"""Subscriptions to wildcards: who may, what comes by them, and how they stand beside other subscriptions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.fan_out import SLICE_WRITES
from broker.operations import Operations, Subscribe, Unsubscribe
from broker.relay.live import LINGER_SECONDS
from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

POLICIES = [
    {"name": "vip", "match": ["chat.vip"], "subscribe": "anyone"},
    {"name": "chat", "match": ["chat.*", "chat.*.>"], "subscribe": "anyone", "publish": "anyone"},
    {"name": "mine", "match": ["mine.>"]},
    {"name": "users", "match": ["users.>"], "subscribe": "authenticated"},
    {"name": "locked", "match": ["locked.>"], "subscribe": "nobody", "publish": "nobody"},
]


def publications(conversation: Conversation, name: str) -> list[tuple[str | None, Any]]:
    """What came by a subscription: the topic it was published to, where it says so, and the data."""
    pushed = [push["pub"] for push in conversation.pushes if push["channel"] == name and "pub" in push]
    return [(one.get("channel"), one["data"]) for one in pushed]


async def told(conversation: Conversation, name: str, *expected: tuple[str | None, Any]) -> None:
    await eventually(lambda: publications(conversation, name) == list(expected))


def bypass(stage: Stage, subject: bytes, payload: bytes = b'"past"') -> None:
    """Publish straight to NATS, with whatever subject."""
    client = stage.node.connection._client
    assert client is not None
    client._post(b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload))
    stage.node.connection._this_round()


def dropped(stage: Stage, policy: str, reason: str) -> float:
    return float(stage.node.metrics.dropped.labels(policy, reason)._value.get())


async def test_each_publication_says_which_topic_it_is_of(nats: NatsServer) -> None:
    async with staged(nats) as stage, staged(nats, stage.node.options.prefix) as other:
        conversation = await stage.connect()
        for wildcard in ("a.*", "a.>", "*.b.*"):
            assert await conversation.call("subscribe", channel=wildcard) == {}
        for at, topic in (
            (stage, "a.1"),
            (other, "a.b.c"),
            (other, "a.é:2"),
            (stage, "a"),
            (other, "b.b"),
            (stage, "z.b.z"),
        ):
            await at.publish(topic, topic)
        await told(conversation, "*.b.*", ("a.b.c", "a.b.c"), ("z.b.z", "z.b.z"))
        await told(conversation, "a.*", ("a.1", "a.1"), ("a.é:2", "a.é:2"))
        await eventually(lambda: len(publications(conversation, "a.>")) == 3)
        assert sorted(publications(conversation, "a.>")) == [(name, name) for name in ("a.1", "a.b.c", "a.é:2")]


async def test_a_publication_has_all_that_it_has_by_its_own_topic(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        ann = await stage.connect(token("ann", info={"age": 7}))
        await ann.call("subscribe", channel="a.*")
        await ann.call("subscribe", channel="a.b")
        await ann.call("publish", channel="a.b", data={"x": [1, None]})
        by_wildcard, by_topic = sorted((push for push in ann.pushes), key=lambda push: push["channel"])
        info = {"user": "ann", "client": ann.client.id, "conn_info": {"age": 7}}
        assert by_topic == {"channel": "a.b", "pub": {"data": {"x": [1, None]}, "info": info}}
        assert by_wildcard == {"channel": "a.*", "pub": {**by_topic["pub"], "channel": "a.b"}}


async def test_each_subscription_that_fits_brings_it_once_and_leaves_on_its_own(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        one, two = await stage.connect(), await stage.connect()
        for name in ("a.*", "a.b", ">"):
            await one.call("subscribe", channel=name)
        await two.call("subscribe", channel="a.*")
        await stage.publish("a.b", 1)
        await one.call("unsubscribe", channel="a.*")
        await stage.publish("a.b", 2)
        await one.call("unsubscribe", channel="a.b")
        await stage.publish("a.b", 3)
        await told(one, ">", ("a.b", 1), ("a.b", 2), ("a.b", 3))
        await told(one, "a.b", (None, 1), (None, 2))
        await told(one, "a.*", ("a.b", 1))
        await told(two, "a.*", ("a.b", 1), ("a.b", 2), ("a.b", 3))


async def test_a_wildcard_is_left_in_nats_when_nobody_wants_it_any_more(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        one, two = await stage.connect(), await stage.connect()
        for conversation in (one, two):
            await conversation.call("subscribe", channel="a.*")
        assert set(stage.node._live._interests) == {"a.*"}
        one.client.lost()
        assert stage.node.hub.wildcards.keys() == stage.node.hub.topics.keys() == {"a.*"}
        await two.call("unsubscribe", channel="a.*")
        assert (stage.node.hub.wildcards, stage.node.hub.topics) == ({}, {})
        stage.node._live._leaving["a.*"] -= LINGER_SECONDS
        stage.node._live.sweep()
        assert stage.node._live._interests == {}


async def test_the_order_within_each_topic_is_kept(nats: NatsServer) -> None:
    async with staged(nats) as stage, staged(nats, stage.node.options.prefix) as other:
        subscriber, publisher = await stage.connect(), await other.connect()
        await subscriber.call("subscribe", channel="a.*")
        publisher.say(*({"id": n + 1, "publish": {"channel": f"a.{n % 3}", "data": n}} for n in range(150)))
        await told(subscriber, "a.*", *((f"a.{n % 3}", n) for n in range(150)))


async def test_a_publisher_sees_its_own_publication_by_all_its_wildcards_before_the_reply(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        # so many that a fan-out takes several turns of the event loop, and most are not in the first slice
        crowd = [await stage.connect() for _ in range(4 * SLICE_WRITES)]
        for conversation in crowd:
            conversation.say({"id": 1, "subscribe": {"channel": "a.*"}}, {"id": 2, "subscribe": {"channel": ">"}})
        await eventually(lambda: all(conversation.lines[-1].get("id") == 2 for conversation in crowd))
        await crowd[0].call("subscribe", channel="a.b")
        for number, conversation in enumerate(crowd[:12]):
            conversation.say({"id": 3, "publish": {"channel": "a.b", "data": number}})
            await conversation.reply(3)
            before = conversation.lines[: conversation.lines.index({"id": 3, "publish": {}})]
            own = [one["push"]["channel"] for one in before if "push" in one and one["push"]["pub"]["data"] == number]
            assert sorted(own) == [">", "a.*", *(["a.b"] if number == 0 else [])]


async def test_subscribe_and_publish_in_one_frame_are_answered_in_order_around_the_publication(
    nats: NatsServer,
) -> None:
    async with staged(nats) as stage:
        for number in range(20):
            conversation = stage.open()
            conversation.say(
                {"id": 1, "connect": {}},
                {"id": 2, "subscribe": {"channel": f"a{number}.*"}},
                {"id": 3, "publish": {"channel": f"a{number}.b", "data": 1}},
                {"id": 4, "unsubscribe": {"channel": f"a{number}.*"}},
            )
            await conversation.reply(4)
            assert [line.get("id", "push") for line in conversation.lines] == [1, 2, "push", 3, 4]


async def test_nothing_of_a_wildcard_comes_before_its_subscribe_is_answered(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        publisher = await stage.connect()
        for number in range(20):
            conversation = await stage.connect()
            publisher.say(*({"id": n + 1, "publish": {"channel": f"a{number}.x", "data": n}} for n in range(20)))
            conversation.say({"id": 5, "subscribe": {"channel": f"a{number}.>"}})
            publisher.say(*({"id": n + 1, "publish": {"channel": f"a{number}.x", "data": n}} for n in range(20, 40)))
            await eventually(lambda c=conversation: 39 in [push["pub"]["data"] for push in c.pushes])  # type: ignore[misc]
            assert conversation.lines[1] == {"id": 5, "subscribe": {}}
            data = [push["pub"]["data"] for push in conversation.pushes]
            assert data == list(range(data[0], 40))


async def test_names_that_are_no_wildcards_are_refused_with_their_field(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        for name, problem in (
            ("chat.>.x", "> may stand only at the end"),
            ("a*", "mixes a wildcard with text in one token"),
            ("room:*", "mixes a wildcard with text in one token"),
            ("chat..*", "holds an empty token"),
            ("*.", "holds an empty token"),
            ("$SYS.>", "names that begin with $ or _INBOX are reserved"),
            ("é" * 127 + ".*", "256 bytes, at most 255 are allowed"),
            (".".join("*" * 17), "17 tokens, at most 16 are allowed"),
        ):
            refused = await conversation.refused("subscribe", channel=name)
            assert refused == (107, f"bad request: subscribe.channel: {problem}")
        await conversation.call("subscribe", channel="é" * 126 + ".*")
        await conversation.call("subscribe", channel=".".join("*" * 15) + ".>")
        assert (await conversation.refused("subscribe", channel=".".join("*" * 15) + ".>"))[0] == 105


async def test_publishing_to_a_wildcard_is_refused_even_where_it_is_subscribed(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="a.*")
        for method in ("publish", "presence"):
            code, message = await conversation.refused(
                method, channel="a.*", **({"data": 1} if method == "publish" else {})
            )
            assert (code, "wildcards (* and >) are not allowed here" in message) == (107, True)


async def test_a_wildcard_has_to_stay_within_one_policy(nats: NatsServer) -> None:
    async with staged(nats, topics=POLICIES) as stage:
        ann = await stage.connect(token("ann", caps=[{"channels": [">"], "allow": ["sub"]}]))
        for _ in range(2):  # the second time it is known already
            assert await ann.refused("subscribe", channel="chat.*") == (
                103,
                "permission denied: chat.* overlaps several policies (vip, chat); it has to stay within one",
            )
        assert (await ann.refused("subscribe", channel=">"))[0] == 103
        assert (await ann.refused("subscribe", channel="nowhere.*"))[0] == 103
        await ann.call("subscribe", channel="chat.*.*")
        await ann.call("subscribe", channel="users.*.>")
        await stage.publish("chat.vip", "not mine")
        await stage.publish("chat.vip.a", "mine")
        await told(ann, "chat.*.*", ("chat.vip.a", "mine"))


async def test_policies_say_who_may_subscribe_to_a_wildcard(nats: NatsServer) -> None:
    async with staged(nats, topics=POLICIES) as stage:
        anonymous, ann = await stage.connect(), await stage.connect(token("ann"))
        for name, of_anonymous, of_ann in (
            ("chat.*.a", True, True),
            ("users.*", False, True),
            ("mine.*", False, False),
            ("locked.*", False, False),
        ):
            for one, allowed in ((anonymous, of_anonymous), (ann, of_ann)):
                reply = await one.ask("subscribe", channel=name)
                assert reply.get("error") == (None if allowed else {"code": 103, "message": "permission denied"}), name


async def test_caps_grant_the_wildcards_that_they_cover(nats: NatsServer) -> None:
    caps = [
        {"channels": ["mine.{sub}.>", "mine.one.x"], "allow": ["sub"]},
        {"channels": ["mine.pub.>"], "allow": ["pub"]},
        {"channels": ["locked.>"], "allow": ["sub"]},
    ]
    async with staged(nats, topics=POLICIES) as stage:
        ann = await stage.connect(token("ann", caps=caps))
        for name in ("mine.ann.*", "mine.ann.>", "mine.ann.*.x"):
            await ann.call("subscribe", channel=name)
        for name in ("mine.*", "mine.>", "mine.*.>", "mine.bob.*", "mine.one.*", "mine.*.x", "mine.pub.*", "locked.*"):
            assert await ann.refused("subscribe", channel=name) == (103, "permission denied"), name


async def test_a_subscription_token_is_for_the_wildcard_that_it_names(nats: NatsServer) -> None:
    async with staged(nats, topics=POLICIES) as stage:
        ann = await stage.connect(token("ann"))
        result = await ann.call("subscribe", channel="mine.*", token=token("ann", channel="mine.*"))
        assert result["expires"] is True
        await stage.publish("mine.x", 1)
        await told(ann, "mine.*", ("mine.x", 1))
        renewed = await ann.call(
            "sub_refresh", channel="mine.*", token=token("ann", channel="mine.*", ttl_seconds=7200)
        )
        assert renewed["ttl"] > 3600
        refused = await ann.refused("subscribe", channel="locked.*", token=token("ann", channel="locked.*"))
        assert refused == (103, "permission denied")
        for name, named in (("mine.x", "mine.*"), ("mine.>", "mine.*"), ("mine.*.a", "mine.x.a")):
            bob = await stage.connect(token("bob"))
            bob.say({"id": 1, "subscribe": {"channel": name, "token": token("bob", channel=named)}})
            assert bob.closed == (3500, "invalid token: channel: the token is for another one")


async def test_a_wildcard_ends_with_its_token(nats: NatsServer) -> None:
    async with staged(nats, topics=POLICIES) as stage:
        ann = await stage.connect(token("ann"))
        await ann.call("subscribe", channel="mine.*", token=token("ann", channel="mine.*", ttl_seconds=10))
        stage.clock.ahead += 20
        ann.client.wake(stage.node.clock())
        assert ann.pushes == [{"channel": "mine.*", "unsubscribe": {"code": 2501, "reason": "subscription expired"}}]
        assert stage.node.hub.topics == {}


async def test_the_server_subscribes_to_wildcards_by_the_token(nats: NatsServer) -> None:
    async with staged(nats, topics=POLICIES) as stage:
        ann = stage.open()
        made = token("ann", channels=["locked.*"], subs={"mine.>": {"data": 1}})
        result = await ann.call("connect", token=made)
        assert result["subs"] == {"locked.*": {}, "mine.>": {"data": 1}}
        await stage.publish("locked.a", "x")
        await told(ann, "locked.*", ("locked.a", "x"))
        torn = await stage.open().refused("connect", token=token("ann", channels=["chat.*"]))
        assert torn[0] == 103
        mixed = stage.open()
        mixed.say({"id": 1, "connect": {"token": token("ann", channels=["chat.a*"])}})
        assert mixed.closed == (3500, "invalid token: channels: mixes a wildcard with text in one token")


async def test_the_api_subscribes_to_wildcards_and_ends_them_by_name(nats: NatsServer) -> None:
    async with staged(nats, topics=POLICIES) as stage:
        operations = Operations(stage.node)
        ann = await stage.connect(token("ann"))
        for name in ("locked.*", "locked.a", "chat.*"):  # the last is in no policy alone
            await operations.everywhere(Subscribe(user="ann", channel=name))
        await stage.publish("locked.a", 1)
        await told(ann, "locked.*", ("locked.a", 1))
        await told(ann, "locked.a", (None, 1))
        await operations.everywhere(Unsubscribe(user="ann", channel="locked.*"))
        await stage.publish("locked.a", 2)
        await told(ann, "locked.a", (None, 1), (None, 2))
        assert len(publications(ann, "locked.*")) == 1
        assert set(stage.node.hub.topics) == {"locked.a"}


async def test_what_back_ends_publish_past_the_api_comes_by_a_wildcard_too(nats: NatsServer) -> None:
    async with staged(nats, topics=POLICIES) as stage:
        ann = await stage.connect(token("ann", channels=["mine.*"]))
        live = f"{stage.node.options.prefix}.mine.live.".encode()
        bypass(stage, live + b"mine.x", b'{"n":\n1}')
        bypass(stage, live + "mine.grüße".encode(), b"2")
        await told(ann, "mine.*", ("mine.x", {"n": 1}), ("mine.grüße", 2))
        bypass(stage, live + b"mine.x", b"no json")
        bypass(stage, live + b"mine.x", b'"%b"' % (b"x" * 70_000))
        await eventually(lambda: dropped(stage, "mine", "not_json") == dropped(stage, "mine", "too_large") == 1)
        assert len(ann.pushes) == 2


async def test_a_subject_that_is_no_topic_is_counted_and_goes_to_nobody(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        ann, bob = await stage.connect(), await stage.connect()
        for conversation in (ann, bob):
            await conversation.call("subscribe", channel="a.>")
        await ann.call("subscribe", channel="*")
        live = f"{stage.node.options.prefix}.default.live.".encode()
        of_two = [
            b"a.\xff",
            b"a.x\x0b1",
            b"a.\x00",
            b"a.x\xc2\xa0",
            b"a.*",
            b"a.>",
            b"a.a*",
            b"a" + b".a" * 16,
            b"a." + b"a" * 254,
        ]
        of_one = [b"$SYS", b"_INBOX", b"*", b"a" * 256]
        for name in of_two + of_one:
            bypass(stage, live + name)
        await stage.publish("a.sound", "sound")
        await told(bob, "a.>", ("a.sound", "sound"))
        await told(ann, "a.>", ("a.sound", "sound"))
        assert [push["channel"] for push in ann.pushes] == ["a.>"]
        assert dropped(stage, "default", "bad_topic") == 2 * len(of_two) + len(of_one)


async def test_a_wildcard_counts_as_one_topic_of_a_connection(nats: NatsServer) -> None:
    async with staged(nats, limits={"topics_per_connection": 2}) as stage:
        ann = await stage.connect(token("ann", channels=["a.*"]))
        await ann.call("subscribe", channel="b.*")
        assert (await ann.refused("subscribe", channel="c.*"))[0] == 106


async def test_a_wildcard_is_there_again_after_nats_was_away(site: Site) -> None:
    server = site.start_nats()
    async with staged(server) as stage:
        ann = await stage.connect()
        await ann.call("subscribe", channel="a.*")
        server.kill()
        await eventually(lambda: not stage.node.connection.connected)
        server.start()
        await eventually(lambda: not stage.node.reasons_against_readiness())
        async with asyncio.timeout(10):
            await stage.publish("a.b", "back")
        await told(ann, "a.*", ("a.b", "back"))
