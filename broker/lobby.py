"""Where connects wait to be looked at, so that a crowd of them leaves the event loop time for everything else."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from broker.wire.codes import CloseCode, close

if TYPE_CHECKING:
    from broker.client.client import Client

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.002
"""How much of a turn of the event loop connects may take; one at least is worked on, however long it takes."""
OVERFLOW = 2
"""How many times its places the lobby takes before it turns away: when it is full, no new handshake is let in, but
those who had theirs before have no better place to wait."""


class Lobby:
    """Works on connects in the order in which they came, some in each turn of the event loop; a lone one at once.

    Args:
        places: how many may wait before nobody new is let in.
        clock: seconds.
        call_soon: has something called in the event loop's next turn.
    """

    def __init__(self, places: int, clock: Callable[[], float], call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self.places = places
        self._clock = clock
        self._call_soon = call_soon
        self._waiting: OrderedDict[Client, Callable[[], None]] = OrderedDict()
        self._used = 0.0
        """Seconds of this turn."""
        self._called = False
        """Whether the next turn is asked for."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __contains__(self, client: Client) -> bool:
        return client in self._waiting

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self.places

    def enter(self, client: Client, work: Callable[[], None]) -> bool:
        """Work on a client's connect command, now or in its turn. While it waits, nothing more is read from it.

        Returns:
            False when there is no place left to wait in: nothing is done.
        """
        if not self._waiting and self._used < TURN_SECONDS:
            self._run(work)
            self._ask_for_turn()
        elif len(self._waiting) >= self.places * OVERFLOW:
            return False
        else:
            self._waiting[client] = work
            client.outlet.pause_reading()
            self._ask_for_turn()
        return True

    def leave(self, client: Client) -> None:
        """A client waits no more, if it did."""
        self._waiting.pop(client, None)

    def _ask_for_turn(self) -> None:
        if not self._called:
            self._called = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        self._called = False
        self._used = 0.0
        while self._waiting and self._used < TURN_SECONDS:
            client, work = self._waiting.popitem(last=False)
            try:
                self._run(work)
                client.admitted()
            except Exception:
                # a mistake of ours ends this one connection, and is seen
                logger.exception("a connect could not be handled", extra={"client": client.id})
                client.close(close(CloseCode.SERVER_ERROR))
        if self._waiting or self._used:
            self._ask_for_turn()

    def _run(self, work: Callable[[], None]) -> None:
        began = self._clock()
        try:
            work()
        finally:
            self._used += self._clock() - began
