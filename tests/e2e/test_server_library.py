"""The server library `cent`, as it is on PyPI, against a cluster of two nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cent
import pytest

from tests.harness.client import connected
from tests.harness.nats import NatsServer
from tests.harness.node import EVERYTHING, BrokerNode
from tests.harness.site import Site
from tests.harness.tokens import API_KEY, token
from tests.harness.waiting import at_last, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SETTINGS = {
    "api": {
        "key": API_KEY,
        "keys": [{"name": "news", "key": "a-key-for-the-news", "methods": ["publish", "batch"], "topics": ["news.>"]}],
    },
    "topics": [{"name": "closed", "match": ["closed.>"]}, *EVERYTHING],
}


@pytest.fixture(scope="module")
def cluster(module_site: Site, nats: NatsServer) -> tuple[BrokerNode, BrokerNode]:
    """Two nodes that know each other."""
    one, two = module_site.start_nodes(2, nats, SETTINGS)
    know_each_other(one, two)
    return one, two


@pytest.fixture(scope="module")
def asked(cluster: tuple[BrokerNode, BrokerNode]) -> BrokerNode:
    """The node whose API is called."""
    return cluster[0]


@pytest.fixture(scope="module")
def serving(cluster: tuple[BrokerNode, BrokerNode]) -> BrokerNode:
    """The other, which has the clients."""
    return cluster[1]


@pytest.fixture
async def api(asked: BrokerNode) -> AsyncIterator[cent.AsyncClient]:
    async with cent.AsyncClient(f"{asked.url}/api", API_KEY) as client:
        yield client


@pytest.fixture
def sync_api(asked: BrokerNode) -> Iterator[cent.Client]:
    client = cent.Client(f"{asked.url}/api", API_KEY)
    yield client
    client._session.close()


def know_each_other(*nodes: BrokerNode) -> None:
    """Wait until all nodes see each other."""
    for node in nodes:
        client = cent.Client(f"{node.url}/api", API_KEY)
        at_last(lambda client=client: len(client.info(cent.InfoRequest()).nodes) == len(nodes))  # type: ignore[misc]
        client._session.close()


async def test_publish_reaches_the_subscribers_of_the_other_node(api: cent.AsyncClient, serving: BrokerNode) -> None:
    async with connected(serving.websocket_url, topics=("news",)) as client:
        await api.publish(cent.PublishRequest(channel="news", data={"n": 1}, tags={"lang": "de"}))
        push = await client.push()

    assert push == {"channel": "news", "pub": {"data": {"n": 1}, "tags": {"lang": "de"}}}


async def test_the_synchronous_client_does_the_same(sync_api: cent.Client, serving: BrokerNode) -> None:
    async with connected(serving.websocket_url, topics=("news",)) as client:
        await asyncio.to_thread(sync_api.publish, cent.PublishRequest(channel="news", data=[1]))
        await asyncio.to_thread(sync_api.broadcast, cent.BroadcastRequest(channels=["news", "other"], data=[2]))

        assert [await client.publication("news"), await client.publication("news")] == [[1], [2]]


async def test_broadcast_answers_for_each_topic(api: cent.AsyncClient, serving: BrokerNode) -> None:
    async with connected(serving.websocket_url, topics=("a", "b")) as client:
        result = await api.broadcast(cent.BroadcastRequest(channels=["a", "not a topic", "b"], data=1))
        topics = [(await client.push())["channel"] for _ in range(2)]

    codes = [None if one.error is None else one.error.code for one in result.responses]
    assert (codes, sorted(topics)) == ([None, 107, None], ["a", "b"])


@pytest.mark.parametrize("parallel", [False, True])
async def test_batch_runs_all_and_answers_in_order(
    api: cent.AsyncClient, serving: BrokerNode, *, parallel: bool
) -> None:
    topic = f"batch.{parallel}"
    async with connected(serving.websocket_url, topics=(topic,)) as client:
        publishes = [cent.PublishRequest(channel=topic, data=number) for number in range(250)]
        result = await api.batch(
            cent.BatchRequest(requests=[*publishes, cent.ChannelsRequest(pattern=topic)], parallel=parallel)
        )
        arrived = [await client.publication(topic) for _ in publishes]

    assert [type(reply) for reply in result.replies[:250]] == [cent.PublishResult] * 250
    assert arrived == list(range(250))
    assert list(getattr(result.replies[250], "channels")) == [topic]  # noqa: B009 - its type is not known to mypy


async def test_the_server_subscribes_and_unsubscribes(api: cent.AsyncClient, serving: BrokerNode) -> None:
    async with connected(serving.websocket_url, token("ann")) as client:
        await api.subscribe(
            cent.SubscribeRequest(user="ann", channel="closed.room", data={"hello": 1}, info={"seat": 7})
        )
        assert await client.push() == {"channel": "closed.room", "subscribe": {"data": {"hello": 1}}}
        await api.publish(cent.PublishRequest(channel="closed.room", data="in"))
        assert await client.publication("closed.room") == "in"
        await api.unsubscribe(cent.UnsubscribeRequest(user="ann", channel="closed.room"))
        push = await client.push()
        assert (push["channel"], push["unsubscribe"]["code"]) == ("closed.room", 2000)


async def test_what_a_subscription_says_of_the_client_is_shown_to_others(
    api: cent.AsyncClient, serving: BrokerNode
) -> None:
    async with connected(serving.websocket_url, token("kim", info={"colour": "red"})) as client:
        await api.subscribe(cent.SubscribeRequest(user="kim", channel="seats", info={"seat": 7}))
        await client.push()
        await client.call("publish", channel="seats", data=1)
        info = (await client.push())["pub"]["info"]

    assert (info["user"], info["conn_info"], info["chan_info"]) == ("kim", {"colour": "red"}, {"seat": 7})


async def test_disconnect_takes_one_client_or_all_of_a_user(api: cent.AsyncClient, serving: BrokerNode) -> None:
    async with (
        connected(serving.websocket_url, token("dan")) as one,
        connected(serving.websocket_url, token("dan")) as two,
        connected(serving.websocket_url, token("ben")) as other,
    ):
        ident = one.lines[0]["connect"]["client"]
        await api.disconnect(cent.DisconnectRequest(user="dan", client=ident))
        assert await one.closed() == (3503, "force disconnect")
        assert two.is_open
        await api.disconnect(cent.DisconnectRequest(user="dan", disconnect=cent.Disconnect(code=4321, reason="bye")))
        assert await two.closed() == (4321, "bye")
        assert other.is_open


async def test_refresh_prolongs_shortens_and_ends(api: cent.AsyncClient, serving: BrokerNode) -> None:
    async with connected(serving.websocket_url, token("ron", ttl_seconds=3600)) as client:
        await api.refresh(cent.RefreshRequest(user="ron", expire_at=int(time.time() + 7200)))
        refresh = (await client.push())["refresh"]
        assert refresh["expires"]
        assert 7100 < refresh["ttl"] <= 7200
        await api.refresh(cent.RefreshRequest(user="ron", expired=True))
        assert (await client.closed())[0] == 3005


async def test_channels_and_info_count_over_all_nodes(
    api: cent.AsyncClient, asked: BrokerNode, serving: BrokerNode
) -> None:
    async with (
        connected(asked.websocket_url, topics=("count.a", "count.b")),
        connected(serving.websocket_url, topics=("count.a",)),
    ):
        found = await api.channels(cent.ChannelsRequest(pattern="count.*"))
        nodes = (await api.info(cent.InfoRequest())).nodes

    assert {name: channel.num_clients for name, channel in found.channels.items()} == {"count.a": 2, "count.b": 1}
    assert {node.name for node in nodes} == {asked.name, serving.name}
    assert [node.num_clients for node in nodes] == [1, 1]


@pytest.mark.parametrize(
    "ask",
    [
        lambda api: api.presence(cent.PresenceRequest(channel="news")),
        lambda api: api.presence_stats(cent.PresenceStatsRequest(channel="news")),
        lambda api: api.history(cent.HistoryRequest(channel="news")),
        lambda api: api.history_remove(cent.HistoryRemoveRequest(channel="news")),
    ],
    ids=["presence", "presence_stats", "history", "history_remove"],
)
async def test_what_a_policy_does_not_have_is_not_available(
    api: cent.AsyncClient, ask: Callable[[cent.AsyncClient], Any]
) -> None:
    with pytest.raises(cent.CentApiResponseError) as refused:
        await ask(api)

    assert refused.value.code == 108


async def test_an_unknown_key_is_unauthorized(asked: BrokerNode) -> None:
    async with cent.AsyncClient(f"{asked.url}/api", "wrong") as stranger:
        with pytest.raises(cent.CentUnauthorizedError):
            await stranger.publish(cent.PublishRequest(channel="news", data=1))


async def test_a_key_with_some_rights_has_only_these(asked: BrokerNode) -> None:
    async with cent.AsyncClient(f"{asked.url}/api", "a-key-for-the-news") as limited:
        await limited.publish(cent.PublishRequest(channel="news.sport", data=1))
        with pytest.raises(cent.CentApiResponseError) as refused:
            await limited.publish(cent.PublishRequest(channel="other", data=1))
        assert refused.value.code == 103
        with pytest.raises(cent.CentTransportError) as forbidden:
            await limited.info(cent.InfoRequest())
        assert forbidden.value.status_code == 403


async def test_a_node_that_does_not_answer_is_named(site: Site, nats: NatsServer) -> None:
    one, two, three = site.start_nodes(3, nats)
    await asyncio.to_thread(know_each_other, one, two, three)
    name = three.name
    three.pause()
    answer = (await one.api("info", {})).json()["result"]

    assert [node["name"] for node in answer["unanswered"]] == [name]
    assert {node["name"] for node in answer["nodes"]} == {one.name, two.name}
    three.kill()

    async def forgotten() -> bool:
        result = (await one.api("info", {})).json()["result"]
        return "unanswered" not in result and len(result["nodes"]) == 2

    await eventually(forgotten, seconds=30)


async def test_a_node_that_ends_as_it_should_is_not_waited_for(site: Site, nats: NatsServer) -> None:
    one, two = site.start_nodes(2, nats)
    await asyncio.to_thread(know_each_other, one, two)
    assert await two.stopped() == 0
    answer = (await one.api("info", {})).json()["result"]

    assert [node["name"] for node in answer["nodes"]] == [one.name]
    assert "unanswered" not in answer
