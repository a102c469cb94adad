"""Moving long-lived connections to other nodes: which age each may reach, and how many go in a second.

Balancers choose a node only when a client connects, so a node that has just started has none until others let some go.
"""

from __future__ import annotations

from math import inf

from broker.core.bucket import TokenBucket

SPREAD = 0.25
"""By how much of the setting one connection's age may differ from it, in both directions."""
BURST_SECONDS = 0.1


class Aging:
    """Says when a connection is to be asked to reconnect. It keeps nothing of any of them.

    Args:
        age_seconds: the age to reach, more or less.
        rate_per_second: the most that go in a second.
        now: seconds, on the clock of all later calls.
    """

    __slots__ = ("_again", "_age", "_bucket")

    def __init__(self, age_seconds: float, rate_per_second: float, now: float) -> None:
        self._age = age_seconds
        self._bucket = TokenBucket(rate_per_second, rate_per_second * BURST_SECONDS, now)
        self._again = -inf

    def due_at(self, client: str, since: float) -> float:
        """When a connection has its age. That is drawn by its id, a random UUID: so it is the same each time.

        Args:
            client: the id.
            since: when the connection was opened.
        """
        drawn = int(client[:8], 16) / 0xFFFFFFFF
        return since + self._age * (1 - SPREAD + 2 * SPREAD * drawn)

    def turn(self, now: float) -> float:
        """Ask for one that has its age to go.

        Returns:
            0 when it is its turn, or when to ask again. Those who have to are given different times, as far apart as
            the rate lets them go: else they would all come again for the same one place.
        """
        wait = self._bucket.take(now)
        if not wait:
            return 0.0
        self._again = max(now + wait, self._again + 1 / self._bucket.rate)
        return self._again
