"""Work on many things in slices, so that the event loop is free in between."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

SCANNED_AT_ONCE = 1000
"""Connections that are looked at in one turn of the event loop: about a millisecond's work."""
CLOSED_AT_ONCE = 100
"""Connections that are closed in one turn of the event loop: each is a write to a socket."""

T = TypeVar("T")


async def slices(things: Sequence[T], at_once: int) -> AsyncIterator[Sequence[T]]:
    """One slice after the other, with a turn of the event loop between two."""
    for begin in range(0, len(things), at_once):
        if begin:
            await asyncio.sleep(0)
        yield things[begin : begin + at_once]


async def first(things: Sequence[T], limit: int, key: Callable[[T], Any]) -> list[T]:
    """The `limit` things with the least keys, in order."""
    best: list[T] = []
    async for some in slices(things, SCANNED_AT_ONCE):
        best = heapq.nsmallest(limit, [*best, *some], key=key)
    return best
