"""When a node has more to do than it can, told from how late its event loop is and how much it has queued."""

from __future__ import annotations

from dataclasses import dataclass

FULL_SHARE = 0.9
"""From this share of the bytes that a node may queue on, that is too much."""
CALM_SHARE = 0.5
"""Below this share of both limits it is enough of a rest."""


@dataclass(frozen=True, slots=True)
class OverloadLimits:
    """What is too much, and for how long it has to be."""

    lag_seconds: float
    queued_bytes: int
    """What the node may queue; nine tenths of it are too much."""
    seconds: float


class Overload:
    """Begins when each look of `seconds` has found too much, and ends when each look of as long has found calm.

    Args:
        limits: see there.
    """

    __slots__ = ("_calm_since", "_high_since", "_limits", "active", "since")

    def __init__(self, limits: OverloadLimits) -> None:
        self._limits = limits
        self._high_since: float | None = None
        self._calm_since: float | None = None
        self.active = False
        self.since = 0.0
        """When it began, while it is active or has just ended."""

    def observe(self, now: float, lag_seconds: float, queued_bytes: int) -> bool:
        """Take a look.

        Args:
            now: seconds.
            lag_seconds: by how much this look comes too late. Whatever kept the loop from it counts as long as that.
            queued_bytes: what waits for all connections.

        Returns:
            Whether it has begun, or ended, just now.
        """
        limits = self._limits
        late = lag_seconds > limits.lag_seconds
        if not late and queued_bytes <= limits.queued_bytes * FULL_SHARE:
            self._high_since = None
        elif self._high_since is None:
            self._high_since = now - lag_seconds if late else now
        calm = lag_seconds < limits.lag_seconds * CALM_SHARE and queued_bytes < limits.queued_bytes * CALM_SHARE
        if not calm:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        if not self.active:
            if self._high_since is None or now - self._high_since < limits.seconds:
                return False
            self.active, self.since = True, self._high_since
            return True
        if self._calm_since is None or now - self._calm_since < limits.seconds:
            return False
        self.active = False
        return True
