"""Who is let in when more come than may, on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import pytest

from broker.edge import entrance as module
from broker.edge.addresses import parse_networks
from broker.edge.entrance import EntranceLimits, Unavailable
from broker.edge.handshake import Request
from tests.edge.raw import RawClient, text, upgrade_request
from tests.edge.serving import Peer, Served, served
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

Head = tuple[int, dict[str, str]]


async def dial(at: Served, request: bytes = b"") -> RawClient:
    """A connection that has asked for a WebSocket, or will."""

    def work() -> RawClient:
        client = RawClient(at.port)
        client.send(request or upgrade_request())
        return client

    client = await asyncio.to_thread(work)
    at.clients.callback(client.socket.close)
    return client


async def answer(client: RawClient) -> Head:
    head = (await asyncio.to_thread(client.read_head)).decode().split("\r\n")
    return int(head[0].split()[1]), dict(line.lower().split(": ", 1) for line in head[1:])


async def refusal(client: RawClient) -> tuple[Head, dict[str, Any]]:
    """A 503: its head and its body."""
    head = await answer(client)
    assert head[0] == 503
    assert head[1]["content-type"] == "application/problem+json"
    assert int(head[1]["retry-after"]) >= 1
    body: dict[str, Any] = json.loads(await asyncio.to_thread(client.read_end))
    return head, body


async def crowd(at: Served, waiting: int, request: bytes = b"") -> list[RawClient]:
    """One who is in, and so many that wait."""
    first = await dial(at)
    assert (await answer(first))[0] == 101
    clients = []
    for number in range(waiting):
        clients.append(await dial(at, request))
        await eventually(lambda number=number: at.edge.entrance.waiting == number + 1)  # type: ignore[misc]
    return clients


def counted(at: Served, result: str) -> float:
    return float(at.edge.metrics.connects.labels(result)._value.get())


def shown(at: Served) -> float:
    return float(at.edge.metrics.waiting.labels("door")._value.get())


def slow_door(**more: Any) -> EntranceLimits:
    """Lets nobody in within a test, but for the first."""
    return EntranceLimits(per_second=1.0, burst=1, **more)


def quick_door() -> EntranceLimits:
    return EntranceLimits(per_second=20.0, burst=1)


async def test_who_comes_too_fast_waits_and_comes_in_in_turn() -> None:
    async with served(entrance_limits=quick_door()) as at:
        for client in await crowd(at, 2):
            assert (await answer(client))[0] == 101
        assert at.edge.entrance.waiting == 0
        await eventually(lambda: at.edge.entrance._calling is None)
        assert (len(at.edge.sockets), shown(at)) == (3, 0)


async def test_beyond_the_room_it_is_503() -> None:
    async with served(entrance_limits=slow_door()) as at:
        await crowd(at, 3)
        head, body = await refusal(await dial(at))

        assert 1 <= int(head[1]["retry-after"]) <= 1 + 3
        assert "limits.connections_per_second" in body["detail"]
        assert (body["status"], counted(at, "rate"), counted(at, "http_503")) == (503, 1, 0)


async def test_what_comes_while_one_waits_is_neither_lost_nor_read_without_end() -> None:
    async with served(entrance_limits=EntranceLimits(per_second=2.0, burst=1)) as at:
        (client,) = await crowd(at, 1, upgrade_request() + text("first"))
        await asyncio.to_thread(client.send, text("second") + text("x" * 60_000))
        (waiting,) = at.edge.entrance._door._waiting  # type: ignore[union-attr]
        await eventually(lambda: len(waiting._held) > module.HELD_BYTES)
        assert not waiting.transport.is_reading()

        assert (await answer(client))[0] == 101
        frames = [await asyncio.to_thread(client.read_frame) for _ in range(3)]
        assert frames == [(0x81, b"first"), (0x81, b"second"), (0x81, b"x" * 60_000)]


@pytest.mark.parametrize("how", ["half", "reset", "close"])
async def test_who_hangs_up_leaves_the_room(how: str) -> None:
    async with served(entrance_limits=slow_door(per_address=3)) as at:
        (client, _) = await crowd(at, 2)
        assert (await refusal(await dial(at)))[1]["detail"].count("connections_per_address")
        if how == "half":
            client.socket.shutdown(socket.SHUT_WR)
        else:
            if how == "reset":
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
        await eventually(lambda: at.edge.entrance.waiting == 1)
        assert (len(at.edge.entrance.addresses), shown(at)) == (2, 1)


async def test_those_who_wait_are_told_when_nobody_is_let_in_any_more() -> None:
    async with served(entrance_limits=slow_door(per_address=9)) as at:
        waiting = await crowd(at, 2)
        at.edge.unavailable = lambda: Unavailable("draining", "this node is draining")
        for client in waiting:
            assert (await refusal(client))[1]["detail"] == "this node is draining"
        assert (counted(at, "draining"), shown(at)) == (2, 0)
        assert len(at.edge.entrance.addresses) == 1
        assert (at.edge.entrance.waiting, at.edge.entrance._calling) == (0, None)


async def test_those_who_wait_go_on_waiting_when_it_will_pass() -> None:
    async with served(entrance_limits=quick_door()) as at:
        (client,) = await crowd(at, 1)
        (at_the_door,) = at.edge.entrance._door._waiting  # type: ignore[union-attr]
        asked = 0

        def full() -> Unavailable:
            nonlocal asked
            asked += 1
            return Unavailable("waiting_room", "as many wait", passing=True)

        at.edge.unavailable = full
        await eventually(lambda: asked > 3)
        assert at_the_door in at.edge.entrance._door._waiting  # type: ignore[union-attr]
        at.edge.unavailable = lambda: None
        assert (await answer(client))[0] == 101


async def test_a_mistake_of_ours_ends_one_of_those_who_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(entrance_limits=quick_door()) as at:
        unlucky, lucky = await crowd(at, 2)
        opened = Peer.opened
        failures = 0

        def fail_once(self: Peer, request: Request, subprotocol: str | None) -> None:
            nonlocal failures
            failures += 1
            opened(self, request, subprotocol)
            if failures == 1:
                raise RuntimeError("a mistake")

        monkeypatch.setattr(Peer, "opened", fail_once)
        assert (await answer(lucky))[0] == 101
        await eventually(lambda: len(at.edge.sockets) == 2)
        assert "a WebSocket could not be opened" in caplog.text
        del unlucky


async def test_nobody_waits_beyond_the_handshakes_deadline() -> None:
    async with served(entrance_limits=slow_door(), handshake_seconds=2.0) as at:
        clients = await crowd(at, 2)
        at.edge.clock = lambda clock=at.edge.clock: clock() + 2.0  # type: ignore[misc]
        for client in clients:
            assert "in time" in (await refusal(client))[1]["detail"]
        assert counted(at, "rate") == 2


async def test_who_would_be_refused_anyway_takes_no_turn() -> None:
    async with served(entrance_limits=slow_door()) as at:
        wrong = upgrade_request("/echo", "Sec-WebSocket-Version: 8", leave_out="Sec-WebSocket-Version")
        for request, status in ((wrong, 426), (upgrade_request("/elsewhere"), 404)):
            assert (await answer(await dial(at, request)))[0] == status
        assert (await answer(await dial(at)))[0] == 101


async def test_the_room_counts_as_connections() -> None:
    async with served(entrance_limits=slow_door(), max_connections=2) as at:
        await crowd(at, 1)
        assert "limits.max_connections" in (await refusal(await dial(at)))[1]["detail"]
        assert counted(at, "full") == 1


async def test_no_more_than_so_many_from_one_address_however_they_end() -> None:
    proxied = EntranceLimits(per_address=2, trusted_proxies=parse_networks(["127.0.0.0/8"]))
    async with served(entrance_limits=proxied) as at:

        def via(address: str) -> bytes:
            return upgrade_request("/echo", f"X-Forwarded-For: 9.9.9.9, {address}")

        one, other = await dial(at, via("192.0.2.1")), await dial(at, via("192.0.2.1"))
        assert [(await answer(one))[0], (await answer(other))[0]] == [101, 101]
        assert {peer.address for peer in at.peers()} == {"192.0.2.1"}
        head, body = await refusal(await dial(at, via("192.0.2.1")))
        assert (head[1]["retry-after"], counted(at, "address")) == ("1", 1)
        assert "limits.connections_per_address" in body["detail"]
        assert (await answer(await dial(at, via("192.0.2.2"))))[0] == 101

        other.socket.close()
        await eventually(lambda: len(at.edge.sockets) == 2)
        assert (await answer(await dial(at, via("192.0.2.1"))))[0] == 101
        for peer in at.peers():
            assert peer._transport is not None
            peer._transport.abort()
        await eventually(lambda: not at.edge.sockets)
        addresses = at.edge.entrance.addresses
        assert (len(addresses), addresses._counts) == (0, {})
