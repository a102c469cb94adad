"""A door that lets so many in a second, and a room before it for those who come too fast.

Who is refused comes back after a pause that doubles each time, and so stays away ever longer while nothing would hold
it up any more. Who waits comes in as soon as it can, so a door that many press against is in use until the last is in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum, auto
from typing import Generic, TypeVar

from broker.core.bucket import TokenBucket

Guest = TypeVar("Guest", bound=Hashable)

ROOM_SECONDS = 3.0
"""How long the last in the room waits: SDKs give a connect five seconds, and more than the handshake is part of it."""
BURST_SECONDS = 0.1
"""How much of the rate comes at once when nobody waited, unless that is set; and how much of it is made up for when
those who wait were called late. In no second does more than a tenth come on top of the rate."""
STEP_SECONDS = 0.005
"""Those who wait are called together when so much of the rate is theirs; a timer for each would cost more than it."""


class Answer(Enum):
    """What somebody at the door is told."""

    ENTER = auto()
    WAIT = auto()
    FULL = auto()
    """There is no place left to wait in."""


class Door(Generic[Guest]):
    """Lets guests in at a steady rate, in the order in which they came.

    Args:
        rate: how many come in a second; above 0.
        burst: how many may come at once when nobody waits; None for a tenth of a second's worth.
        places: the most that wait.
        patience_seconds: the most that anybody waits.
        now: seconds, on the clock of all later calls.
    """

    __slots__ = ("_bucket", "_burst", "_late_burst", "_patience_seconds", "_places", "_waiting", "rate")

    def __init__(self, rate: float, burst: float | None, places: int, patience_seconds: float, now: float) -> None:
        self.rate = rate
        usual = max(1.0, rate * BURST_SECONDS)
        self._burst = usual if burst is None else max(1.0, burst)
        self._late_burst = max(usual, self._burst)
        self._bucket = TokenBucket(rate, self._burst, now)
        self._patience_seconds = patience_seconds
        self._places = min(places, int(rate * min(ROOM_SECONDS, patience_seconds)))
        self._waiting: OrderedDict[Guest, float] = OrderedDict()
        """Since when each of them waits."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def room_seconds(self) -> float:
        """How long it takes until all are in who wait."""
        return len(self._waiting) / self.rate

    def knock(self, guest: Guest, now: float) -> Answer:
        """Somebody comes. Who is told to wait is called by `call` unless it leaves before."""
        if not self._waiting and self._bucket.take(now) == 0:
            return Answer.ENTER
        if len(self._waiting) >= self._places:
            return Answer.FULL
        self._bucket.burst = self._late_burst
        self._waiting[guest] = now
        return Answer.WAIT

    def call(self, now: float) -> Guest | None:
        """The next whose turn it is; None when it is nobody's yet."""
        if not self._waiting or self._bucket.take(now) > 0:
            return None
        guest, _ = self._waiting.popitem(last=False)
        self._settle()
        return guest

    def give_back(self) -> None:
        """Who was let in has not come in after all."""
        self._bucket.give_back()

    def overdue(self, now: float) -> list[Guest]:
        """Those whose patience is at its end: they wait no more, and are not let in."""
        tired = []
        while self._waiting:
            guest = next(iter(self._waiting))
            if now - self._waiting[guest] < self._patience_seconds:
                break
            tired.append(guest)
            self._waiting.popitem(last=False)
        self._settle()
        return tired

    def leave(self, guest: Guest) -> bool:
        """Somebody waits no more; whether it did."""
        waited = self._waiting.pop(guest, None) is not None
        self._settle()
        return waited

    def dismiss(self) -> list[Guest]:
        """Empty the room; those who were in it."""
        gone = list(self._waiting)
        self._waiting.clear()
        self._settle()
        return gone

    def pause(self, now: float) -> float:
        """Seconds until it is worth while to `call` again, while somebody waits."""
        together = max(1.0, min(len(self._waiting), self.rate * STEP_SECONDS, self._late_burst))
        return self._bucket.wait(together, now)

    def _settle(self) -> None:
        if not self._waiting:
            self._bucket.burst = self._burst
