"""Reads on for connections that could not take what came: from a topic's ring, or from its stream.

Each is given a piece at a time, when it has taken the one before, until it is where the topic's next fan-out begins.
Who waits for the same part of a history shares a read.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import NamedTuple

from broker.core.behind import CatchingUp, CatchUpLane
from broker.core.continuity import Reading
from broker.core.hub import Hub
from broker.core.ring import Entry
from broker.metrics import Metrics
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError, describe
from broker.relay.flow import Flow
from broker.relay.stored import removed_up_to, trace

logger = logging.getLogger(__name__)

READS_AT_ONCE = 8
"""Topics that are read at the same time; the others wait, so that those who fell behind don't crowd out the rest."""
RETRY_SECONDS = (0.05, 2.0)
SERVED_AT_ONCE = 32


class _Waiting(NamedTuple):
    reader: CatchingUp
    lane: CatchUpLane
    after: int
    life: int


class _Piece(NamedTuple):
    """Part of a history: all there is between two offsets."""

    after: int
    until: int
    entries: Sequence[Entry]


class CatchUp:
    """Serves those who are behind in durable topics.

    Args:
        relay: the topics' flows.
        hub: who is subscribed here.
        metrics: what is counted.
        piece_messages: at most so many are given at a time.
        piece_bytes: at most as much, but for a single larger one.
    """

    def __init__(self, relay: DurableRelay, hub: Hub, metrics: Metrics, piece_messages: int, piece_bytes: int) -> None:
        self._relay = relay
        self._hub = hub
        self._metrics = metrics
        self._piece_messages = piece_messages
        self._piece_bytes = piece_bytes
        self._waiting: dict[Flow, list[_Waiting]] = {}
        """Who waits for a read of the flow's stream, while one is under way."""
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    def want(self, reader: CatchingUp, lane: CatchUpLane) -> None:
        """Give a reader what is behind the place of a topic's lane, now or as soon as it can be had.

        It is not called back any more once its subscription has ended from this side: that is told otherwise.
        """
        flow = self._relay.flows.get(lane.name)
        if flow is not None and flow.started:
            self._serve(flow, _Waiting(reader, lane, lane.position, flow.life))

    def _serve(self, flow: Flow, one: _Waiting) -> None:
        here = self._hub.topics.get(flow.name)
        if here is None or flow.life != one.life:
            return
        if one.after < flow.ring.floor:
            self._read_for(flow, one)
            return
        if one.after > here.begun and (here.pending or here.fanning_out is not None):
            here.when_flushed(lambda: self._serve(flow, one))  # it was given already what is only about to go out
            return
        entries = flow.ring.piece(one.after, here.begun, self._piece_messages, self._piece_bytes)
        until = entries[-1][0] if entries else here.begun
        last = flow.ring.newest_up_to(here.begun)
        if until < last and entries:
            self._give(one, entries, until, live=False)
        elif here.fanning_out is None:
            # between two fan-outs: the next one brings what is behind this
            self._metrics.catch_ups.labels("caught_up").inc()
            self._give(one, entries, max(here.begun, one.after), live=True)
        elif entries:
            self._give(one, entries, until, live=False)
        else:
            # it may be handed in a moment what it was given already
            here.when_flushed(lambda: self._serve(flow, one))

    @staticmethod
    def _give(one: _Waiting, entries: Sequence[Entry], until: int, *, live: bool) -> None:
        one.reader.caught_up(one.lane, one.after, entries, until, live=live)

    # from the stream

    def _read_for(self, flow: Flow, one: _Waiting) -> None:
        waiting = self._waiting.get(flow)
        if waiting is not None:
            waiting.append(one)
            return
        self._waiting[flow] = [one]
        self._relay.run(self._read_all(flow))

    async def _read_all(self, flow: Flow) -> None:
        """Read for all who wait, who came first first, until nobody does."""
        tries = 0
        try:
            while waiting := [one for one in self._waiting[flow] if one.life == flow.life]:
                after = waiting[0].after
                try:
                    async with self._reads:
                        piece = await self._read(flow, after)
                except RelayError as error:
                    logger.debug("%s can't be read on now: %s", flow.name, describe(error))
                    first, most = RETRY_SECONDS
                    await asyncio.sleep(min(most, first * 2**tries) * random.uniform(0.5, 1))  # noqa: S311 - jitter
                    tries = min(tries + 1, 10)
                    continue
                tries = 0
                await self._share(flow, after, piece)
        except Exception:
            for one in self._waiting[flow]:
                one.reader.fell_behind(one.lane)  # whatever it was, they must not wait for ever
            raise
        finally:
            del self._waiting[flow]

    async def _share(self, flow: Flow, after: int, piece: _Piece | None) -> None:
        """Give a piece to all for whom it has something; without one, tell those who wait for the same that it is gone.
        Some in each turn of the event loop.
        """
        waiting, self._waiting[flow] = self._waiting[flow], []
        served = 0
        for one in waiting:
            if one.life != flow.life:
                continue
            if one.after < flow.ring.floor and (one.after < after if piece is None else not _covers(piece, one.after)):
                self._waiting[flow].append(one)
                continue
            self._give_piece(flow, one, after, piece)
            served += 1
            if served % SERVED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _give_piece(self, flow: Flow, one: _Waiting, after: int, piece: _Piece | None) -> None:
        if one.after >= flow.ring.floor:
            self._serve(flow, one)  # it needs no read any more
        elif piece is None:
            if one.after == after:
                self._metrics.catch_ups.labels("lost").inc()
                one.reader.fell_behind(one.lane)
            else:
                self._waiting[flow].append(one)
        else:
            entries = [entry for entry in piece.entries if entry[0] > one.after]
            self._give(one, entries, piece.until, live=False)

    async def _read(self, flow: Flow, after: int) -> _Piece | None:
        """What comes behind an offset, up to the ring at most; None when it is gone.

        Raises:
            RelayError: not now.
        """
        stream, floor, floor_message = flow.stream, flow.ring.floor, flow.ring.floor_message
        batch = await self._relay.jetstream.read(
            stream.name,
            flow.subject,
            start=after,
            messages=self._piece_messages + 1,
            # the message at the offset itself comes with it, as a witness, and one more at least has to
            size=self._piece_bytes + 2 * flow.policy.message_bytes,
        )
        first = (await self._relay.look(flow)).state.first_seq
        traces = [trace(message) for message in batch.messages]
        newest = traces[-1].offset if traces else 0
        if not batch.remaining and newest < floor_message and first <= floor_message:
            raise RelayError("the stream's replicas are behind")
        reading = Reading(traces, stream.limit(after), single=not flow.wildcard, more=batch.remaining)
        if not reading.is_whole(after, first):
            return None
        entries: list[Entry] = []
        until, size = after, 0
        for message in batch.messages:
            if not after < message.offset <= floor:
                continue
            if not removed_up_to(message):
                line = self._relay.downstream.encode(flow, message, self._relay.topic_of(flow, message), first=False)
                if line is not None:
                    size += len(line)
                    if entries and (size > self._piece_bytes or len(entries) == self._piece_messages):
                        return _Piece(after, until, entries)
                    entries.append((message.offset, line))
            until = message.offset
        if not batch.remaining or newest >= floor:
            until = floor
        if until == after:
            raise RelayError("the stream has given nothing of what comes next")
        return _Piece(after, until, entries)


def _covers(piece: _Piece, after: int) -> bool:
    return piece.after <= after < piece.until
