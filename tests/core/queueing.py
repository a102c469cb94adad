"""Queues whose frames are lines in brackets, and batches for them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable

from broker.core.batch import Batch
from broker.core.lane import ENTRY_OVERHEAD_BYTES, Lines
from broker.core.policy import Overflow, TopicPolicy
from broker.core.queue import OutboundQueue, QueueRules
from broker.core.ring import Entry
from broker.core.topic import parse_pattern

ENTRY = ENTRY_OVERHEAD_BYTES


def framed(payload: bytes) -> bytes:
    return b"[" + payload + b"]"


def declared(line: bytes, missing: int) -> bytes:
    text, dash, before = line.rpartition(b"-")
    return b"%b-%d" % (text, int(before) + missing) if dash else b"%b-%d" % (line, missing)


def missing_before(line: bytes) -> int:
    _, dash, missing = line.rpartition(b"-")
    return int(missing) if dash else 0


def key_of(line: bytes, pointer: tuple[str, ...]) -> Hashable:
    """Lines are `key:rest`, or have no key; without a pointer all have the same."""
    if not pointer:
        return ""
    key, colon, _ = line.partition(b":")
    return key if colon else None


LINES = Lines(framed, declared, missing_before, key_of)


def policy_of(overflow: Overflow, *, key: bool = True, name: str = "") -> TopicPolicy:
    return TopicPolicy(
        name or overflow.value,
        (parse_pattern(">"),),
        overflow=overflow,
        conflate_key=("key",) if key else (),
        durable=overflow is Overflow.CATCH_UP,
    )


def queue_with(
    limit_bytes: int = 100_000,
    limit_messages: int = 1000,
    limit_seconds: float = 10.0,
    stall_seconds: float | None = None,
) -> OutboundQueue:
    """A queue with these bounds; without one of its own, replies may wait as long as publications."""
    stall_seconds = limit_seconds if stall_seconds is None else stall_seconds
    return OutboundQueue(QueueRules(limit_bytes, limit_messages, limit_seconds, stall_seconds, LINES))


def batch_of(*lines: bytes, after: int = 0, offsets: Iterable[int] = (), others: Iterable[bytes] = ()) -> Batch:
    """A batch of these lines; their offsets follow each other unless they are given."""
    places = list(offsets) or [after + number for number in range(1, len(lines) + 1)]
    arrivals = [None if line in set(others) else 0.0 for line in lines]
    return Batch(framed(b"\n".join(lines)), lines, arrivals, places, after)


def entries_of(after: int, *lines: bytes) -> list[Entry]:
    """Lines as they are read, behind a place."""
    return list(enumerate(lines, after + 1))


def read_out(data: bytes) -> list[tuple[bytes, int]]:
    """The lines of frames that follow each other, and how many each declares missing."""
    found = []
    for frame in re.findall(rb"\[(.*?)\]", data, re.DOTALL):
        for line in frame.split(b"\n"):
            text, dash, missing = line.rpartition(b"-")
            found.append((text, int(missing)) if dash else (line, 0))
    return found


def drain(queue: OutboundQueue, at_most: int = 65_536) -> list[tuple[bytes, int]]:
    """Take all there is."""
    found = []
    while queue:
        found += read_out(queue.take(at_most).data)
    return found
