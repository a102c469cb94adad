"""Token buckets: so many a second, and a burst."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.bucket import TokenBucket


def test_a_full_bucket_gives_its_burst_at_once_and_then_tells_how_long_to_wait() -> None:
    bucket = TokenBucket(rate=10, burst=3, now=5.0)
    assert [bucket.take(5.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(5.0) == pytest.approx(0.1)
    assert bucket.take(5.05) == pytest.approx(0.05)
    assert bucket.take(5.11) == 0.0


def test_what_is_refused_costs_nothing() -> None:
    bucket = TokenBucket(rate=1, burst=1, now=0.0)
    assert bucket.take(0.0) == 0.0
    for _ in range(100):
        assert bucket.take(0.5) > 0
    assert bucket.take(1.0) == 0.0


def test_what_has_not_come_about_is_given_back_but_never_beyond_the_burst() -> None:
    bucket = TokenBucket(rate=0.001, burst=2, now=0.0)
    bucket.give_back()
    assert [bucket.take(0.0) for _ in range(2)] == [0.0, 0.0]
    assert bucket.take(0.0) > 0
    bucket.give_back()
    assert bucket.take(0.0) == 0.0


def test_a_bucket_holds_one_at_least() -> None:
    assert TokenBucket(rate=0.1, burst=0.1, now=0.0).take(0.0) == 0.0


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    bucket = TokenBucket(rate=1, burst=1, now=10.0)
    assert bucket.take(9.0) == 0.0


@given(
    st.floats(0.1, 1000),
    st.floats(1, 100),
    st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_in_no_stretch_of_time_more_is_taken_than_rate_and_burst_allow(
    rate: float, burst: float, pauses: list[float]
) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now = 0.0
    taken: list[float] = []
    for pause in pauses:
        now += pause
        if bucket.take(now) == 0:
            taken.append(now)
    for begin in range(len(taken)):
        for end in range(begin, len(taken)):
            assert end - begin + 1 <= burst + rate * (taken[end] - taken[begin]) + 1e-6
