"""How fast one client may go, and for how long it may go on when it is told that it is too fast."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.bucket import TokenBucket

PATIENCE_REFUSALS = 20
PATIENCE_SECONDS = 5.0
"""So many refusals, or so many seconds' worth of what is allowed if that is more, are borne."""
CALM_SECONDS = 1.0
"""Who is refused nothing for so long has stayed below its rate, since the first refusal found the bucket empty."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a client may do in a second; None for no limit."""

    commands: float | None = None
    publications: float | None = None


class Patience:
    """Counts what is refused without a second's calm in between."""

    __slots__ = ("_at", "_refused", "exhausted")

    def __init__(self) -> None:
        self._refused = 0
        self._at = 0.0
        self.exhausted = False
        """Whether that has become too much; from then on it stays so."""

    def refused(self, now: float, rate: float) -> None:
        """Something was refused that is allowed so many times a second."""
        if now - self._at >= CALM_SECONDS:
            self._refused = 0
        self._at = now
        self._refused += 1
        if self._refused > max(PATIENCE_REFUSALS, PATIENCE_SECONDS * rate):
            self.exhausted = True


class WatchedBucket(TokenBucket):
    """A bucket that takes patience when it is empty. Its arguments are those of `TokenBucket`, and the patience."""

    __slots__ = ("_patience",)

    def __init__(self, rate: float, burst: float, now: float, patience: Patience) -> None:
        super().__init__(rate, burst, now)
        self._patience = patience

    def take(self, now: float) -> float:
        wait = super().take(now)
        if wait:
            self._patience.refused(now, self.rate)
        return wait


class Pace:
    """Holds one client to its rates. What it doesn't do costs nothing.

    Args:
        rates: that it is held to.
        topics: how many it may be subscribed to. It may subscribe to as many at once: SDKs that come back do.
    """

    __slots__ = ("_commands", "_patience", "_publications", "_rates", "_subscribes", "_topics")

    def __init__(self, rates: Rates, topics: int) -> None:
        self._rates = rates
        self._topics = topics
        self._patience = Patience()
        self._commands: TokenBucket | None = None
        self._subscribes: TokenBucket | None = None
        self._publications: TokenBucket | None = None

    @property
    def exhausted(self) -> bool:
        """Whether the client has gone on for too long."""
        return self._patience.exhausted

    def command(self, now: float) -> float:
        """Count a command other than subscribe; the seconds until there is room for it, 0 for now."""
        rate = self._rates.commands
        if rate is None:
            return 0.0
        if self._commands is None:
            self._commands = WatchedBucket(rate, rate, now, self._patience)
        return self._commands.take(now)

    def subscribe(self, now: float) -> float:
        """Count a subscribe command; as `command`."""
        rate = self._rates.commands
        if rate is None:
            return 0.0
        if self._subscribes is None:
            self._subscribes = WatchedBucket(rate, max(self._topics, rate), now, self._patience)
        return self._subscribes.take(now)

    def publications(self, now: float) -> TokenBucket | None:
        """What publications are taken from; None where they have no limit."""
        rate = self._rates.publications
        if rate is not None and self._publications is None:
            self._publications = WatchedBucket(rate, rate, now, self._patience)
        return self._publications
