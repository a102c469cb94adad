"""Gives clients that come back what they have missed: from the topic's ring, or by one read for all who wait."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from broker.core.continuity import Reading, Trace
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
READ_AT_ONCE = 2
"""How many times as much as one client is given is read for one that stands too far back, before it is told so."""
MANY_READS = 4
READ_PAUSE_SECONDS = 0.05
"""After so many reads for the same topic, how long there is at least between two of them."""
LAG_TRIES = 5
LAG_SECONDS = 0.05
SERVED_AT_ONCE = 32
TURN_SECONDS = 0.005
"""How many of those who wait for a read are served in one turn of the event loop, and for how long at most."""


@dataclass(frozen=True, slots=True)
class Missed:
    """What somebody has missed: the publications behind an offset, as far as they were read. Those that the ring holds
    by now come behind them (and are among them, perhaps).
    """

    entries: Iterable[Entry]


class Gone:
    """What somebody has missed can't be had: something of it is gone, or it is too much, or it never was."""


GONE = Gone()
Found = Callable[[Missed | Gone | RelayError], None]


class _Past:
    """What was read of a flow's past: the newest of it, as much as one client is given.

    Args:
        after: it was read from this offset on.
        until: the ring's floor, up to which it was to be read.
        size_bytes: the most that one client is given.
    """

    def __init__(self, after: int, until: int, size_bytes: int) -> None:
        self.after = after
        self.until = until
        self.floor = after
        """The entries are all there are behind this. Who stands before it has missed more than it is given."""
        self.entries: deque[Entry] = deque()
        self.traces: list[Trace] = []
        self.more = 0
        """Messages behind what was read."""
        self.whole = True
        """It was read up to the ring; else so much was passed over that others had better be asked for anew."""
        self.read_bytes = 0
        self._limit_bytes = size_bytes
        self._size_bytes = 0

    def add(self, offset: int, line: bytes) -> None:
        self.entries.append((offset, line))
        self.read_bytes += len(line)
        self._size_bytes += len(line)
        while self._size_bytes > self._limit_bytes or len(self.entries) > RECOVERED_MESSAGES:
            self.floor, dropped = self.entries.popleft()
            self._size_bytes -= len(dropped)


