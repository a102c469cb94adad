"""Letting all clients of a node go, a few at a time, so that they don't come to the others all at once."""

from __future__ import annotations

import asyncio
import logging
import random

from broker.edge.edge import Edge
from broker.wire.codes import CloseCode, close

logger = logging.getLogger(__name__)

STEP_SECONDS = 0.05
LAST_SECONDS = 1.0
"""How long those closed at the timeout may take to answer."""
_SHUTDOWN = close(CloseCode.SHUTDOWN)


async def drain(edge: Edge, *, delay_seconds: float, rate_per_second: float, timeout_seconds: float) -> None:
    """Close every connection with 3001, from which SDKs come back, and wait until all are gone.

    Args:
        edge: whose connections; it should refuse new ones already.
        delay_seconds: to wait first, for balancers to notice.
        rate_per_second: how many are closed in a second, in no order, at uneven intervals.
        timeout_seconds: after which those that remain are closed at once; counted from the end of the delay.
    """
    await asyncio.sleep(delay_seconds)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    waiting = list(edge.sockets)
    random.shuffle(waiting)
    if waiting:
        logger.info("closing %d connections, %g a second", len(waiting), rate_per_second)
    allowance = 1.0
    while waiting and loop.time() < deadline:
        while waiting and allowance >= 1:
            waiting.pop().close(_SHUTDOWN)
            allowance -= 1
        if waiting:
            step = STEP_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            await asyncio.sleep(step)
            allowance += rate_per_second * step
    if waiting:
        text = "the timeout came before %d connections' turn; a longer drain.timeout_seconds would have spared them"
        logger.warning(text, len(waiting))
        for socket in waiting:
            socket.close(_SHUTDOWN)
        deadline = loop.time() + LAST_SECONDS
    while edge.sockets and loop.time() < deadline:  # noqa: ASYNC110 - the last close is no event worth keeping
        await asyncio.sleep(STEP_SECONDS)
    if edge.sockets:
        logger.warning("%d connections did not end in time", len(edge.sockets))
