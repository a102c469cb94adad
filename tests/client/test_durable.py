"""Durable topics, as a client sees them: positions, history, recovery."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec import Raw

from broker.operations import Operations, Subscribe
from broker.relay.subjects import Subjects
from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.tokens import token
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.anyio]

DURABLE: list[dict[str, Any]] = [
    {
        "name": "kept",
        "match": [">"],
        "durable": True,
        "history_messages": 10,
        "subscribe": "anyone",
        "publish": "anyone",
        "read": "anyone",
    }
]
LATEST = [{**DURABLE[0], "recovery": "latest"}]


@pytest.fixture
def own_nats(site: Site) -> NatsServer:
    """For a test that stops it."""
    return site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})


async def stored(stage: Stage, topic: str, *data: Any, key: str = "") -> list[int]:
    """Publish, one after another; the offsets."""
    policy = stage.node.locate(topic)
    offsets = []
    for one in data:
        outcome = stage.node.publisher.publish(policy, topic, json.dumps(one).encode(), key=key, source="http")  # type: ignore[arg-type]
        offsets.append((await outcome).offset)  # type: ignore[misc]
    return offsets


def back_at(position: dict[str, Any]) -> dict[str, Any]:
    """What a client says that comes back to a position it was told."""
    return {"recover": True, "offset": position.get("offset", 0), "epoch": position["epoch"]}


def data_of(result: dict[str, Any]) -> list[Any]:
    return [one["data"] for one in result.get("publications", [])]


def heard(conversation: Conversation, topic: str) -> list[tuple[int, Any]]:
    """Offset and data of all publications that were pushed."""
    return [
        (push["pub"]["offset"], push["pub"]["data"])
        for push in conversation.pushes
        if push["channel"] == topic and "pub" in push
    ]


async def test_who_subscribes_is_told_where_the_topic_stands(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        (offset,) = await stored(stage, "a", 1)
        conversation = await stage.connect()
        result = await conversation.call("subscribe", channel="a")
        assert result["recoverable"] is True
        assert result["positioned"] is True
        assert result["offset"] == offset
        assert result["epoch"]


async def test_publications_come_with_their_offsets(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="a")
        offsets = await stored(stage, "a", "x", "y")
        await eventually(lambda: heard(conversation, "a") == [(offsets[0], "x"), (offsets[1], "y")])


async def test_who_comes_back_gets_what_it_missed(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        first = await conversation.call("subscribe", channel="a")
        await stored(stage, "a", *range(5))
        again = await stage.connect()
        result = await again.call("subscribe", channel="a", **back_at(first))
        assert result["recovered"] is True
        assert result["was_recovering"] is True
        assert data_of(result) == [0, 1, 2, 3, 4]
        await stored(stage, "a", 5)
        await eventually(lambda: [data for _, data in heard(again, "a")] == [5])


async def test_another_node_gives_what_was_missed_from_the_stream(nats: NatsServer) -> None:
    async with staged(nats, prefix="two1", topics=DURABLE) as one, staged(nats, prefix="two1", topics=DURABLE) as two:
        conversation = await one.connect()
        first = await conversation.call("subscribe", channel="a")
        offsets = await stored(one, "a", *range(10))
        again = await two.connect()
        result = await again.call("subscribe", channel="a", **back_at(first))
        assert (result["recovered"], data_of(result)) == (True, list(range(10)))
        late = await two.connect()
        result = await late.call("subscribe", channel="a", recover=True, offset=offsets[3], epoch=first["epoch"])
        assert (result["recovered"], data_of(result)) == (True, [4, 5, 6, 7, 8, 9])


async def test_who_missed_more_than_is_kept_is_told(nats: NatsServer) -> None:
    async with staged(nats, prefix="two3", topics=DURABLE) as one, staged(nats, prefix="two3", topics=DURABLE) as two:
        first = await (await one.connect()).call("subscribe", channel="a")
        offsets = await stored(one, "a", *range(11))
        position = {"recover": True, "offset": first.get("offset", 0), "epoch": first["epoch"]}
        result = await (await two.connect()).call("subscribe", channel="a", **position)
        assert result.get("recovered", False) is False
        assert "publications" not in result
        assert result["offset"] == offsets[-1]
        code, _ = await (await two.connect()).refused("subscribe", channel="a", flag=2, **position)
        assert code == 112
        whole = await (await two.connect()).call("subscribe", channel="a", **{**position, "offset": offsets[0]})
        assert (whole["recovered"], data_of(whole)) == (True, list(range(1, 11)))


@pytest.mark.parametrize("epoch", ["other", "_"])
async def test_an_epoch_of_another_stream_recovers_nothing(nats: NatsServer, epoch: str) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "a", 1)
        result = await (await stage.connect()).call("subscribe", channel="a", recover=True, offset=0, epoch=epoch)
        assert result.get("recovered", False) is False


async def test_from_the_beginning_of_any_epoch_is_all_there_is(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "a", 1, 2)
        result = await (await stage.connect()).call("subscribe", channel="a", recover=True)
        assert (result["recovered"], data_of(result)) == (True, [1, 2])


async def test_an_offset_beyond_the_top_is_no_position(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "a", 1, 2)
        conversation = await stage.connect()
        result = await conversation.call("subscribe", channel="a", recover=True, offset=1_000_000)
        assert result.get("recovered", False) is False
        await stored(stage, "a", 3)
        await eventually(lambda: [data for _, data in heard(conversation, "a")] == [3])


async def test_recovery_and_live_messages_make_one_sequence(nats: NatsServer) -> None:
    async with staged(nats, prefix="two2", topics=DURABLE) as one, staged(nats, prefix="two2", topics=DURABLE) as two:
        position = await (await one.connect()).call("subscribe", channel="a")
        publishing = asyncio.create_task(stored(one, "a", *range(300)))
        seen: list[int] = []
        offset = position.get("offset", 0)
        while not publishing.done():
            conversation = await two.connect()
            result = await conversation.call(
                "subscribe", channel="a", recover=True, offset=offset, epoch=position["epoch"]
            )
            assert result["recovered"] is True
            got = [(pub["offset"], pub["data"]) for pub in result.get("publications", [])]
            await conversation.call("unsubscribe", channel="a")
            got += heard(conversation, "a")
            conversation.client.lost()
            seen += [data for _, data in got]
            offset = got[-1][0] if got else offset
            await asyncio.sleep(0)
        result = await (await two.connect()).call(
            "subscribe", channel="a", recover=True, offset=offset, epoch=position["epoch"]
        )
        seen += data_of(result)
        assert seen == list(range(300))


async def test_whoever_comes_at_any_time_gets_all_behind_its_position_once(nats: NatsServer) -> None:
    async with staged(nats, topics=[{**DURABLE[0], "history_messages": 1000}]) as stage:
        crowd = [await stage.connect() for _ in range(200)]  # so that a fan-out takes several turns
        for one in crowd:
            await one.call("subscribe", channel="a")
        publishing = asyncio.create_task(stored(stage, "a", *range(150)))
        came: list[tuple[Conversation, dict[str, Any]]] = []
        while not publishing.done():
            conversation = await stage.connect()
            position: dict[str, Any] = {"recover": True} if len(came) % 2 else {}
            result = await conversation.call("subscribe", channel="a", **position)
            came.append((conversation, result))
            await asyncio.sleep(0)
        offsets = await publishing
        assert len(came) > 3
        for conversation, result in came:
            expected = [offset for offset in offsets if offset > result.get("offset", 0)]
            got = [one["offset"] for one in result.get("publications", [])]
            await eventually(
                lambda conversation=conversation, got=got, expected=expected: (  # type: ignore[misc]
                    got + [offset for offset, _ in heard(conversation, "a")] == expected
                )
            )
        for one in crowd:
            assert [offset for offset, _ in heard(one, "a")] == offsets


@pytest.mark.parametrize("wish", [{"epoch": "other"}, {"offset": 1_000_000}], ids=["epoch", "offset"])
async def test_who_would_rather_have_an_error_gets_it_and_is_not_subscribed(
    nats: NatsServer, wish: dict[str, Any]
) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "a", 1)
        conversation = await stage.connect()
        assert (await conversation.refused("subscribe", channel="a", recover=True, flag=2, **wish))[0] == 112
        assert stage.node.hub.topics == {}
        # and can begin anew
        assert "recovered" not in await conversation.call("subscribe", channel="a", flag=2)


async def test_a_live_topic_has_no_position(nats: NatsServer) -> None:
    async with staged(nats) as stage:
        result = await (await stage.connect()).call("subscribe", channel="a", recover=True, offset=7, epoch="x")
        assert result == {"was_recovering": True}


async def test_what_does_not_fit_into_the_reply_follows_in_order(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.admission.REPLY_BYTES", 2500)
    async with staged(nats, topics=DURABLE) as stage:
        first = await (await stage.connect()).call("subscribe", channel="a")
        data = [f"{number}" + "x" * 500 for number in range(10)]
        offsets = await stored(stage, "a", *data)
        again = await stage.connect()
        result = await again.call("subscribe", channel="a", **back_at(first))
        assert result["recovered"] is True
        assert data_of(result) == data[:4]
        await stored(stage, "a", "live")
        await eventually(lambda: [one for _, one in heard(again, "a")] == [*data[4:], "live"])
        assert [offset for offset, _ in heard(again, "a")][:-1] == offsets[4:]
        assert again.outlet.ready


async def test_what_is_no_json_in_the_stream_is_counted_and_passed_over(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        first = await conversation.call("subscribe", channel="a")
        subject = Subjects(stage.node.options.prefix).stored("kept", "a")
        await stored(stage, "a", 1)
        for bad in (b'{"half":', b"\xff", b"1\n2", b""):
            await stage.node.connection.publish(subject, bad)
        await stage.node.connection.publish(subject, b'{\r\n "pretty": 1\n}')
        await stored(stage, "a", 2)
        await conversation.heard("a", 1, {"pretty": 1}, 2)
        dropped = stage.node.metrics.dropped.labels("kept", "not_json")
        assert dropped._value.get() == 4
        result = await (await stage.connect()).call("subscribe", channel="a", **back_at(first))
        assert data_of(result) == [1, {"pretty": 1}, 2]
        assert data_of(await conversation.call("history", channel="a", limit=-1)) == [1, {"pretty": 1}, 2]
        assert dropped._value.get() == 4


async def test_who_publishes_sees_its_own_publication_before_the_reply(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect(token("ann"))
        await conversation.call("subscribe", channel="a")
        for number in range(30):
            before = len(conversation.lines)
            await conversation.call("publish", channel="a", data=number)
            push, reply = conversation.lines[before:]
            assert push["push"]["pub"]["data"] == number
            assert push["push"]["pub"]["info"]["user"] == "ann"
            assert push["push"]["pub"]["offset"] == number + 1
            assert "publish" in reply
        # in one frame with what comes before and after it
        conversation.say(
            {"id": 1, "publish": {"channel": "a", "data": "x"}},
            {"id": 2, "unsubscribe": {"channel": "a"}},
        )
        await conversation.reply(2)
        assert [line["push"]["pub"]["data"] if "push" in line else line["id"] for line in conversation.lines[-3:]] == [
            "x",
            1,
            2,
        ]


async def test_without_nats_nothing_is_promised(own_nats: NatsServer) -> None:
    async with staged(own_nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        await conversation.call("subscribe", channel="a")
        own_nats.kill()
        await eventually(lambda: not stage.node.connection.connected)
        code, text = await conversation.refused("publish", channel="a", data=1)
        assert (code, "nothing was published" in text) == (100, True)
        code, text = await conversation.refused("history", channel="a", limit=1)
        assert (code, "try again" in text) == (100, True)
        code, text = await conversation.refused("subscribe", channel="b")
        assert code == 100
        assert "b" not in stage.node.hub.topics
        own_nats.start()
        await eventually(lambda: not stage.node.reasons_against_readiness())
        await conversation.call("subscribe", channel="b")
        await stored(stage, "a", 1)
        await stored(stage, "b", 2)
        await conversation.heard("a", 1)
        await conversation.heard("b", 2)


async def test_a_publish_that_nats_did_not_confirm_says_so(own_nats: NatsServer) -> None:
    async with staged(own_nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        own_nats.pause()
        conversation.say({"id": 1, "publish": {"channel": "a", "data": 1}})
        await asyncio.sleep(0)
        own_nats.kill()
        error = (await conversation.reply(1))["error"]
        assert (error["code"], error["temporary"]) == (100, True)
        assert "the outcome is unknown" in error["message"]
        assert "may store it twice" in error["message"]


async def test_when_the_stream_is_made_anew_clients_are_told_to_subscribe_again(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        conversation = await stage.connect()
        first = await conversation.call("subscribe", channel="a")
        (offset,) = await stored(stage, "a", 1)
        await conversation.heard("a", 1)
        durability = stage.node.durability
        stream = durability.streams.by_policy["kept"].name
        await durability._jetstream.call(f"STREAM.DELETE.{stream}")
        durability._checker.reconnected()  # the next look need not be waited for
        await eventually(lambda: conversation.lines[-1].get("push", {}).get("unsubscribe"))
        assert conversation.lines[-1]["push"]["unsubscribe"]["code"] == 2500
        assert conversation.lines[-1]["push"]["unsubscribe"]["reason"]
        again = await conversation.call("subscribe", channel="a", recover=True, offset=offset, epoch=first["epoch"])
        assert again["epoch"] != first["epoch"]
        assert again.get("recovered", False) is False
        await stored(stage, "a", 2)
        await conversation.heard("a", 1, 2)


# server-side subscriptions


async def test_subscriptions_of_the_token_say_where_they_stand_and_recover(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        await stored(stage, "b", "old")
        ann = stage.open()
        made = token("ann", channels=["a", "b"])
        first = (await ann.call("connect", token=made))["subs"]
        for topic in "ab":
            assert first[topic]["recoverable"] is True
            assert first[topic]["positioned"] is True
            assert "publications" not in first[topic]
        ann.client.lost()
        await stored(stage, "a", 1, 2)
        await stored(stage, "b", 3)
        back = stage.open()
        subs = {"a": back_at(first["a"]), "b": back_at(first["b"]), "unheard.of": {"recover": True}}
        second = (await back.call("connect", token=made, subs=subs))["subs"]
        assert sorted(second) == ["a", "b"]
        assert [(second[topic]["recovered"], second[topic]["was_recovering"]) for topic in "ab"] == [(True, True)] * 2
        assert (data_of(second["a"]), data_of(second["b"])) == ([1, 2], [3])
        await stored(stage, "a", 4)
        await back.heard("a", 4)
        late = await stage.connect(made, subs={"a": {"recover": True, "offset": 1, "epoch": "other"}})
        result = late.lines[0]["connect"]["subs"]["a"]
        assert (result.get("recovered", False), result["was_recovering"]) == (False, True)


async def test_recovery_of_the_tokens_topics_and_live_messages_make_one_sequence(nats: NatsServer) -> None:
    async with staged(nats, topics=[{**DURABLE[0], "history_messages": 1000}]) as stage:
        made = token("ann", channels=["a"])
        first = (await stage.open().call("connect", token=made))["subs"]["a"]
        publishing = asyncio.create_task(stored(stage, "a", *range(200)))
        came: list[Conversation] = []
        while not publishing.done():
            came.append(await stage.connect(made, subs={"a": back_at(first)}))
            await asyncio.sleep(0)
        await publishing
        assert len(came) > 3
        for one in came:
            result = one.lines[0]["connect"]["subs"]["a"]
            assert result["recovered"] is True
            await eventually(
                lambda one=one, result=result: (  # type: ignore[misc]
                    data_of(result) + [data for _, data in heard(one, "a")] == list(range(200))
                )
            )


async def test_a_subscription_by_the_api_says_where_it_stands(nats: NatsServer) -> None:
    async with staged(nats, topics=DURABLE) as stage:
        (offset,) = await stored(stage, "a", 1)
        ann = await stage.connect(token("ann"))
        await Operations(stage.node).everywhere(Subscribe(user="ann", channel="a", data=Raw(b'{"x":1}')))
        (push,) = ann.pushes
        epoch = push["subscribe"].pop("epoch")
        assert push == {
            "channel": "a",
            "subscribe": {"recoverable": True, "positioned": True, "offset": offset, "data": {"x": 1}},
        }
        assert epoch == stage.node.durability.streams.by_policy["kept"].epoch
        await stored(stage, "a", 2)
        await ann.heard("a", 2)


# the newest only


async def test_a_new_subscriber_gets_the_newest_at_once_where_the_policy_says_so(nats: NatsServer) -> None:
    async with staged(nats, topics=LATEST) as stage:
        offsets = await stored(stage, "a", 1, 2, 3)
        conversation = await stage.connect()
        result = await conversation.call("subscribe", channel="a")
        assert (data_of(result), result["offset"]) == ([3], offsets[-1])
        await stored(stage, "a", 4)
        await conversation.heard("a", 4)
        second = await (await stage.connect()).call("subscribe", channel="a")
        assert data_of(second) == [4]
        assert "publications" not in await conversation.call("subscribe", channel="empty")


async def test_who_comes_back_gets_the_newest_if_it_has_not_seen_it(nats: NatsServer) -> None:
    async with staged(nats, topics=LATEST) as stage:
        (offset,) = await stored(stage, "a", 1)
        first = await (await stage.connect()).call("subscribe", channel="a")
        seen = {**back_at(first), "offset": offset}
        result = await (await stage.connect()).call("subscribe", channel="a", **seen)
        assert (result["recovered"], data_of(result)) == (True, [])
        await stored(stage, "a", 2, 3)
        result = await (await stage.connect()).call("subscribe", channel="a", **seen)
        assert (result["recovered"], data_of(result)) == (True, [3])
        result = await (await stage.connect()).call("subscribe", channel="a", **{**seen, "epoch": "other"})
        assert data_of(result) == [3]


async def test_a_server_side_subscriber_gets_the_newest_where_sdks_look_for_it(nats: NatsServer) -> None:
    async with staged(nats, topics=LATEST) as stage:
        await stored(stage, "a", 1, 2)
        made = token("ann", channels=["a"])
        ann = await stage.connect(made)
        first = ann.lines[0]["connect"]["subs"]["a"]
        assert "publications" not in first
        await ann.heard("a", 2)
        await stored(stage, "a", 3)
        await ann.heard("a", 2, 3)
        back = await stage.connect(made, subs={"a": back_at(first)})
        result = back.lines[0]["connect"]["subs"]["a"]
        assert (result["recovered"], data_of(result)) == (True, [3])
        assert heard(back, "a") == []
        bob = await stage.connect(token("bob"))
        await Operations(stage.node).everywhere(Subscribe(user="bob", channel="a"))
        assert [next(iter(push.keys() - {"channel"})) for push in bob.pushes] == ["subscribe", "pub"]
        await bob.heard("a", 3)


async def test_the_newest_and_what_comes_meanwhile_are_in_order_and_come_once(nats: NatsServer) -> None:
    async with staged(nats, topics=LATEST) as stage:
        publishing = asyncio.create_task(stored(stage, "a", *range(200)))
        came: list[tuple[Conversation, dict[str, Any]]] = []
        while not publishing.done():
            conversation = await stage.connect()
            came.append((conversation, await conversation.call("subscribe", channel="a")))
            await asyncio.sleep(0)
        await publishing
        for conversation, result in came:
            begin = data_of(result)
            assert len(begin) <= 1
            await eventually(
                lambda conversation=conversation, begin=begin: (  # type: ignore[misc]
                    (begin + [data for _, data in heard(conversation, "a")])[-1] == 199
                )
            )
            seen = begin + [data for _, data in heard(conversation, "a")]
            assert seen == list(range(seen[0], 200))
