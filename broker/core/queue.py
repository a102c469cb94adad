"""What waits for a connection that cannot take more just now. A connection that keeps up has no queue at all."""

from __future__ import annotations

from collections import deque


class OutboundQueue:
    """Frames in order, bounded in bytes and in age.

    Args:
        limit_bytes: the most that may wait.
        limit_seconds: the longest that a frame may wait.
    """

    __slots__ = ("_frames", "_limit_bytes", "_limit_seconds", "size_bytes")

    def __init__(self, limit_bytes: int, limit_seconds: float) -> None:
        self._frames: deque[tuple[float, bytes]] = deque()
        self._limit_bytes = limit_bytes
        self._limit_seconds = limit_seconds
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frame: bytes, now: float) -> bool:
        """Append a frame. False, and nothing is appended, when it does not fit any more."""
        if self.size_bytes + len(frame) > self._limit_bytes:
            return False
        self._frames.append((now, frame))
        self.size_bytes += len(frame)
        return True

    def expires_at(self) -> float:
        """When the oldest frame has waited too long (infinity when nothing waits)."""
        return self._frames[0][0] + self._limit_seconds if self._frames else float("inf")

    def take(self, at_most_bytes: int) -> bytes:
        """The oldest frames joined for one write: as many as fit, but one at least."""
        taken: list[bytes] = []
        size = 0
        while self._frames and (not taken or size + len(self._frames[0][1]) <= at_most_bytes):
            frame = self._frames.popleft()[1]
            taken.append(frame)
            size += len(frame)
        self.size_bytes -= size
        return b"".join(taken)
