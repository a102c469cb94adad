from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.core.frames import CLOSE
from broker.edge import drain as module
from broker.edge import websocket
from broker.edge.drain import BURST_SECONDS, Drain, DrainState
from broker.edge.edge import Edge
from broker.wire.codes import Close
from tests.edge import raw
from tests.edge.raw import FIN
from tests.edge.serving import AsyncClient, Served, served
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

SHUTDOWN = (FIN | CLOSE, (3001).to_bytes(2) + b"shutdown")


def drain_of(at: Served, *, delay: float = 0, rate: float = 50, timeout: float = 10) -> tuple[Drain, list[bool]]:
    """A drain, and what it says of itself."""
    told: list[bool] = []
    drain = Drain(at.edge, delay_seconds=delay, rate_per_second=rate, timeout_seconds=timeout, changed=told.append)
    return drain, told


async def opened(at: Served, count: int) -> list[AsyncClient]:
    return [await at.client() for _ in range(count)]


def answer(clients: list[AsyncClient]) -> asyncio.Future[list[None]]:
    """Each client answers its close."""

    def work(client: AsyncClient) -> None:
        assert client.raw.read_frame() == SHUTDOWN
        client.raw.send(raw.close(3001))
        assert client.raw.read_end() == b""

    return asyncio.gather(*(asyncio.to_thread(work, client) for client in clients))


class PretendSocket:
    """A connection that is gone as soon as it is closed."""

    def __init__(self, edge: PretendEdge, number: int) -> None:
        self._edge = edge
        self.number = number
        self.closing = False

    def close(self, reason: Close) -> None:
        assert not self.closing, "closed twice"
        assert reason == Close(3001, "shutdown")
        self.closing = True
        self._edge.closed.append((self._edge.now, self.number))
        del self._edge.sockets[self]


class PretendEdge:
    """Connections, and a clock that only the drain's own pauses put forward."""

    def __init__(self, connections: int) -> None:
        self.now = 100.0
        self.closed: list[tuple[float, int]] = []
        """When which one was closed."""
        self.sockets: dict[PretendSocket, None] = {}  # a set in order
        self.late = 0.0
        """How much later than it should the event loop comes back from a pause, once."""
        for _ in range(connections):
            self.comes()

    def comes(self) -> PretendSocket:
        socket = PretendSocket(self, len(self.sockets))
        self.sockets[socket] = None
        return socket

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late
        self.late = 0.0
        await asyncio.sleep(0)


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> PretendEdge:
    edge = PretendEdge(getattr(request, "param", 0))
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=edge.sleep, create_task=asyncio.create_task))
    return edge


def pretended(edge: PretendEdge, *, delay: float = 0, rate: float, timeout: float = 1000) -> Drain:
    options: dict[str, Any] = {"delay_seconds": delay, "rate_per_second": rate, "timeout_seconds": timeout}
    return Drain(cast("Edge", edge), changed=lambda _: None, **options)


@pytest.mark.parametrize("edge", [500], indirect=True)
@pytest.mark.parametrize("rate", [7, 50, 1000])
async def test_never_more_are_closed_than_the_rate_allows_and_in_the_end_all(edge: PretendEdge, rate: float) -> None:
    edge.late = 30.0  # as if the event loop had hung: no more is made up for than a tenth of a second's worth
    await pretended(edge, rate=rate).finish()
    times = [at for at, _ in edge.closed]
    assert len(times) == 500
    burst = max(1, rate * BURST_SECONDS)
    for first, begin in enumerate(times):
        behind = times[first:]
        # of all that came from here on, however far one looks
        assert all(count <= burst + rate * (at - begin) + 1e-6 for count, at in enumerate(behind))
    assert times[-1] - times[0] - 30 < 500 / rate * 1.05 + 1  # and the rate is used


@pytest.mark.parametrize("edge", [200], indirect=True)
async def test_they_go_in_no_order(edge: PretendEdge) -> None:
    await pretended(edge, rate=1000).finish()
    numbers = [number for _, number in edge.closed]
    assert sorted(numbers) == list(range(200))
    assert numbers not in (sorted(numbers), sorted(numbers, reverse=True))


@pytest.mark.parametrize("edge", [3], indirect=True)
async def test_the_delay_comes_first(edge: PretendEdge) -> None:
    begun = edge.now
    await pretended(edge, delay=30, rate=1000).finish()
    assert len(edge.closed) == 3
    assert edge.closed[0][0] >= begun + 30


@pytest.mark.parametrize("edge", [10], indirect=True)
async def test_by_hand_nothing_hurries(edge: PretendEdge) -> None:
    drain = pretended(edge, rate=1, timeout=2)
    begun = edge.now
    drain.begin()
    await eventually(lambda: drain.state is DrainState.DRAINED)
    assert edge.closed[-1][0] - begun > 8
    drain.cancel()


