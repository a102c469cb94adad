from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from broker.core.heartbeat import Beat, Heartbeat

INTERVAL, TIMEOUT, FIRST = 25.0, 8.0, 10.0


def make_heartbeat() -> Heartbeat:
    return Heartbeat(INTERVAL, TIMEOUT, FIRST)


def test_the_first_ping_is_due_when_it_was_asked_for_and_not_before() -> None:
    heartbeat = make_heartbeat()
    assert heartbeat.next() == 10.0
    assert heartbeat.due(9.99, excused=False) is Beat.NOTHING
    assert heartbeat.next() == 10.0
    assert heartbeat.due(10.0, excused=False) is Beat.PING


def test_after_a_ping_the_pong_is_awaited_first() -> None:
    heartbeat = make_heartbeat()
    heartbeat.due(10.0, excused=False)
    assert heartbeat.next() == 18.0
    assert heartbeat.due(17.99, excused=False) is Beat.NOTHING
    assert heartbeat.next() == 18.0


def test_an_answered_ping_is_followed_by_the_next_one_interval_later() -> None:
    heartbeat = make_heartbeat()
    for due in (10.0, 35.0, 60.0):
        assert heartbeat.next() == due
        assert heartbeat.due(due, excused=False) is Beat.PING
        assert heartbeat.pong() is True
    assert heartbeat.next() == 85.0


def test_a_pong_that_does_not_come_in_time_is_late() -> None:
    heartbeat = make_heartbeat()
    heartbeat.due(10.0, excused=False)
    assert heartbeat.due(18.0, excused=False) is Beat.LATE


def test_a_pong_nobody_asked_for_is_told_apart() -> None:
    heartbeat = make_heartbeat()
    assert heartbeat.pong() is False
    heartbeat.due(10.0, excused=False)
    assert heartbeat.pong() is True
    assert heartbeat.pong() is False


def test_a_client_that_cannot_have_seen_the_ping_gets_more_time() -> None:
    heartbeat = make_heartbeat()
    heartbeat.due(10.0, excused=False)
    assert heartbeat.due(18.5, excused=True) is Beat.NOTHING
    assert heartbeat.next() == 26.5
    assert heartbeat.due(26.4, excused=False) is Beat.NOTHING
    assert heartbeat.due(26.5, excused=False) is Beat.LATE


def test_a_client_that_catches_up_within_the_new_time_stays() -> None:
    heartbeat = make_heartbeat()
    heartbeat.due(10.0, excused=False)
    heartbeat.due(18.0, excused=True)
    assert heartbeat.pong() is True
    assert heartbeat.due(26.0, excused=False) is Beat.NOTHING


def test_no_second_ping_is_sent_before_the_first_is_answered() -> None:
    heartbeat = make_heartbeat()
    heartbeat.due(10.0, excused=False)
    for now in (18.0, 26.0, 34.0, 35.0, 42.0):
        assert heartbeat.due(now, excused=True) is Beat.NOTHING
    assert heartbeat.pong() is True
    assert heartbeat.next() == 60.0
    assert heartbeat.due(60.0, excused=True) is Beat.PING


@given(
    st.floats(1.0, 60.0),
    st.floats(0.1, 0.9),
    st.lists(st.tuples(st.floats(0.0, 30.0), st.booleans(), st.booleans())),
)
def test_pings_and_pongs_take_turns_and_only_the_silent_are_late(
    interval: float, part: float, steps: list[tuple[float, bool, bool]]
) -> None:
    heartbeat = Heartbeat(interval, interval * part, 0.0)
    now, asked, pong_by, pinged = 0.0, False, inf, -inf
    for delay, excused, answers in steps:
        now += delay
        beat = heartbeat.due(now, excused=excused)
        if beat is Beat.PING:
            assert not asked
            assert now >= pinged + interval
            asked, pong_by, pinged = True, now + interval * part, now
        if beat is Beat.LATE:
            assert asked
            assert not excused
            assert now >= pong_by
            return
        assert not asked or excused or now < pong_by or beat is Beat.PING
        if asked and now >= pong_by:
            pong_by = now + interval * part
        assert heartbeat.next() > now
        assert heartbeat.next() <= pong_by
        if answers:
            assert heartbeat.pong() is asked
            asked, pong_by = False, inf
