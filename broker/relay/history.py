"""Reads a topic's history from its stream, forwards and backwards, and removes it.

A stream can only be read forwards. To read backwards, the place is searched from which on there are as many messages as
are wanted, by what the stream says of how many there are behind a message: a few small reads, however long the history.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from broker.core.continuity import Kept
from broker.core.policy import TopicPolicy
from broker.core.topic import is_wildcard
from broker.relay.errors import JetStreamError, RelayTimeoutError
from broker.relay.jetstream import JetStream, Stored
from broker.relay.stored import REMOVED, removed_up_to, trace
from broker.relay.streams import Stream, Streams
from broker.relay.subjects import Subjects

BATCH_MESSAGES = 512
BATCH_BYTES = 1024 * 1024
RACES = 5
"""Publications that may come between while a history is removed."""
LAG_TRIES = 5
LAG_SECONDS = 0.02
_ENOUGH = 16
_WRONG_LAST = 10071


@dataclass(frozen=True, slots=True)
class Since:
    """Where a history is read from: behind this offset, or before it when it is read backwards."""

    offset: int
    epoch: str


@dataclass(frozen=True, slots=True)
class History:
    """What a history request brings.

    Args:
        messages: in the order they were asked for.
        offset: of the topic's newest publication; 0 when there never was one, or none is left.
        epoch: of the stream.
    """

    messages: list[Stored]
    offset: int
    epoch: str


class Unrecoverable:
    """The position that a history was asked from is none that it can be read from."""


UNRECOVERABLE = Unrecoverable()


class Archive:
    """The histories of all durable topics.

    Args:
        jetstream: its API.
        streams: of the policies.
        subjects: how subjects are named.
        size_bytes: the most that one request is answered with.
    """

    def __init__(self, jetstream: JetStream, streams: Streams, subjects: Subjects, size_bytes: int) -> None:
        self._jetstream = jetstream
        self._streams = streams
        self._subjects = subjects
        self._size_bytes = size_bytes

    async def read(
        self, policy: TopicPolicy, topic: str, *, limit: int, since: Since | None, reverse: bool
    ) -> History | Unrecoverable:
        """Read a history.

        Args:
            policy: the topic's, a durable one.
            topic: its name, or a wildcard.
            limit: at most so many messages, fewer when they are large; 0 for the position only.
            since: where to begin; None for the oldest message, or the newest when it is read backwards.
            reverse: whether backwards.

        Raises:
            RelayError: the stream can't be read now.
        """
        stream = self._streams.by_policy[policy.name]
        if not stream.epoch:
            raise RelayTimeoutError(f"stream {stream.name} is not there yet")
        subject = self._subjects.stored(policy.name, topic)
        last = await self._jetstream.last(stream.name, subject)
        top = 0 if last is None else last.offset
        offset = top if last is None else removed_up_to(last) or top
        if since is not None:
            if since.epoch not in ("", stream.epoch) or (reverse and since.offset == 0):
                return UNRECOVERABLE
            if since.offset > top + reverse and not (last is None and await self._was_empty(stream, since.offset)):
                return UNRECOVERABLE
        if limit == 0 or last is None:
            return History([], offset, stream.epoch)
        single = not is_wildcard(topic)
        reading = _Reading(self._jetstream, stream, subject, self._size_bytes, top=top, single=single)
        if reverse:
            found = await reading.backwards(top + 1 if since is None else since.offset, limit)
            return History(found, offset, stream.epoch)
        following = await reading.forwards(0 if since is None else since.offset, limit)
        return UNRECOVERABLE if following is None else History(following, offset, stream.epoch)

    async def _was_empty(self, stream: Stream, offset: int) -> bool:
        """Whether a topic without messages had none behind an offset of its stream either. A subscriber of such a topic
        is told how far the stream has got, and may ask from there.
        """
        state = (await stream.look(self._jetstream)).state
        return state.first_seq - 1 <= offset <= state.last_seq

    async def remove(self, policy: TopicPolicy, topic: str) -> None:
        """Remove a topic's history. Its position stays: a mark takes its place, so that clients that have seen all of
        it have missed nothing, and others are told.

        Raises:
            RelayError: it was not removed, or perhaps not.
        """
        stream = self._streams.by_policy[policy.name]
        subject = self._subjects.stored(policy.name, topic)
        for _ in range(RACES):
            last = await self._jetstream.last(stream.name, subject)
            if last is None:
                return
            if removed_up_to(last):  # perhaps by somebody who could not end it
                await self._purge(stream, subject, last.offset)
                return
            headers = {REMOVED: str(last.offset), "Nats-Expected-Last-Subject-Sequence": str(last.offset)}
            try:
                mark = await self._jetstream.publish(stream.name, subject, b"", headers)
            except JetStreamError as error:
                if error.number == _WRONG_LAST:
                    continue  # somebody has published meanwhile
                raise
            await self._purge(stream, subject, mark.offset)
            return
        raise RelayTimeoutError("too much is published to the topic; nothing was removed")

    async def _purge(self, stream: Stream, subject: str, mark: int) -> None:
        """Remove what is before a mark."""
        await self._jetstream.call(f"STREAM.PURGE.{stream.name}", {"filter": subject, "seq": mark})


class _Reading:
    """One request's reads.

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
        self._kept = Kept(stream.policy.history_messages, single=single)

    async def forwards(self, after: int, limit: int) -> list[Stored] | None:
        """What came behind an offset, or from the beginning (0); None when what came behind it is not all there."""
        found: list[Stored] = []
        size = 0
        messages, remaining = await self._batch(after, limit + 2)  # the one at the offset, and one that is kept besides
        if after:
            if not await self._continues(after, messages, remaining):
                return None
        elif self._kept.single:
            messages = messages[max(0, len(messages) + remaining - self._kept.history_messages) :]
        while True:
            for message in messages:
                if message.offset > after and not removed_up_to(message):
                    size += len(message.payload)
                    if len(found) == limit or (found and size > self._size_bytes):
                        return found
                    found.append(message)
            if not remaining or not messages or len(found) == limit:  # a read of no messages has no end
                return found
            messages, remaining = await self._batch(messages[-1].offset + 1, limit - len(found))

    async def _continues(self, after: int, messages: Sequence[Stored], remaining: int) -> bool:
        traces = [trace(message) for message in messages]
        first = 0
        if not self._kept.has_witness(after, traces):
            first = (await self._stream.look(self._jetstream)).state.first_seq
        return self._kept.is_whole(after, traces, more=remaining, first=first)

    async def backwards(self, end: int, limit: int) -> list[Stored]:
        """What came before an offset, the newest first."""
        behind_end = 0 if end > self._top else await self._count_from(end)
        start, count = await self._find(end, limit, behind_end)
        newest: deque[Stored] = deque()
        size = 0
        position = start
        while True:
            messages, remaining = await self._batch(position, BATCH_MESSAGES)
            for message in messages:
                kept = not self._kept.single or count <= self._kept.history_messages
                count -= 1
                if not kept or message.offset >= end or removed_up_to(message):
                    continue
                newest.append(message)
                size += len(message.payload)
                while len(newest) > limit or (size > self._size_bytes and len(newest) > 1):
                    size -= len(newest.popleft().payload)
            if not remaining or not messages or messages[-1].offset >= end:
                return list(reversed(newest))
            position = messages[-1].offset + 1

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
                size=min(self._size_bytes, BATCH_BYTES),
            )
            newest = batch.messages[-1].offset if batch.messages else 0
            if batch.remaining or newest >= self._top or start > self._top:
                return batch.messages, batch.remaining
            await asyncio.sleep(random.uniform(0.5, 1) * LAG_SECONDS * 2**attempt)  # noqa: S311 - jitter
        return batch.messages, batch.remaining  # the last one has gone from the stream meanwhile