class Seeker:
    """Reads the past of flows.

    Args:
        durable: the flows.
        size_bytes: the most that one client is given.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, durable: DurableRelay, size_bytes: int, clock: Callable[[], float]) -> None:
        self._clock = clock
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
        if after > flow.sure:
            self._durable.run(self._beyond(flow, after, found))
        elif after >= flow.ring.floor or flow.latest_only:
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
            reached = (await self._durable.look(flow)).state.last_seq
            message = await self._jetstream.last(flow.stream.name, flow.subject)
        except RelayError as error:
            found(error)
            return
        last = 0 if message is None else message.offset
        if flow.life != life or not flow.started or after > max(reached, last):
            found(GONE)
        elif last <= flow.top:
            # it was told where the stream stood, and nothing of this flow has come since
            flow.sure = max(flow.sure, reached)
            self.seek(flow, after, found)
        else:
            flow.behind = max(flow.behind, last)
            self._durable.mend(flow)
            self._durable.when_reached(flow, min(after, last), lambda: self._again(flow, after, found))

    def _again(self, flow: Flow, after: int, found: Found) -> None:
        if not flow.started:
            found(GONE)
        elif after <= flow.sure:
            self.seek(flow, after, found)
        else:
            found(RelayTimeoutError("the stream's replicas are behind"))

    async def _read_back(self, flow: Flow) -> None:
        """Serve all who wait for this flow's past, with one read for those that are there by its end."""
        flow.ring.pinned = True
        tries = 0
        try:
            while flow.seekers:
                if await self._dismiss(flow):
                    continue
                generation = flow.ring.generation
                try:
                    past = await self._read(flow, min(one.after for one in flow.seekers))
                    first = (await self._durable.look(flow)).state.first_seq
                except RelayError as error:
                    logger.debug("the past of %s can't be read now: %s", flow.name, describe(error))
                    await self._answer(flow, _always(error))
                    continue
                if flow.ring.generation == generation:
                    await self._serve(flow, past, first)
                flow.ring.trim()  # it may have grown meanwhile, and a storm may have many reads
                tries += 1
                if tries > MANY_READS:
                    await asyncio.sleep(READ_PAUSE_SECONDS)  # of many who are too far back, each costs a read
        finally:
            flow.reading = False
            flow.ring.pinned = False
            flow.ring.trim()
            if flow.started:
                self._durable.budget.changed(flow.ring)
            rest, flow.seekers = flow.seekers, []
            for one in rest:
                one.found(RelayTimeoutError("the stream has not answered as it should"))

    async def _dismiss(self, flow: Flow) -> bool:
        """Tell those who asked before the flow began anew; whether there was anybody to tell."""
        if not flow.started:
            await self._answer(flow, _always(GONE))
            return True
        stale = [one for one in flow.seekers if one.life != flow.life]
        flow.seekers = [one for one in flow.seekers if one.life == flow.life]
        for one in stale:
            one.found(GONE)
        return bool(stale)

    async def _serve(self, flow: Flow, past: _Past, first: int) -> None:
        """Answer those whom a read is good for."""
        limit = flow.stream.limit(past.floor)
        reading = Reading(past.traces, limit, single=not flow.wildcard, more=past.more)
        missed = Missed(past.entries)
        if past.whole and reading.is_whole(past.floor, first):
            before = [one.offset for one in past.traces if one.offset <= past.floor]
            flow.ring.prepend(reversed(past.entries), past.floor, before[-1] if before else 0)

        def judge(after: int) -> Missed | Gone | None:
            if after < past.after:
                return None  # it has come since, and stands farther back
            if after < past.floor:
                return GONE
            if not past.whole:
                return None
            return missed if reading.is_whole(after, first) else GONE

        await self._answer(flow, judge)

    async def _answer(self, flow: Flow, judge: Callable[[int], Missed | Gone | RelayError | None]) -> None:
        """Answer those who wait, but for those whom `judge` has nothing for; some in each turn of the event loop. Where
        the ring changes meanwhile, so that what was read does not fit on to it, the rest wait for another read.
        """
        generation = flow.ring.generation
        taken, flow.seekers = deque(flow.seekers), []
        kept: list[Seeking] = []
        served, until = 0, self._clock() + TURN_SECONDS
        while taken:
            one = taken.popleft()
            answer = judge(one.after)
            if answer is None:
                kept.append(one)
                continue
            one.found(answer)
            served += 1
            if served == SERVED_AT_ONCE or self._clock() >= until:
                await asyncio.sleep(0)
                served, until = 0, self._clock() + TURN_SECONDS
                if flow.ring.generation != generation:
                    break
        flow.seekers += [*kept, *taken]

    async def _read(self, flow: Flow, after: int) -> _Past:
        """Read what is between an offset and the ring.

        Raises:
            RelayError: not now.
        """
        for attempt in range(LAG_TRIES):
            past = await self._read_once(flow, after)
            newest = past.traces[-1].offset if past.traces else 0
            if not past.whole or newest >= flow.ring.floor_message:
                return past
            await asyncio.sleep(random.uniform(0.5, 1) * LAG_SECONDS * 2**attempt)  # noqa: S311 - jitter
        # either the replicas are behind, or the message has gone from the stream since
        last = await self._jetstream.last(flow.stream.name, flow.subject)
        if last is not None and last.offset >= flow.ring.floor_message:
            raise RelayTimeoutError("the stream's replicas are behind")
        return past

    async def _read_once(self, flow: Flow, after: int) -> _Past:
        past = _Past(after, flow.ring.floor, self._size_bytes)
        while True:
            if past.traces:
                batch = await self._jetstream.read_on(
                    flow.stream.name,
                    flow.subject,
                    last=past.traces[-1].offset,
                    messages=BATCH_MESSAGES,
                    size=BATCH_BYTES,
                )
            else:
                batch = await self._jetstream.read(
                    flow.stream.name, flow.subject, start=after, messages=BATCH_MESSAGES, size=BATCH_BYTES
                )
            messages = batch.messages
            for message in messages:
                past.traces.append(trace(message))
                if after < message.offset <= past.until and not removed_up_to(message):
                    topic = self._durable.topic_of(flow, message)
                    line = self._durable.downstream.encode(flow, message, topic, first=False)
                    if line is not None:
                        past.add(message.offset, line)
            past.more = batch.remaining
            reached = not flow.wildcard and bool(past.traces) and past.traces[-1].offset >= past.until
            if not batch.remaining or not messages or reached:
                return past
            if (
                past.read_bytes > READ_AT_ONCE * self._size_bytes
                or len(past.traces) > READ_AT_ONCE * RECOVERED_MESSAGES
            ):
                past.whole = False
                if past.floor == after:  # hardly anything in it was for those who wait
                    past.floor = past.traces[-1].offset
                return past


def _always(answer: Missed | Gone | RelayError) -> Callable[[int], Missed | Gone | RelayError]:
    return lambda _: answer
