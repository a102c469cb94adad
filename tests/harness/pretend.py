"""A node with durable topics that exists in the test's own process, and fails when it is told to.

It is for the tests of the accounting and of those who feed it: they must see each failure that a real node may have.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from tests.harness.node import BrokerNode
from tests.harness.waiting import free_port

EPOCH = "pretended"


@dataclass
class PretendStream:
    """What all pretended nodes share: the history of one topic."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)
    top: int = 0
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)

    def store(self, data: Any, key: str) -> int:
        if key in self.keys:
            return self.keys[key]
        self.top += 7
        self.keys[key] = self.top
        publication = {"data": data, "offset": self.top}
        self.kept.append(publication)
        for listener in self.listeners:
            listener(publication)
        return self.top


class PretendNode(BrokerNode):
    """Use `pretended`."""

    def __init__(self, directory: Path, stream: PretendStream) -> None:
        super().__init__(directory, free_port(), {})
        self.stream = stream
        self.forget = False
        """Recovery fails."""
        self.busy = 0
        """So many publications are stored and then answered with 503."""
        self.change: Callable[[dict[str, Any]], Sequence[dict[str, Any]]] = lambda publication: [publication]
        """What becomes of a publication on its way to subscribers."""
        self._sockets: dict[web.WebSocketResponse, str] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def publish_call(self, request: web.Request) -> web.Response:
        body = await request.json()
        offset = self.stream.store(body["data"], body["idempotency_key"])
        if self.busy:
            self.busy -= 1
            return web.json_response({"error": {"code": 100}}, status=503, headers={"Retry-After": "1"})
        return web.json_response({"result": {"offset": offset, "epoch": EPOCH}})

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    for line in message.data.split("\n"):
                        await self._command(socket, json.loads(line))
        finally:
            self._sockets.pop(socket, None)
        return socket

    async def _command(self, socket: web.WebSocketResponse, command: dict[str, Any]) -> None:
        ident = command.get("id")
        if "connect" in command:
            await socket.send_json({"id": ident, "connect": {"client": "c", "version": "1", "ping": 25, "pong": True}})
        elif "subscribe" in command:
            request = command["subscribe"]
            if self.forget and request.get("recover") and request.get("flag", 0) & 2:
                await socket.send_json({"id": ident, "error": {"code": 112, "message": "unrecoverable position"}})
                return
            self._sockets[socket] = request["channel"]
            await socket.send_json({"id": ident, "subscribe": self._subscribe_result(request)})

    def _subscribe_result(self, request: dict[str, Any]) -> dict[str, Any]:
        result = {"recoverable": True, "positioned": True, "epoch": EPOCH, "offset": self.stream.top}
        if request.get("recover"):
            result["was_recovering"] = True
            if not self.forget:
                since = request.get("offset", 0)
                missed = [publication for publication in self.stream.kept if publication["offset"] > since]
                result |= {"recovered": True, "offset": since, "publications": missed}
        return result

    def push(self, publication: dict[str, Any]) -> None:
        for changed in self.change(publication):
            self._push({"pub": changed})

    def send_away(self, code: int) -> None:
        """Unsubscribe everybody."""
        self._push({"unsubscribe": {"code": code, "reason": "insufficient state"}})
        self._sockets.clear()

    def _push(self, push: dict[str, Any]) -> None:
        for socket, channel in self._sockets.items():
            task = asyncio.ensure_future(socket.send_json({"push": {"channel": channel, **push}}))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # the connection may be gone

    async def cut(self) -> None:
        """End all connections without a word."""
        for socket in [*self._sockets]:
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def pretended(directory: Path, stream: PretendStream) -> AsyncIterator[PretendNode]:
    """A pretended node that listens."""
    node = PretendNode(directory, stream)
    application = web.Application()
    application.router.add_post("/api/publish", node.publish_call)
    application.router.add_get("/connection/websocket", node.websocket)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", node.port).start()
    stream.listeners.append(node.push)
    try:
        yield node
    finally:
        stream.listeners.remove(node.push)
        await runner.cleanup()
