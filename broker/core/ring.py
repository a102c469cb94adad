"""The newest publications of a durable topic, kept at hand so that those who come back need no read from the stream."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
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

    __slots__ = ("_entries", "_limits", "floor", "floor_message", "generation", "pinned", "size_bytes")

    def __init__(self, limits: RingLimits, floor: int) -> None:
        self._limits = limits
        self._entries: deque[Entry] = deque()
        self.floor = floor
        self.floor_message = 0
        """The offset of the newest message up to the floor; 0 when there is none, or none is known."""
        self.generation = 0
        """Rises whenever what was read to fit on to the ring does not fit any more."""
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

    def prepend(self, entries: Iterable[Entry], floor: int, floor_message: int) -> None:
        """Add what was fetched of the time before its floor, as much as fits.

        Args:
            entries: all there are between the new floor and the present one, the newest first.
            floor: the new one.
            floor_message: of the new floor.
        """
        for offset, line in entries:
            size = len(line) + ENTRY_OVERHEAD_BYTES
            if len(self._entries) >= self._limits.messages or self.size_bytes + size > self._limits.size_bytes:
                self.floor = self.floor_message = offset
                return
            self._entries.appendleft((offset, line))
            self.size_bytes += size
        self.floor, self.floor_message = floor, floor_message

    def trim(self) -> None:
        """Drop what is beyond the limits."""
        while len(self._entries) > self._limits.messages or self.size_bytes > self._limits.size_bytes:
            self.floor, line = self._entries.popleft()
            self.floor_message = self.floor
            self.size_bytes -= len(line) + ENTRY_OVERHEAD_BYTES

    def clear(self, floor: int, floor_message: int) -> None:
        """Forget everything up to an offset, which is not below the newest one's."""
        self._entries.clear()
        self.size_bytes = 0
        self.floor, self.floor_message = floor, floor_message
        self.generation += 1

    def newest(self) -> int:
        """The offset of its newest publication, or its floor."""
        return self._entries[-1][0] if self._entries else self.floor

    def newest_up_to(self, until: int) -> int:
        """The offset of the newest publication up to `until`; the floor if there is none."""
        return next((offset for offset, _ in reversed(self._entries) if offset <= until), self.floor)

    def piece(self, after: int, until: int, messages: int, size_bytes: int) -> list[Entry]:
        """Of the entries with offsets above `after` (not below the floor) and up to `until` the first ones, as many as
        fit; one at least.
        """
        size = 0
        found: list[Entry] = []
        for entry in self._behind(after):
            size += len(entry[1])
            if entry[0] > until or (found and (size > size_bytes or len(found) == messages)):
                break
            found.append(entry)
        return found

    def between(self, after: int, until: int) -> list[bytes]:
        """The lines with offsets above `after` (not below the floor) and up to `until`, in order."""
        return [line for _, line in self.entries_between(after, until)]

    def entries_between(self, after: int, until: int) -> list[Entry]:
        """`between`, with their offsets."""
        return [entry for entry in self._behind(after) if entry[0] <= until]

    def _behind(self, after: int) -> Iterator[Entry]:
        behind = 0
        for offset, _ in reversed(self._entries):
            if offset <= after:
                break
            behind += 1
        return islice(self._entries, len(self._entries) - behind, None)


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
            oldest = next((one for one in self._rings if not one.pinned), None)
            if oldest is None:
                break
            self.size_bytes -= self._rings.pop(oldest)
            oldest.clear(oldest.newest(), oldest.newest() if len(oldest) else oldest.floor_message)

    def gone(self, ring: Ring) -> None:
        """A ring is no more."""
        self.size_bytes -= self._rings.pop(ring, 0)
