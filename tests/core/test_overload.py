from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.overload import Overload, OverloadLimits

LIMITS = OverloadLimits(lag_seconds=0.5, queued_bytes=1000, seconds=3.0)
TICK = 0.1


class Node:
    """Ticks, each as late as it is told."""

    def __init__(self) -> None:
        self.state = Overload(LIMITS)
        self.now = 0.0

    def tick(self, lag: float = 0.0, queued: int = 0) -> bool:
        self.now += TICK + lag
        return self.state.observe(self.now, lag, queued)

    def run(self, seconds: float, lag: float = 0.0, queued: int = 0) -> list[float]:
        """The times at which something has changed."""
        until = self.now + seconds
        changes = []
        while self.now + TICK + lag <= until + 1e-9:
            if self.tick(lag, queued):
                changes.append(self.now)
        return changes


def test_too_late_in_every_tick_of_three_seconds_is_too_much() -> None:
    node = Node()

    (began,) = node.run(6.0, lag=0.6)

    assert node.state.active
    assert 3.0 <= began <= 3.0 + 0.7
    assert round(node.state.since, 6) == 0.1  # when the first of these ticks was due


def test_a_lag_that_swallows_the_ticks_counts_as_long_as_it_is() -> None:
    node = Node()
    assert not node.tick(lag=2.9)
    assert not node.tick()
    assert node.tick(lag=3.0)


def test_one_tick_in_time_begins_it_anew() -> None:
    node = Node()
    node.run(2.8, lag=0.6)
    node.tick()

    assert node.run(2.8, lag=0.6) == []


def test_nine_tenths_of_what_may_be_queued_are_too_much() -> None:
    node = Node()
    assert node.run(10.0, queued=900) == []
    assert len(node.run(3.3, queued=901)) == 1
    assert node.state.active


def test_it_ends_when_both_were_below_half_for_as_long() -> None:
    node = Node()
    node.tick(lag=5.0)
    assert node.state.active
    assert node.run(10.0, lag=0.3) == []
    assert node.run(10.0, queued=500) == []
    assert node.run(2.9, lag=0.2, queued=499) == []
    node.tick(lag=0.26)
    begun = node.now

    (ended,) = node.run(5.0)

    assert ended - begun >= 3.0
    assert not node.state.active


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.3, 0.6, 4.0]), st.sampled_from([0, 499, 700, 950]))))
def test_it_changes_only_after_as_long_of_nothing_else(ticks: list[tuple[float, int]]) -> None:
    node = Node()
    high_for = calm_for = 0.0
    for lag, queued in ticks:
        was = node.state.active
        high = lag > 0.5 or queued > 900
        calm = lag < 0.25 and queued < 500
        high_for = high_for + TICK + lag if high else 0.0
        calm_for = calm_for + TICK + lag if calm else 0.0
        changed = node.tick(lag, queued)
        assert changed is (node.state.active is not was)
        if changed:
            assert (high_for if node.state.active else calm_for) >= 3.0 - 1e-9
        # a tick more than that is enough for sure
        if high_for >= 3.0 + 2 * TICK + 0.6:
            assert node.state.active
        if calm_for >= 3.0 + 2 * TICK + 0.6:
            assert not node.state.active
