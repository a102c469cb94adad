from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.pace import CALM_SECONDS, Pace, Rates


def pace(commands: float | None = 10, publications: float | None = None, topics: int = 128) -> Pace:
    return Pace(Rates(commands, publications), topics)


def test_a_second_s_worth_may_come_at_once_and_then_as_many_a_second() -> None:
    held = pace()
    assert [held.command(5.0) == 0 for _ in range(11)] == [True] * 10 + [False]
    assert 0.09 < held.command(5.0) <= 0.1
    assert held.command(5.1001) == 0


def test_all_topics_may_be_subscribed_to_at_once_beside_other_commands() -> None:
    held = pace(10, topics=128)
    assert [held.command(0) == 0 for _ in range(11)] == [True] * 10 + [False]
    assert [held.subscribe(0) == 0 for _ in range(129)] == [True] * 128 + [False]
    assert held.subscribe(0.11) == 0  # they come back at the rate


def test_a_rate_above_the_number_of_topics_counts_for_subscribing_too() -> None:
    held = pace(50, topics=3)
    assert [held.subscribe(0) == 0 for _ in range(51)] == [True] * 50 + [False]


def test_what_has_no_limit_is_never_refused() -> None:
    held = pace(None, 1)
    assert not any(held.command(0) or held.subscribe(0) for _ in range(1000))
    assert pace(1, None).publications(0) is None


def test_publications_have_a_bucket_of_their_own_whose_refusals_take_the_same_patience() -> None:
    held = pace(1, 2)
    publications = held.publications(0)
    assert publications is not None
    assert held.publications(1) is publications
    assert [publications.take(0) == 0 for _ in range(3)] == [True, True, False]
    assert held.command(0) == 0
    for _ in range(10):
        publications.take(0)
        held.command(0)
    assert held.exhausted


def test_patience_ends_with_more_than_twenty_refusals() -> None:
    held = pace(1)
    held.command(0)
    for _ in range(20):
        assert held.command(0)
        assert not held.exhausted
    held.command(0)
    assert held.exhausted


def test_patience_ends_with_more_than_five_seconds_worth() -> None:
    held = pace(100)
    for _ in range(100 + 500):
        held.command(0)
    assert not held.exhausted
    held.command(0)
    assert held.exhausted


def test_a_second_of_calm_brings_patience_back() -> None:
    held = pace(1)
    now = 0.0
    for _ in range(50):
        held.command(now)
        for _ in range(20):
            assert held.command(now)
        now += CALM_SECONDS
    assert not held.exhausted


def test_who_is_refused_again_and_again_wears_patience_out_however_slowly() -> None:
    held = pace(1)
    now, tries = 0.0, 0
    while not held.exhausted:
        held.command(now)
        now += 0.4
        tries += 1
        assert tries < 100


@given(st.lists(st.floats(0, 2), max_size=200), st.floats(0.1, 100))
def test_no_more_passes_than_the_rate_and_the_burst_allow(pauses: list[float], rate: float) -> None:
    held = pace(rate)
    now, passed = 0.0, 0
    for pause in pauses:
        now += pause
        passed += held.command(now) == 0
        assert passed <= max(1, rate) + rate * now + 1e-6
