from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from broker.core.frames import CLOSE
from broker.edge import drain as module
from broker.edge import websocket
from tests.edge import raw
from tests.edge.raw import FIN
from tests.edge.serving import AsyncClient, Served, served

pytestmark = pytest.mark.anyio


async def opened(at: Served, count: int) -> list[AsyncClient]:
    return [await at.client() for _ in range(count)]


def answer(clients: list[AsyncClient]) -> asyncio.Future[list[None]]:
    """Each client answers its close."""

    def work(client: AsyncClient) -> None:
        assert client.raw.read_frame() == (FIN | CLOSE, (3001).to_bytes(2) + b"shutdown")
        client.raw.send(raw.close(3001))
        assert client.raw.read_end() == b""

    return asyncio.gather(*(asyncio.to_thread(work, client) for client in clients))


@dataclass
class Sleep:
    """One of the drain's pauses: how long it wanted, and how many connections it had closed before."""

    seconds: float
    closed: int


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Served], list[Sleep]]:
    """Has a drain pass over its pauses, and tells what they were."""

    def watch(at: Served) -> list[Sleep]:
        everybody = tuple(at.edge.sockets)
        seen: list[Sleep] = []

        async def sleep(seconds: float) -> None:
            seen.append(Sleep(seconds, sum(one._closing for one in everybody)))
            await asyncio.sleep(0)

        replaced = SimpleNamespace(sleep=sleep, get_running_loop=asyncio.get_running_loop)
        monkeypatch.setattr(module, "asyncio", replaced)
        return seen

    return watch


async def test_connections_are_closed_at_a_rate_and_none_is_left(sleeps: Callable[[Served], list[Sleep]]) -> None:
    async with served() as at:
        answers = asyncio.ensure_future(answer(await opened(at, 4)))
        others = await opened(at, 26)
        seen = sleeps(at)
        draining = asyncio.create_task(module.drain(at.edge, delay_seconds=0, rate_per_second=50, timeout_seconds=10))
        for client in others:
            assert await client.read_frame() == (FIN | CLOSE, (3001).to_bytes(2) + b"shutdown")
            await client.send(raw.close(3001))
        await answers
        await draining
        assert not at.edge.sockets
    passed = 0.0
    for pause in seen:
        assert pause.closed <= 1 + 50 * passed
        passed += pause.seconds
    assert max(pause.closed for pause in seen) == 30
    assert sum(pause.closed < 30 for pause in seen) >= 5  # spread, and not in one or two gushes


async def test_the_delay_comes_first(sleeps: Callable[[Served], list[Sleep]]) -> None:
    async with served() as at:
        answers = answer(await opened(at, 1))
        seen = sleeps(at)
        await module.drain(at.edge, delay_seconds=0.3, rate_per_second=50, timeout_seconds=10)
        await answers
        assert seen[0] == Sleep(0.3, 0)
        assert all(pause.closed == 1 for pause in seen[1:])


async def test_the_timeout_closes_the_rest_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as at:
        answers = answer(await opened(at, 5))
        await module.drain(at.edge, delay_seconds=0, rate_per_second=1, timeout_seconds=0.3)
        await answers
        assert not at.edge.sockets
    assert any("4 connections" in record.message for record in caplog.records)


async def test_who_does_not_answer_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 60)
    async with served() as at:
        await opened(at, 2)
        async with asyncio.timeout(10):
            await module.drain(at.edge, delay_seconds=0, rate_per_second=100, timeout_seconds=0.3)
        assert len(at.edge.sockets) == 2
    assert any("did not end in time" in record.message for record in caplog.records)


async def test_nobody_there_is_drained_at_once() -> None:
    async with served() as at:
        async with asyncio.timeout(10):
            await module.drain(at.edge, delay_seconds=0, rate_per_second=1, timeout_seconds=60)
