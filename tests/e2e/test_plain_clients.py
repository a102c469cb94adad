"""Clients without an SDK: a WebSocket library and the JSON protocol."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tornado.websocket
import websocket

from tests.harness.client import connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.process import Process
from tests.harness.site import Site
from tests.harness.tokens import token

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

Send = Callable[[str], Awaitable[object]]
Receive = Callable[[], Awaitable[str]]


@pytest.fixture(scope="module")
def node(module_site: Site, nats: NatsServer) -> BrokerNode:
    return module_site.start_node(nats)


async def converse(node: BrokerNode, send: Send, receive: Receive) -> None:
    """Connect, subscribe, receive, and publish, as any client would."""
    unread: list[dict[str, Any]] = []

    async def following() -> dict[str, Any]:
        while not unread:
            unread.extend(json.loads(line) for line in (await receive()).split("\n"))
        return unread.pop(0)

    async with asyncio.timeout(15):
        await send(json.dumps({"id": 1, "connect": {"token": token("ann")}}))
        assert (await following())["connect"]["client"]
        await send(json.dumps({"id": 2, "subscribe": {"channel": "plain"}}))
        assert await following() == {"id": 2, "subscribe": {}}
        await node.publish("plain", {"text": "grüße"})
        assert await following() == {"push": {"channel": "plain", "pub": {"data": {"text": "grüße"}}}}
        await send(json.dumps({"id": 3, "publish": {"channel": "plain", "data": [1]}}))
        own = (await following())["push"]["pub"]
        assert (own["data"], own["info"]["user"]) == ([1], "ann")
        assert await following() == {"id": 3, "publish": {}}


async def test_websocket_client(node: BrokerNode) -> None:
    connection = await asyncio.to_thread(websocket.create_connection, node.websocket_url, timeout=15)

    async def receive() -> str:
        message = await asyncio.to_thread(connection.recv)
        assert isinstance(message, str)
        return message

    try:
        await converse(node, lambda text: asyncio.to_thread(connection.send, text), receive)
    finally:
        await asyncio.to_thread(connection.close)


async def test_aiohttp(node: BrokerNode) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(node.websocket_url) as connection:
        await converse(node, connection.send_str, connection.receive_str)


async def test_tornado(node: BrokerNode) -> None:
    connection = await tornado.websocket.websocket_connect(node.websocket_url)

    async def receive() -> str:
        message = await connection.read_message()
        assert isinstance(message, str)
        return message

    await converse(node, connection.write_message, receive)
    connection.close()
    assert await connection.read_message() is None


async def test_a_client_among_many_sees_its_own_publication_before_the_reply_to_it(node: BrokerNode) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(400):  # a fan-out of several slices, and the publisher in the last of them
            await stack.enter_async_context(connected(node.websocket_url, topics=("crowded",)))
        publisher = await stack.enter_async_context(connected(node.websocket_url, topics=("crowded",)))
        await publisher.send({"id": 100, "publish": {"channel": "crowded", "data": "mine"}})
        reply = await publisher.reply(100)
        said = [line for line in publisher.lines if line is reply or "push" in line]

    assert [next(iter(line)) for line in said] == ["push", "id"]


async def test_gevent(node: BrokerNode, site: Site) -> None:
    script = Path(__file__).parent / "gevent_client.py"
    client = Process([sys.executable, str(script), node.websocket_url, token("ann")], site.directory, "gevent")
    site.start(client)

    assert await client.ended() == 0, client.log()
    assert json.loads(client.output()) == {"clients": 20, "received": 400}
