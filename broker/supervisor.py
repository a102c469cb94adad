"""Several nodes on one port: worker processes that share it by SO_REUSEPORT, watched and replaced."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client import multiprocess

from broker.log import set_up
from broker.relay.embedded import EmbeddedNats, die_with_parent
from broker.relay.errors import RelayError
from broker.serve import StartError
from broker.settings import Settings

logger = logging.getLogger(__name__)

WORKER_VARIABLE = "BROKER_WORKER"
"""Tells a process that it is a worker, and which."""
STEADY_SECONDS = 5.0
"""A worker that lived so long had started well. One that ends before, by itself, will not do better again."""
BACKOFF_SECONDS = (0.2, 5.0)


async def supervise(settings: Settings, workers: int, arguments: Sequence[str]) -> int:
    """Run `workers` processes with the same settings until SIGTERM or SIGINT, and replace those that die.

    Args:
        settings: all of them.
        workers: how many.
        arguments: of the `broker serve` that each of them runs; the port is added, and NATS is told otherwise.

    Returns:
        The exit code: the worst of the workers': 2 after bad settings, 1 after any other failure.

    Raises:
        StartError: they can't be started.
    """
    async with AsyncExitStack() as stack:
        reserved = _reserve(settings.http.host, settings.http.port)
        stack.callback(reserved.close)
        port = reserved.getsockname()[1]
        set_up(settings.log.level, settings.log.format, f"{socket.gethostname()}_{port}_supervisor")
        metrics = tempfile.mkdtemp(prefix="broker-metrics-")
        stack.callback(shutil.rmtree, metrics, ignore_errors=True)
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics}
        if settings.nats.url == "embedded":
            embedded = EmbeddedNats(settings.nats.data_dir)
            stack.push_async_callback(embedded.stop)
            try:
                await embedded.start()
            except RelayError as error:
                raise StartError(str(error)) from error
            url = embedded.url
        else:
            url = settings.nats.url
        # by the environment, for what is secret in it: arguments can be read by everybody on the machine
        environment.pop("BROKER_NATS__URL_FILE", None)
        environment["BROKER_NATS__URL"] = url
        command = [sys.executable, "-m", "broker", "serve", *arguments, "--port", str(port)]
        supervisor = _Supervisor(command, environment, Path(metrics))
        return await supervisor.run(workers)


class _Supervisor:
    def __init__(self, command: Sequence[str], environment: dict[str, str], metrics: Path) -> None:
        self._command = command
        self._environment = environment
        self._metrics = metrics
        self._stop = asyncio.Event()
        self._alive: dict[int, asyncio.subprocess.Process] = {}

    async def run(self, workers: int) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        logger.info("starting %d workers", workers)
        codes = await asyncio.gather(*(self._keep(index) for index in range(workers)))
        return max(codes)

    def _signalled(self, number: signal.Signals) -> None:
        again = self._stop.is_set()
        self._stop.set()
        for process in self._alive.values():
            # the second one ends a worker at once, as it would end a single node
            process.send_signal(signal.SIGKILL if again else number)

    async def _keep(self, index: int) -> int:
        """Keep one worker alive; its last exit code."""
        failures = 0
        steady = False
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code = await self._live(index)
            if self._stop.is_set():
                # one that was told to end before it listened for that was ended by the signal itself
                return 0 if -code in (signal.SIGTERM, signal.SIGINT) else _exit_code(code)
            steady = steady or loop.time() - began > STEADY_SECONDS
            if code > 0 and not steady:
                logger.error("worker %d ended with %d as it started; giving up", index, code)
                self._signalled(signal.SIGTERM)
                return _exit_code(code)
            # a signal says nothing about the settings: the kernel sends SIGKILL when memory is short
            failures = 0 if loop.time() - began > STEADY_SECONDS else failures + 1
            first, longest = BACKOFF_SECONDS
            wait = random.uniform(0.5, 1) * min(longest, first * 2**failures)  # noqa: S311 - jitter
            logger.warning("worker %d ended with %d; starting another in %.1f s", index, code, wait)
            try:
                await asyncio.wait_for(self._stop.wait(), wait)
            except TimeoutError:
                continue
            return _exit_code(code)

    async def _live(self, index: int) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**self._environment, WORKER_VARIABLE: str(index)},
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal comes to the workers through us, once
            preexec_fn=die_with_parent,
        )
        self._alive[index] = process
        if self._stop.is_set():
            process.terminate()
        code = await process.wait()
        del self._alive[index]
        multiprocess.mark_process_dead(process.pid, str(self._metrics))  # type: ignore[no-untyped-call]
        return code


def _exit_code(code: int) -> int:
    """What `broker` may end with when a worker has ended with `code`, which is negative after a signal."""
    return code if code in (0, 2) else 1


def _reserve(host: str, port: int) -> socket.socket:
    """Take the port without listening, so that no other program can, and a free one (0) is the same for all workers."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        probe = socket.socket(family, kind, protocol)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with probe:
            probe.bind(address)  # without SO_REUSEPORT: fails when somebody listens, another broker too
            address = probe.getsockname()
        reserved = socket.socket(family, kind, protocol)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError as error:
        raise StartError(f"http.port: can't listen on {host}:{port}: {error.strerror or error}") from error
    return reserved
