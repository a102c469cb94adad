from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core.wheel import ASLEEP_NOWHERE, TimerWheel

TICK = 0.125
"""A power of two, so that times add up exactly."""
SLOTS = 16
HORIZON = TICK * (SLOTS - 1)


class Sleeper:
    """Keeps when it was woken, and does then what it was told to."""

    def __init__(self, then: Callable[[float], float | None] = lambda _: None) -> None:
        self.wheel_slot = ASLEEP_NOWHERE
        self.woken: list[float] = []
        self.then = then

    def wake(self, now: float) -> float | None:
        self.woken.append(now)
        return self.then(now)


def make_wheel(now: float = 0.0) -> TimerWheel:
    return TimerWheel(now, tick_seconds=TICK, slots=SLOTS)


def advance(wheel: TimerWheel, start: float, end: float) -> None:
    """Advance regularly, tick by tick."""
    for tick in range(int(start / TICK) + 1, int(end / TICK) + 1):
        wheel.advance(tick * TICK)


@pytest.mark.parametrize("delay", [0.0, 0.01, TICK, 0.2, 1.0, HORIZON - TICK])
@pytest.mark.parametrize("start", [0.0, 0.0625, 1000.0, 86_400.3])
def test_a_sleeper_is_woken_once_never_early_and_late_by_one_tick_at_most(start: float, delay: float) -> None:
    wheel, sleeper = make_wheel(start), Sleeper()
    wheel.schedule(sleeper, start + delay)
    advance(wheel, start, start + 3 * HORIZON)
    [woken] = sleeper.woken
    assert start + delay <= woken <= start + delay + TICK
    assert sleeper.wheel_slot == ASLEEP_NOWHERE
    assert len(wheel) == 0


@pytest.mark.parametrize("when", [9.9, 5.0, 0.0, -3.0])
def test_a_time_that_has_passed_is_the_next_tick(when: float) -> None:
    wheel, sleeper = make_wheel(10.0), Sleeper()
    wheel.schedule(sleeper, when)
    wheel.advance(10.0)
    assert sleeper.woken == []
    wheel.advance(10.0 + TICK)
    assert sleeper.woken == [10.0 + TICK]


@pytest.mark.parametrize("when", [HORIZON + TICK, 100.0, 1e18, inf])
def test_what_lies_beyond_the_horizon_is_woken_there(when: float) -> None:
    wheel, sleeper = make_wheel(), Sleeper()
    wheel.schedule(sleeper, when)
    advance(wheel, 0.0, 4 * HORIZON)
    assert sleeper.woken == [HORIZON]


def test_a_sleeper_beyond_the_horizon_comes_through_by_scheduling_itself_again() -> None:
    when = 5 * HORIZON + 0.3
    wheel, sleeper = make_wheel(), Sleeper(lambda now: when if now < when else None)
    wheel.schedule(sleeper, when)
    advance(wheel, 0.0, 8 * HORIZON)
    assert len(sleeper.woken) == 6
    assert when <= sleeper.woken[-1] <= when + TICK


def test_scheduling_again_replaces_the_time_before() -> None:
    wheel, sleeper = make_wheel(), Sleeper()
    for when in (1.0, 0.5, 1.5):
        wheel.schedule(sleeper, when)
    assert len(wheel) == 1
    advance(wheel, 0.0, 3.0)
    assert sleeper.woken == [1.5 + TICK]


def test_a_cancelled_sleeper_is_not_woken_and_can_sleep_again() -> None:
    wheel, sleeper = make_wheel(), Sleeper()
    wheel.cancel(sleeper)
    wheel.schedule(sleeper, 0.5)
    wheel.cancel(sleeper)
    wheel.cancel(sleeper)
    assert len(wheel) == 0
    advance(wheel, 0.0, 2 * HORIZON)
    assert sleeper.woken == []
    wheel.schedule(sleeper, 2 * HORIZON + 0.5)
    advance(wheel, 2 * HORIZON, 3 * HORIZON)
    assert len(sleeper.woken) == 1


def test_a_timer_costs_one_entry_however_often_it_is_moved() -> None:
    wheel, sleepers = make_wheel(), [Sleeper() for _ in range(10)]
    for step in range(50):
        for sleeper in sleepers:
            wheel.schedule(sleeper, step * 0.3)
    assert len(wheel) == 10
    assert sum(map(len, wheel._slots)) == 10


def test_a_sleeper_is_woken_again_when_it_asked_for() -> None:
    wheel, sleeper = make_wheel(), Sleeper(lambda now: now + 0.5)
    wheel.schedule(sleeper, 0.5)
    advance(wheel, 0.0, 3.0)
    assert sleeper.woken == [0.625, 1.25, 1.875, 2.5]


def test_a_sleeper_can_schedule_itself_while_it_wakes() -> None:
    wheel = make_wheel()

    def again(now: float) -> None:
        if len(sleeper.woken) < 3:
            wheel.schedule(sleeper, now + 0.5)

    sleeper = Sleeper(again)
    wheel.schedule(sleeper, 0.5)
    advance(wheel, 0.0, 5.0)
    assert sleeper.woken == [0.625, 1.25, 1.875]


