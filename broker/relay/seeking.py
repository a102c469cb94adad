"""Gives clients that come back what they have missed: from the topic's ring, or by one read for all who wait."""

from __future__ import annotations

import asyncio
import logging
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

from broker.core.continuity import Trace
from broker.core.ring import Entry
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError, RelayTimeoutError, describe
from broker.relay.flow import Flow, Seeking
from broker.relay.stored import removed_up_to, trace

logger = logging.getLogger(__name__)

BATCH_MESSAGES = 512
BATCH_BYTES = 1024 * 1024
RECOVERED_MESSAGES = 10_000
"""The most messages that are read for those who come back."""
ATTEMPTS = 4
"""Reads that may bring nobody anything, since the history was removed or begun anew meanwhile."""
LAG_TRIES = 5
LAG_SECONDS = 0.05
SERVED_AT_ONCE = 32
"""Of those who wait for a read, so many are served in one turn of the event loop."""


@dataclass(frozen=True, slots=True)
class Missed:
    """What somebody has missed: the publications behind an offset, as far as they were read. Those that the ring holds
    by now come behind them (and are among them, perhaps).
    """

    entries: Sequence[Entry]


class Gone:
    """What somebody has missed can't be had: something of it is gone, or it is too much, or it never was."""


GONE = Gone()
Found = Callable[[Missed | Gone | RelayError], None]


@dataclass(slots=True)
class _Past:
    """What was read of a flow's past.

    Args:
        until: the ring's floor, up to which it was to be read.
    """

    until: int
    entries: list[Entry] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    size_bytes: int = 0
    more: int = 0
    """Messages behind what was read."""

    def from_(self, after: int) -> list[Trace]:
        return self.traces[bisect_left(self.traces, after, key=attrgetter("offset")) :]


