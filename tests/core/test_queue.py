"""The queue of a connection that does not keep up: its bounds, its order, and what each policy makes of too much."""

from __future__ import annotations

from math import inf

import pytest

from broker.core.behind import CatchUpLane
from broker.core.policy import Overflow, TopicPolicy
from broker.core.queue import OutboundQueue
from tests.core.queueing import ENTRY, batch_of, drain, entries_of, policy_of, queue_with, read_out

HOLD = policy_of(Overflow.DISCONNECT)
OLDEST = policy_of(Overflow.DROP_OLDEST)
NEWEST = policy_of(Overflow.DROP_NEWEST)
KEYED = policy_of(Overflow.CONFLATE)
WHOLE = policy_of(Overflow.CONFLATE, key=False, name="whole")
CATCH = policy_of(Overflow.CATCH_UP)


def lane_of(queue: OutboundQueue, topic: str = "t") -> CatchUpLane:
    (lane,) = (one for one in queue.lanes() if one.name == topic)
    assert isinstance(lane, CatchUpLane)
    return lane


def test_an_empty_queue_is_false_settled_and_never_expires() -> None:
    queue = queue_with()
    assert not queue
    assert queue.settled
    assert (queue.size_bytes, queue.messages, queue.expires_at(), queue.waits_since()) == (0, 0, inf, None)
    assert queue.take(100).data == b""


def test_replies_go_past_publications_and_in_their_own_order() -> None:
    queue = queue_with()
    queue.push("t", HOLD, batch_of(b"a", b"b"), 0.0)
    assert queue.push_control(b"<1>", 1.0)
    assert queue.push_control(b"<2>", 1.0)
    taken = queue.take(1000)
    assert taken.data == b"<1><2>[a\nb]"
    assert (taken.counts, taken.at) == ({"disconnect": 2}, 0.0)
    assert queue.size_bytes == 0
    assert queue.settled


def test_publications_leave_no_less_room_for_replies() -> None:
    queue = queue_with(limit_bytes=10 * ENTRY)
    while queue.size_bytes < 9 * ENTRY:
        assert queue.push("t", OLDEST, batch_of(b"x" * 10), 0.0)
    assert all(queue.push_control(b"", 0.0) for _ in range(10))
    assert not queue.push_control(b"", 0.0)


def test_a_topic_that_may_lose_nothing_ends_the_connection_when_there_is_no_room() -> None:
    queue = queue_with(limit_bytes=2 * (ENTRY + 3))
    assert queue.push("t", HOLD, batch_of(b"1"), 0.0)
    assert queue.push("t", HOLD, batch_of(b"2"), 0.0)
    assert not queue.push("t", HOLD, batch_of(b"3"), 0.0)
    assert queue.waiting() == {"disconnect": 3}


@pytest.mark.parametrize("bounds", [{"limit_messages": 3}, {"limit_bytes": 3 * (ENTRY + 1)}], ids=["messages", "bytes"])
def test_the_oldest_give_way_and_the_next_one_says_how_many(bounds: dict[str, int]) -> None:
    queue = queue_with(**bounds)
    for number in range(8):
        assert queue.push("t", OLDEST, batch_of(b"%d" % number), float(number))
    assert queue.messages == 3
    assert drain(queue) == [(b"5", 5), (b"6", 0), (b"7", 0)]
    assert [(loss.topic, loss.messages) for loss in queue.take_losses()] == [("t", 5)]
    assert queue.take_losses() == []
    assert queue.settled


@pytest.mark.parametrize("bounds", [{"limit_messages": 3}, {"limit_bytes": 3 * (ENTRY + 1)}], ids=["messages", "bytes"])
def test_the_newest_give_way_and_the_next_that_comes_says_how_many(bounds: dict[str, int]) -> None:
    queue = queue_with(**bounds)
    for number in range(8):
        assert queue.push("t", NEWEST, batch_of(b"%d" % number), 0.0)
    assert drain(queue) == [(b"0", 0), (b"1", 0), (b"2", 0)]
    assert not queue
    assert not queue.settled  # it owes a number
    assert queue.push("t", NEWEST, batch_of(b"8"), 9.0)
    assert drain(queue) == [(b"8", 5)]
    assert queue.settled


