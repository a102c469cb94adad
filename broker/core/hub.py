"""Who is subscribed to what on this node, and the fan-out of what comes in.

A message is framed once. All that one turn of the event loop brought for a topic goes out as one frame, the same bytes
to every subscriber. Large fan-outs are cut into slices, so that the loop is free again after a bounded number of
writes; topics take turns, and the order within a topic is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from broker.core.batch import Batch
from broker.core.policy import TopicPolicy
from broker.core.topic import Pattern, is_wildcard, parse_pattern

FRAME_BYTES = 65_536
"""Joined messages stay below this size, so that a frame fits every client's default limit."""


class Subscriber(Protocol):
    """A connection as the hub sees it."""

    ready: bool
    """It can take bytes now and nothing waits in its queue: the fast path."""
    write: Callable[[bytes], object]
    """Hands bytes to the socket. May raise OSError or RuntimeError when that is gone."""

    def deliver(self, topic: Topic, batch: Batch) -> None:
        """The slow path: queue the batch, or do what the overflow policy says. Never raises. It counts what becomes of
        the publications itself.
        """


class Topic:
    """A topic with subscribers on this node, or a wildcard, which is a topic of its own here: what comes in for it is
    pushed to it, beside what is pushed to the topics it matches.
    """

    __slots__ = (
        "arrivals",
        "begun",
        "fanning_out",
        "head",
        "missed",
        "name",
        "offsets",
        "pending",
        "pending_bytes",
        "policy",
        "queued",
        "subscribers",
        "waiting",
        "wildcard",
    )

    def __init__(self, name: str, policy: TopicPolicy, head: bytes) -> None:
        self.name = name
        self.wildcard = is_wildcard(name)
        self.policy = policy
        self.head = head
        """What each of its messages begins with on the wire."""
        self.subscribers: set[Subscriber] = set()
        self.pending: list[bytes] = []
        """Encoded messages that wait for the next fan-out."""
        self.pending_bytes = 0
        self.arrivals: list[float | None] = []
        """When each of them came (seconds); None for what is no publication."""
        self.offsets: list[int] = []
        """Their places in the topic's history; 0 where it has none."""
        self.begun = 0
        """The place of the last one that is no longer pending: who comes now gets what is behind it."""
        self.waiting: list[tuple[int, Callable[[], None]]] = []
        """Whom to tell when that many of the pending messages are with the subscribers."""
        self.missed = 0
        """Publications that were given up behind the last that is pending; the next one says so."""
        self.fanning_out: _FanOut | None = None
        self.queued = False
        """It has its place among the topics that wait for their turn."""

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """Call back as soon as all that has come in so far is with the subscribers (at once, if it is)."""
        if self.pending:
            self.waiting.append((len(self.pending), callback))
        elif self.fanning_out is not None:
            self.fanning_out.waiting.append(callback)
        else:
            callback()


class Pending(NamedTuple):
    """What waits for a topic's fan-out.

    Args:
        lines: encoded messages.
        arrivals: when each of them came (seconds); None for what is no publication.
        offsets: their places in the topic's history.
    """

    lines: list[bytes]
    arrivals: list[float | None]
    offsets: list[int]


class _FanOut:
    """A batch on its way to all subscribers of a topic."""

    __slots__ = ("batch", "delivered", "gone", "members", "position", "waiting")

    def __init__(self, batch: Batch, waiting: list[Callable[[], None]]) -> None:
        self.batch = batch
        self.waiting = waiting
        self.members: tuple[Subscriber, ...] = ()
        """Who is to be served, where that takes more than one slice."""
        self.gone: set[Subscriber] = set()
        """Who has left meanwhile: who comes back has come too late for this frame."""
        self.position = 0
        self.delivered = 0


