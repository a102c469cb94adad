from __future__ import annotations

from collections import deque
from itertools import combinations_with_replacement, count
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.door import BURST_SECONDS, ROOM_SECONDS, Answer, Door


def door_of(rate: float, *, burst: float | None = None, places: int = 1000, patience: float = 10.0) -> Door[int]:
    return Door(rate, burst, places, patience, 0.0)


def test_a_burst_comes_in_at_once_the_next_wait_and_beyond_the_room_it_is_full() -> None:
    door = door_of(10, burst=3, places=2)

    answers = [door.knock(number, 0.0) for number in range(6)]

    assert answers == [Answer.ENTER] * 3 + [Answer.WAIT] * 2 + [Answer.FULL]
    assert len(door) == 2


@pytest.mark.parametrize(("rate", "burst"), [(1000, 100), (25, 2), (5, 1), (0.5, 1)])
def test_without_a_burst_a_tenth_of_a_second_comes_at_once_and_one_at_least(rate: float, burst: int) -> None:
    door = door_of(rate, places=0)

    assert [door.knock(number, 0.0) for number in range(burst + 1)] == [Answer.ENTER] * burst + [Answer.FULL]


def test_the_room_holds_no_more_than_what_comes_in_within_three_seconds() -> None:
    door = door_of(10)

    assert sum(door.knock(number, 0.0) is Answer.WAIT for number in range(100)) == 10 * ROOM_SECONDS
    assert door.room_seconds == ROOM_SECONDS


def test_nor_than_what_comes_in_before_the_handshake_must_be_done() -> None:
    door = door_of(10, patience=2.0)

    assert sum(door.knock(number, 0.0) is Answer.WAIT for number in range(100)) == 20


def test_they_come_in_in_the_order_in_which_they_came() -> None:
    door = door_of(10, burst=1)
    for number in range(4):
        door.knock(number, 0.0)

    assert [door.call(0.1), door.call(0.1), door.call(0.2), door.call(0.31)] == [1, None, 2, 3]


def test_nobody_overtakes_those_who_wait_even_when_there_is_a_token() -> None:
    door = door_of(10, burst=1)
    door.knock(1, 0.0)
    door.knock(2, 0.0)

    assert door.knock(3, 5.0) is Answer.WAIT
    assert door.call(5.0) == 2


def test_who_leaves_costs_no_token() -> None:
    door = door_of(10, burst=1)
    for number in range(3):
        door.knock(number, 0.0)
    assert [door.leave(1), door.leave(1)] == [True, False]

    assert door.call(0.1) == 2


def test_a_token_that_was_not_used_is_the_next_ones() -> None:
    door = door_of(10, burst=1)
    for number in range(3):
        door.knock(number, 0.0)
    assert door.call(0.1) == 1
    door.give_back()

    assert door.call(0.1) == 2


def test_whose_patience_is_at_its_end_waits_no_more() -> None:
    door = door_of(2, burst=1, patience=1.0)
    door.knock(0, 0.0)
    door.knock(1, 0.0)
    door.knock(2, 0.5)

    assert door.overdue(0.99) == []
    assert door.overdue(1.0) == [1]
    assert door.dismiss() == [2]
    assert len(door) == 0


def test_what_was_made_up_for_is_no_larger_burst_once_nobody_waits() -> None:
    door = door_of(100, burst=1)
    door.knock(0, 0.0)
    door.knock(1, 0.0)
    assert door.call(1.0) == 1

    assert [door.knock(number, 1.0) for number in (2, 3)] == [Answer.ENTER, Answer.WAIT]


class Crowd:
    """A door, and who should be waiting at it."""

    def __init__(self, rate: float, burst: float | None) -> None:
        self.door = door_of(rate, burst=burst, places=40, patience=1000.0)
        self.waiting: deque[int] = deque()
        self.entered: list[float] = []
        self._numbers = count()

    def come(self, now: float) -> None:
        guest = next(self._numbers)
        match self.door.knock(guest, now):
            case Answer.ENTER:
                assert not self.waiting
                self.entered.append(now)
            case Answer.WAIT:
                self.waiting.append(guest)

    def call(self, now: float) -> None:
        while (called := self.door.call(now)) is not None:
            assert called == self.waiting.popleft()
            self.entered.append(now)

    def leave(self) -> None:
        if self.waiting:
            self.door.leave(self.waiting.pop())


@given(
    st.floats(0.5, 2000),
    st.none() | st.floats(1, 50),
    st.floats(0, 0.3),
    st.lists(
        st.tuples(st.sampled_from(["knock", "knock", "leave", "crowd"]), st.floats(0, 0.5)), min_size=1, max_size=60
    ),
)
def test_in_no_stretch_of_time_more_come_in_than_the_rate_and_a_burst_and_they_come_in_order(
    rate: float, burst: float | None, late: float, events: list[tuple[str, float]]
) -> None:
    crowd = Crowd(rate, burst)
    now, call_at = 0.0, inf
    for kind, pause in events:
        now += pause
        if call_at <= now:
            crowd.call(now)
        if kind == "leave":
            crowd.leave()
        for _ in range({"knock": 1, "crowd": 60}.get(kind, 0)):
            crowd.come(now)
        assert len(crowd.door) == len(crowd.waiting) <= min(40, rate * ROOM_SECONDS)
        call_at = now + crowd.door.pause(now) + late if crowd.waiting else inf
    most = max(burst or 1, rate * BURST_SECONDS, 1)
    entered = crowd.entered
    for begin, end in combinations_with_replacement(range(len(entered)), 2):
        assert end - begin + 1 <= most + rate * (entered[end] - entered[begin]) + 1e-6


@settings(max_examples=30)
@given(st.floats(20, 3000), st.integers(1, 500), st.floats(0, 0.045))
def test_while_somebody_waits_the_door_is_in_use_even_when_they_are_called_late(
    rate: float, guests: int, late: float
) -> None:
    door = door_of(rate, burst=1, places=guests)
    came = sum(door.knock(number, 0.0) is not Answer.FULL for number in range(guests))
    entered, now = 1, 0.0
    while door:
        now += max(door.pause(now), 0.001) + late
        while door.call(now) is not None:
            entered += 1

    assert entered == came
    assert now <= (came - 1) / rate + late + 0.002
