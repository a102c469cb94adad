"""Where connects wait to be looked at, so that a crowd of them leaves the event loop time for everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from broker.core.turns import Turns
from broker.wire.codes import CloseCode, close

if TYPE_CHECKING:
    from broker.client.client import Client

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.0005
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
        self._turns: Turns[Client] = Turns(TURN_SECONDS, clock, call_soon)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._turns)

    def __contains__(self, client: Client) -> bool:
        return client in self._turns

    @property
    def full(self) -> bool:
        return len(self._turns) >= self.places

    def enter(self, client: Client, work: Callable[[], None]) -> bool:
        """Work on a client's connect command, now or in its turn. While it waits, nothing more is read from it.

        Returns:
            False when there is no place left to wait in: nothing is done.
        """
        if self._turns.free:
            self._turns.do(work)
        elif len(self._turns) >= self.places * OVERFLOW:
            return False
        else:
            self._turns.wait(client, partial(_admit, client, work))
            client.outlet.pause_reading()
        return True

    def leave(self, client: Client) -> None:
        """A client waits no more, if it did."""
        self._turns.leave(client)


def _admit(client: Client, work: Callable[[], None]) -> None:
    try:
        work()
        client.admitted()
    except Exception:
        # a mistake of ours ends this one connection, and is seen
        logger.exception("a connect could not be handled", extra={"client": client.id})
        client.close(close(CloseCode.SERVER_ERROR))