def test_a_waking_sleeper_can_cancel_another_that_is_due_with_it() -> None:
    wheel = make_wheel()
    pair = [Sleeper(), Sleeper()]
    pair[0].then = lambda _: wheel.cancel(pair[1])
    pair[1].then = lambda _: wheel.cancel(pair[0])
    for sleeper in pair:
        wheel.schedule(sleeper, 0.5)
    advance(wheel, 0.0, 3.0)
    assert sum(len(sleeper.woken) for sleeper in pair) == 1


def test_a_waking_sleeper_can_put_off_another_that_is_due_with_it() -> None:
    wheel = make_wheel()
    pair = [Sleeper(), Sleeper()]
    pair[0].then = lambda now: wheel.schedule(pair[1], now + 1.0) if len(pair[0].woken) == 1 else None
    pair[1].then = lambda now: wheel.schedule(pair[0], now + 1.0) if len(pair[1].woken) == 1 else None
    for sleeper in pair:
        wheel.schedule(sleeper, 0.5)
    advance(wheel, 0.0, 1.0)
    assert sum(len(sleeper.woken) for sleeper in pair) == 1
    assert len(wheel) == 1
    advance(wheel, 1.0, 2.0)
    assert sorted(len(sleeper.woken) for sleeper in pair) == [1, 1]


def test_sleepers_that_were_due_during_a_stall_are_woken_after_it() -> None:
    wheel, sleepers = make_wheel(), [Sleeper() for _ in range(SLOTS)]
    for number, sleeper in enumerate(sleepers):
        wheel.schedule(sleeper, number * TICK)
    wheel.advance(1000.0)
    assert [sleeper.woken for sleeper in sleepers] == [[1000.0]] * SLOTS


def test_a_sleeper_woken_after_a_stall_waits_as_long_as_it_asks_for() -> None:
    wheel, sleeper = make_wheel(), Sleeper(lambda now: now + 0.5)
    wheel.schedule(sleeper, 0.1)
    wheel.advance(1.0)
    assert sleeper.woken == [1.0]
    advance(wheel, 1.0, 2.0)
    assert sleeper.woken == [1.0, 1.625]


def test_time_that_stands_still_wakes_nobody() -> None:
    wheel, sleeper = make_wheel(), Sleeper(lambda now: now)
    wheel.schedule(sleeper, 0.0)
    for _ in range(5):
        wheel.advance(TICK)
    assert sleeper.woken == [TICK]


def test_the_default_wheel_ticks_ten_times_a_second() -> None:
    wheel, sleeper = TimerWheel(5.0), Sleeper()
    wheel.schedule(sleeper, 30.0)
    for step in range(300):
        wheel.advance(5.0 + step * 0.1)
    [woken] = sleeper.woken
    assert 30.0 <= woken <= 30.2


class WheelModel(RuleBasedStateMachine):
    """Regular advances, at most a tick apart, and sleepers that are scheduled, moved and cancelled at any time."""

    @initialize(start=st.integers(0, 10_000_000).map(lambda ms: ms / 1000))
    def begin(self, start: float) -> None:
        self.now = start
        self.wheel = make_wheel(start)
        self.due: dict[int, float] = {}
        self.again: dict[int, float] = {}
        self.sleepers = [Sleeper(self._woken(number)) for number in range(6)]

    def _woken(self, number: int) -> Callable[[float], float | None]:
        def woken(now: float) -> float | None:
            assert now == self.now
            assert self.due.pop(number) <= now
            delay = self.again.pop(number, None)
            if delay is None:
                return None
            self.due[number] = now + delay
            return now + delay

        return woken

    @rule(number=st.integers(0, 5), delay=st.floats(-1.0, HORIZON - TICK))
    def schedule(self, number: int, delay: float) -> None:
        self.wheel.schedule(self.sleepers[number], self.now + delay)
        self.due[number] = self.now + max(delay, 0.0)

    @rule(number=st.integers(0, 5), delay=st.floats(0.0, HORIZON - TICK))
    def schedule_when_woken(self, number: int, delay: float) -> None:
        self.again[number] = delay

    @rule(number=st.integers(0, 5))
    def cancel(self, number: int) -> None:
        self.wheel.cancel(self.sleepers[number])
        self.due.pop(number, None)

    @rule(step=st.floats(0.0, TICK))
    def advance(self, step: float) -> None:
        self.now += step
        self.wheel.advance(self.now)

    @invariant()
    def nobody_is_late_by_more_than_a_tick(self) -> None:
        assert all(self.now < when + TICK for when in getattr(self, "due", {}).values())

    @invariant()
    def each_sleeper_has_one_entry_and_no_more(self) -> None:
        if not hasattr(self, "wheel"):
            return
        assert len(self.wheel) == len(self.due)
        for number, sleeper in enumerate(self.sleepers):
            places = [place for place, slot in enumerate(self.wheel._slots) if sleeper in slot]
            assert places == ([sleeper.wheel_slot] if number in self.due else [])
            assert number in self.due or sleeper.wheel_slot == ASLEEP_NOWHERE


TestWheelModel = WheelModel.TestCase
TestWheelModel.settings = settings(max_examples=100, stateful_step_count=50)
