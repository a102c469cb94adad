"""Whether this node is overloaded: looked at with each tick, told in the log, the metrics and readiness."""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker.core.overload import Overload, OverloadLimits
from broker.metrics import Metrics

logger = logging.getLogger(__name__)


class OverloadWatch:
    """Looks at one node.

    Args:
        limits: what is too much.
        metrics: where it shows.
    """

    def __init__(self, limits: OverloadLimits, metrics: Metrics) -> None:
        self._state = Overload(limits)
        self._metrics = metrics
        self.seconds = limits.seconds
        """How long it lasts at least."""
        self.queued_bytes: Callable[[], int] = lambda: 0
        """What waits for all connections of this node; told by whoever knows."""

    @property
    def active(self) -> bool:
        return self._state.active

    def observe(self, now: float, lag_seconds: float) -> None:
        """Take a look, at `now`, which is so much later than it was to be."""
        queued = self.queued_bytes()
        if not self._state.observe(now, lag_seconds, queued):
            return
        self._metrics.overloaded.set(self._state.active)
        lasted = now - self._state.since
        if self._state.active:
            text = "overloaded for %.1f s (%.0f ms late, %d bytes queued); nobody new is let in"
        else:
            text = "not overloaded any more after %.1f s (%.0f ms late, %d bytes queued)"
        logger.warning(text, lasted, lag_seconds * 1000, queued)
