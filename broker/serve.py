"""Runs one node in this process, from its first socket to its last."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette

from broker.app import App, create_app, default_name
from broker.edge.client_socket import ClientSocket
from broker.edge.http import EdgeHttpProtocol
from broker.log import set_up
from broker.relay.embedded import EmbeddedNats
from broker.relay.errors import RelayError
from broker.settings import Settings

logger = logging.getLogger(__name__)

BACKLOG = 4096
UNSENT_BYTES = 131_072
"""What the kernel takes of a connection beyond what is on its way. More would only be older by the time it gets there:
what has left for the kernel can't be conflated or overtaken any more, and counts in no bound of ours."""
KEEP_ALIVE_SECONDS = 75
HTTP_GRACE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Worker:
    """This process's place among the workers on one port."""

    index: int


class StartError(Exception):
    """The node can't start; the message says why in one line."""


class _Server(uvicorn.Server):
    """uvicorn, without its signals: a drain comes before its shutdown."""

    def __init__(self, config: uvicorn.Config, tls_seconds: float) -> None:
        super().__init__(config)
        self._tls_seconds = tls_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. As the method it overrides, but a TLS handshake has its deadline, too (asyncio's is a minute)."""
        await self.lifespan.startup()
        config = self.config

        def make_protocol() -> asyncio.Protocol:
            return EdgeHttpProtocol(config, self.server_state, self.lifespan.state)

        tls_seconds = self._tls_seconds if config.ssl else None
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                make_protocol, sock=one, ssl=config.ssl, backlog=BACKLOG, ssl_handshake_timeout=tls_seconds
            )
            for one in sockets or []
        ]
        self.started = True


async def serve(
    settings: Settings, *, worker: Worker | None = None, on_ready: Callable[[int], None] | None = None
) -> int:
    """Run a node until SIGTERM or SIGINT; a second signal ends it at once.

    Args:
        settings: all of them.
        worker: set when several processes share the port.
        on_ready: told the port when the node takes connections and NATS has been reached.

    Returns:
        The exit code.

    Raises:
        StartError: it could not start.
    """
    async with AsyncExitStack() as stack:
        _raise_file_limit()
        listener = _listen(settings.http.host, settings.http.port, worker, "http.port")
        stack.callback(listener.close)
        port = listener.getsockname()[1]
        name = default_name(port) + (f"_{worker.index}" if worker else "")
        set_up(settings.log.level, settings.log.format, name)
        nats_url = settings.nats.url
        embedded: EmbeddedNats | None = None
        if nats_url == "embedded":
            embedded = EmbeddedNats(settings.nats.data_dir)
            stack.push_async_callback(embedded.stop)
            try:
                await embedded.start()
            except RelayError as error:
                raise StartError(str(error)) from error
            nats_url = embedded.url
        app = create_app(settings, nats_url=nats_url, name=name)
        servers = [(_server(settings, app.public, public=True), listener)]
        if app.internal is not None:
            internal_port = settings.http.internal_port
            assert internal_port is not None  # noqa: S101 - there is no internal application without it
            internal = _listen(settings.http.host, internal_port, worker, "http.internal_port")
            stack.callback(internal.close)
            servers.append((_server(settings, app.internal, public=False), internal))
        return await _run(app, servers, embedded, lambda: on_ready(port) if on_ready else None)


async def _run(
    app: App,
    servers: list[tuple[_Server, socket.socket]],
    embedded: EmbeddedNats | None,
    on_ready: Callable[[], None],
) -> int:
    stop = asyncio.Event()
    _on_signals(stop)
    app.node.start()
    running = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
    watching = [asyncio.create_task(_tell_ready(app, on_ready)), asyncio.create_task(stop.wait())]
    if embedded is not None:
        watching.append(asyncio.create_task(_end_with(embedded, stop)))
    relaying = app.node.relaying
    assert relaying is not None  # noqa: S101 - the node has been started
    relaying.add_done_callback(_relay_ended)
    # what is there now stays; collections need not look at it again
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    try:
        settling = app.node.durability.settling
        ends: list[asyncio.Future[Any]] = [watching[1], relaying, settling, *running]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if settling.done():
            logger.critical("%s", settling.exception())
        failed = not stop.is_set() or relaying.done() or (embedded is not None and watching[2].done())
        if failed:
            app.node.drains(draining=True)
        else:
            await app.drain.finish()
            failed = relaying.done()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*running)
        await app.node.stop()
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    logger.info("the node has ended")
    return 1 if failed else 0


async def _tell_ready(app: App, on_ready: Callable[[], None]) -> None:
    while app.node.reasons_against_readiness():  # noqa: ASYNC110 - once in a life
        await asyncio.sleep(0.02)
    on_ready()


def _relay_ended(relaying: asyncio.Task[None]) -> None:
    # it has its ways round everything that NATS and the network do, so unless we end it ourselves this is a bug of ours
    if not relaying.cancelled():
        text = "the connection to NATS is not kept any more; this node ends with it"
        logger.critical(text, exc_info=relaying.exception())


async def _end_with(embedded: EmbeddedNats, stop: asyncio.Event) -> None:
    code = await embedded.ended()
    logger.error("the embedded NATS server ended by itself, with %d; this node ends with it", code)
    stop.set()


def _raise_file_limit() -> None:
    """Allow as many open files, and so connections, as the system lets us: the soft limit is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _on_signals(stop: asyncio.Event) -> None:
    def handle(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("%s again: ending at once", number.name)
            sys.stderr.flush()
            # no cleaning up: that is what the second signal is for
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        logger.info("%s: draining", number.name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


def _listen(host: str, port: int, worker: Worker | None, setting: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if worker is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # passed on to the connections that come in, so that it costs none of them a system call
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise StartError(f"{setting}: can't listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def _server(settings: Settings, application: Starlette, *, public: bool) -> _Server:
    http = settings.http
    return _Server(
        uvicorn.Config(
            application,
            http=EdgeHttpProtocol,
            ws=ClientSocket if public else "none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=HTTP_GRACE_SECONDS,
            backlog=BACKLOG,
            ssl_certfile=http.tls_cert,
            ssl_keyfile=http.tls_key,
        ),
        settings.limits.handshake_seconds,
    )
