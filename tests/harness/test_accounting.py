"""The accounting: it finds exactly what is wrong, and excuses exactly what was declared."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.accounting import Accounting, SubscriberLog

EPOCH = "e1"
OTHER = "e2"


def published(count: int) -> Accounting:
    """Messages m1, m2, … with the receipts 10, 20, …: there are gaps between a topic's offsets."""
    accounting = Accounting("chat.room")
    for number in range(1, count + 1):
        accounting.sends(f"m{number}")
        accounting.acks(f"m{number}", 10 * number, EPOCH)
    return accounting


def a_log(accounting: Accounting, *numbers: int) -> SubscriberLog:
    """A subscriber that was there from the beginning and got these."""
    log = accounting.log("ann")
    log.subscribed(0, EPOCH)
    got(log, *numbers)
    return log


def got(log: SubscriberLog, *numbers: int, recovered: bool = False) -> None:
    for number in numbers:
        log.got(f"m{number}", 10 * number, recovered=recovered)


def found(accounting: Accounting) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.kind, finding.idents) for finding in accounting.findings()]


def test_books_that_balance_have_no_findings() -> None:
    accounting = published(5)
    a_log(accounting, 1, 2, 3, 4, 5)

    accounting.check_that_nothing_was_excused()


def test_losses_are_told_in_runs_with_the_offsets_around_them() -> None:
    accounting = published(9)
    a_log(accounting, 1, 2, 5, 6, 8)

    assert [str(finding).partition(";")[0] for finding in accounting.findings()] == [
        "ann: lost: m3, m4 (offsets 30 to 40) between 20 and 50",
        "ann: lost: m7 (offset 70) between 60 and 80",
        "ann: lost: m9 (offset 90) between 80 and the end",
    ]
    with pytest.raises(AssertionError, match="3 findings"):
        accounting.check()


def test_one_who_got_nothing_has_lost_everything() -> None:
    accounting = published(9)
    a_log(accounting)

    (finding,) = accounting.findings()
    assert str(finding).startswith(
        "ann: lost: m1, m2, m3, m4, m5 … m9 (9 in all) (offsets 10 to 90) between the beginning and the end"
    )


def test_it_says_whose_loss_it_is() -> None:
    accounting = published(2)
    a_log(accounting, 1, 2)
    bob = accounting.log("bob")
    bob.subscribed(0, EPOCH)
    got(bob, 1)

    assert [finding.subscriber for finding in accounting.findings()] == ["bob"]


def test_what_comes_twice_is_found_even_with_another_offset() -> None:
    accounting = published(3)
    log = a_log(accounting, 1, 2, 2, 3)
    log.got("m1", 40)

    assert found(accounting) == [("twice", ("m2",)), ("twice", ("m1",))]


def test_what_comes_too_late_is_out_of_order_and_neither_lost_nor_twice() -> None:
    accounting = published(5)
    a_log(accounting, 1, 3, 4, 2, 5)

    (finding,) = accounting.findings()
    assert str(finding) == "ann: disordered: m2 at offset 20, behind offset 40"


def test_offsets_that_are_not_those_of_the_receipt_are_found() -> None:
    accounting = published(2)
    log = a_log(accounting, 1)
    log.got("m2", 21)

    assert found(accounting) == [("misplaced", ("m2",))]


def test_a_publication_without_an_offset_is_found() -> None:
    accounting = published(1)
    a_log(accounting).got("m1", 0)

    assert found(accounting) == [("misplaced", ("m1",))]


def test_what_nobody_published_is_found() -> None:
    accounting = published(1)
    a_log(accounting, 1).got("ghost", 20)

    assert found(accounting) == [("unheard-of", ("ghost",))]


def test_what_was_in_doubt_may_come_once_or_not_at_all_but_in_order() -> None:
    accounting = published(2)
    for ident in ("maybe", "never", "again"):
        accounting.sends(ident)
    log = a_log(accounting, 1)
    log.got("maybe", 15)
    got(log, 2)
    log.got("again", 25)
    log.got("again", 35)

    assert accounting.in_doubt == ["maybe", "never", "again"]
    assert found(accounting) == [("twice", ("again",))]


def test_what_was_in_doubt_may_not_come_out_of_order() -> None:
    accounting = published(2)
    accounting.sends("maybe")
    a_log(accounting, 1, 2).got("maybe", 15)

    assert found(accounting) == [("disordered", ("maybe",))]


def test_what_was_refused_may_not_come() -> None:
    accounting = published(1)
    accounting.sends("no")
    accounting.refuses("no", "107")
    a_log(accounting, 1).got("no", 20)

    assert found(accounting) == [("refused", ("no",))]


def test_a_second_receipt_must_be_the_same() -> None:
    accounting = published(1)
    accounting.acks("m1", 10, EPOCH)
    assert accounting.findings() == []
    accounting.acks("m1", 11, EPOCH)

    assert found(accounting) == [("stored twice", ("m1",))]


def test_two_messages_cannot_have_one_place() -> None:
    accounting = published(1)
    accounting.sends("other")
    accounting.acks("other", 10, EPOCH)

    assert found(accounting) == [("misplaced", ("m1", "other"))]


def test_who_comes_later_is_owed_only_what_comes_then() -> None:
    accounting = published(4)
    log = accounting.log("late")
    log.subscribed(20, EPOCH)
    got(log, 4)

    assert found(accounting) == [("lost", ("m3",))]


