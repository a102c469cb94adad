from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.process import Process
from tests.harness.waiting import at_last


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that nodes run on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def echo_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The echo of `python -m tests.echo`, as a process."""
    command = [sys.executable, "-m", "tests.echo", "0"]
    package = str(Path(__file__).parents[2])
    echo = Process(command, tmp_path_factory.mktemp("echo"), "echo", {"PYTHONPATH": package})
    echo.start()

    def said() -> re.Match[str] | None:
        assert echo.running, echo.log()
        return re.match(r"ready (\d+)\n", echo.output())

    ready = at_last(said)
    assert ready is not None
    yield int(ready[1])
    assert echo.log() == ""  # whatever a client does, there is nothing to say about it
    echo.clear_away()