def test_what_is_larger_than_all_room_is_declared_with_the_next() -> None:
    for policy in (OLDEST, NEWEST):
        queue = queue_with(limit_bytes=ENTRY + 5)
        assert queue.push("t", policy, batch_of(b"x" * 6), 0.0)
        assert not queue
        queue.push("t", policy, batch_of(b"y"), 0.0)
        assert drain(queue) == [(b"y", 1)]


def test_what_is_too_old_is_dropped_and_declared() -> None:
    queue = queue_with(limit_seconds=10)
    queue.push("t", OLDEST, batch_of(b"1"), 0.0)
    queue.push("t", OLDEST, batch_of(b"2"), 5.0)
    assert queue.expires_at() == 10.0
    assert queue.expire(10.0)
    assert queue.expires_at() == 15.0
    assert drain(queue) == [(b"2", 1)]


def test_what_is_too_old_ends_the_connection_where_nothing_may_be_dropped() -> None:
    queue = queue_with(limit_seconds=10)
    queue.push("t", HOLD, batch_of(b"1"), 1.0)
    assert queue.expire(10.9)
    assert not queue.expire(11.0)
    pings = queue_with(limit_seconds=10)
    pings.push_control(b"<ping>", 1.0)
    assert pings.expires_at() == 11.0
    assert not pings.expire(11.0)


def test_the_newest_of_each_key_waits_where_the_first_of_it_began_to() -> None:
    queue = queue_with()
    for number, key in enumerate([b"a", b"b", b"a", b"c", b"a", b"b"]):
        queue.push("t", KEYED, batch_of(b"%b:%d" % (key, number)), float(number))
    assert queue.waits_since() == 0.0
    assert drain(queue) == [(b"a:4", 2), (b"b:5", 1), (b"c:3", 0)]
    assert [loss.messages for loss in queue.take_losses()] == [3]
    assert queue.settled


def test_without_a_key_in_the_settings_only_the_newest_waits() -> None:
    queue = queue_with()
    queue.push("t", WHOLE, batch_of(b"1", b"2", b"3"), 0.0)
    queue.push("t", WHOLE, batch_of(b"4"), 0.0)
    assert queue.messages == 1
    assert drain(queue) == [(b"4", 3)]


def test_what_has_no_key_is_never_replaced() -> None:
    queue = queue_with()
    queue.push("t", KEYED, batch_of(b"plain", b"plain", b"a:1"), 0.0)
    assert drain(queue) == [(b"plain", 0), (b"plain", 0), (b"a:1", 0)]


def test_conflated_ones_never_grow_too_old_but_give_way_where_there_is_no_room() -> None:
    queue = queue_with(limit_messages=2, limit_seconds=1)
    queue.push("t", KEYED, batch_of(b"a:1", b"b:1"), 0.0)
    assert queue.expires_at() == inf
    assert queue.expire(100.0)
    queue.push("t", KEYED, batch_of(b"b:2", b"c:1"), 0.0)
    assert drain(queue) == [(b"b:2", 2), (b"c:1", 0)]


@pytest.mark.parametrize("policy", [OLDEST, NEWEST, KEYED])
def test_joins_and_leaves_are_never_given_up(policy: TopicPolicy) -> None:
    queue = queue_with(limit_messages=1)
    for number in range(5):
        line, join = b"k%d:x" % number, b"join%d" % number
        assert queue.push("t", policy, batch_of(line, join, others=[join]), 0.0)
    assert queue.messages == 1
    told = drain(queue)
    assert [line for line, _ in told if line.startswith(b"join")] == [b"join%d" % number for number in range(5)]
    assert sum(missing for _, missing in told) in (4, 0)  # drop_newest has yet to say it


