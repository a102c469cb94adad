"""A token bucket: so many a second, and a few at once.

After Turner, "New Directions in Communications (or Which Way to the Information Age?)" (IEEE Communications Magazine,
1986), where it is called the leaky bucket as a meter.
"""

from __future__ import annotations


class TokenBucket:
    """Counts what is taken against a rate. Full at first.

    Args:
        rate: tokens that come back in a second; above 0.
        burst: the most that it holds; at least 1.
        now: seconds, on the clock of all later calls.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self._tokens = self.burst
        self._at = now

    def take(self, now: float) -> float:
        """Take a token.

        Returns:
            0 when there was one; else nothing is taken, and it is the seconds until there is one.
        """
        self._fill(now)
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self.rate

    def wait(self, tokens: float, now: float) -> float:
        """Seconds until it holds so many, which must not be more than its burst; 0 when it does already."""
        self._fill(now)
        return max(0.0, tokens - self._tokens) / self.rate

    def give_back(self) -> None:
        """Undo a `take`, for what has not come about after all."""
        self._tokens = min(self.burst, self._tokens + 1)

    def _fill(self, now: float) -> None:
        self._tokens = min(self.burst, self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = max(self._at, now)
