"""`broker serve --workers`: several processes on one port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.supervisor import _Supervisor
from tests.e2e.commands import children, gone
from tests.harness.client import WireClient, connected
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.harness.web import request

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

WORKERS = 3
CLIENTS = 60


@pytest.fixture
async def node(site: Site, nats: NatsServer) -> BrokerNode:
    node = site.start_node(nats, arguments=("--workers", str(WORKERS)))
    await all_ready(node)
    return node


async def all_ready(node: BrokerNode) -> None:
    """Wait until every worker answers, and that it is ready; the kernel chooses who is asked."""
    ready: set[str] = set()

    async def every() -> bool:
        answer = (await request("GET", f"{node.url}/health/ready")).json()
        if answer["status"] == "ready":
            ready.add(answer["node"])
        return len(ready) == WORKERS

    await eventually(every, seconds=30)


@asynccontextmanager
async def crowd(node: BrokerNode) -> AsyncIterator[list[WireClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(node.websocket_url, topics=("news",))) for _ in range(CLIENTS)]


def workers_of(clients: list[WireClient]) -> Counter[str]:
    return Counter(client.lines[0]["connect"]["node"] for client in clients)


async def test_clients_are_spread_and_hear_the_same_and_are_counted_together(node: BrokerNode) -> None:
    async with crowd(node) as clients:
        assert len(workers_of(clients)) == WORKERS
        for number in range(20):
            await node.publish("news", number)
        for client in clients:
            assert [await client.publication("news") for _ in range(20)] == list(range(20))

        async def adds_up() -> bool:
            return (
                await node.metric("broker_connections"),
                await node.metric("broker_subscriptions"),
                await node.metric('broker_connects_total{result="ok"'),
                await node.metric("broker_delivered_total"),
                await node.metric("broker_relay_connected"),
            ) == (CLIENTS, CLIENTS, CLIENTS, 20 * CLIENTS, 1)

        await eventually(adds_up)
        info = (await node.api("info", {})).json()["result"]["nodes"]
        assert {worker["name"]: worker["num_clients"] for worker in info} == workers_of(clients)
        assert (await node.api("channels", {})).json()["result"] == {"channels": {"news": {"num_clients": CLIENTS}}}


async def test_a_worker_that_dies_is_replaced_and_the_others_go_on(node: BrokerNode) -> None:
    async with crowd(node) as clients:
        before = set(children(node.pid))
        assert len(before) == WORKERS
        # at once, in its first seconds, as the kernel does when memory is short
        victim = before.pop()
        os.kill(victim, signal.SIGKILL)
        await gone(victim)
        lost = [client for client in clients if not await stays_open(client)]
        assert 0 < len(lost) < CLIENTS
        await eventually(lambda: len(children(node.pid)) == WORKERS)
        await all_ready(node)
        await node.publish("news", "we go on")
        for client in clients:
            if client not in lost:
                assert await client.publication("news") == "we go on"

        async def counted() -> bool:
            return await node.metric("broker_connections") == CLIENTS - len(lost)

        await eventually(counted)


async def stays_open(client: WireClient) -> bool:
    """Whether a client is not one of those that a killed process has left."""
    try:
        await client.closed(seconds=0.02)
    except TimeoutError:
        return True
    return False


async def test_sigterm_ends_all_of_them(node: BrokerNode) -> None:
    workers = children(node.pid)
    async with crowd(node) as clients:
        node.terminate()
        assert {(await client.closed())[0] for client in clients} == {3001}
    assert await node.ended() == 0
    await gone(*workers)


async def test_they_end_with_the_process_that_watches_them(node: BrokerNode) -> None:
    workers = children(node.pid)
    node.kill()

    await gone(*workers)


async def test_workers_that_cannot_start_are_not_tried_for_ever(site: Site, nats: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = site.add_node(nats, {"http": {"internal_port": port}}, arguments=("--workers", "2"))
        node.start()

        assert await node.ended() == 1
    assert f"http.internal_port: can't listen on 127.0.0.1:{port}: Address already in use" in node.log()


@dataclass(frozen=True)
class Play:
    """Workers that end as they are told, one way in each life, and live on after the last."""

    directory: Path

    def supervisor(self, *ends: str) -> _Supervisor:
        script = f"""
import os, pathlib, signal, sys, time
here = pathlib.Path({str(self.directory)!r})
worker = os.environ["BROKER_WORKER"]
life = len(list(here.glob(f"worker{{worker}}-*")))
(here / f"worker{{worker}}-{{life}}").touch()
ends = {ends!r}
if worker == "0" and life < len(ends):
    exec(ends[life])
signal.pause()
"""
        return _Supervisor([sys.executable, "-c", script], dict(os.environ), self.directory)

    def lives(self, worker: int = 0) -> int:
        return len(list(self.directory.glob(f"worker{worker}-*")))


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
CRASHED = "os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(("own", "code"), [(1, 1), (2, 2), (3, 1), (120, 1)])
async def test_when_a_worker_gives_up_as_it_starts_its_code_is_a_failure_s_or_bad_settings(
    play: Play, own: int, code: int
) -> None:
    assert await play.supervisor(f"sys.exit({own})").run(2) == code
    assert play.lives() == 1


async def test_a_worker_that_is_killed_as_it_starts_is_replaced(play: Play) -> None:
    supervisor = play.supervisor(KILLED, CRASHED)
    running = asyncio.create_task(supervisor.run(2))
    await eventually(lambda: play.lives() == 3 and play.lives(1) == 1)
    os.kill(os.getpid(), signal.SIGTERM)

    assert await running == 0
    assert (play.lives(), play.lives(1)) == (3, 1)


async def test_a_worker_that_crashes_while_it_ends_is_a_failure(play: Play) -> None:
    crashing = f"signal.signal(signal.SIGTERM, lambda *_: {CRASHED}); (here / 'listens').touch()"
    running = asyncio.create_task(play.supervisor(crashing).run(1))
    await eventually((play.directory / "listens").exists)
    os.kill(os.getpid(), signal.SIGTERM)

    assert await running == 1