class Seeker:
    """Reads the past of flows.

    Args:
        durable: the flows.
        size_bytes: the most that one client is given.
    """

    def __init__(self, durable: DurableRelay, size_bytes: int) -> None:
        self._durable = durable
        self._jetstream = durable.jetstream
        self._size_bytes = size_bytes

    def seek(self, flow: Flow, after: int, found: Found) -> None:
        """Find what came behind an offset.

        Args:
            flow: one that has started.
            after: the offset.
            found: called at once where the flow holds all of it, else when it was read. It does what it does with the
                answer at once: later, the ring may not reach back so far any more.
        """
        if after > flow.top:
            self._durable.run(self._beyond(flow, after, found))
        elif after >= flow.ring.floor:
            found(Missed(()))
        else:
            flow.seekers.append(Seeking(after, flow.life, found))
            if not flow.reading:
                flow.reading = True
                self._durable.run(self._read_back(flow))

    async def _beyond(self, flow: Flow, after: int, found: Found) -> None:
        """Somebody has seen more than this node: it is behind, or the offset was never one."""
        life = flow.life
        try:
            last = (await self._durable.look(flow)).state.last_seq
            if not flow.wildcard and after <= last:
                message = await self._jetstream.last(flow.stream.name, flow.subject)
                last = 0 if message is None else message.offset
        except RelayError as error:
            found(error)
            return
        if after <= flow.top or after > last or flow.life != life:
            self._again(flow, life, after, found)
            return
        flow.behind = max(flow.behind, after)
        self._durable.mend(flow)
        self._durable.when_reached(flow, after, lambda: self._again(flow, life, after, found))

    def _again(self, flow: Flow, life: int, after: int, found: Found) -> None:
        if flow.life == life and after <= flow.top:
            self.seek(flow, after, found)
        else:
            found(GONE)

    async def _read_back(self, flow: Flow) -> None:
        """Serve all who wait for this flow's past, with one read for those that are there by its end, and another one
        for those who came meanwhile and are farther back.
        """
        fruitless = 0
        try:
            while flow.seekers:
                flow.ring.pinned = True
                try:
                    served = await self._serve_from(flow, min(one.after for one in flow.seekers))
                    if not served and fruitless == ATTEMPTS:
                        served = await self._answer(flow, 0, lambda _: GONE)
                except RelayError as error:
                    logger.debug("the past of %s can't be read now: %s", flow.name, describe(error))
                    served = await self._answer(flow, 0, partial(_the_same, error))
                finally:
                    self._unpin(flow)
                fruitless = 0 if served else fruitless + 1
        finally:
            flow.reading = False

    def _unpin(self, flow: Flow) -> None:
        flow.ring.pinned = False
        flow.ring.trim()
        if flow.started:
            self._durable.budget.changed(flow.ring)

    async def _serve_from(self, flow: Flow, farthest: int) -> bool:
        """Read from where the one stands that is farthest back, and answer those that this is good for; whether there
        were any.
        """
        life = flow.life
        past = await self._read(flow, farthest)
        if past is None:  # too far back; the others perhaps are not
            return await self._answer(flow, 0, lambda after: GONE if after <= farthest else None)
        waiting = {one.after for one in flow.seekers}
        witnessed = all(flow.kept.has_witness(after, past.from_(after)) for after in waiting)
        first = 0 if witnessed else (await self._durable.look(flow)).state.first_seq
        known: dict[int, bool] = {}

        def judge(after: int) -> Missed | Gone | None:
            if flow.life != life or flow.ring.floor > past.until:
                return None  # begun anew, or its history was removed: once more
            whole = known.get(after)
            if whole is None:
                whole = flow.kept.is_whole(after, past.from_(after), more=past.more, first=first)
                known[after] = whole
            return missed if whole else GONE

        missed = Missed(past.entries)
        if judge(farthest) is missed:
            flow.ring.prepend(past.entries, farthest)
        return await self._answer(flow, farthest, judge)

    async def _answer(self, flow: Flow, least: int, judge: Callable[[int], Missed | Gone | RelayError | None]) -> bool:
        """Answer those who wait from `least` on, but for those whom `judge` has nothing for; some in each turn of the
        event loop. Whether somebody was answered.
        """
        answered = False
        taken, flow.seekers = flow.seekers, []
        for number, one in enumerate(taken):
            if one.life != flow.life:
                answer: Missed | Gone | RelayError | None = GONE  # its offset means nothing any more
            else:
                answer = judge(one.after) if one.after >= least else None
            if answer is None:
                flow.seekers.append(one)
            else:
                answered = True
                one.found(answer)
            if number % SERVED_AT_ONCE == SERVED_AT_ONCE - 1:
                await asyncio.sleep(0)
        return answered

    async def _read(self, flow: Flow, after: int) -> _Past | None:
        """Read what is between an offset and the ring; None when it is too much.

        Raises:
            RelayError: not now.
        """
        for attempt in range(LAG_TRIES):
            past = await self._read_once(flow, after)
            newest = past.traces[-1].offset if past is not None and past.traces else 0
            if past is None or newest >= flow.floor_message:
                return past
            await asyncio.sleep(random.uniform(0.5, 1) * LAG_SECONDS * 2**attempt)  # noqa: S311 - jitter
        # either the replicas are behind, or the message has gone from the stream since
        last = await self._jetstream.last(flow.stream.name, flow.subject)
        if last is not None and last.offset >= flow.floor_message:
            raise RelayTimeoutError("the stream's replicas are behind")
        return past

    async def _read_once(self, flow: Flow, after: int) -> _Past | None:
        past = _Past(flow.ring.floor)
        start = after
        while True:
            batch = await self._jetstream.read(
                flow.stream.name, flow.subject, start=start, messages=BATCH_MESSAGES, size=BATCH_BYTES
            )
            for message in batch.messages:
                past.traces.append(trace(message))
                if after < message.offset <= past.until and not removed_up_to(message):
                    topic = self._durable.topic_of(flow, message)
                    line = self._durable.downstream.encode(flow, message, topic, first=False)
                    if line is not None:
                        past.entries.append((message.offset, line))
                        past.size_bytes += len(line)
            past.more = batch.remaining
            reached = not flow.wildcard and bool(past.traces) and past.traces[-1].offset >= past.until
            if not batch.remaining or not batch.messages or reached:
                return past
            if past.size_bytes > self._size_bytes or len(past.traces) > RECOVERED_MESSAGES:
                return None
            start = batch.messages[-1].offset + 1


def _the_same(error: RelayError, _: int) -> RelayError:
    return error
