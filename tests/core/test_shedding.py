"""What a node gives up of a topic for which more comes than it can write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.hub import Hub, Topic
from broker.core.policy import Overflow
from broker.core.shedding import shed
from tests.core.hub_runner import Reader
from tests.core.queueing import LINES, framed, policy_of, read_out

LOSING = [Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.CONFLATE]


def hub() -> Hub:
    return Hub(str.encode, framed, slice_writes=100, on_delivered=lambda *_: None)


def topic_with(here: Hub, overflow: Overflow, *lines: bytes) -> tuple[Topic, Reader]:
    reader = Reader()
    topic = here.add("t", policy_of(overflow), reader)
    for line in lines:
        here.push(topic, line, None if line.startswith(b"join") else 0.0)
    return topic, reader


def give_up(here: Hub, topic: Topic) -> int:
    outcome = shed(topic, LINES)
    assert outcome is not None
    left, gone = outcome
    here.replace_pending(topic, left)
    return gone


@pytest.mark.parametrize(
    ("overflow", "told", "missed"),
    [
        (Overflow.DROP_OLDEST, [(b"c:3", 2), (b"b:4", 0)], 0),
        (Overflow.DROP_NEWEST, [(b"a:1", 0), (b"b:2", 0)], 2),
        (Overflow.CONFLATE, [(b"c:3", 2), (b"b:4", 0)], 0),
    ],
)
def test_about_half_goes_by_the_topics_policy(overflow: Overflow, told: list[tuple[bytes, int]], missed: int) -> None:
    here = hub()
    topic, reader = topic_with(here, overflow, b"a:1", b"b:2", b"c:3", b"b:4")
    assert give_up(here, topic) == 2
    assert (here.pending_messages, topic.missed) == (2, missed)
    here.run()
    assert read_out(b"".join(reader.written)) == told
    assert (here.pending_messages, here.pending_bytes) == (0, 0)


@pytest.mark.parametrize("overflow", [Overflow.DISCONNECT, Overflow.CATCH_UP])
def test_nothing_is_given_up_where_nothing_may_be_missing(overflow: Overflow) -> None:
    topic, _ = topic_with(hub(), overflow, b"1", b"2")
    assert shed(topic, LINES) is None


def test_joins_stay() -> None:
    here = hub()
    topic, reader = topic_with(here, Overflow.DROP_OLDEST, b"a", b"join1", b"b", b"join2")
    give_up(here, topic)
    here.run()
    told = [line for line, _ in read_out(b"".join(reader.written))]
    assert [line for line in told if line.startswith(b"join")] == [b"join1", b"join2"]


def test_who_waits_for_a_message_to_be_out_is_told_though_it_was_given_up() -> None:
    here = hub()
    topic, _ = topic_with(here, Overflow.DROP_NEWEST, b"1", b"2", b"3", b"4")
    told: list[str] = []
    topic.when_flushed(lambda: told.append("out"))
    give_up(here, topic)
    assert told == []
    here.run()
    assert told == ["out"]


@given(st.sampled_from(LOSING), st.lists(st.lists(st.sampled_from([b"a", b"b", b"plain", b"join"]), min_size=1)))
def test_what_is_written_and_what_is_declared_is_what_came(overflow: Overflow, rounds: list[list[bytes]]) -> None:
    here = hub()
    topic, reader = topic_with(here, overflow)
    number = published = given_up = 0
    for kinds in rounds:
        for kind in kinds:
            number += 1
            line = b"join%d" % number if kind == b"join" else b"%b:%d" % (kind, number)
            if kind == b"plain":
                line = b"plain%d" % number
            published += kind != b"join"
            if topic.missed and kind != b"join":
                line, topic.missed = LINES.declare(line, topic.missed), 0
            here.push(topic, line, None if kind == b"join" else 0.0)
        given_up += give_up(here, topic)
        assert here.pending_bytes == topic.pending_bytes
    while here.run():
        pass
    told = [(line, missing) for line, missing in read_out(b"".join(reader.written)) if not line.startswith(b"join")]
    assert len(told) + given_up == published
    assert sum(missing for _, missing in told) + topic.missed == given_up
