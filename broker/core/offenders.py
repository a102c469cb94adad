"""Who had to be sent away, and how often of late."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

OFFENCES = 3
WINDOW_SECONDS = 300.0
REMEMBERED = 4096


class Offenders:
    """Remembers who was sent away: so many of them, those with the latest offences.

    Args:
        offences: as many of one offender make it final.
        window_seconds: within which they count.
        remembered: the most offenders.
    """

    def __init__(
        self, offences: int = OFFENCES, window_seconds: float = WINDOW_SECONDS, remembered: int = REMEMBERED
    ) -> None:
        self._offences = offences
        self._window_seconds = window_seconds
        self._remembered = remembered
        self._times: dict[Hashable, deque[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def note(self, who: Hashable, now: float, offences: int | None = None) -> bool:
        """Remember an offence; whether it is one too many: by the usual measure, or another one for this offender."""
        most = self._offences if offences is None else offences
        times = self._times.pop(who, None) or deque(maxlen=most)
        times.append(now)
        if len(self._times) >= self._remembered:
            del self._times[next(iter(self._times))]  # whose last offence is the longest ago
        self._times[who] = times
        return len(times) == most and now - times[0] < self._window_seconds
