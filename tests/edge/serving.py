"""The edge in this process, on a real socket, under uvicorn."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from broker.core.hub import Hub
from broker.core.policy import TopicPolicy
from broker.core.topic import parse_pattern
from broker.edge.edge import Edge
from broker.edge.entrance import Entrance
from broker.edge.handshake import Request
from broker.edge.http import EdgeHttpProtocol
from broker.metrics import Metrics
from tests.echo import Echo, Server, make_edge
from tests.edge.raw import SECONDS, RawClient, upgrade_request

POLICY = TopicPolicy("default", (parse_pattern(">"),))


class Peer(Echo):
    """An echo that is known to the test, and remembers its end."""

    __slots__ = ("__weakref__", "end", "request")

    end: int | None
    request: Request

    def opened(self, request: Request, subprotocol: str | None) -> None:
        del subprotocol
        self.end = None
        self.request = request

    def lost(self, code: int) -> None:
        self.end = code


class WatchedHttp(EdgeHttpProtocol):
    """Known by weak references, to see whether it is freed."""

    made: ClassVar[weakref.WeakSet[WatchedHttp]] = weakref.WeakSet()

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        WatchedHttp.made.add(self)


class Served:
    """A running edge."""

    def __init__(self, edge: Edge, port: int) -> None:
        self.edge = edge
        self.port = port
        self.clients = ExitStack()
        self.hub = Hub(lambda _: b"", lambda payload: payload, slice_writes=128, on_delivered=lambda *_: None)

    def peers(self) -> list[Peer]:
        return [socket for socket in self.edge.sockets if isinstance(socket, Peer)]

    def fan_out(self, frame: bytes, topic: str = "t") -> None:
        """Deliver to all who have joined."""
        self.hub.push(self.hub.topics[topic], frame, 0.0)
        while self.hub.run():
            pass

    async def client(self, *, receive_buffer: int | None = None) -> AsyncClient:
        """A client with an open WebSocket."""
        raw = await asyncio.to_thread(_connect, self.port, receive_buffer)
        self.clients.callback(raw.socket.close)
        return AsyncClient(raw)

    async def joined(self, *, receive_buffer: int | None = None) -> tuple[AsyncClient, Peer]:
        """A client that is subscribed, and the server's end of it."""
        before = set(self.peers())
        client = await self.client(receive_buffer=receive_buffer)
        (peer,) = set(self.peers()) - before
        self.hub.add("t", POLICY, peer)
        return client, peer


def _connect(port: int, receive_buffer: int | None) -> RawClient:
    raw = RawClient.__new__(RawClient)
    raw.socket = socket.socket()
    if receive_buffer is not None:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.socket.settimeout(SECONDS)
    raw.socket.connect(("127.0.0.1", port))
    raw._rest = b""
    return raw.open()


class AsyncClient:
    """A RawClient that leaves the event loop free."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.raw.send, data)

    async def read_frame(self) -> tuple[int, bytes]:
        return await asyncio.to_thread(self.raw.read_frame)

    async def read(self, size: int) -> bytes:
        return await asyncio.to_thread(self.raw.read, size)

    async def read_end(self) -> bytes:
        return await asyncio.to_thread(self.raw.read_end)


@asynccontextmanager
async def served(*, rules: Mapping[str, Any] | None = None, **changes: Any) -> AsyncIterator[Served]:
    """The edge with these changed from what the echo has, and with these rules for its queues."""
    edge = make_edge(Metrics())
    edge.queue_rules = replace(edge.queue_rules, **(rules or {}))
    for name, value in changes.items():
        setattr(edge, name, value)
    edge.entrance = Entrance(edge, edge.entrance_limits)

    async def hello(request: HttpRequest) -> PlainTextResponse:
        return PlainTextResponse(f"{request.method} {len(await request.body())}")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Edge]]:
        yield {"edge": edge}

    application = Starlette(routes=[Route("/hello", hello, methods=["GET", "POST"])], lifespan=lifespan)
    config = uvicorn.Config(application, http=WatchedHttp, ws=Peer, lifespan="on", log_level="error")
    server = Server(config)

    async def keep_time() -> None:
        while True:
            await asyncio.sleep(0.02)
            edge.wheel.advance(edge.clock())

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        tasks = [asyncio.create_task(server._serve([listener])), asyncio.create_task(keep_time())]
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            here = Served(edge, port)
            with here.clients:
                yield here
        finally:
            for one in list(edge.sockets):
                assert one._transport is not None
                one._transport.abort()
            server.should_exit = True
            await tasks[0]
            tasks[1].cancel()


__all__ = ["AsyncClient", "Peer", "Served", "WatchedHttp", "served", "upgrade_request"]
