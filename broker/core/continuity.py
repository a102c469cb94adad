"""Which message of a durable topic comes next, and whether what was read of its stream is all there was.

Offsets are sequences of the stream: they rise within a topic, with gaps where other topics' messages are. The stream
tells with each message the offset of the one before it in the same topic; of a wildcard subscription's messages only
those that follow each other in the stream itself are known to have nothing between them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from enum import Enum, auto
from typing import NamedTuple


class Verdict(Enum):
    """What to do with a message that has arrived."""

    NEXT = auto()
    """It follows on what was delivered last."""
    KNOWN = auto()
    """It was delivered before."""
    GAP = auto()
    """Something may be missing before it."""


def judge(top: int, sure: int, offset: int, previous: int) -> Verdict:
    """Place a message.

    Args:
        top: of the message that was delivered last.
        sure: nothing up to this offset is missing; `top` or more.
        offset: the message's own.
        previous: of the last message before it in the topic; 0 when there was none any more. For a wildcard
            subscription, the offset before its own.
    """
    if offset <= top:
        return Verdict.KNOWN
    return Verdict.NEXT if previous <= sure else Verdict.GAP


class Trace(NamedTuple):
    """What counts of a message that was read from a stream."""

    offset: int
    topic: str
    removed_up_to: int
    """Its topic's messages up to this offset were removed before; 0 for an ordinary publication."""


class Reading:
    """What was read of a stream behind some offset, to be judged from that offset or any later one.

    Messages go from a stream in three ways. By age and by bytes they go in the order in which they came, so there is
    nothing missing behind the stream's beginning. By number the oldest of their own topic go, and leave as many behind
    as the stream keeps. By removal they leave a mark that says up to which offset.

    Args:
        traces: what the stream still has, in order.
        limit: the most messages of a topic that the policy keeps; the stream keeps one more, as a witness.
        single: whether it is one topic's messages that are looked at, and not a wildcard's.
        more: how many were not read, of a single topic's.
        followed: topics of a wildcard's that are known to have lost nothing in between; see `follow_links`.
    """

    __slots__ = ("_crowded", "_limit", "_more", "_offsets", "_removed", "_single", "_traces")

    def __init__(
        self,
        traces: Sequence[Trace],
        limit: int,
        *,
        single: bool,
        more: int = 0,
        followed: Collection[str] = (),
    ) -> None:
        self._traces = traces
        self._limit = limit
        self._single = single
        self._more = more
        self._offsets = [trace.offset for trace in traces]
        self._removed = [0] * (len(traces) + 1)
        """For each place, up to where the marks from there on have removed."""
        self._crowded = 0
        """From the places before this one on, some topic has more messages than may be without any gone."""
        counts: Counter[str] = Counter()
        for place in range(len(traces) - 1, -1, -1):
            trace = traces[place]
            self._removed[place] = max(self._removed[place + 1], trace.removed_up_to)
            counts[trace.topic] += 1
            if counts[trace.topic] > limit and not self._crowded and trace.topic not in followed:
                self._crowded = place + 1

    def has_witness(self, after: int) -> bool:
        """Whether the read itself shows that nothing was cut off by age or bytes between an offset and what follows."""
        place = bisect_right(self._offsets, after)
        if place:
            return True  # the oldest go first, and this one is still there
        # a mark is a witness, too: it stands behind what it has removed, and nothing of its topic was between them
        return self._single and bool(self._traces) and 0 < self._traces[0].removed_up_to <= after

    def is_whole(self, after: int, first: int) -> bool:
        """Whether this is all there ever was behind an offset.

        Args:
            after: the offset, not before the one that was read from.
            first: the stream's first sequence, asked for after the read. Where there is a witness it does not matter.
        """
        witness = self.has_witness(after)
        if not witness and first > after + 1:
            return False
        place = bisect_right(self._offsets, after)
        if self._removed[place] > after:
            return False
        if self._single:
            # of one topic the oldest go first, so the witness would have gone before anything behind it
            return witness or len(self._offsets) - place + self._more <= self._limit
        return place >= self._crowded


class Link(NamedTuple):
    """What counts of a live message: it names the one before it in its own topic (0: there was none any more)."""

    offset: int
    topic: str
    previous: int


def follow_links(sure: int, links: Iterable[Link]) -> dict[str, int]:
    """The topics of which live messages have come without a gap since `sure`, and how far each of them has got.

    Args:
        sure: nothing up to this offset is missing.
        links: of the messages that came, in the order of their offsets; some may be there twice.
    """
    reached: dict[str, int] = {}
    broken: set[str] = set()
    for offset, topic, previous in links:
        before = reached.get(topic)
        if topic in broken or (before is not None and offset <= before):
            continue
        if previous <= sure if before is None else previous == before:
            reached[topic] = offset
        else:
            broken.add(topic)
    return reached
