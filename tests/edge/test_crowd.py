"""New connections that come all at once, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from broker.core.turns import Turns
from broker.edge import acceptor, crowd
from broker.edge.acceptor import Acceptor
from tests.edge.raw import upgrade_request
from tests.edge.serving import served
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_first_requests_are_handled_some_in_each_turn_and_all_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crowd, "TURN_SECONDS", 0.0)  # one in each turn
    turns = 0
    turn = Turns._turn

    def counted(self: Turns[Any]) -> None:
        nonlocal turns
        turns += 1
        turn(self)

    monkeypatch.setattr(Turns, "_turn", counted)
    async with served() as at:
        sockets = [socket.create_connection(("127.0.0.1", at.port)) for _ in range(50)]
        for one in sockets:
            one.sendall(upgrade_request())
            one.setblocking(False)
        loop = asyncio.get_running_loop()
        for one in sockets:
            assert (await loop.sock_recv(one, 4096)).startswith(b"HTTP/1.1 101 ")
            one.close()
        assert turns >= 50
        await eventually(lambda: not at.edge.sockets)


async def test_who_leaves_while_it_waits_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as at:
        monkeypatch.setattr(type(at.edge.crowd._turns), "free", property(lambda _: False))
        monkeypatch.setattr(type(at.edge.crowd._turns), "_ask_for_turn", lambda _: None)
        one = socket.create_connection(("127.0.0.1", at.port))
        one.sendall(upgrade_request())
        await eventually(lambda: len(at.edge.crowd) == 1)
        (waiting,) = at.edge.crowd._turns._waiting
        waiting.transport.abort()
        await eventually(lambda: len(at.edge.crowd) == 0)
        one.close()


class Counted(asyncio.Protocol):
    made = 0

    def connection_made(self, transport: Any) -> None:
        type(self).made += 1
        transport.write(b"hello")


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1000)


async def test_connections_are_accepted_some_in_each_turn(listener: socket.socket) -> None:
    Counted.made = 0
    listener.setblocking(False)
    accepting = Acceptor(listener, Counted, tls=None, tls_seconds=None)
    calls = 0
    accept = accepting._accept

    def counted() -> None:
        nonlocal calls
        calls += 1
        before = len(accepting._opening)
        accept()
        assert len(accepting._opening) - before <= acceptor.ACCEPTED_AT_ONCE

    asyncio.get_running_loop().add_reader(listener, counted)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(100)]
    await eventually(lambda: Counted.made == 100)
    assert calls >= 100 / acceptor.ACCEPTED_AT_ONCE
    accepting.close()
    await accepting.wait_closed()
    for one in clients:
        one.settimeout(5)
        assert one.recv(100) == b"hello"
        one.close()
    listener.close()


async def test_where_no_descriptor_is_left_it_goes_on_when_there_is_one(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceptor, "RETRY_SECONDS", 0.05)
    Counted.made = 0
    exhausted = 2

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal exhausted
            if exhausted:
                exhausted -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    with listener, Exhausted(fileno=listener.detach()) as poor:
        poor.setblocking(False)
        accepting = Acceptor(poor, Counted, tls=None, tls_seconds=None)
        with socket.create_connection(poor.getsockname()):
            await eventually(lambda: Counted.made == 1)
        accepting.close()
    assert caplog.messages == ["no connection can be accepted: Too many open files; trying again"] * 2
