from __future__ import annotations

from broker.core.offenders import WINDOW_SECONDS, Offenders


def test_the_third_offence_within_five_minutes_is_one_too_many() -> None:
    offenders = Offenders()
    assert [offenders.note("ann", now) for now in (0, 1, WINDOW_SECONDS - 1)] == [False, False, True]
    assert offenders.note("ann", WINDOW_SECONDS) is True  # the last three of them still are


def test_offences_of_longer_ago_do_not_count() -> None:
    offenders = Offenders()
    assert [offenders.note("ann", now) for now in (0, 1, WINDOW_SECONDS)] == [False, False, False]
    assert offenders.note("ann", WINDOW_SECONDS + 0.5) is True


def test_others_offences_are_theirs() -> None:
    offenders = Offenders()
    for now in (0, 1):
        assert not offenders.note(("user", "x"), now)
        assert not offenders.note(("address", "x"), now)
    assert offenders.note(("user", "x"), 2)


def test_only_so_many_are_remembered_and_the_longest_ago_is_forgotten_first() -> None:
    offenders = Offenders(remembered=3)
    for who in ("a", "b", "c"):
        offenders.note(who, 0)
    offenders.note("a", 1)
    offenders.note("d", 2)  # b goes
    assert len(offenders) == 3
    assert offenders.note("a", 3) is True
    assert not offenders.note("b", 3)
    assert not offenders.note("b", 3)
    assert offenders.note("b", 3)
    for number in range(100):
        offenders.note(number, 4)
    assert len(offenders) == 3
