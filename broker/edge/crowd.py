"""The first requests of new connections, which come in crowds when all clients come back at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol

from broker.core.turns import Turns

TURN_SECONDS = 0.0005
"""How much of a turn of the event loop first requests may take."""


class Newcomer(Hashable, Protocol):
    """A connection that nothing was read from yet."""

    transport: asyncio.Transport

    def received(self, data: bytes) -> None:
        """Handle what was read. Never raises."""


class Crowd:
    """Lets the first requests of connections be handled in the order in which they were read, some in each turn of the
    event loop; a lone one at once.

    Args:
        clock: seconds.
        call_soon: has something called in the event loop's next turn.
    """

    def __init__(self, clock: Callable[[], float], call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._turns: Turns[Newcomer] = Turns(TURN_SECONDS, clock, call_soon)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._turns)

    def enter(self, newcomer: Newcomer, data: bytes) -> None:
        """Handle what was read of a connection, now or in its turn; nothing more is read from it meanwhile."""
        if self._turns.free:
            self._turns.do(partial(newcomer.received, data))
        else:
            newcomer.transport.pause_reading()
            self._turns.wait(newcomer, partial(_go_on, newcomer, data))

    def leave(self, newcomer: Newcomer) -> None:
        """A connection has ended."""
        self._turns.leave(newcomer)


def _go_on(newcomer: Newcomer, data: bytes) -> None:
    if not newcomer.transport.is_closing():
        newcomer.transport.resume_reading()
        newcomer.received(data)
