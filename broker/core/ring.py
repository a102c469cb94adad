"""The newest publications of a durable topic, kept at hand so that those who come back need no read from the stream."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice

ENTRY_OVERHEAD_BYTES = 120
"""What an entry costs beside its line: the tuple, the number, the bytes object's head."""

Entry = tuple[int, bytes]
"""An offset, and the publication's push as it goes to subscribers."""


@dataclass(frozen=True, slots=True)
class RingLimits:
    """The most that one ring holds; bytes count the overhead."""

    messages: int
    size_bytes: int


class Ring:
    """A topic's newest publications, without a gap: it holds all there are behind its `floor`.

    Args:
        limits: its bounds. The oldest go first.
        floor: the offset behind which it begins.
    """

    __slots__ = ("_entries", "_limits", "floor", "pinned", "size_bytes")

    def __init__(self, limits: RingLimits, floor: int) -> None:
        self._limits = limits
        self._entries: deque[Entry] = deque()
        self.floor = floor
        self.size_bytes = 0
        self.pinned = False
        """While set, nothing is dropped: older ones are being fetched that have to fit on to it."""

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, offset: int, line: bytes) -> None:
        """Add the newest one."""
        self._entries.append((offset, line))
        self.size_bytes += len(line) + ENTRY_OVERHEAD_BYTES
        if not self.pinned:
            self.trim()

    def prepend(self, entries: list[Entry], floor: int) -> None:
        """Add what was fetched of the time before its floor, as much as fits: `entries` are all there are between the
        new floor and the present one.
        """
        for offset, line in reversed(entries):
            size = len(line) + ENTRY_OVERHEAD_BYTES
            if len(self._entries) >= self._limits.messages or self.size_bytes + size > self._limits.size_bytes:
                self.floor = offset
                return
            self._entries.appendleft((offset, line))
            self.size_bytes += size
        self.floor = floor

    def trim(self) -> None:
        """Drop what is beyond the limits."""
        while len(self._entries) > self._limits.messages or self.size_bytes > self._limits.size_bytes:
            self.floor, line = self._entries.popleft()
            self.size_bytes -= len(line) + ENTRY_OVERHEAD_BYTES

    def clear(self, floor: int) -> None:
        """Forget everything up to an offset, which is not below the newest one's."""
        self._entries.clear()
        self.size_bytes = 0
        self.floor = floor

    def newest(self) -> int:
        """The offset of its newest publication, or its floor."""
        return self._entries[-1][0] if self._entries else self.floor

    def between(self, after: int, until: int) -> list[bytes]:
        """The lines with offsets above `after` (not below the floor) and up to `until`, in order."""
        behind = 0
        for offset, _ in reversed(self._entries):
            if offset <= after:
                break
            behind += 1
        newest = islice(self._entries, len(self._entries) - behind, None)
        return [line for offset, line in newest if offset <= until]


class RingBudget:
    """Keeps all rings of a node below one bound: when it is reached, the ring gives way whose topic was silent longest.

    Args:
        limit_bytes: of all rings together.
    """

    __slots__ = ("_limit_bytes", "_rings", "size_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._rings: OrderedDict[Ring, int] = OrderedDict()
        """Each ring's bytes as they were counted last, the one that changed last at the end."""
        self.size_bytes = 0

    def changed(self, ring: Ring) -> None:
        """A ring has grown or shrunk."""
        self.size_bytes += ring.size_bytes - self._rings.get(ring, 0)
        self._rings[ring] = ring.size_bytes
        self._rings.move_to_end(ring)
        while self.size_bytes > self._limit_bytes and self._rings:
            oldest, size = next(iter(self._rings.items()))
            if oldest.pinned:
                break
            del self._rings[oldest]
            self.size_bytes -= size
            oldest.clear(oldest.newest())

    def gone(self, ring: Ring) -> None:
        """A ring is no more."""
        self.size_bytes -= self._rings.pop(ring, 0)
