"""Clients that come to a node as SDKs do: again and again, after pauses that grow, until they are in."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self, cast

PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0
CONNECT_SECONDS = 5.0
"""How long the SDKs wait for an attempt."""
_CLOSE = b"\x88"
_PING, _PONG = b"\x81\x02{}", b"\x81\x82\0\0\0\0{}"


def pause_seconds(step: int) -> float:
    """How long the JavaScript SDK waits before it comes again, after so many attempts in vain before this one.

    Source: `backoff` in centrifuge-js 5, with its defaults for minReconnectDelay and maxReconnectDelay.
    """
    more = random.uniform(0, min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** min(step, 31)))  # noqa: S311 - spread
    return min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS + more)


def upgrade_request(host: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /connection/websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()


def text_frame(commands: Sequence[object]) -> bytes:
    """Commands as one frame. A mask of zeros leaves the payload as it is."""
    payload = "\n".join(json.dumps(one) for one in commands).encode()
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + payload


def raise_file_limit() -> None:
    """Allow as many connections as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Attempt(asyncio.Protocol):
    """One connection: in when the node has answered the connect command."""

    def __init__(self, host: str, commands: Sequence[object], *, eager: bool = False) -> None:
        self._host = host
        self._hello = text_frame(commands)
        self._answers = len(commands)
        self._eager = eager
        self._came = bytearray()
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.status = 0
        """Of the answer to the handshake; 0 before."""
        self.upgraded_at = 0.0
        self.entered: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(upgrade_request(self._host) + (self._hello if self._eager else b""))

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - data comes on one
        if _PING in data:
            self._transport.write(_PONG)
        if data.startswith(_CLOSE):
            self._transport.close()
            return
        if self.entered.done():
            self.heard(data)
            return
        self._came += data
        if not self.status and b"\r\n\r\n" in self._came:
            self.status = int(self._came[9:12])
            if self.status == 101:
                self.upgraded_at = time.monotonic()
                self._transport.write(b"" if self._eager else self._hello)
        if self.status == 101 and self._came.count(b'{"id":') >= self._answers:
            self.entered.set_result(None)

    def heard(self, data: bytes) -> None:
        """Something comes to one who is in."""

    def connection_lost(self, error: Exception | None) -> None:
        del error
        for future in (self.entered, self.ended):
            if not future.done():
                future.set_result(None)

    @property
    def inside(self) -> bool:
        in_time = self.entered.done() and not self.entered.cancelled()
        return self.status == 101 and in_time and not self.ended.done()

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Crowd:
    """Many clients; `async with` lets all of them come at once, and takes them away.

    Args:
        clients: how many.
        nodes: hosts and ports; who does not get in at one, or loses it, goes to the next.
        commands: what each says: connect, and more.
        eager: whether they say it at once, as no SDK does: then the node's count of connects tells when it let them in.
    """

    def __init__(
        self,
        clients: int,
        nodes: Sequence[tuple[str, int]],
        commands: Sequence[object] = (),
        *,
        eager: bool = False,
    ) -> None:
        self._clients = clients
        self.nodes = nodes
        self._commands = commands or commands_of()
        self._eager = eager
        self._tasks: list[asyncio.Task[None]] = []
        self._inside: set[Attempt] = set()
        self.admissions: list[float] = []
        """When handshakes were answered with 101, on the monotonic clock."""
        self.refusals: Counter[str] = Counter()
        """Attempts in vain by how they ended: a status, `timeout`, `ended` or `unreachable`."""
        self.lost = 0
        """How often one who was in was thrown out."""

    def __len__(self) -> int:
        """How many are in."""
        return len(self._inside)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fastest_average(self, began: float) -> float:
        """The most admissions a second on average from the beginning to any moment later than a second.

        However late this process sees them, that many had come by then.
        """
        times = enumerate(sorted(self.admissions), 1)
        return max((count / (at - began) for count, at in times if at - began >= 1), default=0.0)

    def most_in_a_second(self) -> int:
        """The most admissions in any stretch of a second, as this process sees them: when it was busy, late and many
        together.
        """
        times = sorted(self.admissions)
        most = begin = 0
        for end, at in enumerate(times):
            while at - times[begin] >= 1:
                begin += 1
            most = max(most, end - begin + 1)
        return most

    async def _client(self) -> None:
        step = turn = 0
        while True:
            attempt = await self._try(*self.nodes[turn % len(self.nodes)])
            if attempt is not None:
                step = 0
                self._inside.add(attempt)
                try:
                    await attempt.ended
                finally:
                    self._inside.discard(attempt)
                    attempt.leave()
                self.lost += 1
            turn += 1
            await asyncio.sleep(pause_seconds(step))
            step += 1

    async def _try(self, host: str, port: int) -> Attempt | None:
        attempt = Attempt(f"{host}:{port}", self._commands, eager=self._eager)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: attempt, host, port)
                await attempt.entered
        except TimeoutError:
            self.refusals["timeout"] += 1
        except OSError:
            self.refusals["unreachable"] += 1
        finally:
            if attempt.upgraded_at:
                self.admissions.append(attempt.upgraded_at)
            if not attempt.inside:
                attempt.leave()
        if attempt.inside:
            return attempt
        if attempt.entered.done() and not attempt.entered.cancelled():
            self.refusals[str(attempt.status) if attempt.status != 101 else "ended"] += 1
        return None


def commands_of(topic: str = "", token: str = "") -> list[dict[str, Any]]:
    """Connect, and subscribe to a topic if there is one."""
    connect: dict[str, Any] = {"id": 1, "connect": {"token": token} if token else {}}
    return [connect, {"id": 2, "subscribe": {"channel": topic}}] if topic else [connect]
