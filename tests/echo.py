"""An echo on the broker's own frame layer, for conformance suites: `python -m tests.echo PORT`.

It answers on `/echo` and takes messages of up to and including 1 MiB. It prints `ready PORT` when it listens; with
port 0 that is any free one. Autobahn: `wstest -m fuzzingclient` against `ws://127.0.0.1:PORT/echo`.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
import uvloop
from starlette.applications import Starlette

from broker.core.behind import CatchingUp, CatchUpLane
from broker.core.queue import QueueRules
from broker.core.wheel import TimerWheel
from broker.edge.edge import Edge
from broker.edge.handshake import Origins
from broker.edge.http import EdgeHttpProtocol
from broker.edge.pressure import Pressure
from broker.edge.websocket import WebSocketProtocol
from broker.fan_out import LINES
from broker.metrics import Metrics

MESSAGE_BYTES = 1024 * 1024
QUEUE_BYTES = 16 * MESSAGE_BYTES
"""Nothing more is read from who doesn't read its echo, so no more waits than what one read from the socket can
complete: the rest of one message and some smaller ones. This is far more, and so the limit plays no part here."""
QUEUE_MESSAGES = 16_384
QUEUE_AGE_SECONDS = 3600.0
TICK_SECONDS = 0.1


class Echo(WebSocketProtocol):
    """Sends back what comes."""

    __slots__ = ()

    def text(self, payload: bytes) -> None:
        self.send(payload)

    def binary(self, payload: bytes) -> None:
        self.send_binary(payload)


def _no_history(reader: CatchingUp, lane: CatchUpLane) -> None:
    raise AssertionError(f"{lane.name} has no history to read on in for {reader}")


def make_edge(metrics: Metrics) -> Edge:
    return Edge(
        wheel=TimerWheel(time.monotonic(), tick_seconds=TICK_SECONDS),
        clock=time.monotonic,
        metrics=metrics,
        paths=frozenset({b"/echo"}),
        origins=Origins(["*"]),
        subprotocols=(),
        message_bytes=MESSAGE_BYTES,
        header_bytes=16_384,
        handshake_seconds=10.0,
        queue_rules=QueueRules(QUEUE_BYTES, QUEUE_MESSAGES, QUEUE_AGE_SECONDS, QUEUE_AGE_SECONDS, LINES),
        pressure=Pressure(metrics, time.monotonic, 64 * QUEUE_BYTES),
        catch_up=_no_history,
        max_connections=None,
        make_client=lambda outlet: outlet,
        unavailable=lambda: None,
    )


class Server(uvicorn.Server):
    """Says when it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            print(f"ready {listener.getsockname()[1]}", flush=True)  # noqa: T201 - whoever started this waits for it


async def serve(port: int) -> None:
    edge = make_edge(Metrics())

    async def keep_time() -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            edge.wheel.advance(edge.clock())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Edge]]:
        ticking = asyncio.create_task(keep_time())
        yield {"edge": edge}
        ticking.cancel()

    application = Starlette(lifespan=lifespan)
    config = uvicorn.Config(application, http=EdgeHttpProtocol, ws=Echo, lifespan="on", log_level="warning")
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        await Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
