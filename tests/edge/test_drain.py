from __future__ import annotations

import asyncio
import time

import pytest

from broker.core.frames import CLOSE
from broker.edge import websocket
from broker.edge.drain import drain
from tests.edge import raw
from tests.edge.raw import FIN
from tests.edge.serving import AsyncClient, Served, served

pytestmark = pytest.mark.anyio


async def opened(at: Served, count: int) -> list[AsyncClient]:
    return [await at.client() for _ in range(count)]


def answer(clients: list[AsyncClient]) -> asyncio.Future[list[float]]:
    """Each client answers its close; when it came."""

    def work(client: AsyncClient) -> float:
        assert client.raw.read_frame() == (FIN | CLOSE, (3001).to_bytes(2) + b"shutdown")
        when = time.monotonic()
        client.raw.send(raw.close(3001))
        assert client.raw.read_end() == b""
        return when

    return asyncio.gather(*(asyncio.to_thread(work, client) for client in clients))


async def test_connections_are_closed_at_a_rate_and_none_is_left() -> None:
    async with served() as at:
        clients = await opened(at, 30)
        answers = asyncio.ensure_future(answer(clients[:4]))
        rest = asyncio.ensure_future(asyncio.to_thread(lambda: [one.raw.read_frame() for one in clients[4:]]))
        started = time.monotonic()
        draining = asyncio.create_task(drain(at.edge, delay_seconds=0, rate_per_second=50, timeout_seconds=10))
        frames = await rest
        spread = time.monotonic() - started
        assert 0.3 < spread < 3  # 30 at 50 a second
        assert frames == [(FIN | CLOSE, (3001).to_bytes(2) + b"shutdown")] * 26
        for client in clients[4:]:
            await client.send(raw.close(3001))
        await answers
        await draining
        assert not at.edge.sockets


async def test_the_delay_comes_first() -> None:
    async with served() as at:
        (client,) = await opened(at, 1)
        answers = answer([client])
        started = time.monotonic()
        await drain(at.edge, delay_seconds=0.3, rate_per_second=50, timeout_seconds=10)
        assert (await answers)[0] - started >= 0.3


async def test_the_timeout_closes_the_rest_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as at:
        answers = answer(await opened(at, 5))
        await drain(at.edge, delay_seconds=0, rate_per_second=1, timeout_seconds=0.3)
        await answers
        assert not at.edge.sockets
    assert any("4 connections" in record.message for record in caplog.records)


async def test_who_does_not_answer_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 60)
    async with served() as at:
        await opened(at, 2)
        started = time.monotonic()
        await drain(at.edge, delay_seconds=0, rate_per_second=100, timeout_seconds=0.3)
        assert time.monotonic() - started < 3
        assert len(at.edge.sockets) == 2
    assert any("did not end in time" in record.message for record in caplog.records)


async def test_nobody_there_is_drained_at_once() -> None:
    async with served() as at:
        async with asyncio.timeout(1):
            await drain(at.edge, delay_seconds=0, rate_per_second=1, timeout_seconds=60)
