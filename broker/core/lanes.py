"""What waits of one topic for a connection that can't take more just now, by the topic's overflow policy.

A lane never loses a publication in silence: what it gives up is counted, and told with the next publication that gets
through, or it is what the lane's end tells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.core.batch import Batch
from broker.core.hub import FRAME_BYTES
from broker.core.policy import Overflow, TopicPolicy
from broker.core.ring import Entry

ENTRY_OVERHEAD_BYTES = 120
"""What an entry costs beside its bytes: an object, a number or two, its place in a container."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What a queue has to know of encoded messages.

    Args:
        frame: frames lines, joined by line feeds, for the transport.
        declare: a publication's line with how many are missing before it, beside those that it says already.
        missing_before: how many a line says are missing before it; 0 if it doesn't.
        key_of: a publication's key (None for none) in its line, by the tokens of a JSON pointer.
    """

    frame: Callable[[bytes], bytes]
    declare: Callable[[bytes, int], bytes]
    missing_before: Callable[[bytes], int]
    key_of: Callable[[bytes, tuple[str, ...]], Hashable]


class Given(NamedTuple):
    """What was taken from a lane for a write.

    Args:
        data: framed.
        messages: how many publications it holds.
        at: since when the first of it has waited (seconds).
    """

    data: bytes
    messages: int
    at: float


class Lane(ABC):
    """One topic's.

    Args:
        name: the topic's.
        policy: the topic's.
    """

    __slots__ = ("lost", "messages", "name", "policy", "size_bytes")

    sheds = True
    """Whether it can give up some of what waits."""

    def __init__(self, name: str, policy: TopicPolicy) -> None:
        self.name = name
        self.policy = policy
        self.size_bytes = 0
        self.messages = 0
        """Publications that wait."""
        self.lost = 0
        """Publications given up since whoever counts them looked last."""

    @abstractmethod
    def push(self, batch: Batch, now: float) -> None:
        """Append what has come."""

    @abstractmethod
    def take(self, at_most_bytes: int) -> Given:
        """The oldest of it, at least one entry. There has to be one."""

    @abstractmethod
    def waits_since(self) -> float | None:
        """Since when the oldest has waited (seconds)."""

    def ages_since(self) -> float | None:
        """Since when the oldest has waited that may wait for some time only (seconds)."""
        return self.waits_since()

    @abstractmethod
    def expire(self, before: float) -> bool:
        """Give up what has waited since before a time (seconds); False where that ends the connection."""

    def shed(self, size_bytes: int, messages: int) -> None:
        """Give up as much, or all there is to give up."""
        raise NotImplementedError

    @property
    @abstractmethod
    def waiting(self) -> bool:
        """Whether there is anything to take."""

    @property
    def settled(self) -> bool:
        """Whether the next publication may go past it."""
        return not self.waiting


class _Frame(NamedTuple):
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
        self._frames: deque[_Frame] = deque()
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
    def _framed(data: bytes, batch: Batch, now: float, missing: int = 0) -> _Frame:
        others = tuple(batch.others())
        return _Frame(now, data, batch.messages, batch.after, batch.kept(batch.after), missing, others)

    def _append(self, frame: _Frame) -> None:
        self._frames.append(frame)
        self._kept += frame.kept
        self._missing += frame.missing
        self.size_bytes += len(frame.data) + ENTRY_OVERHEAD_BYTES
        self.messages += frame.messages


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
        self._append(_Frame(now, data, len(lines), self.position, len(lines), missed, ()))
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


class _Waiting:
    """A line that waits."""

    __slots__ = ("at", "line", "missed", "publication")

    def __init__(self, at: float, line: bytes, missed: int, *, publication: bool) -> None:
        self.at = at
        self.line = line
        self.missed = missed
        """How many publications are missing before it."""
        self.publication = publication


class _LineLane(Lane):
    """Keeps lines, some of which are given up."""

    __slots__ = ("_lines", "_missed")

    def __init__(self, name: str, policy: TopicPolicy, lines: Lines) -> None:
        super().__init__(name, policy)
        self._lines = lines
        self._missed = 0
        """How many are missing before the oldest that waits, beside its own."""

    @property
    def settled(self) -> bool:
        return not self.waiting and not self._missed

    def _came(self, line: bytes, *, publication: bool) -> None:
        self.size_bytes += len(line) + ENTRY_OVERHEAD_BYTES
        self.messages += publication

    def _gone(self, one: _Waiting) -> None:
        self.size_bytes -= len(one.line) + ENTRY_OVERHEAD_BYTES
        self.messages -= one.publication

    def _given_up(self, one: _Waiting) -> int:
        """How many are missing with this one."""
        return one.missed + 1 + self._lines.missing_before(one.line)

    @abstractmethod
    def _pop(self) -> _Waiting:
        """Take the oldest."""

    @abstractmethod
    def _size_of_next(self) -> int | None:
        """Of the oldest (bytes); None when nothing waits."""

    def take(self, at_most_bytes: int) -> Given:
        taken: list[bytes] = []
        size = messages = 0
        at: float | None = None
        while (next_size := self._size_of_next()) is not None and (not taken or size + next_size <= at_most_bytes):
            one = self._pop()
            at = one.at if at is None else at
            line = one.line
            if one.publication:
                missed, self._missed = self._missed + one.missed, 0
                if missed:
                    line = self._lines.declare(line, missed)
                messages += 1
            taken.append(line)
            size += len(line) + 1
        return Given(self._lines.frame(b"\n".join(taken)), messages, at or 0.0)


class DroppingLane(_LineLane):
    """`drop_oldest` and `drop_newest`."""

    __slots__ = ("_entries", "_missed_last", "_newest")

    def __init__(self, name: str, policy: TopicPolicy, lines: Lines) -> None:
        super().__init__(name, policy, lines)
        self._entries: deque[_Waiting] = deque()
        self._newest = policy.overflow is Overflow.DROP_NEWEST
        self._missed_last = 0
        """How many are missing behind the newest that waits."""

    def push(self, batch: Batch, now: float) -> None:
        for line in batch.lines():
            missed = 0
            if line.publication:
                missed, self._missed_last = self._missed_last, 0
            self._entries.append(_Waiting(now, line.text, missed, publication=line.publication))
            self._came(line.text, publication=line.publication)

    def shed(self, size_bytes: int, messages: int) -> None:
        entries = self._entries
        kept: list[_Waiting] = []
        goal_bytes, goal_messages = self.size_bytes - size_bytes, self.messages - messages
        while entries and (self.size_bytes > goal_bytes or self.messages > goal_messages):
            one = entries.pop() if self._newest else entries.popleft()
            if not one.publication:
                kept.append(one)
                continue
            self._gone(one)
            self.lost += 1
            if self._newest:
                self._missed_last += self._given_up(one)
            else:
                self._missed += self._given_up(one)
        if self._newest:
            entries.extend(reversed(kept))
        else:
            entries.extendleft(reversed(kept))
        self._settle_missed()

    def expire(self, before: float) -> bool:
        kept: list[_Waiting] = []
        while self._entries and self._entries[0].at <= before:
            one = self._entries.popleft()
            if not one.publication:
                kept.append(one)
                continue
            self._gone(one)
            self.lost += 1
            self._missed += self._given_up(one)
        self._entries.extendleft(reversed(kept))
        self._settle_missed()
        return True

    def waits_since(self) -> float | None:
        # joins and leaves are kept however old they are
        return next((one.at for one in self._entries if one.publication), None)

    @property
    def waiting(self) -> bool:
        return bool(self._entries)

    @property
    def settled(self) -> bool:
        return super().settled and not self._missed_last

    def _settle_missed(self) -> None:
        if not self.messages:
            # before whichever comes next
            self._missed, self._missed_last = 0, self._missed + self._missed_last

    def _pop(self) -> _Waiting:
        one = self._entries.popleft()
        self._gone(one)
        return one

    def _size_of_next(self) -> int | None:
        return len(self._entries[0].line) if self._entries else None


class ConflatingLane(_LineLane):
    """`conflate`: of publications with the same key the newest, at the place where the first of them began to wait."""

    __slots__ = ("_entries", "_unlike")

    def __init__(self, name: str, policy: TopicPolicy, lines: Lines) -> None:
        super().__init__(name, policy, lines)
        self._entries: OrderedDict[Hashable, _Waiting] = OrderedDict()
        self._unlike = 0

    def push(self, batch: Batch, now: float) -> None:
        pointer = self.policy.conflate_key
        keys = batch.keys(lambda line: self._lines.key_of(line, pointer))
        for line, key in zip(batch.lines(), keys, strict=True):
            before = self._entries.get(key) if line.publication and key is not None else None
            if before is not None:
                self._gone(before)
                before.missed = self._given_up(before)
                before.line = line.text
                self.lost += 1
            else:
                if key is None or not line.publication:
                    self._unlike += 1
                    key = (ConflatingLane, self._unlike)  # noqa: PLW2901 - one that nothing else has
                self._entries[key] = _Waiting(now, line.text, 0, publication=line.publication)
            self._came(line.text, publication=line.publication)

    def shed(self, size_bytes: int, messages: int) -> None:
        goal_bytes, goal_messages = self.size_bytes - size_bytes, self.messages - messages
        kept: list[tuple[Hashable, _Waiting]] = []
        while self._entries and (self.size_bytes > goal_bytes or self.messages > goal_messages):
            key, one = self._entries.popitem(last=False)
            if not one.publication:
                kept.append((key, one))
                continue
            self._gone(one)
            self.lost += 1
            self._missed += self._given_up(one)
        for key, one in reversed(kept):
            self._entries[key] = one
            self._entries.move_to_end(key, last=False)

    def expire(self, before: float) -> bool:
        del before  # the newest is as good as it was
        return True

    def waits_since(self) -> float | None:
        return next(iter(self._entries.values())).at if self._entries else None

    def ages_since(self) -> float | None:
        return None

    @property
    def waiting(self) -> bool:
        return bool(self._entries)

    def _pop(self) -> _Waiting:
        _, one = self._entries.popitem(last=False)
        self._gone(one)
        return one

    def _size_of_next(self) -> int | None:
        return len(next(iter(self._entries.values())).line) if self._entries else None


def make_lane(name: str, policy: TopicPolicy, lines: Lines, after: int) -> Lane:
    """The lane of a topic, by its policy.

    Args:
        name: the topic's.
        policy: the topic's.
        lines: what is to be known of encoded messages.
        after: the topic's place up to which the connection has everything.
    """
    match policy.overflow:
        case Overflow.DROP_OLDEST | Overflow.DROP_NEWEST:
            return DroppingLane(name, policy, lines)
        case Overflow.CONFLATE:
            return ConflatingLane(name, policy, lines)
        case Overflow.CATCH_UP:
            return CatchUpLane(name, policy, lines, after)
    return HoldingLane(name, policy)
