"""The way out of one connection: straight to the socket while it keeps up, else through a queue.

Nothing here raises into its caller, and what a write brings about (a full socket, a connection that ends) is seen
before it returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker.core.batch import Batch
from broker.core.behind import CatchUpLane
from broker.core.frames import BINARY, TEXT, frame
from broker.core.hub import Topic
from broker.core.policy import Overflow, TopicPolicy
from broker.core.queue import OutboundQueue
from broker.core.ring import Entry
from broker.edge.edge import Edge
from broker.wire.codes import Close, CloseCode, close

WRITE_BYTES = 65_536
"""How much of a queue goes into one write."""
TURN_BYTES = 262_144
"""How much is written in one turn of the event loop to a socket that takes it all."""
_REASONS = {Overflow.CONFLATE: "conflated"}


class Writer:
    """What is sent to one client."""

    __slots__ = ("_closing", "_flushing", "_paused", "_queue", "_transport", "edge", "ready", "write")

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.ready = False
        """Nothing stands between the fan-out and the socket."""
        self.write: Callable[[bytes], object] = nowhere
        self._transport: asyncio.Transport | None = None
        self._queue: OutboundQueue | None = None
        self._closing = False
        self._paused = False
        self._flushing = False
        """What waits is being written, or will be in a moment: who brings more need not."""

    # what subclasses say

    def close(self, reason: Close) -> None:
        """End the connection."""
        raise NotImplementedError

    def wake_by(self, when: float) -> None:
        """See to it that `expire` is called at `when` or earlier (seconds on the edge's clock)."""
        raise NotImplementedError

    def hear(self, *, listening: bool) -> None:
        """Go on reading, or stop: replies wait, and more commands would bring more of them."""

    def replied(self) -> None:
        """Replies and pings that had to wait are with the socket."""

    def ended_behind(self, topic: str) -> None:
        """What comes next of a topic can't be had any more: its subscription is to end."""

    # sending

    @property
    def blocked(self) -> bool:
        """Whether the socket takes nothing now, so that what is sent can't have arrived."""
        return self._paused

    @property
    def queue(self) -> OutboundQueue | None:
        """What waits; None when nothing does, and nothing is owed."""
        return self._queue

    @property
    def queued_bytes(self) -> int:
        """What waits for this connection."""
        return 0 if self._queue is None else self._queue.size_bytes

    @property
    def dropped(self) -> int:
        """Publications that were given up for this connection, since it was slow."""
        return self.edge.pressure.lost_by(self)

    def send(self, payload: bytes) -> None:
        """Send a text message."""
        self._send(frame(TEXT, payload))

    def send_binary(self, payload: bytes) -> None:
        """Send a binary message."""
        self._send(frame(BINARY, payload))

    def send_batch(self, topic: Topic, batch: Batch) -> None:
        """Send what came for a topic to somebody who was not among its subscribers then."""
        if not self.ready:
            self.deliver(topic, batch)
        elif self._write(batch.frame):
            self.edge.delivered({topic.policy.name: batch.messages})

    def deliver(self, topic: Topic, batch: Batch) -> None:
        """The hub's slow path: this connection can't take the batch now."""
        if self._closing or self._transport is None:
            return
        queue = self._begin_queue()
        before = queue.size_bytes
        self._queued(queue, before, fits=queue.push(topic.name, topic.policy, batch, self.edge.clock()))

    def forget(self, topic: str) -> None:
        """Nothing of this topic is sent any more, of what waits neither."""
        queue = self._queue
        if queue is None:
            return
        before = queue.size_bytes
        policy = next((lane.policy.name for lane in queue.lanes() if lane.name == topic), None)
        if policy is not None:
            self.edge.dropped({policy: queue.forget(topic)}, "unsubscribed")
            self._queued(queue, before, fits=True)

    def caught_up(self, lane: CatchUpLane, after: int, entries: Sequence[Entry], until: int, *, live: bool) -> None:
        """What was read for a topic that catches up; see `CatchUpLane.read`."""
        queue = self._queue
        if queue is not None and not self._closing and queue.has(lane):
            before = queue.size_bytes
            queue.read(lane.name, after, entries, until, self.edge.clock(), live=live)
            self._queued(queue, before, fits=True)

    def fell_behind(self, lane: CatchUpLane) -> None:
        """What was to be read for a topic that catches up has gone."""
        if self._queue is not None and not self._closing and self._queue.has(lane):
            self.ended_behind(lane.name)

    def relieve(self, size_bytes: int) -> None:
        """The node has no room left: give up so many bytes, or end."""
        queue = self._queue
        if queue is not None and not self._closing:
            before = queue.size_bytes
            self._queued(queue, before, fits=queue.relieve(size_bytes, self.edge.clock()))

    # the socket's flow control

    def pause_writing(self) -> None:
        """The socket takes no more: from now on everything queues."""
        self._paused = True
        self.ready = False

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def begin_behind(self, topic: str, policy: TopicPolicy, after: int, owed: int) -> None:
        """Let a topic, which has been subscribed to just now, begin with what comes behind a place in its history.
        Until that is with the socket it catches up, whatever its policy says of those who don't keep up.
        """
        if self._transport is not None and not self._closing:
            lane = self._begin_queue().begin_behind(topic, policy, after, owed, self.edge.clock())
            # behind the answer, which is about to be sent
            asyncio.get_running_loop().call_soon(self._go_on_behind, lane)

    def _go_on_behind(self, lane: CatchUpLane) -> None:
        lane.reading = False
        self._flush()

    # inside

    def _send(self, data: bytes) -> None:
        if self.ready or (not self._paused and not self._closing and not self._queue):
            self._write(data)  # past what is owed, too
        elif not self._closing and self._transport is not None:
            queue = self._begin_queue()
            before = queue.size_bytes
            self.hear(listening=False)
            self._queued(queue, before, fits=queue.push_control(data, self.edge.clock()))

    def _write(self, data: bytes) -> bool:
        try:
            self.write(data)
        except (OSError, RuntimeError):
            self.ready = False  # the socket is gone; connection_lost is on its way
            return False
        return True

    def _begin_queue(self) -> OutboundQueue:
        queue = self._queue
        if queue is None:
            queue = self._queue = OutboundQueue(self.edge.queue_rules)
            self.edge.pressure.begun(self)
        if not queue:
            # the earliest that anything can have waited too long; when that comes it is looked for what it is
            rules = self.edge.queue_rules
            self.wake_by(self.edge.clock() + min(rules.limit_seconds, rules.stall_seconds))
        self.ready = False
        return queue

    def _queued(self, queue: OutboundQueue, before: int, *, fits: bool) -> None:
        """The queue has changed: count it, and go on as far as the socket lets us."""
        self._count(queue, before)
        if not fits:
            self.close(close(CloseCode.SLOW))
        else:
            self._flush()

    def _flush(self) -> None:
        """Write what waits, as much as the socket takes; when that is all, the connection keeps up again."""
        if self._flushing or self._paused or self._transport is None:
            return
        queue = self._queue
        if queue is not None:
            self._flushing = True
            try:
                if not self._write_out(queue):
                    return
            finally:
                self._flushing = False
        self.ready = self._queue is None and not self._closing

    def _write_out(self, queue: OutboundQueue) -> bool:
        """Write what waits, and what is read on meanwhile; whether the socket takes more, and nothing is left."""
        written = 0
        while not self.blocked and self._queue is queue:
            if not queue:
                lane = queue.next_to_read()
                if lane is None:
                    break
                self.edge.catch_up(self, lane)  # it may have come when this returns
                continue
            if written > TURN_BYTES:
                # others have their turn, too; a socket that takes everything would never let go
                asyncio.get_running_loop().call_soon(self._flush)
                return False
            before = queue.size_bytes
            replies_wait = queue.control_waits
            taken = queue.take(WRITE_BYTES)
            written += len(taken.data)
            self._count(queue, before)
            if not self._write(taken.data):
                self.edge.dropped(taken.counts, "closed")
                return False
            self.edge.delivered(taken.counts)
            if taken.at is not None:
                self.edge.waited(self.edge.clock() - taken.at)
            if replies_wait and not queue.control_waits:
                self.hear(listening=True)
                self.replied()
        if self._queue is queue and queue.settled:
            self._drop_queue("closed")
        return not self.blocked

    def _count(self, queue: OutboundQueue, before: int) -> None:
        self.edge.pressure.changed(queue.size_bytes - before)
        for loss in queue.take_losses():
            reason = _REASONS.get(loss.overflow, "dropped")
            self.edge.dropped({loss.policy: loss.messages}, reason)
            self.edge.pressure.lost(self, loss)

    def _drop_queue(self, reason: str) -> None:
        queue = self._queue
        if queue is not None:
            self._queue = None
            self.edge.dropped(queue.waiting(), reason)
            self.edge.pressure.changed(-queue.size_bytes)
            self.edge.pressure.ended(self)

    def _expire(self, now: float) -> None:
        """Do away with what has waited too long; that may end the connection."""
        queue = self._queue
        if queue is None or now < queue.expires_at():
            return
        before = queue.size_bytes
        fits = queue.expire(now)
        self._count(queue, before)
        if not fits:
            self.close(close(CloseCode.SLOW, "too long behind"))


def nowhere(_: bytes) -> object:
    """The way out of a connection that has none (any more)."""
    raise OSError("the connection is gone")
