"""Work that comes in crowds, done in order, some of it in each turn of the event loop, so that everything else has its
time in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Who = TypeVar("Who", bound=Hashable)


class Turns(Generic[Who]):
    """Does work at once while there is little of it, else in its turn.

    Args:
        turn_seconds: how much of a turn the work may take; one piece at least is done, however long it takes.
        clock: seconds.
        call_soon: has something called in the event loop's next turn.
    """

    __slots__ = ("_asked", "_call_soon", "_clock", "_turn_seconds", "_used", "_waiting")

    def __init__(
        self, turn_seconds: float, clock: Callable[[], float], call_soon: Callable[[Callable[[], None]], Any]
    ) -> None:
        self._turn_seconds = turn_seconds
        self._clock = clock
        self._call_soon = call_soon
        self._waiting: OrderedDict[Who, Callable[[], None]] = OrderedDict()
        self._used = 0.0
        """Seconds of this turn."""
        self._asked = False
        """Whether the next turn is asked for."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __contains__(self, who: Who) -> bool:
        return who in self._waiting

    @property
    def free(self) -> bool:
        """Whether nobody waits, and this turn has time left."""
        return not self._waiting and self._time_left

    @property
    def _time_left(self) -> bool:
        return not self._used or self._used < self._turn_seconds

    def do(self, work: Callable[[], None]) -> None:
        """Do it now. Ask first whether that is `free`."""
        self._ask_for_turn()
        self._run(work)

    def wait(self, who: Who, work: Callable[[], None]) -> None:
        """Do it when its turn has come, unless `who` has left by then."""
        self._waiting[who] = work
        self._ask_for_turn()

    def leave(self, who: Who) -> None:
        """Somebody waits no more, if it did."""
        self._waiting.pop(who, None)

    def _ask_for_turn(self) -> None:
        if not self._asked:
            self._asked = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        self._asked = False
        self._used = 0.0
        try:
            while self._waiting and self._time_left:
                _, work = self._waiting.popitem(last=False)
                self._run(work)
        finally:
            if self._waiting or self._used:
                self._ask_for_turn()

    def _run(self, work: Callable[[], None]) -> None:
        began = self._clock()
        try:
            work()
        finally:
            self._used += self._clock() - began
