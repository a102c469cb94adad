from __future__ import annotations

import asyncio
from random import Random

import pytest

from broker.operating import slices as module
from broker.operating.slices import first, slices

pytestmark = pytest.mark.anyio


class Turns:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._turn()

    def _turn(self) -> None:
        self.count += 1
        self._next = self._loop.call_soon(self._turn)

    def end(self) -> None:
        self._next.cancel()


async def test_others_have_their_turn_between_two_slices() -> None:
    turns = Turns()
    seen: list[int] = []
    sizes: list[int] = []
    async for some in slices(range(25), 10):
        seen += some
        sizes.append(len(some))
    assert turns.count == 3
    turns.end()
    assert seen == list(range(25))
    assert sizes == [10, 10, 5]


async def test_nothing_has_no_slice() -> None:
    nothing: tuple[int, ...] = ()
    assert [some async for some in slices(nothing, 10)] == []


@pytest.mark.parametrize(("count", "limit"), [(0, 5), (3, 5), (2500, 5), (2500, 1500)])
async def test_the_first_are_those_with_the_least_keys(monkeypatch: pytest.MonkeyPatch, count: int, limit: int) -> None:
    monkeypatch.setattr(module, "SCANNED_AT_ONCE", 100)
    things = [Random(count).random() for _ in range(count)]  # noqa: S311 - the same each time
    assert await first(things, limit, lambda one: -one) == sorted(things, reverse=True)[:limit]
