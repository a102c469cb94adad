"""Which message of a durable topic comes next, and whether what was read of its stream is all there was.

Offsets are sequences of the stream: they rise within a topic, with gaps where other topics' messages are. The stream
tells with each message the offset of the one before it in the same topic; of a wildcard subscription's messages only
those that follow each other in the stream itself are known to have nothing between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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


def judge(top: int, offset: int, previous: int) -> Verdict:
    """Place a message.

    Args:
        top: nothing up to this offset is missing.
        offset: the message's own.
        previous: of the last message before it in the topic; 0 when there was none any more. For a wildcard
            subscription, the offset before its own.
    """
    if offset <= top:
        return Verdict.KNOWN
    return Verdict.NEXT if previous <= top else Verdict.GAP


class Trace(NamedTuple):
    """What counts of a message that was read from a stream."""

    offset: int
    topic: str
    removed_up_to: int
    """Its topic's messages up to this offset were removed before; 0 for an ordinary publication."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a stream keeps, so far as it decides what can be missing.

    Args:
        history_messages: the most of a topic; the stream keeps one more, as a witness.
        single: whether it is one topic's messages that are looked at, and not a wildcard's.
    """

    history_messages: int
    single: bool

    def has_witness(self, after: int, traces: Sequence[Trace]) -> bool:
        """Whether a read itself shows that nothing was cut off by age or bytes between an offset and what was read; the
        arguments are those of `is_whole`.
        """
        if not traces:
            return False
        first = traces[0]
        # a mark is a witness, too: it stands behind what it has removed, and nothing of its topic was between them
        return first.offset <= after or (self.single and 0 < first.removed_up_to <= after)

    def is_whole(self, after: int, traces: Sequence[Trace], *, more: int = 0, first: int) -> bool:
        """Whether a read was all there ever was behind an offset.

        Messages go from a stream in three ways. By age and by bytes they go in the order in which they came, so there
        is nothing missing behind the stream's beginning. By number the oldest of their own topic go, and leave as many
        behind as the stream keeps. By removal they leave a mark that says up to which offset.

        Args:
            after: the offset.
            traces: what the stream still has from `after` on, itself included if it is there, in order.
            more: how many of them were not read, of a single topic's.
            first: the stream's first sequence, asked for after the read. Where there is a witness it does not matter.
        """
        if not self.has_witness(after, traces) and first > after + 1:
            return False
        behind = [trace for trace in traces if trace.offset > after]
        if any(trace.removed_up_to > after for trace in behind):
            return False
        if self.single:
            return len(behind) + more <= self.history_messages
        return all(count <= self.history_messages for count in Counter(trace.topic for trace in behind).values())
