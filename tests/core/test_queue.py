from __future__ import annotations

from collections import deque
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from broker.core.queue import OutboundQueue

FRAMES = st.binary(max_size=12)


def queue_of(*frames: bytes) -> OutboundQueue:
    queue = OutboundQueue(1000, 10.0)
    for frame in frames:
        assert queue.push(frame, 0.0)
    return queue


def test_an_empty_queue_is_false_and_never_expires() -> None:
    queue = OutboundQueue(10, 1.0)
    assert not queue
    assert len(queue) == 0
    assert queue.size_bytes == 0
    assert queue.expires_at() == inf
    assert queue.take(100)[0] == b""


def test_a_queue_takes_as_many_bytes_as_its_limit_and_not_one_more() -> None:
    queue = OutboundQueue(10, 1.0)
    assert queue.push(b"x" * 6, 0.0) is True
    assert queue.push(b"y" * 5, 0.0) is False
    assert (len(queue), queue.size_bytes) == (1, 6)
    assert queue.push(b"z" * 4, 0.0) is True
    assert queue.size_bytes == 10
    assert queue.take(100)[0] == b"xxxxxxzzzz"


def test_a_frame_larger_than_the_limit_never_fits() -> None:
    assert OutboundQueue(10, 1.0).push(b"x" * 11, 0.0) is False


def test_room_comes_back_with_what_is_taken() -> None:
    queue = OutboundQueue(10, 1.0)
    queue.push(b"x" * 10, 0.0)
    queue.take(1)
    assert queue.size_bytes == 0
    assert queue.push(b"y" * 10, 0.0) is True


def test_the_oldest_frame_decides_when_a_queue_is_too_old() -> None:
    queue = OutboundQueue(100, 5.0)
    queue.push(b"a", 1.0)
    queue.push(b"b", 3.0)
    assert queue.expires_at() == 6.0
    queue.take(1)
    assert queue.expires_at() == 8.0
    queue.take(1)
    assert queue.expires_at() == inf


def test_whole_frames_are_taken_as_many_as_fit() -> None:
    queue = queue_of(b"aa", b"bb", b"cc", b"dd")
    assert queue.take(5)[0] == b"aabb"
    assert queue.take(4)[0] == b"ccdd"
    assert not queue


def test_at_least_one_frame_is_taken_however_large() -> None:
    queue = queue_of(b"x" * 50, b"y")
    assert queue.take(10)[0] == b"x" * 50
    assert queue.take(0)[0] == b"y"


def test_it_tells_what_was_taken_and_what_waits_by_policy() -> None:
    queue = OutboundQueue(100, 1.0)
    queue.push(b"aa", 0.0, "chat", 2)
    queue.push(b"bb", 0.0)
    queue.push(b"cc", 0.0, "news", 1)
    queue.push(b"dd", 0.0, "chat", 3)
    assert queue.waiting() == {"chat": 5, "news": 1}
    assert queue.take(6) == (b"aabbcc", {"chat": 2, "news": 1})
    assert queue.waiting() == {"chat": 3}


@given(st.lists(FRAMES | st.integers(0, 20)), st.integers(0, 40))
def test_what_was_accepted_comes_out_whole_in_order_and_once(steps: list[bytes | int], limit: int) -> None:
    queue = OutboundQueue(limit, 1.0)
    model: deque[bytes] = deque()
    for now, step in enumerate(steps):
        if isinstance(step, bytes):
            fits = sum(map(len, model)) + len(step) <= limit
            assert queue.push(step, float(now)) is fits
            if fits:
                model.append(step)
        else:
            before = len(queue)
            taken, _ = queue.take(step)
            count = before - len(queue)
            assert taken == b"".join(model.popleft() for _ in range(count))
            assert count <= 1 or len(taken) <= step
            assert count >= min(1, before)
            # one more would not have fitted
            assert not model or len(taken) + len(model[0]) > step
        assert queue.size_bytes == sum(map(len, model)) <= limit
        assert len(queue) == len(model)
        assert bool(queue) is bool(model)
