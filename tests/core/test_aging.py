from __future__ import annotations

import heapq
import uuid
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.aging import LATE_SECONDS, Aging


def ids(count: int) -> list[str]:
    random = Random(1)  # noqa: S311 - the same each time
    return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(count)]


def test_ages_are_spread_evenly_about_the_setting_and_stay() -> None:
    aging = Aging(1000, 10, 0)
    ages = sorted(aging.due_at(client, 5) - 5 for client in ids(2000))
    assert 750 <= ages[0] < 760
    assert 1240 < ages[-1] <= 1250
    for at in range(10):
        share = sum(750 + 50 * at <= age < 800 + 50 * at for age in ages)
        assert 150 < share < 250
    assert [aging.due_at(client, 5) - 5 for client in sorted(ids(5))] == [
        aging.due_at(client, 5) - 5 for client in sorted(ids(5))
    ]


@pytest.mark.parametrize(("client", "age"), [("00000000-", 75.0), ("ffffffff-", 125.0)])
def test_the_bounds_are_a_quarter_off(client: str, age: float) -> None:
    assert Aging(100, 1, 0).due_at(client, 0) == age


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=150),
    st.floats(0.5, 200),
    st.sampled_from([0.001, 0.1, 0.9]),
)
def test_however_many_have_their_age_at_once_the_rate_holds_and_all_go(
    due: list[float], rate: float, tick: float
) -> None:
    aging = Aging(1, rate, 0)
    names = ids(len(due))
    waiting = [(at, number) for number, at in enumerate(due)]
    heapq.heapify(waiting)
    gone: list[float] = []
    asked = 0
    while waiting:
        at, waiting_for = heapq.heappop(waiting)
        now = (at // tick + 1) * tick  # the wheel's: never early, late by a tick
        again = aging.turn(names[waiting_for], now)
        asked += 1
        if again:
            assert again > now - tick
            heapq.heappush(waiting, (max(again, now), waiting_for))
        else:
            gone.append(now)
        assert asked <= 3 * len(due)
    assert not len(aging)
    for first, begin in enumerate(gone):
        burst = 1 + rate * tick
        assert all(count + 1 <= burst + rate * (at - begin) + 1e-6 for count, at in enumerate(gone[first:]))
    if rate * 20 < len(due):  # and no slower than it may
        assert gone[-1] - gone[0] <= len(due) / rate + 20 + tick


def test_those_who_have_to_wait_are_given_a_place_each_and_keep_it() -> None:
    aging = Aging(1, 100, 0)
    names = ids(1000)
    again = [aging.turn(name, 50.0) for name in names]
    assert again[0] == 0.0
    assert again[1:] == pytest.approx([50 + place / 100 for place in range(1, 1000)])
    assert [aging.turn(name, 50.005) for name in names[1:]] == again[1:]  # pings wake them in between
    assert aging.turn(names[999], 60.0) == 0.0


def test_whoever_ends_otherwise_is_forgotten() -> None:
    aging = Aging(1, 1, 0)
    for name in ids(3):
        aging.turn(name, 5.0)
        aging.forget(name)
    assert not len(aging)


def test_when_all_come_late_they_do_not_go_all_at_once() -> None:
    aging = Aging(1, 10, 0)
    names = ids(100)
    for name in names:
        aging.turn(name, 5.0)
    late = 5.0 + 100 / 10 + LATE_SECONDS + 1
    assert sum(aging.turn(name, late) == 0.0 for name in names) <= 1
