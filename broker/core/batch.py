"""What one fan-out brings to each subscriber of a topic."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """One message of a batch.

    Args:
        text: as it is encoded, without a frame.
        offset: its place in the topic's history; what has none stands where the one before it does.
        publication: whether it is one, and not a join or a leave.
    """

    text: bytes
    offset: int
    publication: bool


class Batch:
    """Messages that came for a topic together. Most subscribers are written its one frame; who does not keep up looks
    at the lines.

    Args:
        frame: all lines, framed for the transport.
        lines: encoded messages, in order.
        arrivals: when each of them came (seconds); None for what is no publication.
        offsets: their places in the topic's history; see `Line`.
        after: the topic's place before the first of them.
    """

    __slots__ = ("_kept", "_keys", "_lines", "_offsets", "after", "frame", "publications", "until")

    def __init__(
        self,
        frame: bytes,
        lines: Sequence[bytes],
        arrivals: Sequence[float | None],
        offsets: Sequence[int],
        after: int,
    ) -> None:
        self.frame = frame
        self._lines = lines
        self._offsets = offsets
        self.publications = [arrived for arrived in arrivals if arrived is not None]
        """When each publication came (seconds)."""
        self.after = after
        self.until = offsets[-1]
        """The topic's place behind the last of them."""
        self._keys: list[Hashable] | None = None
        self._kept: int | None = None
        if len(self.publications) != len(lines):
            self._offsets = [-1 if arrived is None else at for arrived, at in zip(arrivals, offsets, strict=True)]

    @property
    def messages(self) -> int:
        """How many publications it holds, which may be none."""
        return len(self.publications)

    def lines(self) -> list[Line]:
        """What it holds, line by line."""
        found = []
        before = self.after
        for text, offset in zip(self._lines, self._offsets, strict=True):
            before = max(before, offset)
            found.append(Line(text, before, offset >= 0))
        return found

    def others(self) -> list[bytes]:
        """The lines that are no publications."""
        if len(self.publications) == len(self._lines):
            return []
        return [line.text for line in self.lines() if not line.publication]

    def kept(self, after: int) -> int:
        """How many of the publications are in the topic's history, behind a place. Those that aren't kept on purpose
        have the place of the one before them.
        """
        if after > self.after:
            return self._count_kept(after)
        if self._kept is None:  # counted once for all who are slow
            self._kept = self._count_kept(self.after)
        return self._kept

    def _count_kept(self, after: int) -> int:
        before, kept = self.after, 0
        for offset in self._offsets:
            if offset > before:
                before = offset
                kept += offset > after
        return kept

    def keys(self, key_of: Callable[[bytes], Hashable]) -> list[Hashable]:
        """What `key_of` says of each line; asked once for all who are slow. It is the same for all of a topic."""
        if self._keys is None:
            self._keys = [key_of(line) for line in self._lines]
        return self._keys
