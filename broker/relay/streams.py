"""The streams behind durable policies: one each, made or brought up to date by whichever node comes first.

Nothing is ever deleted to make a stream fit: what JetStream can't apply in place is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from broker.core.policy import TopicPolicy
from broker.relay.errors import JetStreamError, RelayError, describe
from broker.relay.jetstream import JetStream, StreamInfo
from broker.relay.subjects import Subjects
from broker.rounds import Rounds

logger = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 2.0)
PATIENCE_SECONDS = 20.0
"""How long a cluster may have too few servers for the replicas before that is taken for a mistake."""
NANOSECONDS = 1_000_000_000
_LEAST_MESSAGES = "broker_least_messages"
_LEAST_UNTIL = "broker_least_until"
"""Metadata: behind offsets below `until`, not more than `messages` of a topic were kept at some time."""
_SLACK_MESSAGES = 10_000
_NOT_FOUND = 10059
_NAME_IN_USE = 10058
_NO_PEERS = 10005


class StreamProblemError(RelayError):
    """A stream can't be made as the settings say, or brought up to date. It names the stream."""


class Stream:
    """One policy's stream, as this node knows it."""

    def __init__(self, policy: TopicPolicy, subjects: Subjects, replicas: int, jetstream: JetStream) -> None:
        self.policy = policy
        self.name = subjects.stream(policy.name)
        self.config = stream_config(policy, subjects, replicas)
        self.epoch = ""
        """Changes when the stream is made anew; empty until it is known."""
        self.info: StreamInfo | None = None
        """As it was described last."""
        self.ready = asyncio.Event()
        """Set once the stream is there as it has to be."""
        self.state = "not asked for yet"
        self._jetstream = jetstream
        self._states = Rounds(self._ask)

    def limit(self, after: int) -> int:
        """The most messages of a topic that can have come behind an offset without any gone by their number: as the
        stream is now, or was when it kept fewer. Another node may have other settings.
        """
        if self.info is None:
            return 0
        limit: int = self.info.config.get("max_msgs_per_subject", 1) - 1
        least = self.info.config.get("metadata", {})
        if after < int(least.get(_LEAST_UNTIL, 0)):
            limit = min(limit, int(least.get(_LEAST_MESSAGES, 0)))
        return limit

    @property
    def history_seconds(self) -> float:
        """How long messages are kept at least, as far as is known."""
        now: int = 0 if self.info is None else self.info.config.get("max_age", 0)
        return min(self.policy.history_seconds, now / NANOSECONDS) if now else self.policy.history_seconds

    @property
    def rolls(self) -> bool:
        """Whether messages go by their bytes, which no clock tells."""
        return self.info is not None and self.info.config.get("max_bytes", -1) > 0

    def note(self, info: StreamInfo) -> None:
        """Keep a description for those who ask, without what follows from a new epoch; see `take`."""
        self.info = info

    def take(self, info: StreamInfo) -> bool:
        """Take note of a description; whether the stream was made anew since the last one."""
        epoch = hashlib.sha256(info.created.encode()).hexdigest()[:12]
        renewed = self.epoch not in ("", epoch)
        self.info, self.epoch = info, epoch
        return renewed

    async def look(self) -> StreamInfo:
        """Ask for the stream's state as it is now or later; all who ask while an answer is on its way share the next.

        Raises:
            RelayError: no answer, or no stream.
        """
        return await asyncio.shield(self._states.ask(self.name))

    async def _ask(self, name: str) -> StreamInfo:
        return await self._jetstream.info(name)


class Streams:
    """All streams of a deployment.

    Args:
        jetstream: its API.
        subjects: how subjects are named.
        policies: all of them; those that are durable get a stream.
        replicas: how many servers keep each.
    """

    def __init__(
        self, jetstream: JetStream, subjects: Subjects, policies: Sequence[TopicPolicy], replicas: int
    ) -> None:
        self._jetstream = jetstream
        self.by_policy = {
            policy.name: Stream(policy, subjects, replicas, jetstream) for policy in policies if policy.durable
        }

    @property
    def ready(self) -> bool:
        return all(stream.ready.is_set() for stream in self.by_policy.values())

    def states(self) -> dict[str, str]:
        """What is known of each stream, in a word or a few."""
        return {stream.name: stream.state for stream in self.by_policy.values()}

    def reasons_against(self) -> list[str]:
        """The streams that are not there yet."""
        return [
            f"stream {stream.name}: {stream.state}" for stream in self.by_policy.values() if not stream.ready.is_set()
        ]

    async def settle(self) -> None:
        """Make all streams as they have to be, however long JetStream takes to be there.

        Raises:
            StreamProblemError: one of them can't be.
        """
        for stream in self.by_policy.values():
            await _persist(partial(self._settle, stream), stream)
            stream.state = "ready"
            stream.ready.set()
            logger.info("stream %s is there", stream.name)

    async def _settle(self, stream: Stream) -> None:
        try:
            info = await self._jetstream.info(stream.name)
        except JetStreamError as error:
            if not is_gone(error):
                raise
            info = await self._create(stream)
        foreign = [key for key in ("subjects", "republish") if not _same(info.config.get(key), stream.config[key])]
        if foreign:
            # to change these would take its messages away from whoever made it
            raise StreamProblemError(
                f"stream {stream.name} is there already with other {' and '.join(foreign)}: "
                f"{info.config.get(foreign[0])!r}, not {stream.config[foreign[0]]!r}; "
                "choose another nats.prefix or policy name, or remove the stream yourself"
            )
        changed = {key: value for key, value in stream.config.items() if not _same(info.config.get(key), value)}
        if changed.get("max_msgs_per_subject", 0) > info.config.get("max_msgs_per_subject", 0):
            changed["metadata"] = _remember_least(info)
        if changed:
            answer = await self._jetstream.call(f"STREAM.UPDATE.{stream.name}", {**info.config, **changed})
            info = _described(answer)
            logger.info("stream %s was brought up to date: %s", stream.name, ", ".join(sorted(changed)))
        stream.take(info)

    async def _create(self, stream: Stream) -> StreamInfo:
        try:
            return _described(await self._jetstream.call(f"STREAM.CREATE.{stream.name}", stream.config))
        except JetStreamError as error:
            if error.number != _NAME_IN_USE:
                raise
            return await self._jetstream.info(stream.name)  # another node, with other settings, was quicker

    async def renew(self, stream: Stream) -> bool:
        """Make a stream again that has gone, without touching one that is there: another node's settings may be newer.

        Returns:
            Whether it is another one than before.

        Raises:
            RelayError: it can't be done now.
        """
        try:
            info = await self._jetstream.info(stream.name)
        except JetStreamError as error:
            if not is_gone(error):
                raise
            logger.warning("stream %s has gone; making it anew", stream.name)
            info = await self._create(stream)
        return stream.take(info)


