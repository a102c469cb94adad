"""What waits for a connection that can't take more just now. A connection that keeps up has no queue at all.

Replies and pings go first, so that publications can't starve them; then topics take turns. What becomes of publications
for which there is no room, or that have waited too long, is their topic's to say: see `lane`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from broker.core.batch import Batch
from broker.core.behind import CatchUpLane
from broker.core.lane import ENTRY_OVERHEAD_BYTES, Lane, Lines
from broker.core.lanes import make_lane
from broker.core.policy import Overflow, TopicPolicy
from broker.core.ring import Entry

TURN_BYTES = 16_384
"""How much of one topic is taken before it is another's turn."""

ROOM_AT_ONCE = 16
"""Where one topic gives way to another, it gives up this part of all room at once."""

Counts = Counter[str]
"""Publications by the name of their topic's policy."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """What all queues of a node have in common.

    Args:
        limit_bytes: the most that may wait, with an overhead for each entry; replies and pings have as much besides.
        limit_messages: the most publications that may wait.
        limit_seconds: the longest that a publication may wait.
        stall_seconds: the longest that replies and pings may wait, and so that nothing at all is taken.
        lines: what is to be known of encoded messages.
    """

    limit_bytes: int
    limit_messages: int
    limit_seconds: float
    stall_seconds: float
    lines: Lines


class Taken(NamedTuple):
    """What is to be written.

    Args:
        data: framed.
        counts: the publications in it.
        at: since when the oldest of it has waited (seconds); None where there is no publication in it.
    """

    data: bytes
    counts: Counts
    at: float | None


class Loss(NamedTuple):
    """Publications that won't be delivered."""

    topic: str
    policy: str
    overflow: Overflow
    messages: int


