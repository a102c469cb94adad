"""What waits for a connection that cannot take more just now. A connection that keeps up has no queue at all."""

from __future__ import annotations

from collections import Counter, deque

Counts = Counter[str]
"""Publications by the name of their topic's policy."""


class OutboundQueue:
    """Frames in order, bounded in bytes and in age.

    Args:
        limit_bytes: the most that may wait.
        limit_seconds: the longest that a frame may wait.
    """

    __slots__ = ("_frames", "_limit_bytes", "_limit_seconds", "size_bytes")

    def __init__(self, limit_bytes: int, limit_seconds: float) -> None:
        self._frames: deque[tuple[float, bytes, str, int]] = deque()
        self._limit_bytes = limit_bytes
        self._limit_seconds = limit_seconds
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frame: bytes, now: float, policy: str = "", messages: int = 0) -> bool:
        """Append a frame, with how many publications of which policy it holds.

        Returns:
            False, and nothing is appended, when it does not fit any more.
        """
        if self.size_bytes + len(frame) > self._limit_bytes:
            return False
        self._frames.append((now, frame, policy, messages))
        self.size_bytes += len(frame)
        return True

    def expires_at(self) -> float:
        """When the oldest frame has waited too long (infinity when nothing waits)."""
        return self._frames[0][0] + self._limit_seconds if self._frames else float("inf")

    def take(self, at_most_bytes: int) -> tuple[bytes, Counts]:
        """The oldest frames joined for one write, as many as fit but one at least, and what is in them."""
        taken: list[bytes] = []
        counts: Counts = Counter()
        size = 0
        while self._frames and (not taken or size + len(self._frames[0][1]) <= at_most_bytes):
            _, frame, policy, messages = self._frames.popleft()
            taken.append(frame)
            size += len(frame)
            if messages:
                counts[policy] += messages
        self.size_bytes -= size
        return b"".join(taken), counts

    def waiting(self) -> Counts:
        """The publications that wait."""
        counts: Counts = Counter()
        for _, _, policy, messages in self._frames:
            if messages:
                counts[policy] += messages
        return counts
