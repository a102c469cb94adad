"""The two ends that a load test needs: subscribers that cost next to nothing, and a publisher that keeps its times."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

MARK = b"#~"
"""Stands once in each publication, so that to count them is to count these."""
_NUMBER = re.compile(rb"#~(\d{7})")
_PING = b"\x81\x02{}"
SMALL = 4096
"""Bytes of a receive buffer that is soon full."""


def data_of(number: int, size: int) -> dict[str, str]:
    """A publication's data.

    Args:
        number: of the publication.
        size: bytes that a push of it has on the wire, about.
    """
    return {"symbol": f"s{number % 20:02}", "text": f"{MARK.decode()}{number:07}" + "x" * max(0, size - 88)}


class Subscriber(asyncio.Protocol):
    """A WebSocket client that counts what comes.

    Args:
        host: for the request's head.
        topics: to subscribe to.
        on_number: told the number of each publication, where that matters; costs more than to count.
    """

    def __init__(self, host: str, topics: Sequence[str], on_number: Callable[[int], None] | None = None) -> None:
        self.count = 0
        self.closed = False
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._host = host
        commands: list[dict[str, object]] = [{"id": 1, "connect": {}}]
        commands += [{"id": at, "subscribe": {"channel": topic}} for at, topic in enumerate(topics, 2)]
        self._last_reply = f'{{"id":{len(commands)},"subscribe"'.encode()
        self._hello = "\n".join(json.dumps(command) for command in commands).encode()
        self._on_number = on_number
        self._head = b""
        self._tail = b""
        self._cut = False
        """What came last ends with half a mark."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET /connection/websocket HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        )
        self._transport.write(head.encode() + masked(self._hello))

    @property
    def transport(self) -> asyncio.Transport:
        if self._transport is None:
            raise ConnectionError("not connected yet")
        return self._transport

    def data_received(self, data: bytes) -> None:
        if not self.subscribed.done():
            self._head += data
            if self._last_reply in self._head:
                self.subscribed.set_result(None)
            return
        self.count += data.count(MARK)
        if self._cut and data[0] == MARK[1]:
            self.count += 1
        self._cut = data[-1] == MARK[0]
        if _PING in data:
            self.transport.write(masked(b"{}"))
        if self._on_number is not None:
            data = self._tail + data
            end = 0
            for found in _NUMBER.finditer(data):
                self._on_number(int(found[1]))
                end = found.end()
            self._tail = data[max(end, len(data) - 8) :]  # a number may be cut in two

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.subscribed.done():
            self.subscribed.set_exception(exc or ConnectionError(f"closed before the answer: {self._head[-200:]!r}"))


def masked(payload: bytes) -> bytes:
    """A client's text frame, with a mask of zeros, which leaves the payload as it is."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + payload


async def subscribe(
    url: str, *topics: str, receive_bytes: int | None = None, on_number: Callable[[int], None] | None = None
) -> Subscriber:
    """A subscriber whose subscription is answered.

    Args:
        url: of the node.
        topics: to subscribe to.
        receive_bytes: of the socket's receive buffer; None for what the system gives.
        on_number: see `Subscriber`.
    """
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    plug = socket.socket()
    if receive_bytes is not None:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plug.setblocking(False)
    await loop.sock_connect(plug, (parts.hostname, parts.port))
    _, subscriber = await loop.create_connection(lambda: Subscriber(parts.netloc, topics, on_number), sock=plug)
    await subscriber.subscribed
    return subscriber


class Publisher:
    """Publishes over some HTTP connections, each message at its time.

    Args:
        url: of the node.
        key: an API key.
        connections: how many publications may wait for their answers.
    """

    def __init__(self, url: str, key: str, *, connections: int = 16) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._head = (
            f"POST /api/publish HTTP/1.1\r\nHost: {parts.netloc}\r\nX-API-Key: {key}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )
        self._size = connections
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.answers: Counter[str] = Counter()
        """By status, or `error <code>` where the status is 200 all the same."""
        self.times: list[float] = []
        """Of those that were taken: seconds from when each was due to its answer."""

    async def open(self) -> None:
        for _ in range(self._size):
            self._idle.put_nowait(await asyncio.open_connection(*self._address))

    async def run(self, rate: float, count: int, body_of: Callable[[int], object]) -> float:
        """Publish so many, and wait for the answers.

        Args:
            rate: per second.
            count: how many.
            body_of: the request for each number.

        Returns:
            When the first one was due (monotonic seconds).
        """
        begun = time.monotonic()
        tasks = []
        for number in range(count):
            due = begun + number / rate
            pause = due - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            link = await self._idle.get()
            tasks.append(asyncio.create_task(self._publish(link, json.dumps(body_of(number)).encode(), due)))
        await asyncio.gather(*tasks)
        return begun

    async def _publish(self, link: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes, due: float) -> None:
        reader, writer = link
        writer.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(size))
        status = head.split(b" ", 2)[1].decode()
        error = answer.get("error") if status == "200" else None
        self.answers[f"error {error['code']}" if error else status] += 1
        if status == "200" and not error:
            self.times.append(time.monotonic() - due)
        self._idle.put_nowait(link)


async def waited(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until it is so, but no longer than this."""
    deadline = time.monotonic() + seconds
    while True:
        if condition() or time.monotonic() > deadline:
            return
        await asyncio.sleep(0.01)


def percentile(ordered: list[float], share: float) -> float | None:
    """Of an ordered list of seconds, in milliseconds."""
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1) if ordered else None


def rss_mib(pid: int) -> float:
    """A process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return round(kib / 1024, 1)
