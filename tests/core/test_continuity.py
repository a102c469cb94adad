"""What a read of a stream proves, against a stream that forgets as JetStream's do."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.continuity import Reading, Trace, Verdict, judge


@pytest.mark.parametrize(
    ("offset", "previous", "verdict"),
    [
        (5, 4, Verdict.KNOWN),
        (10, 9, Verdict.KNOWN),
        (11, 10, Verdict.NEXT),
        (40, 10, Verdict.NEXT),
        (40, 3, Verdict.NEXT),
        (40, 0, Verdict.NEXT),
        (40, 11, Verdict.GAP),
        (12, 11, Verdict.GAP),
    ],
)
def test_a_message_is_placed_by_the_one_before_it(offset: int, previous: int, verdict: Verdict) -> None:
    assert judge(10, 10, offset, previous) is verdict


def test_where_the_stream_was_looked_at_there_is_no_gap_up_to_there() -> None:
    assert judge(10, 30, 31, 30) is Verdict.NEXT
    assert judge(10, 30, 40, 31) is Verdict.GAP
    assert judge(10, 30, 10, 9) is Verdict.KNOWN


@dataclass
class Past:
    """A stream that keeps one message more of each topic than `limit`, and all that ever was in it."""

    limit: int
    messages: list[Trace] = field(default_factory=list)
    all: list[Trace] = field(default_factory=list)
    first: int = 1

    @property
    def last(self) -> int:
        return self.all[-1].offset if self.all else 0

    def publish(self, topic: str, removed_up_to: int = 0) -> None:
        message = Trace(self.last + 1, topic, removed_up_to)
        self.all.append(message)
        self.messages.append(message)
        of_topic = [one for one in self.messages if one.topic == topic]
        for one in of_topic[: -self.limit - 1]:
            self.messages.remove(one)
        self._begin()

    def forget(self, count: int) -> None:
        """By age or by bytes."""
        del self.messages[:count]
        self._begin()

    def remove(self, topic: str, *, purged: bool) -> None:
        """As the archive does it; `purged` is false when only the mark has been written yet."""
        last = next((one for one in reversed(self.messages) if one.topic == topic), None)
        if last is None or last.removed_up_to:
            return
        self.publish(topic, last.offset)
        if purged:
            mark = self.last
            self.messages = [one for one in self.messages if one.topic != topic or one.offset >= mark]
            self._begin()

    def _begin(self) -> None:
        self.first = self.messages[0].offset if self.messages else self.last + 1

    def behind(self, after: int, topic: str | None) -> list[Trace]:
        return [one for one in self.all if one.offset > after and topic in (None, one.topic)]

    def read(self, after: int, topic: str | None) -> list[Trace]:
        """What a read from an offset on brings, itself included."""
        return [one for one in self.messages if one.offset >= after and topic in (None, one.topic)]

    def shows_all(self, after: int, topic: str | None) -> bool:
        """Whether all publications behind an offset that ever were are still there, and not marked as removed."""
        wanted = [one for one in self.behind(after, topic) if not one.removed_up_to]
        marks = [one for one in self.behind(after, topic) if one.removed_up_to]
        return all(
            one in self.messages
            and not any(mark.topic == one.topic and mark.removed_up_to >= one.offset for mark in marks)
            for one in wanted
        )


@st.composite
def pasts(draw: st.DrawFn) -> Past:
    past = Past(draw(st.integers(1, 4)))
    topics = st.sampled_from(["a", "a", "a", "b", "c"])
    for _ in range(draw(st.integers(0, 25))):
        what = draw(st.integers(0, 9))
        if what == 0:
            past.forget(draw(st.integers(1, 4)))
        elif what == 1:
            past.remove(draw(topics), purged=draw(st.booleans()))
        else:
            past.publish(draw(topics))
    return past


@settings(max_examples=600)
@given(past=pasts(), where=st.floats(0, 1), single=st.booleans(), cut=st.integers(0, 30), forgets=st.integers(0, 3))
def test_a_read_is_never_taken_for_all_when_something_is_gone(
    past: Past,
    where: float,
    single: bool,  # noqa: FBT001 - drawn
    cut: int,
    forgets: int,
) -> None:
    topic = "a" if single else None
    after = round(where * past.last)
    traces, there = past.read(after, topic), past.shows_all(after, topic)
    more = 0
    if single:  # of one topic's the rest need not have been read
        more = max(0, len(traces) - max(1, cut))
        traces = traces[: len(traces) - more]
    reading = Reading(traces, past.limit, single=single, more=more)
    witness = reading.has_witness(after)
    if not witness:
        past.forget(forgets)  # the beginning is asked for after the read
    first = 0 if witness else past.first
    if reading.is_whole(after, first):
        # a mark among those that were not read shows when they are
        unread = [one for one in past.all if one.offset > (traces[-1].offset if traces else after)] if more else []
        assert there or any(one.removed_up_to for one in unread)


@settings(max_examples=600)
@given(past=pasts(), where=st.floats(0, 1), single=st.booleans())
def test_a_read_is_taken_for_all_when_nothing_has_gone(
    past: Past,
    where: float,
    single: bool,  # noqa: FBT001 - drawn
) -> None:
    topic = "a" if single else None
    after = round(where * past.last)
    behind = past.behind(after, topic)
    # nothing of any topic has gone from behind the offset
    intact = all(one in past.messages for one in past.behind(after, None))
    few = all(len([one for one in behind if one.topic == name]) <= past.limit for name in "abc")
    # and no removal concerns what is behind it
    intact = intact and not any(one.removed_up_to > after for one in behind)
    if intact and few:
        assert Reading(past.read(after, topic), past.limit, single=single).is_whole(after, past.first)


def test_a_client_that_has_seen_the_witness_has_missed_nothing() -> None:
    reading = Reading([Trace(offset, "a", 0) for offset in (10, 20, 30, 40)], 3, single=True)
    assert reading.has_witness(10)
    assert reading.is_whole(10, 0)
    assert not reading.has_witness(9)
    assert not reading.is_whole(9, 1)  # four have come, and perhaps a fifth before them
    assert reading.is_whole(25, 0)  # what it has not seen itself is a witness as well


def test_what_was_not_read_counts() -> None:
    traces = [Trace(10, "a", 0), Trace(20, "a", 0)]
    assert Reading(traces, 3, single=True, more=1).is_whole(9, 1)
    assert not Reading(traces, 3, single=True, more=2).is_whole(9, 1)


def test_a_removal_is_missed_by_those_only_who_had_not_seen_what_it_removed() -> None:
    traces = [Trace(50, "a", 40), Trace(60, "a", 0)]
    reading = Reading(traces, 3, single=True)
    assert reading.is_whole(40, 50)
    assert reading.is_whole(45, 50)
    assert not reading.is_whole(39, 50)
    assert not reading.is_whole(39, 1)
    assert [reading.has_witness(after) for after in (39, 40, 45, 50)] == [False, True, True, True]
    assert not Reading(traces, 3, single=False).has_witness(45)  # of other topics it says nothing


def test_of_a_wildcard_each_topic_counts_for_itself() -> None:
    traces = [Trace(1, "x", 0), *(Trace(offset, "ab"[offset % 2], 0) for offset in (2, 3, 4, 5))]
    assert Reading(traces, 2, single=False).is_whole(1, 0)
    crowded = Reading([*traces, Trace(6, "a", 0)], 2, single=False)
    assert not crowded.is_whole(1, 0)
    assert crowded.is_whole(2, 0)  # of those behind the second there are no more than two each


def test_without_a_witness_the_streams_beginning_decides() -> None:
    for single in (True, False):
        empty = Reading([], 3, single=single)
        assert empty.is_whole(10, 11)
        assert not empty.is_whole(10, 12)
        later = Reading([Trace(12, "a", 0)], 3, single=single)
        assert later.is_whole(10, 11)
        assert not later.is_whole(10, 12)
