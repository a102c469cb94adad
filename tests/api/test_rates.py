"""Publications through the HTTP API that are too many: a second, or at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.relay.errors import RelayTimeoutError
from tests.api.asgi import call
from tests.client.conversing import Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.harness.web import Answer

pytestmark = pytest.mark.anyio

SLOW, FAST = "a-key-with-a-rate", "a-key-without-one"
TOPICS = [
    {"name": "held", "match": ["held.>"], "publish_rate": 2},
    {"name": "kept", "match": ["kept.>"], "durable": True, "publish_rate": 2},
    {"name": "small", "match": ["small"], "message_bytes": 10},
    {"name": "news", "match": ["news.>"]},
]


KEPT = [{"name": "kept", "match": ["kept.>"], "durable": True}, {"name": "news", "match": ["news.>"]}]


@asynccontextmanager
async def limited(nats: NatsServer, rate: float, **settings: Any) -> AsyncIterator[Stage]:
    """A node with a key that has a rate and one that has none; time stands still there."""
    keys = [{"name": "slow", "key": SLOW, "publish_rate": rate}, {"name": "fast", "key": FAST}]
    async with staged(nats, **{"api": {"keys": keys}, "topics": TOPICS, **settings}) as stage:
        now = stage.clock()
        stage.clock._clock = lambda: now
        yield stage


async def publish(stage: Stage, topic: str, key: str = SLOW, **more: Any) -> Answer:
    return await call(stage.app, "publish", {"channel": topic, "data": 1, **more}, key=key)


def code(answer: Answer) -> int:
    """Of the error; 0 for none."""
    found: int = answer.json().get("error", {}).get("code", 0)
    return found


async def codes(stage: Stage, method: str, request: Any, key: str = SLOW) -> list[int]:
    """Of each publication's error."""
    answer = await call(stage.app, method, request, key=key)
    assert answer.status == 200
    content = answer.json()
    items = content["result"]["responses"] if method == "broadcast" else content["replies"]
    return [one.get("error", {}).get("code", 0) for one in items]


async def test_a_key_beyond_its_rate_gets_429_and_when_to_come_again(nats: NatsServer) -> None:
    async with limited(nats, 2) as stage:
        assert [(await publish(stage, "news.a")).status for _ in range(2)] == [200, 200]
        refused = await publish(stage, "news.a")
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        text = "too many requests: at most 2 publications per second with this API key; try again in 0.5 s"
        assert refused.json() == {"error": {"code": 111, "message": text}}
        assert [(await publish(stage, "news.a", FAST)).status for _ in range(20)] == [200] * 20
        stage.clock.ahead += 0.5
        assert [(await publish(stage, "news.a")).status for _ in range(2)] == [200, 429]
        stage.node.observe()
        counted = stage.node.metrics.published
        assert counted.labels("news", "http", "rate_limited")._value.get() == 2
        assert counted.labels("news", "http", "ok")._value.get() == 23
        assert stage.node.metrics.errors.labels("http", "111")._value.get() == 2


@pytest.mark.parametrize(("rate", "seconds"), [(0.4, "3"), (0.5, "2"), (1, "1"), (1000, "1")])
async def test_when_to_come_again_is_said_in_whole_seconds(nats: NatsServer, rate: float, seconds: str) -> None:
    async with limited(nats, rate) as stage:
        for _ in range(max(1, int(rate))):
            assert (await publish(stage, "news.a")).status == 200
        refused = await publish(stage, "news.a")
        assert (refused.status, refused.headers["retry-after"]) == (429, seconds)


async def test_who_asks_for_statuses_gets_the_bare_error(nats: NatsServer) -> None:
    async with limited(nats, 1) as stage:
        await publish(stage, "news.a")
        request = {"channel": "news.a", "data": 1}
        refused = await call(stage.app, "publish", request, key=SLOW, X_Centrifugo_Error_Mode="transport")
        assert (refused.status, refused.json()["code"], refused.headers["retry-after"]) == (429, 111, "1")


@pytest.mark.parametrize("topic", ["held.a", "kept.a"])
async def test_a_policy_s_rate_holds_for_all_keys_and_topics_together(nats: NatsServer, topic: str) -> None:
    async with limited(nats, 100) as stage:
        assert (await publish(stage, topic, FAST)).status == 200
        assert (await publish(stage, f"{topic}.b")).status == 200
        for key in (SLOW, FAST):
            refused = await publish(stage, topic, key)
            assert (refused.status, refused.headers["retry-after"], code(refused)) == (429, "1", 111)
            assert f"to topics of policy {topic[:4]}; try again in 0.5 s" in refused.json()["error"]["message"]
        assert (await publish(stage, "news.a")).status == 200


async def test_what_is_refused_for_another_reason_costs_nothing(nats: NatsServer) -> None:
    async with limited(nats, 2) as stage:
        for _ in range(2):
            assert (await publish(stage, "held.a", FAST)).status == 200
        for _ in range(5):
            for topic, expected in (("nowhere", 102), ("a..b", 107), ("held.a", 111)):
                assert code(await publish(stage, topic)) == expected
            assert code(await publish(stage, "small", data="x" * 20)) == 106
            assert code(await publish(stage, "news.a", b64data="eA==")) == 107
            assert code(await call(stage.app, "publish", {"channel": "news.a"}, key=SLOW)) == 107
        assert [(await publish(stage, "news.a")).status for _ in range(3)] == [200, 200, 429]


