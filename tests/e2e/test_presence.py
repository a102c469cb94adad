"""Presence, joins and leaves over real nodes, as SDKs and server libraries see them, also when a node dies."""

from __future__ import annotations

import time
from typing import Any

import cent
import pytest

from tests.harness.client import WireClient, connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.recorder import sdk_client, subscribed
from tests.harness.site import Site
from tests.harness.tokens import API_KEY, token
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

GONE_SECONDS = 10
ROOM = "room.1"
TOPICS = [
    {
        "name": "rooms",
        "match": ["room.>"],
        "subscribe": "anyone",
        "publish": "anyone",
        "presence": True,
        "join_leave": True,
    }
]


@pytest.fixture
def nodes(site: Site, nats: NatsServer) -> list[BrokerNode]:
    return site.start_nodes(2, nats, {"topics": TOPICS})


def client_id(client: WireClient) -> str:
    found: str = client.lines[0]["connect"]["client"]
    return found


async def told(client: WireClient, count: int) -> list[tuple[str, str]]:
    """The first so many joins and leaves, as user names."""
    found: list[tuple[str, str]] = []
    while len(found) < count:
        push: dict[str, Any] = await client.push()
        found += [(kind, push[kind]["info"]["user"]) for kind in ("join", "leave") if kind in push]
    return found


async def presence(node: BrokerNode) -> dict[str, Any]:
    answer = await node.api("presence", {"channel": ROOM})
    result: dict[str, Any] = answer.json()["result"]
    return result


async def test_the_members_of_a_killed_node_leave_and_come_back_elsewhere(nodes: list[BrokerNode]) -> None:
    staying, dying = nodes
    async with connected(staying.websocket_url, token("ann"), topics=(ROOM,)) as ann:
        async with (
            connected(dying.websocket_url, token("bob"), topics=(ROOM,)),
            connected(dying.websocket_url, token("eve"), topics=(ROOM,)),
        ):
            assert await told(ann, 3) == [("join", "ann"), ("join", "bob"), ("join", "eve")]
            assert len((await presence(staying))["presence"]) == 3
            dying.kill()
            killed = time.monotonic()

        info = {"user": "ann", "client": client_id(ann)}

        async def alone() -> bool:
            return await presence(staying) == {"presence": {client_id(ann): info}}

        await eventually(alone, GONE_SECONDS)
        assert sorted(await told(ann, 2)) == [("leave", "bob"), ("leave", "eve")]
        assert time.monotonic() - killed < GONE_SECONDS
        async with connected(staying.websocket_url, token("bob"), topics=(ROOM,)):
            assert await told(ann, 1) == [("join", "bob")]
        assert await told(ann, 1) == [("leave", "bob")]


async def test_those_of_a_node_that_drains_leave_once(nodes: list[BrokerNode]) -> None:
    staying, ending = nodes
    async with (
        connected(staying.websocket_url, token("ann"), topics=(ROOM,)) as ann,
        connected(ending.websocket_url, token("bob"), topics=(ROOM,)),
    ):
        assert await ending.stopped() == 0
        async with connected(staying.websocket_url, token("eve"), topics=(ROOM,)):
            expected = [("join", "ann"), ("join", "bob"), ("leave", "bob"), ("join", "eve")]
            assert await told(ann, 4) == expected


async def test_a_node_that_does_not_answer_is_named_and_the_rest_is_told(nodes: list[BrokerNode]) -> None:
    asked, stuck = nodes
    stuck_name = stuck.name
    async with (
        connected(asked.websocket_url, token("ann"), topics=(ROOM,)) as ann,
        connected(stuck.websocket_url, token("bob"), topics=(ROOM,)),
    ):
        stuck.pause()
        listed = await presence(asked)
        numbers = (await asked.api("presence_stats", {"channel": ROOM})).json()["result"]
        stuck.resume()

        assert listed["presence"].keys() == {client_id(ann)}
        assert [node["name"] for node in listed["unanswered"]] == [stuck_name]
        assert (numbers["num_clients"], [node["name"] for node in numbers["unanswered"]]) == (1, [stuck_name])

        async def complete() -> bool:
            result = await presence(asked)
            return len(result["presence"]) == 2 and "unanswered" not in result

        await eventually(complete)


async def test_sdk_and_server_library_see_the_same(nodes: list[BrokerNode]) -> None:
    here, there = nodes
    async with (
        sdk_client(here.websocket_url, token=token("ann", info={"colour": "red"})) as ann,
        sdk_client(there.websocket_url, token=token("bob")) as bob,
        cent.AsyncClient(f"{there.url}/api", API_KEY) as api,
    ):
        events = await subscribed(ann, ROOM)
        await events.first("join")
        await subscribed(bob, ROOM)
        joins = await events.at_least(2, "join")
        members = (await ann.presence(ROOM)).clients
        stats = await bob.presence_stats(ROOM)
        seen = (await api.presence(cent.PresenceRequest(channel=ROOM))).presence
        counted = await api.presence_stats(cent.PresenceStatsRequest(channel=ROOM))

        assert [join.info.user for join in joins] == ["ann", "bob"]
        assert {info.user: info.conn_info for info in members.values()} == {"ann": {"colour": "red"}, "bob": None}
        assert {client: info.user for client, info in seen.items()} == {
            client: info.user for client, info in members.items()
        }
        assert (stats.num_clients, stats.num_users, counted.num_clients, counted.num_users) == (2, 2, 2, 2)

        await bob.get_subscription(ROOM).unsubscribe()
        assert (await events.first("leave")).info.user == "bob"
        assert (await api.presence_stats(cent.PresenceStatsRequest(channel=ROOM))).num_clients == 1
