"""The histories of durable topics: read from their streams, and removed."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.policy import TopicPolicy
from broker.core.topic import is_wildcard
from broker.relay.errors import JetStreamError, RelayTimeoutError
from broker.relay.jetstream import JetStream, Stored
from broker.relay.pages import Pages
from broker.relay.stored import REMOVED, removed_up_to
from broker.relay.streams import Stream, Streams
from broker.relay.subjects import Subjects

RACES = 5
"""Publications that may come between while a history is removed."""
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
        single = not is_wildcard(topic)
        removed = removed_up_to(last) if single and last is not None else 0
        offset = removed or top
        if since is not None:
            if since.epoch not in ("", stream.epoch) or (reverse and since.offset == 0):
                return UNRECOVERABLE
            if since.offset > top + reverse and not await self._was_there(stream, since.offset, empty=last is None):
                return UNRECOVERABLE
        if since is not None and not reverse and 0 < since.offset < removed:
            return UNRECOVERABLE
        if limit == 0 or last is None or removed:
            return History([], offset, stream.epoch)
        pages = Pages(self._jetstream, stream, subject, self._size_bytes, top=top, single=single)
        if reverse:
            found = await pages.backwards(top + 1 if since is None else since.offset, limit)
            return History(found, offset, stream.epoch)
        following = await pages.forwards(0 if since is None else since.offset, limit)
        return UNRECOVERABLE if following is None else History(following, offset, stream.epoch)

    async def _was_there(self, stream: Stream, offset: int, *, empty: bool) -> bool:
        """Whether an offset behind a topic's last message was a position nevertheless: who subscribes to an empty topic
        or to a wildcard is told how far the stream has got. If no message is left there must have been none since.
        """
        state = (await stream.look()).state
        return offset <= state.last_seq and not (empty and state.first_seq > offset + 1)

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
