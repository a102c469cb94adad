"""A client of the Centrifuge protocol (JSON) that says exactly what it is told to."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed

SECONDS = 15.0


class WireClient:
    """One WebSocket connection. Use `opened` or `connected`."""

    def __init__(self, websocket: ClientConnection, *, pongs: bool) -> None:
        self.websocket = websocket
        self.lines: list[dict[str, Any]] = []
        """Everything that came, in order; pings (`{}`) included."""
        self._pongs = pongs
        self._ident = 0
        self._news = asyncio.Condition()
        self._seen = 0
        self._end: tuple[int, str] | None = None

    async def run(self) -> None:
        """Take what comes, until the connection ends."""
        try:
            async for message in self.websocket:
                assert isinstance(message, str)
                for line in message.split("\n"):
                    decoded = json.loads(line)
                    if decoded == {} and self._pongs:
                        await self.send({})
                    await self._note(decoded)
        except ConnectionClosed:
            pass
        async with self._news:
            self._end = (self.websocket.close_code or 1006, self.websocket.close_reason or "")
            self._news.notify_all()

    async def _note(self, line: dict[str, Any]) -> None:
        async with self._news:
            self.lines.append(line)
            self._news.notify_all()

    async def send(self, *commands: Any) -> None:
        """Send commands as they are, in one frame."""
        await self.websocket.send("\n".join(json.dumps(command) for command in commands))

    async def send_text(self, text: str) -> None:
        await self.websocket.send(text)

    async def reply(self, ident: int) -> dict[str, Any]:
        """The reply with this id, when it comes."""
        return await self._first(lambda line: line.get("id") == ident)

    async def _first(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found.extend(line for line in self.lines if fits(line))
            return bool(found) or self._end is not None

        async with asyncio.timeout(SECONDS), self._news:
            await self._news.wait_for(look)
        assert found, f"the connection ended first: {self._end}"
        return found[0]

    async def following(self) -> AsyncIterator[dict[str, Any]]:
        """Everything that comes, in order, until the connection ends."""
        at = 0
        while True:
            async with self._news:
                await self._news.wait_for(lambda: len(self.lines) > at or self._end is not None)  # noqa: B023 - awaited here
            if at == len(self.lines):
                return
            yield self.lines[at]
            at += 1

    async def ask(self, method: str, **request: Any) -> dict[str, Any]:
        """Send a command; the whole reply."""
        self._ident += 1
        ident = self._ident
        await self.send({"id": ident, method: request})
        return await self.reply(ident)

    async def call(self, method: str, **request: Any) -> dict[str, Any]:
        """Send a command, which must succeed; its result."""
        reply = await self.ask(method, **request)
        assert "error" not in reply, reply
        result: dict[str, Any] = reply[method]
        return result

    async def refused(self, method: str, **request: Any) -> tuple[int, str]:
        """Send a command, which must fail; the error's code and message."""
        error = (await self.ask(method, **request))["error"]
        return error["code"], error["message"]

    async def push(self) -> dict[str, Any]:
        """The next push nobody has asked for yet."""

        def look() -> bool:
            return any("push" in line for line in self.lines[self._seen :]) or self._end is not None

        async with asyncio.timeout(SECONDS), self._news:
            await self._news.wait_for(look)
        while self._seen < len(self.lines):
            line = self.lines[self._seen]
            self._seen += 1
            if "push" in line:
                push: dict[str, Any] = line["push"]
                return push
        raise AssertionError(f"the connection ended first: {self._end}")

    async def publication(self, topic: str) -> Any:
        """The data of the next push, which must be a publication in this topic."""
        push = await self.push()
        assert push["channel"] == topic, push
        return push["pub"]["data"]

    async def closed(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Code and reason of the connection's end, when it comes."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: self._end is not None)
        assert self._end is not None
        return self._end

    @property
    def is_open(self) -> bool:
        return self._end is None


@asynccontextmanager
async def opened(
    url: str,
    *,
    pongs: bool = True,
    tls: ssl.SSLContext | None = None,
    max_queue: int | None = 1024,
    seconds: float = 10,
    **headers: str,
) -> AsyncIterator[WireClient]:
    """A WebSocket on which nothing was said yet.

    Args:
        url: of the WebSocket.
        pongs: whether pings are answered.
        tls: whom to trust.
        max_queue: frames that are read ahead.
        seconds: that the handshake may take.
        headers: more of them; `_` in names stands for `-`.
    """
    async with open_websocket(
        url,
        ssl=tls,
        proxy=None,
        compression=None,
        ping_interval=None,
        open_timeout=seconds,
        close_timeout=2,
        max_size=None,
        max_queue=max_queue,
        additional_headers={name.replace("_", "-"): value for name, value in headers.items()},
    ) as websocket:
        client = WireClient(websocket, pongs=pongs)
        running = asyncio.create_task(client.run())
        try:
            yield client
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def connected(
    url: str,
    token: str = "",
    *,
    topics: tuple[str, ...] = (),
    pongs: bool = True,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[WireClient]:
    """A client that has connected and subscribed."""
    async with opened(url, pongs=pongs, tls=tls) as client:
        await client.call("connect", **({"token": token} if token else {}))
        for topic in topics:
            await client.call("subscribe", channel=topic)
        yield client
