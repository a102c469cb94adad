"""Letting all clients of a node go, a few at a time, so that they don't come to the others all at once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from enum import Enum
from math import inf

from broker.edge.edge import Edge
from broker.edge.websocket import WebSocketProtocol
from broker.wire.codes import CloseCode, close

logger = logging.getLogger(__name__)

STEP_SECONDS = 0.05
BURST_SECONDS = 0.1
"""The most that is made up for when the event loop was late: so many seconds' worth of closes at once."""
LAST_SECONDS = 1.0
"""How long those closed at the timeout may take to answer."""
_SHUTDOWN = close(CloseCode.SHUTDOWN)


class DrainState(Enum):
    """Where a node is with it."""

    SERVING = "serving"
    DRAINING = "draining"
    """It takes nobody new, and closes those that it has."""
    DRAINED = "drained"
    """Nobody is left, and nobody new is taken."""


class Drain:
    """Closes every connection with 3001, from which SDKs come back, at a steady rate. It can be begun by hand and taken
    back; or it is the node's end.

    Args:
        edge: whose connections.
        delay_seconds: to wait before the first is closed, for balancers to notice.
        rate_per_second: how many are closed in a second, in no order, at uneven intervals.
        timeout_seconds: after which, at the node's end, those that remain are closed at once; counted from the end of
            the delay. By hand nothing hurries.
        changed: told whether the node drains, when that begins and when it is taken back; the edge has to refuse new
            connections meanwhile.
    """

    def __init__(
        self,
        edge: Edge,
        *,
        delay_seconds: float,
        rate_per_second: float,
        timeout_seconds: float,
        changed: Callable[[bool], None],
    ) -> None:
        self._edge = edge
        self._delay = delay_seconds
        self._rate = rate_per_second
        self._timeout = timeout_seconds
        self._changed = changed
        self._closing_from = inf
        """When the delay is over, on the edge's clock."""
        self._waiting: list[WebSocketProtocol] = []
        self._running: asyncio.Task[None] | None = None
        self.state = DrainState.SERVING
        self.final = False
        """It is the node's end, and can't be taken back."""

    @property
    def connections(self) -> int:
        """How many are left."""
        return len(self._edge.sockets)

    def begin(self) -> None:
        """Take nobody new, and let those go who are there. Nothing where that has begun already."""
        if self.state is not DrainState.SERVING:
            return
        self.state = DrainState.DRAINING
        self._changed(True)
        logger.info("draining: %d connections, %g a second, after %g s", self.connections, self._rate, self._delay)
        self._closing_from = self._edge.clock() + self._delay
        self._running = asyncio.create_task(self._run())
        self._running.add_done_callback(_look_for_a_bug)

    def cancel(self) -> bool:
        """Take it back: those not closed yet stay, and new ones are taken. Nothing where nothing drains.

        Returns:
            False where it can't be: the node has been told to end.
        """
        if self.final:
            return False
        if self.state is not DrainState.SERVING:
            self._stop()
            self.state = DrainState.SERVING
            self._changed(False)
            logger.info("the drain is taken back; %d connections stay", self.connections)
        return True

    async def finish(self) -> None:
        """Drain for the node's end: begin, or go on with what was begun by hand, and wait until nobody is left or the
        timeout has come.
        """
        self.final = True
        self.begin()
        clock = self._edge.clock
        deadline = max(clock(), self._closing_from) + self._timeout
        running = self._running
        assert running is not None  # noqa: S101 - it has been begun
        while self.state is not DrainState.DRAINED and clock() < deadline and not running.done():  # noqa: ASYNC110 - three reasons
            await asyncio.sleep(STEP_SECONDS)
        self._stop()
        left = [socket for socket in self._edge.sockets if not socket.closing]
        if left:
            text = "the timeout came before %d connections' turn; a longer drain.timeout_seconds would have spared them"
            logger.warning(text, len(left))
            for socket in left:
                socket.close(_SHUTDOWN)
            deadline = clock() + LAST_SECONDS
        while self._edge.sockets and clock() < deadline:  # noqa: ASYNC110 - the last close is no event worth keeping
            await asyncio.sleep(STEP_SECONDS)
        if self._edge.sockets:
            logger.warning("%d connections did not end in time", len(self._edge.sockets))

    def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
        self._waiting = []

    async def _run(self) -> None:
        clock = self._edge.clock
        if self._delay:
            await asyncio.sleep(self._delay)
        at = clock()
        allowance = 1.0
        while True:
            # who was in the middle of a handshake when it began comes in nevertheless
            self._waiting = self._waiting or [socket for socket in self._edge.sockets if not socket.closing]
            now = clock()
            allowance = min(max(1.0, self._rate * BURST_SECONDS), allowance + self._rate * (now - at))
            at = now
            while self._waiting and allowance >= 1:
                socket = self._next()
                if not socket.closing:
                    socket.close(_SHUTDOWN)
                    allowance -= 1
            self._note_progress()
            await asyncio.sleep(STEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    def _next(self) -> WebSocketProtocol:
        """Any of those that wait: to shuffle them all at once would hold up the event loop."""
        waiting = self._waiting
        at = random.randrange(len(waiting))  # noqa: S311 - disorder, not secrecy
        waiting[at], waiting[-1] = waiting[-1], waiting[at]
        return waiting.pop()

    def _note_progress(self) -> None:
        if self.connections:
            self.state = DrainState.DRAINING
        elif self.state is not DrainState.DRAINED:
            self.state = DrainState.DRAINED
            logger.info("drained: no connection is left")


def _look_for_a_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (bug := task.exception()) is not None:
        logger.critical("the drain has stopped; connections that are left stay until the node ends", exc_info=bug)