def test_a_recovery_that_failed_excuses_what_lies_between_and_nothing_else() -> None:
    accounting = published(8)
    log = a_log(accounting, 1, 3)
    log.not_recovered(60, EPOCH)
    got(log, 8)

    assert found(accounting) == [("lost", ("m2",)), ("lost", ("m7",))]
    assert log.recoveries == [False]


def test_a_recovery_excuses_nothing() -> None:
    accounting = published(5)
    log = a_log(accounting, 1)
    log.recovered(EPOCH)
    got(log, 2, 4, recovered=True)
    got(log, 5)

    assert found(accounting) == [("lost", ("m3",))]


def test_to_be_sent_away_with_2500_excuses_nothing_once_it_is_recovered() -> None:
    accounting = published(3)
    log = a_log(accounting, 1)
    log.told("2500")
    assert accounting.findings() == []  # it was told, and nobody knows yet what it will miss
    log.recovered(EPOCH)
    got(log, 3)

    assert found(accounting) == [("lost", ("m2",))]


def test_error_112_excuses_what_lies_before_the_next_subscription() -> None:
    accounting = published(4)
    log = a_log(accounting, 1)
    log.told("112")
    log.subscribed(30, EPOCH)

    assert found(accounting) == [("lost", ("m4",))]


def test_to_subscribe_again_without_asking_for_what_was_missed_excuses_nothing() -> None:
    accounting = published(3)
    log = a_log(accounting, 1)
    log.subscribed(20, EPOCH)
    got(log, 3)

    assert found(accounting) == [("lost", ("m2",))]


def test_the_tag_excuses_what_lies_between_it_and_the_publication_before() -> None:
    accounting = published(6)
    log = a_log(accounting, 1)
    log.got("m4", 40, dropped=True)
    got(log, 6)

    assert found(accounting) == [("lost", ("m5",))]
    assert [(gap.after, gap.upto) for gap in log.gaps[1:]] == [(10, 39)]


def test_another_epoch_excuses_the_end_of_the_old_and_the_beginning_of_the_new() -> None:
    accounting = published(4)
    for number in (1, 2):
        accounting.sends(f"n{number}")
        accounting.acks(f"n{number}", number, OTHER)
    log = a_log(accounting, 1, 3)
    log.not_recovered(1, OTHER)

    assert found(accounting) == [("lost", ("m2",)), ("lost", ("n2",))]
    log.got("n2", 2)
    assert found(accounting) == [("lost", ("m2",))]


@pytest.mark.anyio
async def test_it_is_settled_when_all_has_arrived_and_nobody_waits_to_come_back() -> None:
    accounting = published(2)
    log = a_log(accounting, 1)
    assert not accounting.delivered(["m1", "m2"])
    with pytest.raises(AssertionError, match="lost: m2"):
        await accounting.settled(seconds=0.1)
    log.told("2500")
    assert accounting.delivered(["m1", "m2"])
    with pytest.raises(AssertionError, match="not subscribed"):
        await accounting.settled(seconds=0.1)
    log.recovered(EPOCH)
    got(log, 2, recovered=True)

    await accounting.settled(seconds=0.1)


def test_what_was_excused_can_still_be_asked_for() -> None:
    accounting = published(3)
    log = a_log(accounting, 1)
    log.not_recovered(20, EPOCH)
    got(log, 3)
    accounting.check()

    with pytest.raises(AssertionError, match="ann was told that it misses"):
        accounting.check_that_nothing_was_excused()


COUNT = 30


@given(lost=st.sets(st.integers(1, COUNT)), doubled=st.sets(st.integers(1, COUNT)))
def test_it_finds_exactly_the_losses_and_the_duplicates(lost: set[int], doubled: set[int]) -> None:
    accounting = published(COUNT)
    kept = [number for number in range(1, COUNT + 1) if number not in lost]
    a_log(accounting, *(number for one in kept for number in ([one, one] if one in doubled else [one])))

    assert _numbers(accounting, "lost") == lost
    assert _numbers(accounting, "twice") == doubled - lost
    assert {kind for kind, _ in found(accounting)} <= {"lost", "twice"}


@given(order=st.permutations(range(1, 9)))
def test_it_finds_exactly_those_that_others_have_overtaken(order: list[int]) -> None:
    accounting = published(8)
    a_log(accounting, *order)

    assert _numbers(accounting, "disordered") == {
        number for at, number in enumerate(order) if max(order[:at], default=0) > number
    }
    assert {kind for kind, _ in found(accounting)} <= {"disordered"}


@given(lost=st.sets(st.integers(1, COUNT)), begin=st.integers(0, COUNT), end=st.integers(0, COUNT))
def test_a_gap_excuses_exactly_what_lies_in_it(lost: set[int], begin: int, end: int) -> None:
    accounting = published(COUNT)
    log = a_log(accounting, *(number for number in range(1, begin + 1) if number not in lost))
    top = max([log.last, 10 * end])
    log.not_recovered(top, EPOCH)
    got(log, *(number for number in range(top // 10 + 1, COUNT + 1) if number not in lost))
    # it was told from the last that it had, not from the last that there was
    last = max((number for number in range(1, begin + 1) if number not in lost), default=0)

    assert _numbers(accounting, "lost") == {number for number in lost if not last < number <= top // 10}


def _numbers(accounting: Accounting, kind: str) -> set[int]:
    idents: Iterable[str] = (
        ident for found_kind, idents in found(accounting) if found_kind == kind for ident in idents
    )
    return {int(ident.removeprefix("m")) for ident in idents}
