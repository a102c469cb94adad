"""Runs the hub: what is pushed goes out in the loop's next turns, a slice in each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from broker.core.frames import text_frame
from broker.core.hub import Hub, Topic
from broker.metrics import Metrics
from broker.wire.replies import publication_head

logger = logging.getLogger(__name__)

SLICE_WRITES = 128
"""Subscribers served in one turn of the event loop: about a millisecond of writes. What else there is to do takes
several turns, a publisher's answer for example, and must not wait for a large fan-out in each of them."""


class FanOut:
    """The way from a topic to its subscribers here.

    Args:
        metrics: what is counted.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.hub = Hub(publication_head, text_frame, slice_writes=SLICE_WRITES, on_delivered=self._delivered)
        self._metrics = metrics
        self._clock = clock
        self._loop = asyncio.get_running_loop()  # kept: asking for it costs a system call each time
        self._running = False

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
        if self.hub.push(topic, line, arrived, offset) and not self._running:
            self._running = True
            self._loop.call_soon(self._run)

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
