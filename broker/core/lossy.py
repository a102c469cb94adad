"""The lanes of topics of which some may be given up (`overflow = "drop_oldest"`, `"drop_newest"`, `"conflate"`)."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict, deque
from collections.abc import Hashable

from broker.core.batch import Batch
from broker.core.lane import ENTRY_OVERHEAD_BYTES, Given, Lane, Lines
from broker.core.policy import Overflow, TopicPolicy


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
