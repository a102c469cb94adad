"""Work that comes in crowds, on turns that are taken by hand and a clock that only work moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import pytest

from broker.core.turns import Turns


class Bench:
    def __init__(self, turn_seconds: float = 3.0) -> None:
        self.now = 0.0
        self.soon: deque[Callable[[], None]] = deque()
        self.done: list[str] = []
        self.turns: Turns[str] = Turns(turn_seconds, lambda: self.now, self.soon.append)

    def work(self, name: str) -> None:
        self.now += 1.0
        self.done.append(name)
        if name == "bad":
            raise RuntimeError(name)

    def come(self, *names: str) -> None:
        for name in names:
            if self.turns.free:
                self.turns.do(partial(self.work, name))
            else:
                self.turns.wait(name, partial(self.work, name))

    def turn(self) -> None:
        for _ in range(len(self.soon)):
            self.soon.popleft()()


def test_a_lone_one_is_done_at_once() -> None:
    bench = Bench()
    bench.come("a")
    assert bench.done == ["a"]
    assert not bench.turns


def test_a_crowd_is_done_in_order_so_much_in_each_turn() -> None:
    bench = Bench()
    bench.come(*"abcdefgh")
    assert bench.done == [*"abc"]
    bench.turn()
    assert bench.done == [*"abcdef"]
    bench.come("i")  # behind those who wait
    bench.turn()
    assert bench.done == [*"abcdefghi"]
    bench.turn()
    bench.turn()
    assert not bench.soon  # nothing is asked for in vain


def test_one_is_done_in_each_turn_however_long_it_takes() -> None:
    bench = Bench(turn_seconds=0.5)
    bench.come(*"abc")
    for done in (["a"], ["a", "b"], ["a", "b", "c"]):
        assert bench.done == done
        bench.turn()


def test_who_leaves_is_passed_over() -> None:
    bench = Bench()
    bench.come(*"abcde")
    assert "d" in bench.turns
    bench.turns.leave("d")
    bench.turns.leave("nobody")
    bench.turn()
    assert bench.done == [*"abce"]


def test_a_mistake_in_one_does_not_stop_those_behind_it() -> None:
    bench = Bench()
    bench.come("a", "b", "c", "bad", "d")
    with pytest.raises(RuntimeError):
        bench.turn()
    bench.turn()
    assert bench.done == ["a", "b", "c", "bad", "d"]