def stream_config(policy: TopicPolicy, subjects: Subjects, replicas: int) -> dict[str, Any]:
    """What the stream of a policy has to be like; what isn't named is left as it is.

    One message more is kept of each topic than the policy says: as long as there are not more than it says, nothing
    was cut off yet, and a client that has seen the extra one has missed nothing.
    """
    return {
        "name": subjects.stream(policy.name),
        "subjects": [subjects.stored(policy.name, ">")],
        "republish": {"src": subjects.stored(policy.name, ">"), "dest": subjects.live(policy.name, ">")},
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": replicas,
        "max_msgs": -1,
        "max_msgs_per_subject": policy.history_messages + 1,
        "max_age": int(policy.history_seconds * NANOSECONDS),
        "max_bytes": policy.history_bytes or -1,
        "duplicate_window": int(policy.idempotency_seconds * NANOSECONDS),
        "allow_direct": True,
        "deny_delete": True,
        "allow_rollup_hdrs": False,
    }


def _remember_least(info: StreamInfo) -> dict[str, str]:
    """The stream's metadata, with how few messages it has kept of a topic up to now: what that has cut off stays gone
    when it keeps more.
    """
    metadata = dict(info.config.get("metadata") or {})
    least = info.config["max_msgs_per_subject"] - 1
    if info.state.first_seq < int(metadata.get(_LEAST_UNTIL, 0)):
        least = min(least, int(metadata[_LEAST_MESSAGES]))
    # some more, for those that come before the change is there
    return {**metadata, _LEAST_MESSAGES: str(least), _LEAST_UNTIL: str(info.state.last_seq + _SLACK_MESSAGES)}


def is_gone(error: RelayError) -> bool:
    """Whether an error says that a stream is not there."""
    return isinstance(error, JetStreamError) and error.number == _NOT_FOUND


def _described(answer: bytes) -> StreamInfo:
    return msgspec.json.decode(answer, type=StreamInfo)


def _same(have: object, want: object) -> bool:
    if isinstance(want, Mapping) and isinstance(have, Mapping):
        return all(have.get(key) == value for key, value in want.items())
    return have == want or (have is None and want is False)


async def _persist(attempt: Callable[[], Awaitable[None]], stream: Stream) -> None:
    """Try until it succeeds; what will not become better is raised."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    tries = 0
    while True:
        try:
            await attempt()
        except StreamProblemError:
            raise
        except RelayError as error:
            if isinstance(error, JetStreamError) and _is_final(error, loop.time() - begun):
                raise StreamProblemError(
                    f"stream {stream.name} can't be made or changed as the settings say: {error.description} "
                    f"(JetStream's error {error.number}); nothing was changed"
                ) from error
            if describe(error) != stream.state:
                stream.state = describe(error)
                logger.warning("stream %s: %s; trying again", stream.name, stream.state)
            first, longest = RETRY_SECONDS
            await asyncio.sleep(random.uniform(first / 2, min(longest, first * 2**tries)))  # noqa: S311 - jitter
            tries = min(tries + 1, 10)
        else:
            return


def _is_final(error: JetStreamError, waited: float) -> bool:
    """Whether trying again is in vain: all but what a cluster says that is about to come up."""
    if error.number == _NO_PEERS:
        return waited > PATIENCE_SECONDS
    return error.code < 500 or error.number in _FINAL


_FINAL = frozenset(
    {
        10052,  # invalid configuration, or a change that can't be made
        10074,  # replicas without a cluster
        10047,  # more storage than there is
        10028,  # more than the account may have
        10039,  # JetStream is not enabled for this account
        10076,  # nor for this server
    }
)
