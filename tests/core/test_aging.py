from __future__ import annotations

import heapq
import uuid
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.aging import BURST_SECONDS, Aging


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
    st.sampled_from([0.001, 0.1, 1.0]),
)
def test_however_many_have_their_age_at_once_the_rate_holds_and_all_go(
    due: list[float], rate: float, tick: float
) -> None:
    aging = Aging(1, rate, 0)
    waiting = list(due)
    heapq.heapify(waiting)
    gone: list[float] = []
    asked = 0
    while waiting:
        at = heapq.heappop(waiting)
        now = (at // tick + 1) * tick  # the wheel's: never early, late by a tick
        again = aging.turn(now)
        asked += 1
        if again:
            assert again > now - tick
            heapq.heappush(waiting, max(again, now))
        else:
            gone.append(now)
        assert asked < 100 * len(due)
    for first, begin in enumerate(gone):
        burst = max(1, rate * BURST_SECONDS)
        assert all(count + 1 <= burst + rate * (at - begin) + 1e-6 for count, at in enumerate(gone[first:]))


def test_those_who_have_to_wait_do_not_all_come_again_at_once() -> None:
    aging = Aging(1, 100, 0)
    again = [aging.turn(50.0) for _ in range(1010)]
    assert again.count(0.0) == 10  # a tenth of a second's worth
    waiting = [at for at in again if at]
    assert len(set(waiting)) == 1000
    assert max(waiting) == pytest.approx(60.0)
