from __future__ import annotations

import asyncio

import pytest

from broker.rounds import Rounds
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


class Work:
    """Something that takes until it is let go, and tells how often it was begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = asyncio.Semaphore(0)

    async def __call__(self, key: str) -> int:
        self.begun.append(key)
        number = len(self.begun)
        await self.go.acquire()
        return number


async def test_those_who_ask_at_once_share_a_round() -> None:
    work = Work()
    rounds = Rounds(work)
    one, other = rounds.ask("a"), rounds.ask("a")
    work.go.release()
    assert (await one, await other, work.begun) == (1, 1, ["a"])


async def test_who_asks_during_a_round_gets_the_outcome_of_the_next() -> None:
    work = Work()
    rounds = Rounds(work)
    first = rounds.ask("a")
    await eventually(lambda: work.begun)
    second, third = rounds.ask("a"), rounds.ask("a")
    await asyncio.sleep(0)
    assert work.begun == ["a"]  # one at a time
    work.go.release()
    assert await first == 1
    work.go.release()
    assert (await second, await third, work.begun) == (2, 2, ["a", "a"])


async def test_keys_do_not_wait_for_each_other() -> None:
    work = Work()
    rounds = Rounds(work)
    one, other = rounds.ask("a"), rounds.ask("b")
    await eventually(lambda: work.begun == ["a", "b"])
    work.go.release()
    work.go.release()
    assert [await one, await other] == [1, 2]


async def test_a_failure_is_everybodys_who_shares_the_round_and_nobody_elses() -> None:
    calls = 0

    async def fail_once(_: str) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls == 1:
            raise ValueError("once")
        return calls

    rounds = Rounds(fail_once)
    one, other = rounds.ask("a"), rounds.ask("a")
    await eventually(lambda: calls)
    after = rounds.ask("a")
    for task in (one, other):
        with pytest.raises(ValueError, match="once"):
            await task
    assert await after == 2


async def test_nothing_is_kept_when_all_have_their_answer() -> None:
    work = Work()
    rounds = Rounds(work)
    tasks = [rounds.ask("a"), rounds.ask("b")]
    await eventually(lambda: len(work.begun) == 2)
    tasks.append(rounds.ask("a"))
    for _ in tasks:
        work.go.release()
    await asyncio.gather(*tasks)
    assert (rounds._current, rounds._next) == ({}, {})
