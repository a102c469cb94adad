"""Members of topics on several nodes, and what they are told of each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.client.conversing import Conversation, Stage, staged
from tests.harness.nats import NatsServer
from tests.harness.tokens import token
from tests.harness.waiting import eventually

TOPICS = [
    {"name": "rooms", "match": ["room.>"], "subscribe": "anyone", "publish": "anyone", "join_leave": True},
    {"name": "seen", "match": ["seen.>"], "subscribe": "anyone", "publish": "anyone", "presence": True},
    {"name": "rest", "match": [">"], "subscribe": "anyone", "publish": "anyone"},
]
ROOM = "room.1"


@asynccontextmanager
async def stages(nats: NatsServer, count: int) -> AsyncIterator[list[Stage]]:
    """Nodes that know each other."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(staged(nats, topics=TOPICS))
        prefix = first.node.options.prefix
        others = [await stack.enter_async_context(staged(nats, prefix, topics=TOPICS)) for _ in range(count - 1)]
        all_ = [first, *others]
        await eventually(lambda: all(len(stage.node.control.peers) == count - 1 for stage in all_))
        yield all_


async def member(stage: Stage, user: str = "", topic: str = ROOM) -> Conversation:
    conversation = await stage.connect(token(user) if user else "")
    await conversation.call("subscribe", channel=topic)
    return conversation


def news(conversation: Conversation, topic: str = ROOM) -> list[tuple[str, str]]:
    """What a client was told of a topic's members: who has come and who has gone, by client."""
    return [
        (kind, push[kind]["info"]["client"])
        for push in conversation.pushes
        if push["channel"] == topic
        for kind in ("join", "leave")
        if kind in push
    ]


def present(conversation: Conversation, topic: str = ROOM) -> set[str]:
    """Who is there, as far as a client knows that looks at joins and leaves only."""
    found: set[str] = set()
    for kind, client in news(conversation, topic):
        if kind == "join":
            assert client not in found
            found.add(client)
        else:
            found.remove(client)
    return found


def kinds(conversation: Conversation) -> list[Any]:
    """What came, in order: `join` or `leave`, or what was published."""
    return [
        push["pub"]["data"] if "pub" in push else next(iter(push.keys() - {"channel"})) for push in conversation.pushes
    ]


async def told(conversation: Conversation, *expected: tuple[str, Conversation]) -> None:
    """Wait until a client was told exactly this."""
    clients = [(kind, who.client.id) for kind, who in expected]
    await eventually(lambda: news(conversation) == clients)


def assert_nothing_is_left(all_: Sequence[Stage]) -> None:
    for stage in all_:
        membership, live = stage.node.membership, stage.node._live
        live._leaving = dict.fromkeys(live._leaving, 0.0)
        live.sweep()
        assert (len(membership.members), membership.members.total, membership._rosters) == (0, 0, {})
        assert (stage.node.hub.topics, live._interests) == ({}, {})


async def die(stage: Stage) -> None:
    """End a node's part in the cluster without a word, as SIGKILL would."""
    node = stage.node
    node.control.leave = lambda: None  # type: ignore[method-assign]
    assert node.relaying is not None
    node.relaying.cancel()
    await eventually(lambda: not node.connection.connected)


@asynccontextmanager
async def cut_off(stage: Stage) -> AsyncIterator[None]:
    """A node without NATS, and back again."""
    connection = stage.node.connection
    connect = connection._connect

    async def refuse(_: str) -> Any:
        raise OSError("cut off")

    connection._connect = refuse  # type: ignore[method-assign, assignment]
    connection._ended.set()
    await eventually(lambda: not connection.connected)
    yield
    connection._connect = connect  # type: ignore[method-assign]
    await eventually(lambda: connection.connected)