async def test_a_broadcast_pays_for_each_topic(nats: NatsServer) -> None:
    async with limited(nats, 3) as stage:
        request = {"channels": [f"news.{number}" for number in range(5)], "data": 1}
        assert await codes(stage, "broadcast", request) == [0, 0, 0, 111, 111]
        refused = await call(stage.app, "broadcast", request, key=SLOW)
        assert (refused.status, code(refused), refused.headers["retry-after"]) == (429, 111, "1")
        assert "all 5 are refused; at most 3 publications per second" in refused.json()["error"]["message"]
        mixed = {"channels": ["news.a", "nowhere"], "data": 1}
        assert await codes(stage, "broadcast", mixed) == [111, 102]


@pytest.mark.parametrize("parallel", [True, False])
async def test_a_batch_pays_for_each_publication(nats: NatsServer, parallel: bool) -> None:  # noqa: FBT001 - a parameter
    one = {"publish": {"channel": "news.a", "data": 1}}
    many = {"broadcast": {"channels": ["news.a", "news.b"], "data": 1}}
    async with limited(nats, 2) as stage:
        request = {"commands": [one, one, one], "parallel": parallel}
        assert await codes(stage, "batch", request) == [0, 0, 111]
        refused = await call(stage.app, "batch", request, key=SLOW)
        assert (refused.status, code(refused), refused.headers["retry-after"]) == (429, 111, "1")
        assert await codes(stage, "batch", {"commands": [one, many, {"info": {}}], "parallel": parallel}) == [
            111,
            111,
            0,
        ]
        assert (await call(stage.app, "batch", {"commands": [many, one]}, key=SLOW)).status == 429
        stage.clock.ahead += 0.5
        assert await codes(stage, "batch", {"commands": [many]}) == [0]
        assert (await call(stage.app, "batch", {"commands": [many]}, key=SLOW)).status == 429


async def test_ten_times_too_much_is_held_to_the_rate_and_others_are_not(nats: NatsServer) -> None:
    rate, seconds = 20, 5
    async with limited(nats, rate) as stage:
        passed = {SLOW: 0, FAST: 0}
        for _ in range(seconds * 100):
            stage.clock.ahead += 0.01
            for key in (SLOW, SLOW, FAST):
                passed[key] += (await publish(stage, "news.a", key)).status == 200
        assert passed[FAST] == seconds * 100
        assert 0.9 * rate * seconds <= passed[SLOW] - rate <= rate * seconds  # beside the second's worth at once


async def test_a_broadcast_to_more_topics_than_may_wait_has_them_wait_for_their_turn(nats: NatsServer) -> None:
    for most in (1, 10):
        async with limited(nats, 1, limits={"publishes_in_flight": most}) as stage:
            request = {"channels": [f"news.{number}" for number in range(300)], "data": 1}
            assert await codes(stage, "broadcast", request, FAST) == [0] * 300
            assert stage.node.publisher.in_flight == 0


async def test_a_broadcast_waits_once_for_a_stream_that_does_not_answer(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with limited(nats, 1, topics=KEPT) as stage:
        handed: list[asyncio.Future[Any]] = []

        def never(*_: Any) -> asyncio.Future[Any]:
            handed.append(asyncio.get_running_loop().create_future())
            return handed[-1]

        def time_out() -> None:
            for future in handed:
                if not future.done():
                    future.set_exception(RelayTimeoutError("no answer"))

        monkeypatch.setattr(stage.node.durability, "publish", never)
        request = {"channels": [f"kept.{number}" for number in range(4000)], "data": 1}
        broadcast = asyncio.create_task(codes(stage, "broadcast", request, FAST))
        await eventually(lambda: len(handed) == 1000)
        time_out()
        await eventually(lambda: len(handed) == 4000)
        time_out()
        assert await broadcast == [100] * 4000


@pytest.mark.parametrize("topic", ["news.a", "kept.a"])
async def test_ten_thousand_at_once_do_not_pile_up_while_nats_stands_still(site: Site, topic: str) -> None:
    nats = site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})
    async with limited(nats, 1, topics=KEPT) as stage:
        nats.pause()
        calls = [asyncio.create_task(publish(stage, topic, FAST)) for _ in range(10_000)]
        refused = await eventually(
            lambda: (found := [one for one in calls if one.done()]) and len(found) > 5903 and found
        )
        assert stage.node.publisher.in_flight == 4096
        answers = [one.result() for one in refused]
        assert {(one.status, one.headers["retry-after"], code(one)) for one in answers} == {(503, "1", 100)}
        assert (
            "4096 publications wait for NATS, as many as limits.publishes_in_flight allows"
            in answers[0].json()["error"]["message"]
        )
        stage.node.observe()
        metrics = stage.node.metrics
        assert metrics.publishes_in_flight._value.get() == 4096
        assert metrics.published.labels(topic[:4], "http", "busy")._value.get() == len(refused) == 5904
        nats.resume()
        statuses = [one.status for one in await asyncio.gather(*calls)]
        assert statuses.count(200) == 4096
        assert stage.node.publisher.in_flight == 0
        assert (await publish(stage, topic, FAST)).status == 200


@pytest.mark.parametrize("topic", ["news.a", "kept.a"])
async def test_what_nats_loses_no_longer_counts_as_waiting(site: Site, topic: str) -> None:
    nats = site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})
    async with limited(nats, 1, topics=KEPT, limits={"publishes_in_flight": 5}) as stage:
        nats.pause()
        waiting = [asyncio.create_task(publish(stage, topic, FAST)) for _ in range(5)]
        await eventually(lambda: stage.node.publisher.in_flight == 5)
        assert (await publish(stage, topic, FAST)).status == 503
        nats.kill()
        assert {one.status for one in await asyncio.gather(*waiting)} == {503}
        assert stage.node.publisher.in_flight == 0
