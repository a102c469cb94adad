"""One hashed timing wheel for all connections of a node.

After Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987), scheme 6, without the hash: what lies
beyond the horizon is woken there and schedules itself again. A sleeper has one place in the wheel at most, so a timer
costs one set entry, not a task or a loop timer.
"""

from __future__ import annotations

from typing import Protocol

ASLEEP_NOWHERE = -1


class Sleeper(Protocol):
    """Who can be woken. `wheel_slot` belongs to the wheel: `ASLEEP_NOWHERE` when not in it."""

    wheel_slot: int

    def wake(self, now: float) -> float | None:
        """Do what is due at `now` (seconds); return when to be woken next, or None."""


class TimerWheel:
    """Wakes sleepers, late by at most one tick.

    Args:
        now: the clock's value at the start, in seconds.
        tick_seconds: the wheel's step.
        slots: how many steps the wheel holds, two at least; the horizon is `tick_seconds * (slots - 1)`.
    """

    __slots__ = ("_slots", "_tick", "_ticks")

    def __init__(self, now: float, *, tick_seconds: float = 0.1, slots: int = 512) -> None:
        self._tick = tick_seconds
        self._ticks = int(now / tick_seconds)  # ticks that have passed and been served
        self._slots: list[set[Sleeper]] = [set() for _ in range(slots)]

    def __len__(self) -> int:
        return sum(map(len, self._slots))

    def schedule(self, sleeper: Sleeper, when: float) -> None:
        """Wake `sleeper` at `when`, instead of whenever it was to be woken before."""
        if sleeper.wheel_slot != ASLEEP_NOWHERE:
            self._slots[sleeper.wheel_slot].discard(sleeper)
        tick = when / self._tick
        horizon = self._ticks + len(self._slots) - 1
        # rounded up: never early; the tick being served now is over for this turn
        due = max(int(tick) + 1, self._ticks + 1) if tick < horizon else horizon
        slot = due % len(self._slots)
        sleeper.wheel_slot = slot
        self._slots[slot].add(sleeper)

    def cancel(self, sleeper: Sleeper) -> None:
        if sleeper.wheel_slot != ASLEEP_NOWHERE:
            self._slots[sleeper.wheel_slot].discard(sleeper)
            sleeper.wheel_slot = ASLEEP_NOWHERE

    def advance(self, now: float) -> None:
        """Wake all that are due at `now`. When some of them raise, the others are woken all the same, and the first
        error is raised afterwards.
        """
        failure: Exception | None = None
        target = int(now / self._tick)
        while self._ticks < target:
            self._ticks += 1
            slot = self._slots[self._ticks % len(self._slots)]
            while slot:
                sleeper = slot.pop()
                sleeper.wheel_slot = ASLEEP_NOWHERE
                try:
                    again = sleeper.wake(now)
                except Exception as error:  # noqa: BLE001 - raised below
                    failure = failure or error
                    continue
                if again is not None:
                    self.schedule(sleeper, again)
        if failure is not None:
            raise failure
