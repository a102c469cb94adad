from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from broker.core.hub import FRAME_BYTES, Hub, Topic
from broker.core.policy import TopicPolicy
from broker.core.topic import parse_pattern

POLICY = TopicPolicy("default", (parse_pattern(">"),))


class Reader:
    """A subscriber that keeps what it gets."""

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.write: Callable[[bytes], object] = self._keep
        self.written: list[bytes] = []
        self.delivered: list[tuple[str, bytes, int]] = []

    def _keep(self, frame: bytes) -> None:
        self.written.append(frame)

    def deliver(self, topic: Topic, frame: bytes, messages: int) -> None:
        self.delivered.append((topic.name, frame, messages))


class Broken(Reader):
    """A subscriber whose socket is gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.write = self._fail

    def _fail(self, _: bytes) -> None:
        raise self.error


class Running:
    """A hub whose frames are its payloads in brackets, and what it told of finished fan-outs."""

    def __init__(self, slice_writes: int = 100) -> None:
        self.finished: list[tuple[str, int, list[float]]] = []
        self.framed = 0
        self.hub = Hub(str.encode, self._frame, slice_writes=slice_writes, on_delivered=self._finish)

    def _frame(self, payload: bytes) -> bytes:
        self.framed += 1
        return b"[" + payload + b"]"

    def _finish(self, topic: Topic, subscribers: int, arrivals: list[float]) -> None:
        self.finished.append((topic.name, subscribers, arrivals))

    def add(self, name: str, *readers: Reader) -> Topic:
        for reader in readers:
            topic = self.hub.add(name, POLICY, reader)
        return topic

    def push(self, topic: Topic, *messages: bytes) -> None:
        for message in messages:
            self.hub.push(topic, message, 0.0)

    def drain(self) -> int:
        """Run until nothing is left; how often that took."""
        runs = 1
        while self.hub.run():
            runs += 1
        return runs


def readers_of(count: int) -> list[Reader]:
    return [Reader() for _ in range(count)]


def writes(readers: Sequence[Reader]) -> int:
    return sum(len(reader.written) for reader in readers)


def test_a_message_reaches_every_subscriber_of_its_topic_and_nobody_else() -> None:
    running, here, there = Running(), readers_of(3), Reader()
    topic = running.add("here", *here)
    running.add("there", there)
    running.push(topic, b"m")
    assert running.hub.run() is False
    assert [reader.written for reader in here] == [[b"[m]"]] * 3
    assert there.written == []


def test_what_is_pending_leaves_as_one_frame_made_once() -> None:
    running, readers = Running(), readers_of(5)
    topic = running.add("t", *readers)
    running.push(topic, b"1", b"2", b"3")
    running.hub.run()
    assert [reader.written for reader in readers] == [[b"[1\n2\n3]"]] * 5
    assert running.framed == 1
    frame = readers[0].written[0]
    assert all(reader.written[0] is frame for reader in readers)


def test_nothing_is_sent_twice_nor_when_nothing_came() -> None:
    running, reader = Running(), Reader()
    topic = running.add("t", reader)
    assert running.hub.run() is False
    running.push(topic, b"1")
    running.hub.run()
    assert running.hub.run() is False
    running.push(topic, b"2")
    running.hub.run()
    assert reader.written == [b"[1]", b"[2]"]


def test_a_topic_has_its_head_and_policy_from_its_first_subscriber() -> None:
    running, reader = Running(), Reader()
    topic = running.hub.add("t", POLICY, reader)
    assert (topic.name, topic.policy, topic.head) == ("t", POLICY, b"t")
    assert running.hub.add("t", POLICY, Reader()) is topic
    assert running.hub.topics == {"t": topic}


def test_adding_twice_is_the_same_as_once() -> None:
    running, reader = Running(), Reader()
    topic = running.add("t", reader, reader)
    running.push(topic, b"m")
    running.hub.run()
    assert reader.written == [b"[m]"]
    assert running.hub.remove("t", reader) is True


def test_only_the_last_to_leave_takes_the_topic_along() -> None:
    running = Running()
    one, other = readers_of(2)
    running.add("t", one, other)
    assert running.hub.remove("t", one) is False
    assert running.hub.remove("t", one) is False
    assert running.hub.remove("t", other) is True
    assert running.hub.topics == {}
    assert running.hub.remove("t", other) is False


def test_the_first_push_asks_for_a_run_and_the_next_do_not() -> None:
    running = Running()
    one, other = running.add("one", Reader()), running.add("other", Reader())
    assert running.hub.push(one, b"1", 0.0) is True
    assert running.hub.push(one, b"2", 0.0) is False
    assert running.hub.push(other, b"3", 0.0) is False
    running.hub.run()
    assert running.hub.push(other, b"4", 0.0) is True


def test_finished_fan_outs_are_told_with_the_messages_arrivals() -> None:
    running = Running()
    topic = running.add("t", *readers_of(2))
    running.hub.push(topic, b"1", 1.5)
    running.hub.push(topic, b"2", 2.5)
    running.hub.run()
    assert running.finished == [("t", 2, [1.5, 2.5])]


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


@pytest.mark.parametrize("slice_writes", [4, 100])
@pytest.mark.parametrize("error", [OSError("gone"), ConnectionResetError(), RuntimeError("closed")])
def test_a_subscriber_whose_socket_is_gone_neither_disturbs_nor_counts(error: Exception, slice_writes: int) -> None:
    running, readers = Running(slice_writes), readers_of(10)
    topic = running.add("t", *readers[:5], Broken(error), *readers[5:], Broken(error))
    running.push(topic, b"m")
    running.drain()
    assert all(reader.written == [b"[m]"] for reader in readers)
    assert running.finished == [("t", 10, [0.0])]


def test_one_that_cannot_take_bytes_now_is_handed_the_frame_to_queue() -> None:
    running, fast, slow = Running(), Reader(), Reader(ready=False)
    topic = running.add("t", fast, slow)
    running.push(topic, b"1", b"2")
    running.hub.run()
    assert slow.written == []
    assert slow.delivered == [("t", b"[1\n2]", 2)]
    assert fast.delivered == []
    assert running.finished == [("t", 1, [0.0, 0.0])]


def test_a_write_that_makes_another_leave_disturbs_nobody() -> None:
    running, victims, rest = Running(), readers_of(20), readers_of(20)

    def write_and_expel(_: bytes) -> None:
        for victim in victims:
            running.hub.remove("t", victim)

    cruel = Reader()
    cruel.write = write_and_expel
    topic = running.add("t", *victims[:10], *rest[:10], cruel, *rest[10:], *victims[10:])
    running.push(topic, b"m")
    assert running.hub.run() is False
    assert all(reader.written == [b"[m]"] for reader in rest)
    assert topic.subscribers == {cruel, *rest}


def test_joined_messages_stay_below_the_frame_bound_and_in_order() -> None:
    running, reader = Running(), Reader()
    topic = running.add("t", reader)
    messages = [b"%05d" % number + b"x" * (number % 7 * 1000) for number in range(100)]
    running.push(topic, *messages)
    running.drain()
    payloads = [frame[1:-1] for frame in reader.written]
    assert b"\n".join(payloads) == b"\n".join(messages)
    assert all(len(payload) < FRAME_BYTES for payload in payloads)
    # and no frame is smaller than it has to be
    for payload, following in pairwise(payloads):
        assert len(payload) + 1 + len(following.split(b"\n")[0]) >= FRAME_BYTES


def test_messages_that_fill_a_frame_exactly_leave_in_one() -> None:
    running, reader = Running(), Reader()
    topic = running.add("t", reader)
    half = FRAME_BYTES // 2 - 1
    running.push(topic, b"a" * half, b"b" * half)
    running.drain()
    assert len(reader.written) == 1
    running.push(topic, b"a" * half, b"b" * (half + 1))
    running.drain()
    assert len(reader.written) == 3


def test_a_message_larger_than_the_bound_goes_alone() -> None:
    running, reader = Running(), Reader()
    topic = running.add("t", reader)
    huge = b"x" * (FRAME_BYTES + 1)
    running.push(topic, b"1", huge, b"2", b"3")
    running.drain()
    assert [frame[1:-1] for frame in reader.written] == [b"1", huge, b"2\n3"]


def test_a_topic_at_rest_is_flushed_at_once() -> None:
    topic = Running().add("t", Reader())
    told: list[str] = []
    topic.when_flushed(lambda: told.append("now"))
    assert told == ["now"]


def test_flushed_is_told_after_the_last_write_and_not_before() -> None:
    running, readers = Running(slice_writes=4), readers_of(10)
    topic = running.add("t", *readers)
    told: list[int] = []
    running.push(topic, b"1")
    topic.when_flushed(lambda: told.append(writes(readers)))
    running.hub.run()
    # the first is under way, a second waits behind it
    topic.when_flushed(lambda: told.append(-1))
    running.push(topic, b"2")
    topic.when_flushed(lambda: told.append(writes(readers)))
    running.hub.run()
    assert told == []
    running.hub.run()
    assert told == [10, -1]
    running.drain()
    assert told == [10, -1, 20]


def test_flushed_is_told_after_the_fan_out_was() -> None:
    running = Running()
    topic = running.add("t", Reader())
    running.push(topic, b"1")
    order: list[int] = []
    topic.when_flushed(lambda: order.append(len(running.finished)))
    running.hub.run()
    assert order == [1]


def test_flushed_is_told_in_time_however_much_is_pushed_behind() -> None:
    running, readers = Running(slice_writes=4), readers_of(6)
    topic = running.add("t", *readers)
    large = b"x" * (FRAME_BYTES // 2)
    told: list[bytes] = []
    running.push(topic, b"first" + large)
    topic.when_flushed(lambda: told.append(readers[0].written[-1][:6]))
    for _ in range(6):
        running.push(topic, large, large)
        running.hub.run()
    assert told == [b"[first"]


def test_flushed_waits_for_all_frames_of_what_came_before() -> None:
    running, reader = Running(slice_writes=1), Reader()
    topic = running.add("t", reader)
    large = b"x" * (FRAME_BYTES - 1)
    told: list[int] = []
    for number in range(1, 5):
        running.push(topic, large)
        if number != 2:
            topic.when_flushed(lambda: told.append(len(reader.written)))
    running.drain()
    assert told == [1, 3, 4]


def test_flushed_is_told_even_when_everybody_has_left() -> None:
    running, readers = Running(slice_writes=2), readers_of(5)
    topic = running.add("t", *readers)
    told: list[str] = []
    running.push(topic, b"1")
    running.hub.run()
    running.push(topic, b"2")
    topic.when_flushed(lambda: told.append("flushed"))
    for reader in readers:
        running.hub.remove("t", reader)
    running.drain()
    assert told == ["flushed"]
    assert writes(readers) == 2


def test_one_that_is_told_can_publish_again() -> None:
    running, reader = Running(), Reader()
    topic = running.add("t", reader)
    running.push(topic, b"1")
    topic.when_flushed(lambda: running.push(topic, b"2"))
    running.drain()
    assert reader.written == [b"[1]", b"[2]"]
