"""Runs the hub: what is pushed goes out in the loop's next turns, a slice in each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from broker.core.frames import text_frame
from broker.core.hub import Hub, Pending, Topic
from broker.core.lane import Lines
from broker.core.shedding import may_shed, shed
from broker.metrics import Metrics
from broker.wire.lines import declare, key_of, missing_before
from broker.wire.replies import publication_head

logger = logging.getLogger(__name__)

LINES = Lines(text_frame, declare, missing_before, key_of)
"""What queues have to know of encoded messages."""
SLICE_WRITES = 128
"""Subscribers served in one turn of the event loop: about a millisecond of writes. What else there is to do takes
several turns, a publisher's answer for example, and must not wait for a large fan-out in each of them."""


class FanOut:
    """The way from a topic to its subscribers here.

    Args:
        metrics: what is counted.
        clock: a monotonic clock in seconds.
        pending_bytes: the most that may wait to be written, of all topics together.
        end: ends all subscriptions to a topic.
    """

    def __init__(
        self, metrics: Metrics, clock: Callable[[], float], pending_bytes: int, end: Callable[[str], None]
    ) -> None:
        self.hub = Hub(publication_head, text_frame, slice_writes=SLICE_WRITES, on_delivered=self._delivered)
        self._metrics = metrics
        self._clock = clock
        self._loop = asyncio.get_running_loop()  # kept: asking for it costs a system call each time
        self._running = False
        self._pending_bytes = pending_bytes
        self._end = end
        self._shedding: float | None = None

    @property
    def congested(self) -> bool:
        """Whether what can wait elsewhere had better do so: half of what may wait here does."""
        return self.hub.pending_bytes * 2 > self._pending_bytes

    def observe(self) -> None:
        """Bring the gauges up to date, and say when shedding is over. Call it about every second."""
        self._metrics.pending_bytes.set(self.hub.pending_bytes)
        self._metrics.pending_messages.set(self.hub.pending_messages)
        if self._shedding is not None and not self.congested:
            logger.warning("this node keeps up with NATS again, after %.0f s", self._clock() - self._shedding)
            self._shedding = None

    def push(self, topic: Topic, line: bytes, offset: int = 0) -> None:
        """Send the subscribers of a topic a publication, with its place in the history where it has one."""
        self._push(topic, line, self._clock(), offset)

    def push_stored(self, name: str, line: bytes, offset: int) -> None:
        """Send the subscribers of a durable topic, if there are any, a publication."""
        topic = self.hub.topics.get(name)
        if topic is not None:
            self._push(topic, line, self._clock(), offset)

    def tell(self, name: str, line: bytes) -> None:
        """Send the subscribers of a topic what is no publication, in its place among these."""
        topic = self.hub.topics.get(name)
        if topic is not None:
            self._push(topic, line, None, 0)

    def _push(self, topic: Topic, line: bytes, arrived: float | None, offset: int) -> None:
        if self.hub.pending_bytes > self._pending_bytes:
            self._shed()
        if topic.missed and arrived is not None:
            line, topic.missed = declare(line, topic.missed), 0
        if self.hub.push(topic, line, arrived, offset) and not self._running:
            self._running = True
            self._loop.call_soon(self._run)

    def _shed(self) -> None:
        """More has come than can be written. Make room, where most waits, by the topics' policies. Durable topics are
        left alone: what comes of them stays in the stream while this is congested.
        """
        if self._shedding is None:
            self._shedding = self._clock()
            text = "this node falls behind NATS: %d bytes in %d messages wait to be written; what has to give way does"
            logger.warning(text, self.hub.pending_bytes, self.hub.pending_messages)
        while self.congested:
            able = [topic for topic in self.hub.waiting() if topic.pending and may_shed(topic)]
            if not able:
                return
            topic = max(able, key=lambda one: one.pending_bytes)
            outcome = shed(topic, LINES)
            if outcome is not None:
                left, gone = outcome
                self._count_shed(topic, gone)
                self.hub.replace_pending(topic, left)
                if not gone:
                    return  # nothing but joins and leaves
            else:
                self._count_shed(topic, sum(arrived is not None for arrived in topic.arrivals))
                self.hub.replace_pending(topic, Pending([], [], []))
                self._end(topic.name)

    def _count_shed(self, topic: Topic, messages: int) -> None:
        self._metrics.dropped.labels(topic.policy.name, "shed").inc(messages * len(topic.subscribers))

    def _run(self) -> None:
        try:
            self._running = self.hub.run()
        except Exception:
            # of one topic; the others go on
            logger.exception("a fan-out failed")
        if self._running:
            self._loop.call_soon(self._run)

    def _delivered(self, topic: Topic, subscribers: int, arrivals: list[float]) -> None:
        self._metrics.count_delivered(topic.policy.name, subscribers * len(arrivals))
        now = self._clock()
        observe = self._metrics.publish_to_write.observe
        for arrived in arrivals:
            observe(now - arrived)
