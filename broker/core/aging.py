"""Moving long-lived connections to other nodes: which age each may reach, and how many go in a second.

Balancers choose a node only when a client connects, so a node that has just started has none until others let some go.
"""

from __future__ import annotations

SPREAD = 0.25
"""By how much of the setting one connection's age may differ from it, in both directions."""


LATE_SECONDS = 1.0
"""Who comes later than that to its place gets another one: when all come late they must not go all at once."""


class Aging:
    """Says when a connection is to be asked to reconnect. It keeps something only of those that are about to be.

    Args:
        age_seconds: the age to reach, more or less.
        rate_per_second: the most that go in a second.
        now: seconds, on the clock of all later calls.
    """

    __slots__ = ("_age", "_next", "_pause", "_places")

    def __init__(self, age_seconds: float, rate_per_second: float, now: float) -> None:
        self._age = age_seconds
        self._pause = 1 / rate_per_second
        self._next = now
        """When the next one that asks may go."""
        self._places: dict[str, float] = {}
        """When those may go that have asked."""

    def __len__(self) -> int:
        """How many are about to go."""
        return len(self._places)

    def due_at(self, client: str, since: float) -> float:
        """When a connection has its age. That is drawn by its id, a random UUID: so it is the same each time.

        Args:
            client: the id.
            since: when the connection was opened.
        """
        drawn = int(client[:8], 16) / 0xFFFFFFFF
        return since + self._age * (1 - SPREAD + 2 * SPREAD * drawn)

    def turn(self, client: str, now: float) -> float:
        """Ask for one that has its age to go.

        Returns:
            0 when it is its turn; else when that is. Its place is kept, whenever it asks again.
        """
        place = self._places.get(client)
        if place is None or now - place > LATE_SECONDS:
            place = self._places[client] = max(now, self._next)
            self._next = place + self._pause
        if now < place:
            return place
        del self._places[client]
        return 0.0

    def forget(self, client: str) -> None:
        """A connection has ended otherwise."""
        self._places.pop(client, None)
