from __future__ import annotations

from itertools import pairwise

import pytest

from broker.core.hub import FRAME_BYTES, Topic
from tests.core.hub_runner import POLICY, Broken, Reader, Running, readers_of, writes


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


def test_the_wildcards_among_the_topics_are_known_as_long_as_they_have_subscribers() -> None:
    running, one, two = Running(), Reader(), Reader()
    assert [running.add(name, one, two).wildcard for name in ("a", "a.*", ">")] == [False, True, True]
    assert {name: pattern.text for name, pattern in running.hub.wildcards.items()} == {"a.*": "a.*", ">": ">"}
    for name in ("a", "a.*"):
        running.hub.remove(name, one)
    running.hub.remove("a.*", two)
    assert running.hub.wildcards.keys() == {">"}
    running.push(running.add("a.*", one), b"m")  # whom it concerns is for who pushes to say
    running.hub.run()
    assert (one.written, two.written) == ([b"[m]"], [])


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


def test_what_is_no_publication_keeps_its_place_and_is_not_counted() -> None:
    running, fast, slow = Running(), Reader(), Reader(ready=False)
    topic = running.add("t", fast, slow)
    running.hub.push(topic, b"1", 1.5)
    running.hub.push(topic, b"notice", None)
    running.hub.push(topic, b"2", 2.5)
    running.hub.run()
    running.hub.push(topic, b"another", None)
    running.hub.run()
    assert fast.written == [b"[1\nnotice\n2]", b"[another]"]
    assert slow.delivered == [("t", b"[1\nnotice\n2]", 2), ("t", b"[another]", 0)]
    assert running.finished == [("t", 1, [1.5, 2.5]), ("t", 1, [])]


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


def offset_push(running: Running, topic: Topic, offset: int, size: int = 1) -> None:
    running.hub.push(topic, b"x" * size, 0.0, offset)


def test_a_topic_knows_what_is_no_longer_pending() -> None:
    running = Running(slice_writes=2)
    topic = running.add("t", *readers_of(5))
    assert topic.begun == 0
    for offset in (3, 7):
        offset_push(running, topic, offset)
    assert (topic.begun, topic.offsets) == (0, [3, 7])
    running.hub.run()
    assert (topic.begun, topic.offsets) == (7, [])  # on its way to those who are there, so not for who comes now
    offset_push(running, topic, 8)
    running.hub.run()
    assert (topic.begun, topic.offsets) == (7, [8])
    running.drain()
    assert (topic.begun, topic.offsets) == (8, [])


def test_what_does_not_fit_into_the_frame_is_pending_still() -> None:
    running = Running(slice_writes=1)
    topic = running.add("t", Reader())
    for offset in (3, 7, 8):
        offset_push(running, topic, offset, FRAME_BYTES // 2)
    for begun, rest in ((3, [7, 8]), (7, [8]), (8, [])):
        running.hub.run()
        assert (topic.begun, topic.offsets) == (begun, rest)
