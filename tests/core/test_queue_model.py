"""The queue against a model of what has to come out of it: all policies on one connection, any order of events."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.core.behind import CatchUpLane
from broker.core.lane import Lane
from broker.core.policy import Overflow, TopicPolicy
from broker.core.queue import ROOM_AT_ONCE
from tests.core.queueing import ENTRY, batch_of, entries_of, framed, policy_of, queue_with, read_out

LIMIT_BYTES = 1700
LIMIT_MESSAGES = 9
LIMIT_SECONDS = 10.0
LONGEST = 40
"""Bytes of a line, at most."""
POLICIES = {
    "oldest": policy_of(Overflow.DROP_OLDEST),
    "older": policy_of(Overflow.DROP_OLDEST),
    "newest": policy_of(Overflow.DROP_NEWEST),
    "prices": policy_of(Overflow.CONFLATE),
    "state": policy_of(Overflow.CONFLATE, key=False),
    "kept": policy_of(Overflow.CATCH_UP),
    "also": policy_of(Overflow.CATCH_UP),
    "held": policy_of(Overflow.DISCONNECT),
}
PLACES = st.integers(0, 2)
"""Of a topic among those that the connection is subscribed to."""
KEYS = st.sampled_from(["", "a", "b", "c", "d", "notice"])
"""Of a publication; empty for none. A notice is no publication."""


@dataclass
class Entry:
    line: bytes
    key: bytes
    at: float
    publication: bool
    missing: int = 0
    """How many are missing because of this one, or before it."""


@dataclass
class Life:
    """What the model knows of a topic on this connection."""

    name: str
    policy: TopicPolicy
    waiting: list[Entry] = field(default_factory=list)
    missing: int = 0
    """Before the first publication that waits, or before the next one that comes."""
    missing_last: int = 0
    """Before the next one that comes."""
    published: int = 0
    delivered: int = 0
    declared: int = 0
    forgotten: int = 0
    lost: int = 0
    """As the queue has counted it."""
    history: list[bytes] = field(default_factory=list)
    """Where there is one: what was published, by its offset."""
    next: int = 0
    """Where there is one: the place of the next that has to come."""
    asked: int | None = None
    """From where a read is under way."""
    notices: set[bytes] = field(default_factory=set)
    """On their way, where they may overtake."""
    left_over: set[bytes] = field(default_factory=set)
    """Notices that may still come, or not, for they were on their way when the client unsubscribed."""

    @property
    def overflow(self) -> Overflow:
        return self.policy.overflow

    def settle(self) -> None:
        if not any(one.publication for one in self.waiting) and self.overflow is not Overflow.CONFLATE:
            self.missing, self.missing_last = 0, self.missing + self.missing_last

    def comes(self, line: bytes, key: bytes, at: float, *, publication: bool) -> int:
        """How many it replaces."""
        if self.overflow is Overflow.CATCH_UP:
            if publication:
                self.history.append(line)
            else:
                self.notices.add(line)
            return 0
        if self.overflow is Overflow.CONFLATE and publication and (key or not self.policy.conflate_key):
            for one in self.waiting:
                if one.publication and one.key == key:
                    one.line, one.missing = line, one.missing + 1
                    return 1
        entry = Entry(line, key, at, publication)
        if publication and self.overflow is not Overflow.CONFLATE:
            entry.missing, self.missing_last = self.missing_last, 0
        self.waiting.append(entry)
        return 0

    def gives_up(self, count: int) -> None:
        """The queue had no room for so many."""
        assert self.overflow in (Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.CONFLATE), "nothing may be lost"
        publications = [one for one in self.waiting if one.publication]
        assert count <= len(publications)
        newest = self.overflow is Overflow.DROP_NEWEST
        gone = publications[len(publications) - count :] if newest else publications[:count]
        missing = sum(one.missing + 1 for one in gone)
        if newest:
            self.missing_last += missing
        else:
            self.missing += missing
        self.waiting = [one for one in self.waiting if one not in gone]
        self.settle()

    def expires(self, before: float) -> int:
        """How many are too old."""
        if self.overflow not in (Overflow.DROP_OLDEST, Overflow.DROP_NEWEST):
            return 0
        gone = [one for one in self.waiting if one.publication and one.at <= before]
        self.missing += sum(one.missing + 1 for one in gone)
        self.waiting = [one for one in self.waiting if one not in gone]
        self.settle()
        return len(gone)

    def delivers(self, line: bytes, declared: int) -> None:
        """The queue has let a line out."""
        if self.overflow is Overflow.CATCH_UP:
            if line in self.notices | self.left_over:
                self.notices.discard(line)
                return
            assert line == self.history[self.next], f"{self.history[self.next]!r} was due"
            assert declared == 0
            self.next += 1
            self.delivered += 1
            return
        one = self.waiting.pop(0)
        due = 0
        if one.publication:
            due, self.missing = self.missing + one.missing, 0
            self.delivered += 1
        assert (line, declared) == (one.line, due)
        self.declared += declared

    def forgets(self) -> None:
        self.waiting.clear()
        self.left_over |= self.notices
        self.notices.clear()
        self.missing = self.missing_last = 0
        self.next = len(self.history)
        self.asked = None
        self.forgotten = self.published - self.delivered - self.declared


class QueueModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.names: list[str] = []
        self.connect()

    @initialize(names=st.lists(st.sampled_from(sorted(POLICIES)), min_size=1, max_size=3, unique=True))
    def subscribe(self, names: list[str]) -> None:
        self.names = names

    def connect(self) -> None:
        self.queue = queue_with(LIMIT_BYTES, LIMIT_MESSAGES, LIMIT_SECONDS)
        self.lives = {name: Life(name, policy) for name, policy in POLICIES.items()}
        self.control: list[tuple[float, bytes]] = []

    @rule(place=PLACES, keys=st.lists(KEYS, min_size=1, max_size=7), size=st.integers(0, 20))
    def something_comes(self, place: int, keys: list[str], size: int) -> None:
        self.push(self.names[place % len(self.names)], keys, size)

    def push(self, topic: str, keys: list[str], size: int) -> None:
        life = self.lives[topic]
        after = len(life.history)
        lines: list[bytes] = []
        offsets: list[int] = []
        replaced = at = 0
        for key in keys:
            self.count += 1
            publication = key != "notice"
            text = f"{topic}{self.count}".encode() + b"x" * size
            line = key.encode() + b":" + text if key and publication else text
            assert len(line) <= LONGEST
            lines.append(line)
            life.published += publication
            at = len(life.history) + publication
            offsets.append(at if life.overflow is Overflow.CATCH_UP else 0)
            replaced += life.comes(
                line, key.encode() if life.policy.conflate_key else b"", self.now, publication=publication
            )
        others = [line for line, key in zip(lines, keys, strict=True) if key == "notice"]
        fits = self.queue.push(
            topic, life.policy, batch_of(*lines, after=after, offsets=offsets, others=others), self.now
        )
        given_up = self.losses(replaced={topic: replaced})
        if not fits:
            # it ends only when nobody has anything left to give up, or replies and notices have filled their part
            able = [lane for lane in self.queue.lanes() if lane.sheds and lane.messages]
            own = self.queue._control_bytes  # notices of topics that catch up are with them
            notices = sum(len(line) + 1 for life in self.lives.values() for line in life.notices | life.left_over)
            assert not able or own + ENTRY + notices + len(lines) * LONGEST > LIMIT_BYTES
            self.connect()
        elif given_up and not any(True for _ in self.queue.catching_up()):
            # no more than had to be; those that catch up give up all at once
            room = LIMIT_BYTES - (self.queue.size_bytes - self.control_bytes)
            assert room < ENTRY + LONGEST + 1 + LIMIT_BYTES // ROOM_AT_ONCE or self.queue.messages == LIMIT_MESSAGES

    @property
    def control_bytes(self) -> int:
        return sum(len(frame) + ENTRY for _, frame in self.control)

    @rule(count=st.integers(1, 5))
    def reply(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            frame = framed(b"reply%d" % self.count)
            fits = self.queue.push_control(frame, self.now)
            own = self.queue._control_bytes  # notices of topics that catch up are with them
            if not fits:
                assert own + len(frame) + ENTRY > LIMIT_BYTES
                self.connect()
                return
            assert own <= LIMIT_BYTES
            self.control.append((self.now, frame))

    @precondition(lambda self: bool(self.queue))
    @rule(at_most=st.integers(1, 60) | st.integers(1, 600))
    def take(self, at_most: int) -> None:
        before = self.queue.size_bytes
        taken = self.queue.take(at_most)
        assert taken.data
        assert self.queue.size_bytes < before
        publications = dict.fromkeys(POLICIES, 0)
        replies_over = False
        for line, declared in read_out(taken.data):
            if line.startswith(b"reply"):
                assert not replies_over, "a reply has waited for a publication"
                assert framed(line) == self.control.pop(0)[1]
                continue
            life = self.life_of(line)
            if line not in life.notices | life.left_over:
                replies_over = True
                assert not self.control, "a reply has waited for a publication"
            before_delivered = life.delivered
            life.delivers(line, declared)
            publications[life.name] += life.delivered - before_delivered
        by_policy: dict[str, int] = {}
        for name, number in publications.items():
            policy = POLICIES[name].name
            by_policy[policy] = by_policy.get(policy, 0) + number
        assert +taken.counts == {name: number for name, number in by_policy.items() if number}

    def life_of(self, line: bytes) -> Life:
        text = line.rpartition(b":")[2]
        return next(life for name, life in self.lives.items() if text.startswith(name.encode()))

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.now < self.queue.expires_at():
            return
        before = self.now - LIMIT_SECONDS
        held = self.lives["held"].waiting
        must_end = bool(self.control and self.control[0][0] <= before) or bool(held and held[0].at <= before)
        fits = self.queue.expire(self.now)
        if not fits:
            notices = any(life.notices or life.left_over for life in self.lives.values())
            assert must_end or notices
            self.losses(expired=True)
            self.connect()
            return
        assert not must_end
        expected = {name: life.expires(before) for name, life in self.lives.items()}
        assert self.take_losses() == {name: number for name, number in expected.items() if number}
        assert self.queue.expires_at() > self.now

    @precondition(lambda self: self.queue.size_bytes > 0)
    @rule(share=st.floats(0.1, 1.0))
    def the_node_has_no_room(self, share: float) -> None:
        before = self.queue.size_bytes
        size = int(before * share)
        fits = self.queue.relieve(size, self.now)
        self.losses()
        if not fits:
            assert not any(lane.sheds and lane.messages for lane in self.queue.lanes()) or self.control
            self.connect()
        else:
            assert self.queue.size_bytes <= before - size

    @rule(place=PLACES)
    def unsubscribe(self, place: int) -> None:
        topic = self.names[place % len(self.names)]
        life = self.lives[topic]
        waiting = sum(one.publication for one in life.waiting)
        dropped = self.queue.forget(topic)
        if life.overflow is not Overflow.CATCH_UP:
            assert dropped == waiting
        assert all(lane.name != topic for lane in self.queue.lanes())
        life.forgets()

    @rule()
    def it_asks_for_what_is_next(self) -> None:
        lane = self.queue.next_to_read()
        if lane is not None:
            life = self.lives[lane.name]
            assert [one.name for one in self.lives.values() if one.asked is not None] == []
            assert lane.position == life.next
            life.asked = lane.position

    @rule(topic=st.sampled_from(["kept", "also"]), count=st.integers(0, 6))
    def something_was_read(self, topic: str, count: int) -> None:
        life = self.lives[topic]
        if life.asked is None:
            return
        after, life.asked = life.asked, None
        lines = life.history[after : after + max(1, count)]
        until = after + len(lines)
        live = until == len(life.history)
        self.queue.read(topic, after, entries_of(after, *lines), until, self.now, live=live)
        self.losses()

    def take_losses(self) -> dict[str, int]:
        losses = {loss.topic: loss.messages for loss in self.queue.take_losses()}
        for topic, messages in losses.items():
            self.lives[topic].lost += messages
        return losses

    def losses(self, *, replaced: dict[str, int] | None = None, expired: bool = False) -> bool:
        """Note what the queue has given up; whether that was for lack of room."""
        given_up = False
        expected = dict(replaced or {})
        for topic, messages in self.take_losses().items():
            number = messages - expected.pop(topic, 0)
            if number and not expired:
                self.lives[topic].gives_up(number)
                given_up = True
        assert expired or not any(expected.values()), "what was replaced was not counted"
        return given_up

    @invariant()
    def bounds_hold(self) -> None:
        queue = self.queue
        assert queue.messages <= LIMIT_MESSAGES
        assert queue.size_bytes - queue._control_bytes <= LIMIT_BYTES
        assert queue.size_bytes == sum(lane.size_bytes for lane in queue.lanes()) + queue._control_bytes

    @invariant()
    def nothing_is_lost_in_silence(self) -> None:
        lanes: dict[str, Lane] = {lane.name: lane for lane in self.queue.lanes()}
        for name, life in self.lives.items():
            lane = lanes.get(name)
            waiting = 0 if lane is None else lane.messages
            if life.overflow is Overflow.CATCH_UP:
                behind = len(life.history) - life.next
                assert waiting == behind or (isinstance(lane, CatchUpLane) and lane.catching_up)
                continue
            assert waiting == sum(one.publication for one in life.waiting)
            missing = life.missing + life.missing_last + sum(one.missing for one in life.waiting)
            assert life.delivered + life.declared + life.forgotten + waiting + missing == life.published
            # what is not told yet keeps the next publication from going past
            assert lane is not None or missing == waiting == 0

    @rule(now=st.sampled_from([False, False, False, True]))
    def it_reads_on(self, *, now: bool) -> None:
        """Everything comes, or is declared with one publication more. Seldom, so that queues get full in between."""
        if not now:
            return
        for _ in range(2):
            for topic in self.names:
                self.push(topic, ["a"], 0)
                while self.queue or any(True for _ in self.queue.catching_up()):
                    while self.queue:
                        self.take(600)
                    self.it_asks_for_what_is_next()
                    for durable in ("kept", "also"):
                        self.something_was_read(durable, 3)
        assert self.queue.settled
        assert self.queue.size_bytes == self.queue.messages == 0
        for life in self.lives.values():
            assert life.delivered + life.declared + life.forgotten == life.published
            assert not life.notices


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(deadline=None, max_examples=400, stateful_step_count=60, report_multiple_bugs=False)
