"""Who is on, and has to go: asked of two nodes in this process."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from broker.core.pace import Rates
from broker.operating import connections as module
from broker.operating.slices import CLOSED_AT_ONCE, SCANNED_AT_ONCE, slices
from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.tokens import token
from tests.harness.waiting import eventually
from tests.operating.asking import SOME, ask

pytestmark = pytest.mark.anyio


@dataclass
class Scene:
    one: Stage
    two: Stage
    clients: dict[str, Conversation]
    """By what they are called here."""

    def names(self, entries: list[dict[str, Any]]) -> list[str]:
        by_id = {conversation.client.id: name for name, conversation in self.clients.items()}
        return [by_id[entry["client"]] for entry in entries]

    @property
    def closed(self) -> dict[str, tuple[int, str] | None]:
        return {name: one.closed for name, one in self.clients.items() if one.closed}


@pytest.fixture
async def scene(nats: NatsServer) -> AsyncIterator[Scene]:
    prefix = f"t{secrets.token_hex(4)}"
    async with staged(nats, prefix) as one, staged(nats, prefix) as two:
        await eventually(lambda: len(one.node.control.peers) == len(two.node.control.peers) == 1)
        one.node.name, two.node.name = "one", "two"
        clients = {
            "ann": await one.connect(token("ann")),
            "ben": await two.connect(token("ben")),
            "ann elsewhere": await two.connect(token("ann")),
            "nobody": await one.connect(),
        }
        for age, conversation in enumerate(reversed(clients.values())):
            conversation.client._connect_by -= 10 * age  # the first has been there the longest
        for name, topic in (("ann", "news.a"), ("ben", "news.a"), ("ben", "news.b"), ("nobody", "news.*")):
            await clients[name].call("subscribe", channel=topic)
        clients["ben"].outlet.address = "198.51.100.1"
        yield Scene(one, two, clients)


async def test_connections_of_all_nodes_are_listed_the_oldest_first(scene: Scene) -> None:
    scene.clients["ben"].outlet.queued_bytes = 17
    scene.clients["ben"].outlet.dropped = 3
    answer = await ask(scene.one, "connections")
    assert answer["total"] == 4
    assert scene.names(answer["connections"]) == ["ann", "ben", "ann elsewhere", "nobody"]
    ages = [entry["seconds"] for entry in answer["connections"]]
    assert ages == sorted(ages, reverse=True)
    assert all(0 <= age < 600 for age in ages)
    ben = {name: value for name, value in answer["connections"][1].items() if name not in {"client", "seconds"}}
    assert ben == {
        "user": "ben",
        "node": "two",
        "address": "198.51.100.1",
        "topics": 2,
        "queued_bytes": 17,
        "dropped": 3,
    }
    assert answer["connections"][3]["user"] == ""


async def test_the_limit_bounds_the_list_and_not_the_total(scene: Scene) -> None:
    answer = await ask(scene.two, "connections", limit=2)
    assert (answer["total"], scene.names(answer["connections"])) == (4, ["ann", "ben"])
    for limit in (0, -1, 1001):
        assert await ask(scene.one, "connections", limit=limit) == (107, "bad request: limit: must be from 1 to 1000")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"user": "ann"}, ["ann", "ann elsewhere"]),
        ({"user": ""}, ["nobody"]),
        ({"user": None}, ["ann", "ben", "ann elsewhere", "nobody"]),
        ({"user": "eve"}, []),
        ({"topic": "news.a"}, ["ann", "ben"]),
        ({"topic": "news.*"}, ["nobody"]),
        ({"node": "two"}, ["ben", "ann elsewhere"]),
        ({"node": "three"}, []),
        ({"address": "198.51.100.1"}, ["ben"]),
        ({"user": "ann", "node": "two"}, ["ann elsewhere"]),
        ({"user": "ann", "topic": "news.a"}, ["ann"]),
        ({"user": "ann", "topic": "news.b"}, []),
        ({"user": "ann", "address": "198.51.100.1"}, []),
    ],
)
async def test_all_filters_have_to_fit(scene: Scene, filters: dict[str, Any], found: list[str]) -> None:
    answer = await ask(scene.one, "connections", **filters)
    assert scene.names(answer["connections"]) == found
    assert answer["total"] == len(found)
    if found and found != list(scene.clients):
        assert await ask(scene.two, "kick", **filters) == {"kicked": len(found)}
        assert set(scene.closed) == set(found)


async def test_a_client_and_a_node_are_found_by_their_ids(scene: Scene) -> None:
    ident = scene.clients["ben"].client.id
    assert scene.names((await ask(scene.one, "connections", client=ident))["connections"]) == ["ben"]
    assert (await ask(scene.one, "connections", client=ident, user="ann"))["total"] == 0
    uid = scene.two.node.uid
    assert scene.names((await ask(scene.one, "connections", node=uid))["connections"]) == ["ben", "ann elsewhere"]


async def test_a_kick_closes_with_the_code_and_the_reason_that_are_given(scene: Scene) -> None:
    assert await ask(scene.one, "kick", topic="news.a", code=4001, reason="moved") == {"kicked": 2}
    assert scene.closed == {"ann": (4001, "moved"), "ben": (4001, "moved")}
    assert await ask(scene.one, "kick", node="one") == {"kicked": 1}
    assert scene.closed["nobody"] == (3503, "force disconnect")
    # who is closed, but has not answered yet, is not there any more
    assert (await ask(scene.one, "connections"))["total"] == 1


@pytest.mark.parametrize("method", ["kick", "throttle"])
async def test_what_acts_on_connections_needs_to_know_which(scene: Scene, method: str) -> None:
    told = (107, "bad request: user, topic, node, address or client: one of them must be given")
    assert await ask(scene.one, method) == told
    assert await ask(scene.one, method, user=None, topic=None) == told
    assert not scene.closed


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"code": 2999}, "code: must be from 3000 to 4999"),
        ({"code": 5000}, "code: must be from 3000 to 4999"),
        ({"code": -1}, "code: must be from 3000 to 4999"),
        ({"reason": "x" * 124}, "reason: at most 123 bytes are allowed"),
    ],
)
async def test_a_kick_that_no_close_frame_can_say_is_refused(scene: Scene, request_: dict[str, Any], text: str) -> None:
    assert await ask(scene.one, "kick", user="ann", **request_) == (107, f"bad request: {text}")
    assert not scene.closed


async def test_throttle_reaches_the_clients_that_are_meant(scene: Scene) -> None:
    ann, elsewhere, other = (scene.clients[name].client for name in ("ann", "ann elsewhere", "ben"))
    assert await ask(scene.one, "throttle", user="ann", command_rate=5, publish_rate=0.5) == {"throttled": 2}
    assert (ann.rates, elsewhere.rates, other.rates) == (Rates(5, 0.5), Rates(5, 0.5), None)
    assert await ask(scene.one, "throttle", user="ann", node="two") == {"throttled": 1}
    assert (ann.rates, elsewhere.rates) == (Rates(5, 0.5), None)
    for name in ("command_rate", "publish_rate"):
        for rate in (0, -1):
            told = await ask(scene.one, "throttle", user="ann", **{name: rate})
            assert told == (107, f"bad request: {name}: must be above 0, or null for what the settings say")
    assert ann.rates == Rates(5, 0.5)


@pytest.mark.parametrize("method", ["connections", "kick", "throttle", "slow", "drain"])
async def test_a_key_for_some_topics_may_do_none_of_it(scene: Scene, method: str) -> None:
    told = (103, "permission denied: this API key is for some topics only")
    assert await ask(scene.one, method, SOME, **({} if method == "slow" else {"node": "one"})) == told
    assert not scene.closed
    assert not scene.one.node.draining


async def test_scans_and_kicks_leave_the_event_loop_free_in_between(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(things: Any, at_once: int) -> Any:
        seen.append(at_once)
        return slices(things, 1)

    monkeypatch.setattr(module, "slices", counted)
    assert (await ask(scene.one, "connections"))["total"] == 4
    assert await ask(scene.one, "kick", user="ann") == {"kicked": 2}
    assert set(seen) == {SCANNED_AT_ONCE, CLOSED_AT_ONCE}


async def test_who_goes_while_others_are_kicked_is_not_counted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSED_AT_ONCE", 1)
    first, last = scene.clients["ann"].client, scene.clients["nobody"].client
    original = first.outlet.close

    def close(reason: Any) -> None:
        original(reason)
        last.lost()

    monkeypatch.setattr(first.outlet, "close", close)
    assert await ask(scene.one, "kick", node="one") == {"kicked": 1}
