"""`broker` as it is called from a shell."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.harness.process import Process
from tests.harness.site import Site
from tests.harness.waiting import eventually

BROKER = [sys.executable, "-m", "broker"]
PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def broker(site: Site, *arguments: str, name: str = "broker", environment: Mapping[str, str] | None = None) -> Process:
    """A `broker` process that runs."""
    process = Process([*BROKER, *arguments], site.directory, name, {"PYTHONPATH": str(PACKAGE), **(environment or {})})
    site.start(process)
    return process


async def run(site: Site, *arguments: str, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run `broker` to its end."""
    process = broker(site, *arguments, name=f"broker-{len(list(site.directory.iterdir()))}", environment=environment)
    code = await process.ended()
    return Outcome(code, process.output(), process.log())


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are alive."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(directory.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(*pids: int) -> None:
    """Wait until these processes have ended."""
    await eventually(lambda: not any(is_alive(pid) for pid in pids))


async def shell(command: str) -> str:
    """What a command line prints."""
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    return out.decode()
