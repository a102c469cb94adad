"""The lane of topics of which nothing may be given up (`overflow = "disconnect"`)."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from broker.core.batch import Batch
from broker.core.lane import ENTRY_OVERHEAD_BYTES, Given, Lane
from broker.core.policy import TopicPolicy


class HeldFrame(NamedTuple):
    at: float
    data: bytes
    messages: int
    after: int
    """The topic's place before it."""
    kept: int
    """How many of the publications the topic's history has."""
    missing: int
    """How many it says are missing before it."""
    others: tuple[bytes, ...]
    """Its lines that are no publications."""


class HoldingLane(Lane):
    """`disconnect`: nothing of it is given up; when there is no room, or it waits too long, the connection ends."""

    __slots__ = ("_frames", "_kept", "_missing")

    sheds = False

    def __init__(self, name: str, policy: TopicPolicy) -> None:
        super().__init__(name, policy)
        self._frames: deque[HeldFrame] = deque()
        self._kept = 0
        self._missing = 0
        """Of all frames that wait: what each of them says."""

    def push(self, batch: Batch, now: float) -> None:
        self._append(self._framed(batch.frame, batch, now))

    def take(self, at_most_bytes: int) -> Given:
        frames = self._frames
        at = frames[0].at
        taken: list[bytes] = []
        size = messages = 0
        while frames and (not taken or size + len(frames[0].data) <= at_most_bytes):
            frame = frames.popleft()
            taken.append(frame.data)
            size += len(frame.data)
            messages += frame.messages
            self._kept -= frame.kept
            self._missing -= frame.missing
        self.size_bytes -= size + len(taken) * ENTRY_OVERHEAD_BYTES
        self.messages -= messages
        return Given(b"".join(taken), messages, at)

    def waits_since(self) -> float | None:
        return self._frames[0].at if self._frames else None

    def expire(self, before: float) -> bool:
        return not self._frames or self._frames[0].at > before

    @property
    def waiting(self) -> bool:
        return bool(self._frames)

    @staticmethod
    def _framed(data: bytes, batch: Batch, now: float, missing: int = 0) -> HeldFrame:
        others = tuple(batch.others())
        return HeldFrame(now, data, batch.messages, batch.after, batch.kept(batch.after), missing, others)

    def _append(self, frame: HeldFrame) -> None:
        self._frames.append(frame)
        self._kept += frame.kept
        self._missing += frame.missing
        self.size_bytes += len(frame.data) + ENTRY_OVERHEAD_BYTES
        self.messages += frame.messages
