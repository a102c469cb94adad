"""Large fan-outs in slices, and the turns that topics take."""

from __future__ import annotations

import pytest

from broker.core.hub import FRAME_BYTES
from tests.core.hub_runner import Reader, Running, readers_of, writes


def test_a_sliced_fan_out_is_told_once_with_all_it_reached() -> None:
    running = Running(slice_writes=2)
    topic = running.add("t", *readers_of(5))
    running.push(topic, b"m")
    running.hub.run()
    running.hub.run()
    assert running.finished == []
    running.hub.run()
    assert running.finished == [("t", 5, [0.0])]


@pytest.mark.parametrize(("subscribers", "runs"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3), (95, 10)])
def test_a_slice_is_as_large_as_it_may_be_and_no_larger(subscribers: int, runs: int) -> None:
    running, readers = Running(slice_writes=10), readers_of(subscribers)
    running.push(running.add("t", *readers), b"m")
    for run in range(1, runs + 1):
        assert running.hub.run() is (run < runs)
        assert writes(readers) == min(10 * run, subscribers)
    assert [len(reader.written) for reader in readers] == [1] * subscribers


def test_a_slice_bounds_the_writes_of_all_topics_together() -> None:
    running = Running(slice_writes=10)
    readers = readers_of(60)
    for number in range(20):
        running.push(running.add(f"t{number}", *readers[number * 3 : number * 3 + 3]), b"m")
    before = 0
    while True:
        more = running.hub.run()
        assert writes(readers) - before <= 10
        before = writes(readers)
        if not more:
            break
    assert before == 60


def test_topics_nobody_listens_to_any_more_cost_their_share_of_a_slice() -> None:
    running, reader = Running(slice_writes=10), Reader()
    for number in range(30):
        running.push(running.add(f"t{number}", reader), b"m")
        running.hub.remove(f"t{number}", reader)
    assert running.drain() >= 3
    assert reader.written == []
    assert [reached for _, reached, _ in running.finished] == [0] * 30


def test_each_subscriber_is_written_to_once_in_a_slice() -> None:
    running, readers = Running(slice_writes=4), readers_of(10)
    topic = running.add("t", *readers)
    for number in range(30):
        before = [len(reader.written) for reader in readers]
        running.push(topic, b"%d" % number)
        running.hub.run()
        grown = [len(reader.written) - had for reader, had in zip(readers, before, strict=True)]
        assert set(grown) <= {0, 1}
        assert sum(grown) <= 4


def test_the_order_within_a_topic_is_kept_over_slices() -> None:
    running, readers = Running(slice_writes=3), readers_of(10)
    topic = running.add("t", *readers)
    for number in range(40):
        running.push(topic, b"%d" % number)
        running.hub.run()
    running.drain()
    everything = b"\n".join(b"%d" % number for number in range(40))
    for reader in readers:
        assert b"\n".join(frame[1:-1] for frame in reader.written) == everything


def test_who_leaves_during_a_sliced_fan_out_gets_nothing_more() -> None:
    running, readers = Running(slice_writes=3), readers_of(10)
    topic = running.add("t", *readers)
    running.push(topic, b"m")
    running.hub.run()
    unserved = [reader for reader in readers if not reader.written]
    assert len(unserved) == 7
    for reader in unserved[:6]:
        running.hub.remove("t", reader)
    running.push(topic, b"n")
    running.drain()
    assert writes(unserved[:6]) == 0
    assert unserved[6].written == [b"[m]", b"[n]"]
    assert running.finished[0][1] == 4


def test_who_joins_during_a_sliced_fan_out_gets_only_what_comes_later() -> None:
    running, readers, late = Running(slice_writes=3), readers_of(10), Reader()
    topic = running.add("t", *readers)
    running.push(topic, b"m")
    running.hub.run()
    running.add("t", late)
    running.push(topic, b"n")
    running.drain()
    assert late.written == [b"[n]"]
    assert all(reader.written == [b"[m]", b"[n]"] for reader in readers)