@pytest.mark.parametrize("edge", [10], indirect=True)
async def test_once_it_is_taken_back_no_more_are_closed(edge: PretendEdge) -> None:
    drain = pretended(edge, rate=1)
    drain.begin()
    await eventually(lambda: len(edge.closed) >= 3)
    assert drain.cancel()
    closed = len(edge.closed)
    for _ in range(200):
        await edge.sleep(0.1)
    assert (len(edge.closed), drain.state) == (closed, DrainState.SERVING)
    drain.begin()
    await eventually(lambda: len(edge.closed) == 10)
    drain.cancel()


@pytest.mark.parametrize("edge", [10], indirect=True)
async def test_the_timeout_counts_from_the_end_of_the_delay(edge: PretendEdge) -> None:
    begun = edge.now
    await pretended(edge, delay=30, rate=1, timeout=5).finish()
    times = [at - begun for at, _ in edge.closed]
    assert len(times) == 10
    assert times[0] >= 30
    assert times[1] >= 30.5  # the second has its turn, and the last ones have not
    assert times[-1] == times[-2] >= 35


@pytest.mark.parametrize("edge", [10], indirect=True)
async def test_the_end_goes_on_with_what_was_begun_by_hand(edge: PretendEdge) -> None:
    drain = pretended(edge, delay=30, rate=1)
    drain.begin()
    await eventually(lambda: len(edge.closed) >= 3)
    first = edge.closed[0][0]
    await drain.finish()
    assert len(edge.closed) == 10
    assert edge.closed[-1][0] - first < 25  # without another delay
    assert drain.state is DrainState.DRAINED


@pytest.mark.parametrize("edge", [1], indirect=True)
async def test_the_end_of_a_node_that_is_drained_already_is_at_once(edge: PretendEdge) -> None:
    drain = pretended(edge, delay=30, rate=10)
    drain.begin()
    await eventually(lambda: drain.state is DrainState.DRAINED)
    drained = edge.now
    await drain.finish()
    assert edge.now - drained < 5


async def test_who_comes_in_nevertheless_is_closed_too(edge: PretendEdge) -> None:
    drain = pretended(edge, rate=10)
    edge.comes()
    drain.begin()
    await eventually(lambda: drain.state is DrainState.DRAINED)
    late = edge.comes()
    await eventually(lambda: late.closing)
    await eventually(lambda: drain.state is DrainState.DRAINED)
    assert drain.cancel()


async def test_nobody_there_is_drained_at_once(edge: PretendEdge) -> None:
    begun = edge.now
    await pretended(edge, rate=1, timeout=600).finish()
    assert edge.now - begun < 1


async def test_a_mistake_of_ours_is_seen_and_the_end_comes_all_the_same(
    edge: PretendEdge, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = pretended(edge, rate=1, timeout=600)
    socket = edge.comes()
    monkeypatch.setattr(drain, "_next", lambda: 1 / 0)
    await drain.finish()
    assert socket.closing
    await eventually(lambda: any(record.levelno == logging.CRITICAL for record in caplog.records))


async def test_connections_are_told_and_none_is_left() -> None:
    async with served() as at:
        answers = answer(await opened(at, 30))
        drain, told = drain_of(at)
        await drain.finish()
        await answers
        assert not at.edge.sockets
        assert told == [True]


async def test_it_can_be_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with served() as at:
        clients = await opened(at, 5)
        drain, told = drain_of(at, rate=0.5)
        drain.begin()
        drain.begin()
        await eventually(lambda: sum(socket.closing for socket in at.edge.sockets) == 1)
        assert drain.cancel()
        assert (drain.state, told) == (DrainState.SERVING, [True, False])
        assert drain.cancel()  # nothing drains: nothing to do
        assert told == [True, False]
        assert sum(not socket.closing for socket in at.edge.sockets) == 4
        # and again from the beginning
        answers = answer(clients)
        again, _ = drain_of(at, rate=1000)
        await again.finish()
        await answers
    lines = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert lines[0].startswith("draining: 5 connections, 0.5 a second")
    assert lines[1].startswith("the drain is taken back; ")
    assert lines[-1] == "drained: no connection is left"


async def test_the_end_can_not_be_taken_back() -> None:
    async with served() as at:
        answers = answer(await opened(at, 2))
        drain, told = drain_of(at, rate=5)
        ending = asyncio.ensure_future(drain.finish())
        await eventually(lambda: drain.final)
        assert not drain.cancel()
        await ending
        await answers
        assert told == [True]


async def test_the_timeout_closes_the_rest_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as at:
        answers = answer(await opened(at, 5))
        drain, _ = drain_of(at, rate=1, timeout=0.3)
        await drain.finish()
        await answers
        assert not at.edge.sockets
    assert any("4 connections" in record.message for record in caplog.records)


async def test_who_does_not_answer_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 60)
    async with served() as at:
        await opened(at, 2)
        drain, _ = drain_of(at, rate=100, timeout=0.3)
        async with asyncio.timeout(10):
            await drain.finish()
        assert len(at.edge.sockets) == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["2 connections did not end in time"]  # each has had its turn