class Hub:
    """All topics with subscribers on this node.

    Args:
        make_head: what each message of a topic begins with on the wire.
        make_frame: frames a payload for the transport.
        slice_writes: how many subscribers one `run` serves at most.
        on_delivered: told of each finished fan-out: its topic, how many subscribers it reached, and when each of its
            publications had come in.
    """

    __slots__ = (
        "_make_frame",
        "_make_head",
        "_on_delivered",
        "_slice",
        "_turns",
        "pending_bytes",
        "pending_messages",
        "subscriptions",
        "topics",
        "wildcards",
    )

    def __init__(
        self,
        make_head: Callable[[str], bytes],
        make_frame: Callable[[bytes], bytes],
        *,
        slice_writes: int,
        on_delivered: Callable[[Topic, int, list[float]], None],
    ) -> None:
        self.topics: dict[str, Topic] = {}
        self.wildcards: dict[str, Pattern] = {}
        """Those of them that are wildcards, and what they match."""
        self.subscriptions = 0
        """Of all subscribers to all topics."""
        self.pending_bytes = 0
        """What waits for its fan-out, of all topics."""
        self.pending_messages = 0
        self._make_head = make_head
        self._make_frame = make_frame
        self._slice = slice_writes
        self._on_delivered = on_delivered
        self._turns: deque[Topic] = deque()

    def add(self, name: str, policy: TopicPolicy, subscriber: Subscriber) -> Topic:
        """Register a subscriber. Adding it twice is the same as once."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, policy, self._make_head(name))
            if topic.wildcard:
                self.wildcards[name] = parse_pattern(name)
        if subscriber not in topic.subscribers:
            topic.subscribers.add(subscriber)
            self.subscriptions += 1
        return topic

    def remove(self, name: str, subscriber: Subscriber) -> bool:
        """Take a subscriber out; it gets nothing any more, not even of a fan-out that is under way.

        Returns:
            Whether the topic has lost its last subscriber, and is gone.
        """
        topic = self.topics.get(name)
        if topic is None:
            return False
        if subscriber in topic.subscribers:
            topic.subscribers.remove(subscriber)
            self.subscriptions -= 1
            if topic.fanning_out is not None:
                topic.fanning_out.gone.add(subscriber)
        if topic.subscribers:
            return False
        del self.topics[name]
        self.wildcards.pop(name, None)
        return True

    def push(self, topic: Topic, message: bytes, arrived: float | None, offset: int = 0) -> bool:
        """Accept an encoded message for a topic.


        Args:
            topic: whose subscribers get it.
            message: a line of theirs.
            arrived: when it came (seconds); None for what is no publication. That keeps its place among them, and is
                bounded as they are, but nobody counts it.
            offset: its place in the topic's history; 0 where it has none.

        Returns:
            Whether `run` has to be called soon, because nothing was waiting before.
        """
        topic.pending.append(message)
        size = len(message) + 1
        topic.pending_bytes += size
        self.pending_bytes += size
        self.pending_messages += 1
        topic.arrivals.append(arrived)
        # what has no place stands where the one before it does
        topic.offsets.append(offset or (topic.offsets[-1] if topic.offsets else topic.begun))
        if topic.queued:
            return False
        topic.queued = True
        self._turns.append(topic)
        return len(self._turns) == 1

    def waiting(self) -> Iterator[Topic]:
        """The topics of which something waits for its fan-out, or is on its way."""
        return iter(self._turns)

    def replace_pending(self, topic: Topic, pending: Pending) -> None:
        """Put something else in the place of what waits for a topic's fan-out. Who is to be told when something that
        waited is with the subscribers is told when as much of the rest is.
        """
        self.pending_messages += len(pending.lines) - len(topic.pending)
        self.pending_bytes -= topic.pending_bytes
        topic.pending, topic.arrivals, topic.offsets = pending
        topic.pending_bytes = sum(map(len, topic.pending)) + len(topic.pending)
        self.pending_bytes += topic.pending_bytes
        topic.waiting = [(min(messages, len(topic.pending)), callback) for messages, callback in topic.waiting]
        if not topic.pending:
            waiting, topic.waiting = topic.waiting, []
            for _, callback in waiting:
                topic.when_flushed(callback)

    def run(self) -> bool:
        """Serve one slice: at most `slice_writes` subscribers.

        Returns:
            Whether there is more to do; then call it again in the loop's next turn.
        """
        budget = self._slice
        turns = self._turns
        while turns and budget > 0:
            topic = turns.popleft()
            try:
                if topic.pending or topic.fanning_out is not None:
                    budget -= self._serve(topic, budget)
            finally:
                # here too when it failed, so that a mistake costs one fan-out and not the topic
                topic.queued = topic.fanning_out is not None or bool(topic.pending)
                if topic.queued:
                    turns.append(topic)
        return bool(turns)

    def _serve(self, topic: Topic, budget: int) -> int:
        """Begin a topic's next fan-out, or go on with the one under way; how much of the budget it took."""
        fan_out, topic.fanning_out = topic.fanning_out, None
        if fan_out is None:
            fan_out = self._begin(topic)
            if len(topic.subscribers) <= budget:
                self._write(topic, topic.subscribers, fan_out)
                self._finish(topic, fan_out)
                return len(topic.subscribers) + 1
            # it will take several slices, and people come and go meanwhile
            fan_out.members = tuple(topic.subscribers)
        begin, fan_out.position = fan_out.position, fan_out.position + budget
        present, gone = topic.subscribers, fan_out.gone
        served = [one for one in fan_out.members[begin : fan_out.position] if one in present and one not in gone]
        self._write(topic, served, fan_out)
        if fan_out.position >= len(fan_out.members):
            self._finish(topic, fan_out)
        else:
            topic.fanning_out = fan_out
        return budget

    def _begin(self, topic: Topic) -> _FanOut:
        """Frame what is pending, up to a frame's bound; the rest gets a frame of its own afterwards."""
        pending, arrivals, offsets, after = topic.pending, topic.arrivals, topic.offsets, topic.begun
        before = topic.pending_bytes
        if topic.pending_bytes <= FRAME_BYTES or len(pending) == 1:
            waiting = [callback for _, callback in topic.waiting]
            topic.pending, topic.pending_bytes, topic.arrivals, topic.offsets, topic.waiting = [], 0, [], [], []
        else:
            size = count = 0
            for message in pending:
                size += len(message) + 1
                if count and size > FRAME_BYTES:
                    break
                count += 1
            topic.pending, topic.arrivals, topic.offsets = pending[count:], arrivals[count:], offsets[count:]
            topic.pending_bytes = sum(map(len, topic.pending)) + len(topic.pending)
            waiting = [callback for messages, callback in topic.waiting if messages <= count]
            topic.waiting = [(messages - count, callback) for messages, callback in topic.waiting if messages > count]
            pending, arrivals, offsets = pending[:count], arrivals[:count], offsets[:count]
        self.pending_bytes -= before - topic.pending_bytes
        self.pending_messages -= len(pending)
        topic.begun = offsets[-1]
        frame = self._make_frame(pending[0] if len(pending) == 1 else b"\n".join(pending))
        return _FanOut(Batch(frame, pending, arrivals, offsets, after), waiting)

    def _finish(self, topic: Topic, fan_out: _FanOut) -> None:
        self._on_delivered(topic, fan_out.delivered, fan_out.batch.publications)
        for callback in fan_out.waiting:
            callback()

    @staticmethod
    def _write(topic: Topic, subscribers: Iterable[Subscriber], fan_out: _FanOut) -> None:
        frame = fan_out.batch.frame
        slow: list[Subscriber] = []
        reached = 0
        # a copy, for the case that a write makes somebody leave
        for subscriber in tuple(subscribers):
            if not subscriber.ready:
                slow.append(subscriber)
                continue
            try:
                subscriber.write(frame)
            except (OSError, RuntimeError):
                # this one's socket is gone and its connection_lost on the way; it does not concern the others
                continue
            reached += 1
        for subscriber in slow:
            subscriber.deliver(topic, fan_out.batch)
        fan_out.delivered += reached