def test_who_leaves_and_returns_during_a_sliced_fan_out_gets_nothing_twice() -> None:
    running, readers = Running(slice_writes=3), readers_of(10)
    topic = running.add("t", *readers)
    running.push(topic, b"m")
    running.hub.run()
    for reader in [reader for reader in readers if reader.written]:
        running.hub.remove("t", reader)
        running.add("t", reader)
    running.drain()
    assert all(reader.written == [b"[m]"] for reader in readers)


def test_who_leaves_unserved_and_returns_during_a_sliced_fan_out_has_come_too_late_for_it() -> None:
    running, readers = Running(slice_writes=3), readers_of(10)
    topic = running.add("t", *readers)
    running.push(topic, b"m")
    running.hub.run()
    back = [reader for reader in readers if not reader.written]
    for reader in back[:4]:
        running.hub.remove("t", reader)
        running.add("t", reader)
    running.push(topic, b"n")
    running.drain()
    assert [reader.written for reader in back[:4]] == [[b"[n]"]] * 4
    assert [reader.written for reader in back[4:]] == [[b"[m]", b"[n]"]] * 3
    assert running.finished[0][1] == 6


def test_a_topic_that_everybody_left_and_one_joined_again_begins_anew() -> None:
    running, readers, late = Running(slice_writes=3), readers_of(10), Reader()
    old = running.add("t", *readers)
    running.push(old, b"m")
    running.hub.run()
    for reader in readers:
        running.hub.remove("t", reader)
    new = running.add("t", late, *readers)
    assert new is not old
    running.push(new, b"n")
    running.drain()
    assert late.written == [b"[n]"]
    assert writes(readers) == 3 + 10


def test_a_small_topic_is_not_starved_by_a_huge_one() -> None:
    running, crowd, one = Running(slice_writes=10), readers_of(1000), Reader()
    huge, small = running.add("huge", *crowd), running.add("small", one)
    running.push(huge, b"m")
    running.hub.run()
    running.push(small, b"m")
    running.hub.run()
    running.hub.run()
    assert one.written == [b"[m]"]
    assert writes(crowd) < 40


def test_a_topic_that_never_rests_leaves_the_others_their_turns() -> None:
    running, crowd, few = Running(slice_writes=10), readers_of(15), readers_of(3)
    busy, quiet = running.add("busy", *crowd), running.add("quiet", *few)
    for _ in range(20):
        running.push(busy, b"b")
        running.push(quiet, b"q")
        running.hub.run()
    assert writes(few) >= 3 * 5
    assert writes(crowd) >= 15 * 5


def test_a_backlog_of_frames_waits_for_its_turn_after_each() -> None:
    running, one, other = Running(slice_writes=4), Reader(), Reader()
    busy, quiet = running.add("busy", one), running.add("quiet", other)
    running.push(busy, *[b"x" * FRAME_BYTES] * 10)
    running.push(quiet, b"q")
    running.hub.run()
    assert len(one.written) == 1
    assert other.written == [b"[q]"]


def test_topics_are_served_in_the_order_in_which_they_came() -> None:
    running = Running(slice_writes=10)
    topics = [running.add(f"t{number}", Reader()) for number in range(40)]
    for topic in topics[:20]:
        running.push(topic, b"m")
    running.hub.run()
    for topic in topics[20:]:
        running.push(topic, b"m")
    running.drain()
    assert [name for name, _, _ in running.finished] == [topic.name for topic in topics]


def test_two_huge_topics_advance_alike() -> None:
    running, left, right = Running(slice_writes=10), readers_of(200), readers_of(200)
    running.push(running.add("left", *left), b"m")
    running.push(running.add("right", *right), b"m")
    for _ in range(20):
        running.hub.run()
        assert abs(writes(left) - writes(right)) <= 10
