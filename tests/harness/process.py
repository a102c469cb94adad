"""A program that a test runs."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 15.0


def _die_with_parent() -> None:
    """Have the kernel kill this process when the test run dies, by whatever; prctl(2), PR_SET_PDEATHSIG."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """A program with its output in files. Start it in the main thread: it dies with the thread that started it.

    Args:
        command: program and arguments.
        directory: where its output goes; it is the program's working directory, too.
        name: of the output files.
        environment: added to this process's own, from which all `BROKER_…` is taken.
    """

    def __init__(
        self, command: Sequence[str], directory: Path, name: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = list(command)
        self.directory = directory
        self.out = directory / f"{name}.out"
        self.err = directory / f"{name}.err"
        own = {key: value for key, value in os.environ.items() if not key.startswith("BROKER_")}
        self.environment = {**own, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, not waiting for anything; again, too, when it has ended."""
        assert not self.running
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread of ours holds a lock that it needs
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, -9 after SIGKILL."""
        assert self._process is not None
        return self._process.poll()

    def output(self) -> str:
        return self.out.read_text(errors="replace")

    def log(self) -> str:
        """What it has written to standard error."""
        return self.err.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def pause(self) -> None:
        """Stop it in its tracks, sockets open (SIGSTOP), and wait until the last of its threads stands still."""
        self.signal(signal.SIGSTOP)
        if sys.platform == "linux":
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end; the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    async def ended(self, seconds: float = STOP_SECONDS) -> int:
        """`wait`, with the event loop running on."""
        return await asyncio.to_thread(self.wait, seconds)

    async def stopped(self) -> int:
        """`stop`, with the event loop running on: clients in it answer the close frames of a node that drains."""
        return await asyncio.to_thread(self.stop)

    def stop(self) -> int:
        """End it politely; the exit code."""
        if self.running:
            self.resume()
            self.terminate()
        return self.wait()

    def clear_away(self) -> None:
        """Called at the test's end, whatever has happened before."""
        if self.running:
            self.resume()
            self.kill()