class OutboundQueue:
    """What waits for one connection, bounded in bytes, in publications and in age.

    Args:
        rules: the bounds.
    """

    __slots__ = (
        "_asked",
        "_behind",
        "_control",
        "_control_bytes",
        "_lanes",
        "_lost",
        "_messages",
        "_rules",
        "_turns",
        "size_bytes",
    )

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._control: deque[tuple[float, bytes]] = deque()
        self._control_bytes = 0
        self._lanes: dict[str, Lane] = {}
        """Those that aren't settled."""
        self._behind: dict[str, CatchUpLane] = {}
        """Those that have only their place; who was read for last is the last."""
        self._asked: CatchUpLane | None = None
        """For whom was read last."""
        self._turns: deque[Lane] = deque()
        """Those with something to take."""
        self._messages = 0
        self._lost: list[Lane] = []
        self.size_bytes = 0
        """Of all that waits."""

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._control or self._turns)

    @property
    def messages(self) -> int:
        """How many publications wait."""
        return self._messages

    @property
    def settled(self) -> bool:
        """Whether nothing waits, or is to be told or read, so that what comes next may go past the queue."""
        return not self._control and not self._lanes

    @property
    def control_waits(self) -> bool:
        """Whether replies or pings wait."""
        return bool(self._control)

    def lanes(self) -> Iterator[Lane]:
        """Those of all topics that something waits of, or is owed to."""
        return iter(self._lanes.values())

    def push_control(self, frame: bytes, now: float) -> bool:
        """Append a reply or a ping; False when that ends the connection, which takes nothing."""
        size = len(frame) + ENTRY_OVERHEAD_BYTES
        if self._control_bytes + size > self._rules.limit_bytes:
            return False
        self._control.append((now, frame))
        self._control_bytes += size
        self.size_bytes += size
        return True

    def push(self, topic: str, policy: TopicPolicy, batch: Batch, now: float) -> bool:
        """Append what has come for a topic; False when that ends the connection, which is too slow."""
        lane = self._lanes.get(topic)
        if lane is None:
            lane = self._lanes[topic] = make_lane(topic, policy, self._rules.lines, batch.after)
        before = self._measure(lane)
        lane.push(batch, now)
        grown = lane.size_bytes > before[0]
        return self._changed(lane, before, now) and (not grown or self._fit(lane, now))

    def begin_behind(self, topic: str, policy: TopicPolicy, after: int, owed: int, now: float) -> CatchUpLane:
        """Let a topic begin with what is to be read behind a place in its history, once `reading` is unset."""
        lane = CatchUpLane(topic, policy, self._rules.lines, after, behind_since=now, owed=owed)
        lane.reading = True
        self._lanes[topic] = self._behind[topic] = lane
        return lane

    def has(self, lane: Lane) -> bool:
        """Whether this is a topic's lane still, and not one from before it was forgotten."""
        return self._lanes.get(lane.name) is lane

    def read(self, topic: str, after: int, entries: Sequence[Entry], until: int, now: float, *, live: bool) -> None:
        """What was read for a topic that catches up; see `CatchUpLane.read`."""
        lane = self._lanes.get(topic)
        if isinstance(lane, CatchUpLane):
            before = self._measure(lane)
            lane.read(after, entries, until, now, live=live)
            self._changed(lane, before, now)
            if max(self._excess()) > 0 and self._messages > lane.messages:
                self._shed(lane, lane.size_bytes, lane.messages, now)  # others have filled the room: it is read again

    def catching_up(self) -> Iterator[CatchUpLane]:
        """The lanes that have only their place."""
        return iter(self._behind.values())

    def next_to_read(self) -> CatchUpLane | None:
        """The lane for which something is to be read now: one after the other, so that no more comes than fits."""
        if self._asked is not None and self._asked.reading and self.has(self._asked):
            return None
        lane = self._asked = next((lane for lane in self._behind.values() if lane.hungry), None)
        if lane is not None:
            lane.reading = True
            self._behind[lane.name] = self._behind.pop(lane.name)  # the others have their turn before it
        return lane

    def forget(self, topic: str) -> int:
        """Drop what waits of a topic, and what it is owed; how many publications that were."""
        lane = self._lanes.pop(topic, None)
        self._behind.pop(topic, None)
        if lane is None:
            return 0
        self.size_bytes -= lane.size_bytes
        self._messages -= lane.messages
        if lane.waiting:
            self._turns.remove(lane)
        return lane.messages + (lane.owed if isinstance(lane, CatchUpLane) else 0)

    def expires_at(self) -> float:
        """When something will have waited too long (seconds; infinity for never)."""
        since = [since for lane in self._turns if (since := lane.ages_since()) is not None]
        aged = min(since, default=inf) + self._rules.limit_seconds
        return min(aged, self._control[0][0] + self._rules.stall_seconds) if self._control else aged

    def waits_since(self) -> float | None:
        """Since when the oldest of it has waited (seconds)."""
        since = [since for lane in self._lanes.values() if (since := lane.waits_since()) is not None]
        if self._control:
            since.append(self._control[0][0])
        return min(since, default=None)

    def expire(self, now: float) -> bool:
        """Do away with what has waited too long; False when that ends the connection."""
        before = now - self._rules.limit_seconds
        if self._control and self._control[0][0] <= now - self._rules.stall_seconds:
            return False
        for lane in tuple(self._turns):
            measure = self._measure(lane)
            if not lane.expire(before) or not self._changed(lane, measure, now):
                return False
        return True

    def relieve(self, size_bytes: int, now: float) -> bool:
        """Give up so many bytes of publications, as far as their topics' policies let that be done; False when they
        don't, so that it ends the connection.
        """
        goal = max(0, self.size_bytes - size_bytes)
        while self.size_bytes > goal:
            lane = self._largest()
            if lane is None or not self._shed(lane, self.size_bytes - goal, 0, now):
                return False
        return True

    def take(self, at_most_bytes: int) -> Taken:
        """What is to be written next: about as much, but one entry at least. There has to be something."""
        parts: list[bytes] = []
        size = 0
        counts: Counts = Counter()
        at: float | None = None
        while self._control and (not parts or size + len(self._control[0][1]) <= at_most_bytes):
            _, frame = self._control.popleft()
            parts.append(frame)
            size += len(frame)
            self._control_bytes -= len(frame) + ENTRY_OVERHEAD_BYTES
            self.size_bytes -= len(frame) + ENTRY_OVERHEAD_BYTES
        while self._turns and not self._control and (not parts or size < at_most_bytes):
            lane = self._turns.popleft()
            before_bytes, before_messages = lane.size_bytes, lane.messages
            given = lane.take(min(TURN_BYTES, at_most_bytes))
            self.size_bytes += lane.size_bytes - before_bytes
            self._messages += lane.messages - before_messages
            if lane.waiting:
                self._turns.append(lane)
            elif lane.settled:
                del self._lanes[lane.name]
                self._behind.pop(lane.name, None)
            parts.append(given.data)
            size += len(given.data)
            if given.messages:
                counts[lane.policy.name] += given.messages
                at = given.at if at is None else min(at, given.at)
        return Taken(b"".join(parts), counts, at)

    def waiting(self) -> Counts:
        """The publications that wait, or are to be read."""
        counts: Counts = Counter()
        for lane in self._turns:
            counts[lane.policy.name] += lane.messages
        for behind in self._behind.values():
            counts[behind.policy.name] += behind.owed
        return +counts

    def take_losses(self) -> list[Loss]:
        """What was given up since this was asked last."""
        losses = [Loss(lane.name, lane.policy.name, lane.policy.overflow, lane.lost) for lane in self._lost]
        for lane in self._lost:
            lane.lost = 0
        self._lost = []
        return losses

    @staticmethod
    def _measure(lane: Lane) -> tuple[int, int, bool]:
        return lane.size_bytes, lane.messages, lane.waiting

    def _changed(self, lane: Lane, before: tuple[int, int, bool], now: float) -> bool:
        """A lane has grown or shrunk; False where what it has to say besides ends the connection."""
        size_bytes, messages, waiting = before
        self.size_bytes += lane.size_bytes - size_bytes
        self._messages += lane.messages - messages
        if lane.waiting and not waiting:
            self._turns.append(lane)
        elif waiting and not lane.waiting:
            self._turns.remove(lane)
        if lane.lost and lane not in self._lost:
            self._lost.append(lane)
        if lane.settled:
            self._lanes.pop(lane.name, None)
        if isinstance(lane, CatchUpLane):
            if lane.catching_up:
                self._behind.setdefault(lane.name, lane)
            else:
                self._behind.pop(lane.name, None)
            if lane.others:
                others, lane.others = lane.others, []
                return self.push_control(self._rules.lines.frame(b"\n".join(others)), now)
        return True

    def _fit(self, lane: Lane, now: float) -> bool:
        """Make room for what has come; False when there is none."""
        while True:
            excess_bytes, excess_messages = self._excess()
            if excess_bytes <= 0 and excess_messages <= 0:
                return True
            # who brings too much gives way; else whoever can, rather than that all end
            if lane.sheds and lane.messages:
                giving, more_bytes, more_messages = lane, 0, 0
            else:
                # some more of it, so that it is not looked for with every message
                more_bytes = self._rules.limit_bytes // ROOM_AT_ONCE
                more_messages = self._rules.limit_messages // ROOM_AT_ONCE
                largest = self._largest()
                if largest is None:
                    return False
                giving = largest
            wanted_bytes = excess_bytes + more_bytes if excess_bytes > 0 else 0
            wanted_messages = excess_messages + more_messages if excess_messages > 0 else 0
            if not self._shed(giving, wanted_bytes, wanted_messages, now):
                return False

    def _excess(self) -> tuple[int, int]:
        """What waits beyond the bounds: bytes and publications; not above 0 where it fits."""
        size_bytes = self.size_bytes - self._control_bytes
        return size_bytes - self._rules.limit_bytes, self._messages - self._rules.limit_messages

    def _largest(self) -> Lane | None:
        able = [lane for lane in self._turns if lane.sheds and lane.messages]
        return max(able, key=lambda lane: lane.size_bytes, default=None)

    def _shed(self, lane: Lane, size_bytes: int, messages: int, now: float) -> bool:
        """Let a lane with publications give some up; False where that ends the connection."""
        before = self._measure(lane)
        lane.shed(size_bytes, messages)
        return self._changed(lane, before, now)
