"""Waiting for what must come, with a deadline, and never for luck."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS = 15.0
"""Enough for whatever comes at all, on a slow machine."""
POLL_SECONDS = 0.02
_given: set[int] = set()


async def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Ask again and again until the answer is true; that answer.

    Args:
        condition: may be a coroutine function. An AssertionError or OSError of it counts as no.
        seconds: after which the test fails, with what the condition said last.
    """
    deadline = time.monotonic() + seconds
    while True:
        failure: Exception | None = None
        try:
            answer = condition()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return answer
        except (AssertionError, OSError) as error:
            answer, failure = None, error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} seconds: {failure or answer!r}") from failure
        await asyncio.sleep(POLL_SECONDS)


def at_last(condition: Callable[[], T], seconds: float = SECONDS) -> T:
    """`eventually` for tests and fixtures without an event loop."""
    deadline = time.monotonic() + seconds
    while True:
        failure: Exception | None = None
        answer = None
        try:
            answer = condition()
        except (AssertionError, OSError) as error:
            failure = error
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} seconds: {failure or answer!r}") from failure
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """A port nobody listens on. Below the range from which the kernel gives outgoing connections theirs."""
    while True:
        port = random.randrange(12_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as probe:
            if port in _given or probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        _given.add(port)
        return port
