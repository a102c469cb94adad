"""The lane of topics that are read on from their history (`overflow = "catch_up"`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker.core.batch import Batch
from broker.core.holding import HeldFrame, HoldingLane
from broker.core.hub import FRAME_BYTES
from broker.core.lane import Lines
from broker.core.policy import TopicPolicy
from broker.core.ring import Entry


class CatchUpLane(HoldingLane):
    """`catch_up`: when there is no room, nothing waits any more but a place in the history, from which is read when the
    connection can take more.

    What is no publication has no place there, and nothing may be given up of it: it goes through `others`. Publications
    that aren't kept on purpose have none either: they are lost, and declared with the next one.

    Args:
        name: the topic's.
        policy: the topic's.
        lines: what is to be known of encoded messages.
        after: the topic's place up to which the connection has everything.
        behind_since: when it fell behind (seconds); None where it has not.
        owed: how many publications are to be read then, as far as is known.
    """

    __slots__ = ("_behind_since", "_lines", "_missed", "catching_up", "others", "owed", "position", "reading")

    sheds = True

    def __init__(
        self,
        name: str,
        policy: TopicPolicy,
        lines: Lines,
        after: int,
        *,
        behind_since: float | None = None,
        owed: int = 0,
    ) -> None:
        super().__init__(name, policy)
        self.position = after
        """Up to here everything was taken, or waits."""
        self.catching_up = behind_since is not None
        """What comes is not kept, since it will be read."""
        self.reading = False
        """A read is under way, or not to be begun yet."""
        self.others: list[bytes] = []
        """Lines to be sent as they are."""
        self.owed = owed
        """Publications that are to be read, as far as is known."""
        self._lines = lines
        self._missed = 0
        """Publications that were lost before the next one."""
        self._behind_since = behind_since or 0.0

    def push(self, batch: Batch, now: float) -> None:
        if self.catching_up or batch.after != self.position:
            # what of it was not read yet will be
            if not self.catching_up and batch.until > self.position:
                self.catching_up, self._behind_since = True, now
            self._pass_by(batch, self.position)
            return
        if self._missed and batch.messages:
            missed = self._missed
            data = self._lines.frame(b"\n".join(self._declared([line.text for line in batch.lines()], batch)))
            self._append(self._framed(data, batch, now, missed))
        else:
            super().push(batch, now)
        self.position = batch.until

    def read(self, after: int, entries: Sequence[Entry], until: int, now: float, *, live: bool) -> None:
        """What was read, behind the position.

        Args:
            after: the position when it was asked for.
            entries: the publications.
            until: the new position.
            now: seconds.
            live: whether that is all there is, and the next comes by `push`.
        """
        if not self.catching_up or after != self.position:
            return
        self.reading = False
        self.owed = max(0, self.owed - len(entries))
        begin = size = 0
        for at, (_, line) in enumerate(entries):
            if at > begin and size + len(line) > FRAME_BYTES:
                self._append_read(entries[begin:at], now)
                begin, size = at, 0
            size += len(line) + 1
        if entries:
            self._append_read(entries[begin:], now)
        self.position = until
        self.catching_up = not live
        if live:
            self.owed = 0

    def expire(self, before: float) -> bool:
        if self._frames and self._frames[0].at <= before:
            self.shed(self.size_bytes, self.messages)
        return True

    def waits_since(self) -> float | None:
        return self._behind_since if self.catching_up else super().waits_since()

    def ages_since(self) -> float | None:
        return super().waits_since()

    def shed(self, size_bytes: int, messages: int) -> None:
        del size_bytes, messages  # all of it: it will be read again
        if not self._frames:
            return
        if not self.catching_up:
            self._behind_since = self._frames[0].at
        self.position = self._frames[0].after
        self.catching_up = True
        passing = self.messages - self._kept
        self.owed += self._kept
        self.lost += passing
        self._missed += self._missing + passing
        self.others += [line for frame in self._frames for line in frame.others]
        self._frames.clear()
        self.size_bytes = self.messages = self._kept = self._missing = 0

    @property
    def settled(self) -> bool:
        return not self._frames and not self.catching_up and not self._missed

    @property
    def hungry(self) -> bool:
        """Whether it is time to read."""
        return self.catching_up and not self.reading and not self._frames

    def _append_read(self, entries: Sequence[Entry], now: float) -> None:
        missed = self._missed
        lines = self._declared([line for _, line in entries], None)
        data = self._lines.frame(b"\n".join(lines))
        self._append(HeldFrame(now, data, len(lines), self.position, len(lines), missed, ()))
        self.position = entries[-1][0]

    def _declared(self, lines: list[bytes], batch: Batch | None) -> list[bytes]:
        """The lines, the first publication of which says how many are missing before it."""
        if self._missed:
            first = 0 if batch is None else next(at for at, line in enumerate(batch.lines()) if line.publication)
            lines = [*lines[:first], self._lines.declare(lines[first], self._missed), *lines[first + 1 :]]
            self._missed = 0
        return lines

    def _pass_by(self, batch: Batch, after: int) -> None:
        """Keep of a batch what can't be read, and count what can and what is lost."""
        self.others += batch.others()
        self.owed += batch.kept(after)
        passing = 0 if after > batch.until else batch.messages - batch.kept(batch.after)
        self.lost += passing
        self._missed += passing


class CatchingUp(Protocol):
    """A connection that is given what it could not take when it came."""

    def caught_up(self, lane: CatchUpLane, after: int, entries: Sequence[Entry], until: int, *, live: bool) -> None:
        """What comes behind a place.

        Args:
            lane: for which it was asked.
            after: the place that was asked for.
            entries: the publications.
            until: there is nothing else between the two.
            live: whether the topic's next fan-out begins there.
        """

    def fell_behind(self, lane: CatchUpLane) -> None:
        """It can't be had any more."""