def test_topics_take_turns() -> None:
    queue = queue_with(limit_bytes=10_000_000)
    for _ in range(40):
        queue.push("busy", HOLD, batch_of(b"b" * 1000), 0.0)
    queue.push("quiet", HOLD, batch_of(b"q"), 0.0)
    first = queue.take(30_000)
    assert (b"q", 0) in read_out(first.data)


def test_who_can_gives_way_before_a_connection_ends() -> None:
    queue = queue_with(limit_messages=4)
    queue.push("positions", OLDEST, batch_of(b"1", b"2", b"3"), 0.0)
    for number in range(4):
        assert queue.push("chat", HOLD, batch_of(b"c%d" % number), 0.0)
    assert not queue.push("chat", HOLD, batch_of(b"c4"), 0.0)


def test_an_unsubscribed_topic_leaves_nothing_behind() -> None:
    queue = queue_with(limit_messages=2)
    queue.push("t", NEWEST, batch_of(b"1", b"2", b"3"), 0.0)
    assert queue.forget("t") == 2
    assert queue.forget("t") == 0
    assert (queue.size_bytes, queue.messages) == (0, 0)
    assert queue.settled
    queue.push("t", NEWEST, batch_of(b"4"), 0.0)
    assert drain(queue) == [(b"4", 0)]  # a new subscription is owed nothing


def test_room_is_made_by_each_topics_policy() -> None:
    queue = queue_with()
    queue.push("t", OLDEST, batch_of(*(b"%02d" % number for number in range(10))), 0.0)
    assert queue.relieve(5 * (ENTRY + 2), 0.0)
    assert drain(queue)[0] == (b"05", 5)
    held = queue_with()
    held.push("t", HOLD, batch_of(b"1"), 0.0)
    assert not held.relieve(1, 0.0)


def test_a_topic_that_catches_up_gives_up_its_queue_and_keeps_its_place() -> None:
    queue = queue_with(limit_bytes=3 * ENTRY)
    queue.push("t", CATCH, batch_of(b"1", b"2", after=10), 1.0)
    queue.push("t", CATCH, batch_of(b"3", after=12), 2.0)
    assert not any(queue.catching_up())
    queue.push("t", CATCH, batch_of(b"4", after=13), 3.0)
    lane = lane_of(queue)
    assert (lane.catching_up, lane.position, lane.hungry, queue.messages, queue.size_bytes) == (True, 10, True, 0, 0)
    assert not queue.settled
    assert queue.take_losses() == []
    assert (queue.expires_at(), queue.waits_since()) == (inf, 1.0)

    queue.push("t", CATCH, batch_of(b"5", after=14), 4.0)  # will be read
    queue.read("t", 10, entries_of(10, b"1", b"2"), 12, 5.0, live=False)
    assert drain(queue) == [(b"1", 0), (b"2", 0)]
    assert lane.hungry
    queue.read("t", 12, entries_of(12, b"3", b"4", b"5"), 15, 6.0, live=True)
    queue.push("t", CATCH, batch_of(b"6", after=15), 7.0)
    assert drain(queue) == [(b"3", 0), (b"4", 0), (b"5", 0), (b"6", 0)]
    assert queue.settled


def test_what_was_taken_before_is_not_read_again() -> None:
    queue = queue_with(limit_messages=2)
    queue.push("t", CATCH, batch_of(b"1", after=0), 0.0)
    queue.push("t", CATCH, batch_of(b"2", after=1), 0.0)
    assert read_out(queue.take(1).data) == [(b"1", 0)]
    for number in range(2, 6):
        queue.push("t", CATCH, batch_of(b"%d" % (number + 1), after=number), 0.0)
    assert lane_of(queue).position == 1


def test_what_was_read_and_waits_too_long_is_read_again() -> None:
    queue = queue_with(limit_messages=1, limit_seconds=10)
    queue.push("t", CATCH, batch_of(b"1", b"2", after=0), 0.0)
    queue.read("t", 0, entries_of(0, b"1"), 1, 1.0, live=False)
    assert queue.expires_at() == 11.0
    assert queue.expire(11.0)
    assert (lane_of(queue).position, lane_of(queue).hungry, bool(queue)) == (0, True, False)


