"""What must not go on for ever, and what must not come into the middle of something else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from broker.edge import http as module
from broker.edge.handshake import Origins
from tests.edge.raw import RawClient, text, upgrade_request
from tests.edge.serving import Served, WatchedHttp, served
from tests.edge.test_http import HELLO, exchange
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

LAST = HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
POST = b"POST /hello HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UNANSWERED = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
"""A request whose answer, 404, does not wait for its body."""


def counted(at: Served, status: int) -> float:
    return float(at.edge.metrics.http_requests.labels("other", str(status))._value.get())


async def open_after_an_answer(at: Served) -> RawClient:
    """A connection that is kept alive, with one request behind it."""

    def work() -> RawClient:
        client = RawClient(at.port)
        client.send(HELLO)
        client.read_head()
        assert client.read(5) == b"GET 0"
        return client

    client = await asyncio.to_thread(work)
    at.clients.callback(client.socket.close)
    return client


async def dribble(client: RawClient, piece: bytes, *, seconds: float = 5) -> bytes:
    """Send the piece again and again, until the server has ended the connection; what came meanwhile."""

    def work() -> bytes:
        data = b""
        client.socket.settimeout(0.05)
        end = time.monotonic() + seconds
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                client.send(piece)
                with contextlib.suppress(TimeoutError):
                    if not (more := client.socket.recv(65_536)):
                        # half closed: what must come, too, is the end of the other half
                        while time.monotonic() < end:
                            client.send(piece)
                            threading.Event().wait(0.02)
                    data += more
        assert time.monotonic() < end, f"still open behind {data!r}"
        return data

    return await asyncio.to_thread(work)


@pytest.mark.parametrize("first", [POST + b"Content-Length: 2\r\n\r\n{}", HELLO, HELLO * 3])
async def test_an_upgrade_behind_unanswered_requests_does_not_mix_with_their_answers(first: bytes) -> None:
    async with served() as at:
        answer = await exchange(at, first + upgrade_request() + text("x"))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1 ") == first.count(b"HTTP/1.1")
        assert b" 101 " not in answer
        assert not at.edge.sockets
        assert at.edge.metrics.connects.labels("http_400")._value.get() == 1


async def test_an_opened_websocket_is_not_ended_by_the_clock_of_idle_http_connections() -> None:
    async with served() as at:
        client = await open_after_an_answer(at)
        await asyncio.to_thread(client.send, upgrade_request())
        assert (await asyncio.to_thread(client.read_head)).startswith(b"HTTP/1.1 101 ")
        assert all(one.timeout_keep_alive_task is None for one in WatchedHttp.made)


@pytest.mark.parametrize("piece", [b"\r\n", b"GET /hel", b"GET /hello HTTP/1.1\r\nHost: x\r\nX: y"])
async def test_half_a_request_on_a_connection_that_was_used_before_is_408(piece: bytes) -> None:
    async with served(handshake_seconds=0.3) as at:
        client = await open_after_an_answer(at)
        await asyncio.to_thread(client.send, piece)
        assert (await asyncio.to_thread(client.read_end)).startswith(b"HTTP/1.1 408 ")
        assert counted(at, 408) == 1


async def test_line_ends_keep_no_connection_open() -> None:
    async with served(handshake_seconds=0.3) as at:
        assert (await dribble(await open_after_an_answer(at), b"\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_a_request_behind_line_ends_and_a_pause_is_answered() -> None:
    async with served() as at:
        assert (await exchange(at, HELLO, b"\r\n", LAST)).count(b"HTTP/1.1 200 ") == 2


async def test_an_answer_ahead_of_the_body_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.3)
    async with served() as at:
        for before in (b"", HELLO):
            with RawClient(at.port) as client:
                await asyncio.to_thread(client.send, before + UNANSWERED)
                answer = await dribble(client, b"x")
                assert answer.count(b"HTTP/1.1 404 ") == 1
                assert b"\r\nconnection: close\r\n" in answer
        await eventually(lambda: len(at.edge.wheel) == 0)


async def test_an_answer_ahead_of_the_body_reaches_a_client_that_sends_all_before_it_reads() -> None:
    async with served() as at:

        def work() -> bytes:
            with RawClient(at.port) as client:
                client.send(UNANSWERED)
                client.send(b"x" * 1_000_000)
                return client.read_end()

        assert (await asyncio.to_thread(work)).startswith(b"HTTP/1.1 404 ")


async def test_a_body_that_comes_late_but_before_the_answer_keeps_the_connection() -> None:
    async with served() as at:
        answer = await exchange(at, POST + b"Content-Length: 5\r\n\r\n", b"he", b"llo", LAST)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert answer.count(b"connection: close") == 1


@pytest.mark.parametrize("trailer", [b"X: y\r\n" * 100, b"y" * 700], ids=["many", "long"])
async def test_trailers_have_an_end(trailer: bytes) -> None:
    async with served(header_bytes=2000) as at:
        with RawClient(at.port) as client:
            await asyncio.to_thread(client.send, CHUNKED + b"1\r\nx\r\n0\r\nX: y")
            assert (await dribble(client, trailer)).startswith(b"HTTP/1.1 431 ")
        whole = CHUNKED + b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * 3000 + b"\r\n"
        assert (await exchange(at, whole)).startswith(b"HTTP/1.1 431 ")
        assert counted(at, 431) == 2


async def test_a_few_trailers_are_no_headers() -> None:
    async with served() as at:
        seen = []
        with RawClient(at.port) as client:
            await asyncio.to_thread(client.send, CHUNKED + b"1\r\nx\r\n0\r\nX-Trailer: y\r\n")
            handler = await eventually(lambda: [one for one in WatchedHttp.made if one.cycle is not None])
            seen = handler[0].headers
            await asyncio.to_thread(client.send, b"X-More: y\r\n\r\n" + LAST)
            assert (await asyncio.to_thread(client.read_end)).count(b"HTTP/1.1 200 ") == 2
        assert [name for name, _ in seen] == [b"host", b"transfer-encoding"]


async def test_a_chunked_body_in_many_small_chunks_is_no_trailer() -> None:
    async with served(header_bytes=200) as at:
        pieces = [piece for _ in range(100) for piece in (b"1\r\n", b"x\r\n")]
        answer = await exchange(at, CHUNKED, *pieces, b"0\r\n\r\n" + LAST, pause=0.002)
        assert b"POST 100" in answer


async def test_many_requests_in_one_segment_are_no_large_head() -> None:
    async with served() as at:
        every = HELLO * 800
        answer = await exchange(at, every[:-7], every[-7:] + LAST)
        assert answer.count(b"HTTP/1.1 200 ") == 801
        small = POST + b"Content-Length: 20000\r\n\r\n" + b"x" * 20_000
        assert (await exchange(at, small + LAST[:20], LAST[20:])).count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(
    "bad",
    [b"\x00rubbish\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 3000 + b"\r\n\r\n", b"GET / HT"],
    ids=["rubbish", "large", "half"],
)
async def test_what_is_wrong_is_not_said_ahead_of_answers(bad: bytes) -> None:
    async with served(header_bytes=2000, handshake_seconds=0.3) as at:
        answer = await exchange(at, HELLO * 3 + bad)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1 200 ") == 3


async def test_a_bad_body_is_refused_in_its_turn() -> None:
    async with served() as at:
        bad = CHUNKED + b"zz\r\n"
        answer = await exchange(at, HELLO * 2 + bad)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert answer.rfind(b"HTTP/1.1 200 ") < answer.find(b"HTTP/1.1 400 ")
        assert answer.endswith(b'"detail": "this is not HTTP"}')
        assert (await exchange(at, bad)).count(b"HTTP/1.1 ") == 1
        assert counted(at, 400) == 2


async def test_refusals_say_when_and_are_counted() -> None:
    async with served(origins=Origins([])) as at:
        answer = await exchange(at, b"rubbish\r\n\r\n")
        assert b"\r\nDate: " in answer
        assert counted(at, 400) == 1
        refused = await exchange(at, upgrade_request("/echo", "Origin: https://evil.example"))
        assert refused.startswith(b"HTTP/1.1 403 ")
        assert counted(at, 403) == 0
        assert at.edge.metrics.connects.labels("http_403")._value.get() == 1
