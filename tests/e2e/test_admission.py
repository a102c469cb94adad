"""Whom a node lets in, and what it says to the others."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.harness.client import connected, opened
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.raw import RawConnection, dialled, upgrade
from tests.harness.site import Site
from tests.harness.tls import Authority
from tests.harness.tokens import token
from tests.harness.waiting import eventually
from tests.harness.web import request

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


async def refused(connection: RawConnection) -> str:
    """The detail of a 503."""
    status, headers = await connection.head()
    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert int(headers["retry-after"]) >= 1
    return str(json.loads(await connection.rest())["detail"])


async def test_those_who_wait_are_told_when_the_node_drains(site: Site, nats: NatsServer) -> None:
    limits = {"connections_per_second": 1, "connections_burst": 1}
    node = site.start_node(nats, {"limits": limits, "drain": {"delay_seconds": 0.3}})
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(connected(node.websocket_url))
        waiting = [await stack.enter_async_context(dialled(node.port)) for _ in range(3)]
        for connection in waiting:
            await connection.send(upgrade())

        async def they_wait() -> bool:
            return await node.metric('broker_connections_waiting{room="door"') >= 2

        await eventually(they_wait)
        node.terminate()

        # the first may have had its turn before
        assert await refused(waiting[-1]) == "this node is draining"
    assert await node.ended() == 0


async def test_a_node_that_was_stuck_lets_nobody_in_until_it_has_caught_its_breath(
    site: Site, nats: NatsServer
) -> None:
    node = site.start_node(nats, {"limits": {"overload_lag_seconds": 0.5, "overload_seconds": 1}})
    async with connected(node.websocket_url, topics=("news",)) as client:
        node.pause()
        await asyncio.sleep(2)  # the fault itself: longer than `overload_seconds`
        node.resume()

        async def overloaded() -> bool:
            return await node.metric("broker_overloaded") == 1

        await eventually(overloaded)
        await node.publish("news", "still")
        assert await client.publication("news") == "still"
        await said_overloaded(node)
        await node.ready()
        assert await node.metric("broker_overloaded") == 0
        async with connected(node.websocket_url):
            pass
    log = node.log()
    assert (log.count(": overloaded for"), log.count("not overloaded any more")) == (1, 1)


async def said_overloaded(node: BrokerNode) -> None:
    async with dialled(node.port) as connection:
        await connection.send(upgrade())
        assert "more to do than it can" in await refused(connection)
    assert await node.metric('broker_connects_total{result="overload"') == 1


async def test_limits_for_each_user_and_each_address_behind_a_proxy(site: Site, nats: NatsServer) -> None:
    limits = {"connections_per_user": 2, "connections_per_address": 3}
    node = site.start_node(nats, {"limits": limits, "http": {"trusted_proxies": ["127.0.0.1"]}})
    anna = token("anna")
    async with AsyncExitStack() as stack:
        for number in range(3):
            address = f"192.0.2.{number % 2}"
            client = await stack.enter_async_context(opened(node.websocket_url, X_Forwarded_For=address))
            if number < 2:
                await client.call("connect", token=anna)
            else:
                await client.send({"id": 1, "connect": {"token": anna}})
                code, reason = await client.closed()
                assert code == 3504
                assert "limits.connections_per_user" in reason
        for _ in range(3):
            invented = "203.0.113.1, 192.0.2.9"
            await stack.enter_async_context(opened(node.websocket_url, X_Forwarded_For=invented))
        async with dialled(node.port) as connection:
            await connection.send(upgrade(changes={"X-Forwarded-For": "192.0.2.9"}))
            assert "limits.connections_per_address" in await refused(connection)
        assert await node.metric('broker_connects_total{result="address"') == 1
        assert await node.metric('broker_connects_total{result="user"') == 1


async def test_who_waits_over_tls_is_let_in_too_and_who_hangs_up_leaves(site: Site, nats: NatsServer) -> None:
    authority = Authority(site.directory)
    own = authority.issue("node")
    tls = {"tls_cert": str(own.certificate), "tls_key": str(own.key)}
    node = site.add_node(nats, {"http": tls, "limits": {"connections_per_second": 2, "connections_burst": 1}})
    node.start()
    trusting = authority.trusting()

    async def waiting() -> float:
        page = (await request("GET", f"{node.url}/metrics", tls=trusting)).body.decode()
        found = re.search(r'broker_connections_waiting{room="door"} ([0-9.]+)', page)
        return float(found[1]) if found else 0.0

    async def ready() -> bool:
        return (await request("GET", f"{node.url}/health/ready", tls=trusting)).status == 200

    await eventually(ready)
    async with connected(node.websocket_url, tls=trusting):
        impatient = asyncio.create_task(_open_and_leave(node, trusting))
        opening = asyncio.create_task(_ask(node, trusting))
        await eventually(lambda: _at_least(waiting, 1))
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        assert await opening == "here"
        await eventually(lambda: _none(waiting))


async def _open_and_leave(node: BrokerNode, tls: ssl.SSLContext) -> None:
    async with opened(node.websocket_url, tls=tls):
        pass


async def _ask(node: BrokerNode, tls: ssl.SSLContext) -> str:
    async with connected(node.websocket_url, tls=tls):
        return "here"


async def _at_least(waiting: Callable[[], Awaitable[float]], number: int) -> bool:
    return await waiting() >= number


async def _none(waiting: Callable[[], Awaitable[float]]) -> bool:
    return await waiting() == 0
