"""What a node gives up of a topic for which more comes than it can write, by the topic's overflow policy."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from broker.core.hub import Pending, Topic
from broker.core.lane import Lines
from broker.core.policy import Overflow

_WHOLE = frozenset({Overflow.DISCONNECT, Overflow.CATCH_UP})
"""Those that leave nothing out."""


def may_shed(topic: Topic) -> bool:
    """Whether what is pending may give way: not where a stream has it, from which it comes when there is room."""
    return not topic.policy.durable or topic.policy.overflow not in _WHOLE


def shed(topic: Topic, lines: Lines) -> tuple[Pending, int] | None:
    """Give up some of what is pending of a topic: about half of it.

    Args:
        topic: whose. What is missing behind the last that is kept is added to its `missed`.
        lines: what is to be known of encoded messages.

    Returns:
        What is left, where each publication behind a loss says how many are missing, and how many those are that went;
        None where nothing may be left out.
    """
    overflow = topic.policy.overflow
    if overflow in _WHOLE:
        return None
    gone = _unfit(topic, overflow, lambda line: lines.key_of(line, topic.policy.conflate_key))
    left = Pending([], [], [])
    missed = 0
    for at, (line, arrived, offset) in enumerate(zip(topic.pending, topic.arrivals, topic.offsets, strict=True)):
        if at in gone:
            missed += 1 + lines.missing_before(line)
            continue
        told = line
        if arrived is not None and missed:
            told, missed = lines.declare(line, missed), 0
        left.lines.append(told)
        left.arrivals.append(arrived)
        left.offsets.append(offset)
    topic.missed += missed
    return left, len(gone)


def _unfit(topic: Topic, overflow: Overflow, key_of: Callable[[bytes], Hashable]) -> set[int]:
    """Which of the pending ones go, by their places."""
    publications = [at for at, arrived in enumerate(topic.arrivals) if arrived is not None]
    half = topic.pending_bytes // 2
    gone: set[int] = set()
    size = topic.pending_bytes
    if overflow is Overflow.CONFLATE:
        known: set[Hashable] = set()
        for at in reversed(publications):
            key = key_of(topic.pending[at])
            if key is not None and key in known:
                gone.add(at)
                size -= len(topic.pending[at]) + 1
            known.add(key)
    first_to_go = reversed(publications) if overflow is Overflow.DROP_NEWEST else iter(publications)
    for at in first_to_go:
        if size <= half:
            break
        if at not in gone:
            gone.add(at)
            size -= len(topic.pending[at]) + 1
    return gone
