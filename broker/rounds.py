"""Work that many ask for at the same time, done for all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Rounds(Generic[T]):
    """Does a work by rounds, one at a time for each key.

    Who asks while a round is under way shares the next one, not this: it began before the question, and may have looked
    already where the answer has changed since.

    Args:
        work: what is done, for a key.
    """

    def __init__(self, work: Callable[[str], Awaitable[T]]) -> None:
        self._work = work
        self._current: dict[str, asyncio.Task[T]] = {}
        self._next: dict[str, asyncio.Task[T]] = {}

    def ask(self, key: str) -> asyncio.Task[T]:
        """The next round's outcome. Others wait for it, too, so it must not be cancelled: shield it."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._round(key, self._current.get(key)))
        return task

    async def _round(self, key: str, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait((before,))
        me = self._current[key] = self._next.pop(key)
        try:
            return await self._work(key)
        finally:
            if self._current[key] is me:
                del self._current[key]