def test_a_read_for_another_life_of_the_topic_is_not_taken() -> None:
    queue = queue_with(limit_messages=1)
    queue.push("t", CATCH, batch_of(b"1", b"2", after=0), 0.0)
    lane_of(queue).reading = True
    queue.forget("t")
    queue.push("t", CATCH, batch_of(b"8", b"9", after=7), 0.0)
    queue.read("t", 0, entries_of(0, b"1"), 1, 0.0, live=False)
    assert not queue
    assert lane_of(queue).position == 7


def test_what_comes_again_of_what_was_read_is_passed_by() -> None:
    queue = queue_with(limit_messages=1)
    queue.push("t", CATCH, batch_of(b"1", b"2", after=0), 0.0)
    queue.read("t", 0, entries_of(0, b"1", b"2", b"3"), 3, 0.0, live=True)
    queue.push("t", CATCH, batch_of(b"3", after=2), 0.0)  # known already
    assert drain(queue) == [(b"1", 0), (b"2", 0), (b"3", 0)]
    assert queue.settled


def test_of_a_topic_that_catches_up_joins_go_on_and_what_is_not_kept_is_counted() -> None:
    queue = queue_with(limit_messages=1)
    queue.push("t", CATCH, batch_of(b"1", b"join", b"2", after=0, offsets=[1, 1, 2], others=[b"join"]), 0.0)
    assert drain(queue) == [(b"join", 0)]
    queue.push("t", CATCH, batch_of(b"passing", after=2, offsets=[2]), 0.0)
    assert [loss.messages for loss in queue.take_losses()] == [1]
    assert not queue


def test_pieces_are_asked_for_one_after_the_other_and_topics_take_turns() -> None:
    queue = queue_with(limit_messages=1)
    for topic in ("a", "b"):
        queue.push(topic, CATCH, batch_of(b"1", b"2", after=0), 0.0)
    asked = []
    for until in range(1, 4):
        lane = queue.next_to_read()
        assert lane is not None
        assert queue.next_to_read() is None
        asked.append(lane.name)
        queue.read(
            lane.name, lane.position, entries_of(lane.position, b"%d" % until), lane.position + 1, 0.0, live=False
        )
        drain(queue)
    assert asked == ["a", "b", "a"]


def test_a_piece_for_which_others_have_taken_the_room_is_read_again() -> None:
    queue = queue_with(limit_messages=3)
    queue.push("t", CATCH, batch_of(b"1", b"2", b"3", b"4", after=0), 0.0)
    assert queue.next_to_read() is lane_of(queue)
    queue.push("chat", HOLD, batch_of(b"x", b"y"), 0.0)
    queue.read("t", 0, entries_of(0, b"1", b"2"), 2, 0.0, live=False)
    assert queue.messages == 2
    assert lane_of(queue).position == 0
    assert drain(queue) == [(b"x", 0), (b"y", 0)]
    assert lane_of(queue).hungry


def test_a_publication_larger_than_all_room_is_caught_up_with_all_the_same() -> None:
    queue = queue_with(limit_bytes=100)
    queue.push("t", CATCH, batch_of(b"x" * 200, after=0), 0.0)
    assert queue.next_to_read() is lane_of(queue)
    queue.read("t", 0, entries_of(0, b"x" * 200), 1, 0.0, live=True)
    assert drain(queue) == [(b"x" * 200, 0)]


def test_what_is_read_in_one_piece_leaves_in_frames_of_the_usual_size() -> None:
    queue = queue_with(limit_bytes=1_000_000, limit_messages=1)
    queue.push("t", CATCH, batch_of(b"1", b"2", after=0), 0.0)
    lines = [b"%d" % number * 20_000 for number in range(8)]
    queue.read("t", 0, entries_of(0, *lines), 8, 0.0, live=True)
    frames = []
    while queue:
        frames.append(queue.take(1).data)
    assert [len(read_out(data)) for data in frames] == [3, 3, 2]
    assert [line for data in frames for line, _ in read_out(data)] == lines
