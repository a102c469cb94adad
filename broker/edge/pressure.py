"""What waits for all connections of a node together: its bound, and who is behind."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from broker.core.behind import CatchUpLane
from broker.core.pressure import SlowConnection, SlowTopic
from broker.core.queue import Loss
from broker.metrics import Metrics

if TYPE_CHECKING:
    from broker.edge.writer import Writer

logger = logging.getLogger(__name__)

RELIEVED = 0.9
"""Down to which part of the bound room is made when it is reached."""
TOPICS_WITH_LOSSES = 4096
"""Topics whose losses are remembered; those with the latest."""
BEGUN_SECONDS = 2.0
"""Pressure that is over sooner is not worth a line in the log."""
OVER_SECONDS = 10.0


class Pressure:
    """Counts what waits, and makes room where it is too much.

    Args:
        metrics: what is counted.
        clock: a monotonic clock in seconds.
        limit_bytes: the most that may wait for all connections together.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float], limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.queued_bytes = 0
        self._metrics = metrics
        self._clock = clock
        self._behind: dict[Writer, None] = {}
        """Those with a queue; in the order in which they fell behind."""
        self._losses: dict[Writer, int] = {}
        self._topic_losses: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._relieving = False
        self._since: float | None = None
        self._told = False
        self._quiet_since = 0.0
        self._lost = 0
        self._worst_bytes = 0

    # what writers tell

    def begun(self, writer: Writer) -> None:
        """A connection has a queue from now on."""
        self._behind[writer] = None

    def ended(self, writer: Writer) -> None:
        """It has none any more."""
        self._behind.pop(writer, None)

    def gone(self, writer: Writer) -> None:
        """The connection has ended."""
        self._losses.pop(writer, None)

    def changed(self, change_bytes: int) -> None:
        """A queue has grown or shrunk."""
        self.queued_bytes += change_bytes
        if self.queued_bytes > self.limit_bytes and not self._relieving:
            self._relieving = True
            # not now: the one that has grown is in the middle of it
            asyncio.get_running_loop().call_soon(self._relieve)

    def lost(self, writer: Writer, loss: Loss) -> None:
        """Something was given up."""
        self._lost += loss.messages
        self._losses[writer] = self._losses.get(writer, 0) + loss.messages
        _, before = self._topic_losses.pop(loss.topic, ("", 0))
        self._topic_losses[loss.topic] = loss.policy, before + loss.messages
        if len(self._topic_losses) > TOPICS_WITH_LOSSES:
            self._topic_losses.popitem(last=False)

    # the bound

    def _relieve(self) -> None:
        """Make room, the worst offenders first: each gives up half of what waits for it, by its topics' policies, or
        ends.
        """
        goal = int(self.limit_bytes * RELIEVED)
        try:
            while self.queued_bytes > goal:
                for writer in sorted(self._behind, key=lambda one: one.queued_bytes, reverse=True):
                    if self.queued_bytes <= goal:
                        break
                    writer.relieve(min(self.queued_bytes - goal, (writer.queued_bytes + 1) // 2))
        finally:
            self._relieving = False

    # what is told

    def lost_by(self, writer: Writer) -> int:
        """How many publications were given up for a connection."""
        return self._losses.get(writer, 0)

    def observe(self) -> None:
        """Bring the gauges up to date, and say when pressure begins and ends. Call it about every second."""
        now = self._clock()
        slow = catching_up = 0
        for writer in self._behind:
            queue = writer.queue
            if queue is None:
                continue
            lanes = sum(1 for _ in queue.catching_up())
            catching_up += lanes
            slow += bool(queue) or lanes > 0
        self._metrics.slow_connections.set(slow)
        self._metrics.queued_bytes.set(self.queued_bytes)
        self._metrics.catching_up.set(catching_up)
        self._worst_bytes = max(self._worst_bytes, self.queued_bytes)
        if slow:
            self._quiet_since = now
            self._since = now if self._since is None else self._since
            if not self._told and now - self._since >= BEGUN_SECONDS:
                self._told = True
                text = "pressure begins: %d connections don't keep up, %d bytes wait for them"
                logger.warning(text, slow, self.queued_bytes)
        elif self._since is not None and now - self._quiet_since >= OVER_SECONDS:
            if self._told:
                text = "pressure ends after %.0f s: %d bytes waited at most, %d publications were given up"
                logger.warning(text, self._quiet_since - self._since, self._worst_bytes, self._lost)
            self._since, self._told, self._lost, self._worst_bytes = None, False, 0, 0

    def slow_connections(self) -> Iterator[SlowConnection]:
        """Who has something waiting, or has lost something."""
        now = self._clock()
        for writer in tuple({**self._behind, **dict.fromkeys(self._losses)}):
            queue = writer.queue
            since = None if queue is None else queue.waits_since()
            yield SlowConnection(
                outlet=writer,
                queued_bytes=0 if queue is None else queue.size_bytes,
                queued_messages=0 if queue is None else queue.messages,
                lag_seconds=0.0 if since is None else now - since,
                dropped=self._losses.get(writer, 0),
            )

    def slow_topics(self) -> Iterator[SlowTopic]:
        """Topics of which something waits, or was lost lately."""
        now = self._clock()
        found: dict[str, SlowTopic] = {
            name: SlowTopic(name, policy, 0, 0, 0.0, losses) for name, (policy, losses) in self._topic_losses.items()
        }
        for writer in self._behind:
            for lane in () if writer.queue is None else writer.queue.lanes():
                topic = found.get(lane.name)
                if topic is None:
                    topic = found[lane.name] = SlowTopic(lane.name, lane.policy.name, 0, 0, 0.0, 0)
                since = lane.waits_since()
                topic.queued_bytes += lane.size_bytes
                topic.slow += lane.waiting or (isinstance(lane, CatchUpLane) and lane.catching_up)
                topic.lag_seconds = max(topic.lag_seconds, 0.0 if since is None else now - since)
        yield from found.values()
