"""Pages of a topic's history.

A stream can only be read forwards. To read backwards, the place is searched from which on there are as many messages as
are wanted, by what the stream says of how many there are behind a message: a few small reads, however long the history.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from broker.core.continuity import Reading
from broker.relay.errors import RelayTimeoutError
from broker.relay.jetstream import JetStream, Stored
from broker.relay.stored import removed_up_to, trace
from broker.relay.streams import Stream

BATCH_MESSAGES = 512
BATCH_BYTES = 1024 * 1024
LAG_TRIES = 5
LAG_SECONDS = 0.02
_ENOUGH = 16


class Pages:
    """One request's reads of a topic's stream.

    Args:
        jetstream: its API.
        stream: to read from.
        subject: of the messages.
        size_bytes: stop when there is as much.
        top: the offset of the last message; a read that ends before it came from a replica that is behind.
        single: whether it is one topic's history.
    """

    def __init__(
        self, jetstream: JetStream, stream: Stream, subject: str, size_bytes: int, *, top: int, single: bool
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._subject = subject
        self._size_bytes = size_bytes
        self._top = top
        self._single = single
        self._limit = stream.limit(top)

    async def forwards(self, after: int, limit: int) -> list[Stored] | None:
        """What came behind an offset, or from the beginning (0); None when what came behind it is not all there."""
        found: list[Stored] = []
        size = 0
        messages, remaining = await self._batch(after, limit + 2)  # the one at the offset, and one that is kept besides
        if after:
            if not await self._continues(after, messages, remaining):
                return None
        elif self._single:
            messages = messages[max(0, len(messages) + remaining - self._limit) :]
        while True:
            for message in messages:
                if removed := removed_up_to(message):
                    found = [one for one in found if one.subject != message.subject or one.offset > removed]
                elif message.offset > after:
                    size += len(message.payload)
                    if len(found) == limit or (found and size > self._size_bytes):
                        return found
                    found.append(message)
            if not remaining or not messages or len(found) == limit:  # a read of no messages has no end
                return found
            messages, remaining = await self._behind(messages[-1].offset, limit - len(found))

    async def _behind(self, offset: int, messages: int) -> tuple[list[Stored], int]:
        """What follows a message that was just read.

        Raises:
            RelayError: not now.
        """
        batch = await self._jetstream.read_on(
            self._stream.name, self._subject, last=offset, messages=min(messages, BATCH_MESSAGES), size=BATCH_BYTES
        )
        return batch.messages, batch.remaining

    async def _continues(self, after: int, messages: Sequence[Stored], remaining: int) -> bool:
        first = (await self._stream.look()).state.first_seq
        traces = [trace(message) for message in messages]
        reading = Reading(traces, self._stream.limit(after), single=self._single, more=remaining)
        return reading.is_whole(after, first)

    async def backwards(self, end: int, limit: int) -> list[Stored]:
        """What came before an offset, the newest first."""
        behind_end = 0 if end > self._top else await self._count_from(end)
        start, count = await self._find(end, limit, behind_end)
        newest: deque[Stored] = deque()
        size = 0
        messages, remaining = await self._batch(start, BATCH_MESSAGES)
        while True:
            for message in messages:
                kept = not self._single or count <= self._limit
                count -= 1
                if removed := removed_up_to(message):
                    newest = deque(one for one in newest if one.subject != message.subject or one.offset > removed)
                if not kept or message.offset >= end or removed:
                    continue
                newest.append(message)
                size += len(message.payload)
                while len(newest) > limit or (size > self._size_bytes and len(newest) > 1):
                    size -= len(newest.popleft().payload)
            if not remaining or not messages or messages[-1].offset >= end:
                return list(reversed(newest))
            messages, remaining = await self._behind(messages[-1].offset, BATCH_MESSAGES)

    async def _find(self, end: int, limit: int, behind_end: int) -> tuple[int, int]:
        """A place from which on there are `limit` messages before `end`, or all there are, but not many more; and how
        many there are from there on, those behind `end` included.
        """
        step = limit
        too_late = end  # from here on there are too few
        start = max(1, end - step)
        count = await self._count_from(start)
        while count - behind_end < limit and start > 1:
            too_late = start
            step *= 4
            start = max(1, end - step)
            count = await self._count_from(start)
        while count - behind_end > 2 * limit + _ENOUGH and too_late - start > 1:
            middle = (start + too_late) // 2
            there = await self._count_from(middle)
            if there - behind_end < limit:
                too_late = middle
            else:
                start, count = middle, there
        return start, count

    async def _count_from(self, start: int) -> int:
        messages, remaining = await self._batch(start, 1)
        return len(messages) + remaining

    async def _batch(self, start: int, messages: int) -> tuple[list[Stored], int]:
        """Messages from an offset on, and how many there are behind them.

        Raises:
            RelayError: not now.
        """
        for attempt in range(LAG_TRIES):
            batch = await self._jetstream.read(
                self._stream.name,
                self._subject,
                start=start,
                messages=min(messages, BATCH_MESSAGES),
                size=BATCH_BYTES,
            )
            newest = batch.messages[-1].offset if batch.messages else 0
            if batch.remaining or newest >= self._top or start > self._top:
                return batch.messages, batch.remaining
            await asyncio.sleep(random.uniform(0.5, 1) * LAG_SECONDS * 2**attempt)  # noqa: S311 - jitter
        if (await self._stream.look()).state.first_seq <= self._top:
            raise RelayTimeoutError("the stream's replicas are behind")
        return batch.messages, batch.remaining  # the last one has gone from the stream meanwhile
