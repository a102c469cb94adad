from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from broker.edge import http as module
from broker.edge.entrance import Unavailable
from tests.edge.raw import RawClient, text, upgrade_request
from tests.edge.serving import Served, WatchedHttp, served
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


async def exchange(at: Served, *pieces: bytes, pause: float = 0.05) -> bytes:
    """Send pieces in segments of their own, and read until the server ends the connection."""

    def work() -> bytes:
        with RawClient(at.port) as client:
            for number, piece in enumerate(pieces):
                if number:
                    threading.Event().wait(pause)
                client.send(piece)
            return client.read_end()

    return await asyncio.to_thread(work)


async def test_http_works_and_connections_are_kept() -> None:
    async with served() as at:
        answer = await exchange(at, HELLO, HELLO + HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        body = b"POST /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\n"
        assert (await exchange(at, body, b"he", b"llo")).endswith(b"POST 5")


async def test_a_head_beyond_the_limit_is_431_however_it_comes() -> None:
    async with served(header_bytes=2000) as at:
        large = b"GET /hello HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 3000
        for pieces in ((large + b"\r\n\r\n",), (large,), (large[:1500], large[1500:]), (large[:1900], b"x" * 200)):
            assert (await exchange(at, *pieces)).startswith(b"HTTP/1.1 431 "), [len(piece) for piece in pieces]
        assert (await exchange(at, upgrade_request("/echo", "X: " + "x" * 3000))).startswith(b"HTTP/1.1 431 ")
        large_body = (
            b"POST /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000
        )
        assert (await exchange(at, large_body)).endswith(b"POST 9000")


async def test_a_silent_connection_and_a_slow_head_are_408() -> None:
    async with served(handshake_seconds=0.3) as at:
        for pieces in ((), (b"GET /he",), (b"G", b"E", b"T", b" "), (upgrade_request()[:-2],)):
            answer = await exchange(at, *pieces)
            assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_slow_body_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.3)
    async with served() as at:
        head = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
        for pieces in ((head,), (head + b"x",), (head, b"x")):
            assert (await exchange(at, *pieces)).startswith(b"HTTP/1.1 408 ")


async def test_what_is_no_http_is_400() -> None:
    async with served() as at:
        for rubbish in (b"\x16\x03\x01\x02\x00\x01\x00", b"\r\n\r\nhello\r\n\r\n", b"GET\r\n\r\n"):
            assert (await exchange(at, rubbish)).startswith(b"HTTP/1.1 400 ")
        assert b"HTTP/1.1 400 " in await exchange(at, HELLO, b"\x00\x01rubbish\r\n\r\n")


async def test_bytes_behind_an_upgrade_request_are_the_first_frames() -> None:
    async with served() as at:
        with RawClient(at.port) as client:
            await asyncio.to_thread(client.send, upgrade_request() + text("first") + text("second")[:3])
            await asyncio.to_thread(client.read_head)
            assert await asyncio.to_thread(client.read_frame) == (0x81, b"first")
            await asyncio.to_thread(client.send, text("second")[3:])
            assert await asyncio.to_thread(client.read_frame) == (0x81, b"second")


async def test_an_upgrade_may_come_on_a_connection_that_was_used_before_and_in_pieces() -> None:
    async with served() as at:
        with RawClient(at.port) as client:
            await asyncio.to_thread(client.send, HELLO)
            await asyncio.to_thread(client.read_head)
            assert await asyncio.to_thread(client.read, 5) == b"GET 0"
            await asyncio.to_thread(client.send_octets, upgrade_request() + text("hello"), 1)
            assert (await asyncio.to_thread(client.read_head)).startswith(b"HTTP/1.1 101 ")
            assert await asyncio.to_thread(client.read_frame) == (0x81, b"hello")


async def test_refused_upgrades_are_counted_and_leave_nothing() -> None:
    async with served(max_connections=1, unavailable=lambda: None) as at:
        assert (await exchange(at, upgrade_request("/elsewhere"))).startswith(b"HTTP/1.1 404 ")
        wrong = upgrade_request("/echo", "Sec-WebSocket-Version: 8", leave_out="Sec-WebSocket-Version")
        assert (await exchange(at, wrong)).startswith(b"HTTP/1.1 426 ")
        await at.client()
        full = await exchange(at, upgrade_request())
        assert full.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in full
        at.edge.unavailable = lambda: Unavailable("draining", "this node is draining")
        assert b"draining" in await exchange(at, upgrade_request())
        assert len(at.edge.sockets) == 1


async def test_an_upgraded_connections_http_object_is_freed_without_the_garbage_collector() -> None:
    async with served() as at:
        gc.collect()
        gc.disable()
        try:
            before = len(WatchedHttp.made)
            clients = [await at.client() for _ in range(5)]
            await eventually(lambda: len(WatchedHttp.made) == before)
            assert len(at.peers()) == len(clients)
        finally:
            gc.enable()


async def test_nothing_sleeps_in_the_wheel_for_connections_that_are_gone() -> None:
    async with served() as at:
        await exchange(at, HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        with RawClient(at.port):
            await eventually(lambda: len(at.edge.wheel) == 1)
        await eventually(lambda: len(at.edge.wheel) == 0)
