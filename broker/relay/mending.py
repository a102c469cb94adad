"""Finds what is missing from durable topics, and fetches it.

A gap shows in the next message, which names the one before it. A lost tail shows in nothing, so the last message of
each topic here is looked at after every reconnect and from time to time. A publisher's own ack tells of one, too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from math import inf

from broker.core.continuity import Trace
from broker.relay.connection import NatsConnection
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError, RelayTimeoutError, describe
from broker.relay.flow import Flow
from broker.relay.jetstream import LAST_SUBJECTS, Batch, JetStream, Stored, StreamState
from broker.relay.stored import trace
from broker.relay.streams import Stream, Streams, is_gone

logger = logging.getLogger(__name__)

BATCH_MESSAGES = 256
BATCH_BYTES = 1024 * 1024
"""What one read of a gap asks for."""
WILDCARD_MESSAGES = 8192
WILDCARD_BYTES = 16 * 1024 * 1024
"""The most that is fetched for a wildcard, whose gap has to be seen whole."""
CHECK_SECONDS = 10.0
GRACE_SECONDS = 0.2
"""What is on its way is not lost yet."""
PAUSE_SECONDS = (0.02, 2.0)
"""The first and the longest pause before a read is tried again."""
DOUBT_TRIES = 5
"""Reads that bring nothing new before the stream's leader is asked whether there is anything."""


class Mender:
    """Keeps the flows of a node whole.

    Args:
        durable: the flows.
        connection: to NATS.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, durable: DurableRelay, connection: NatsConnection, clock: Callable[[], float]) -> None:
        self._durable = durable
        self._jetstream: JetStream = durable.jetstream
        self._streams: Streams = durable.streams
        self._connection = connection
        self._clock = clock
        self._checks: dict[str, _Check] = {name: _Check(stream) for name, stream in self._streams.by_policy.items()}
        self._expected: list[tuple[float, Flow, int]] = []
        durable.mend = self.mend

    # gaps

    def mend(self, flow: Flow) -> None:
        """Fetch what is missing from a flow."""
        if not flow.busy:
            flow.busy = True
            self._durable.run(self._mend(flow))

    def expect(self, flow: Flow, offset: int) -> None:
        """A message exists; it is fetched unless it comes soon."""
        if flow.started and flow.top < offset:
            self._expected.append((self._clock() + GRACE_SECONDS, flow, offset))

    async def _mend(self, flow: Flow) -> None:
        tries = 0
        life = flow.life
        while flow.life == life:
            before = flow.top
            try:
                whole = await self._fetch(flow)
            except RelayError as error:
                logger.debug("a gap of %s can't be fetched now: %s", flow.name, describe(error))
                await self._pause(tries)
                tries += 1
                continue
            if not whole or flow.life != life:
                break
            flow.busy = False
            if self._splice(flow):
                if flow.repaired and not flow.wildcard:
                    self._durable.downstream.gap("repaired")
                flow.repaired = False
                return
            flow.busy = True
            if flow.top > before:
                tries = 0
                continue
            tries += 1
            if tries >= DOUBT_TRIES and await self._is_hearsay(flow):
                tries = 0
                continue
            await self._pause(tries)  # the replica that answered was behind
        if flow.life == life:
            self._durable.lose(flow)

    def _splice(self, flow: Flow) -> bool:
        """Deliver what was held meanwhile, as far as it follows; whether nothing is missing any more."""
        for message, previous in flow.take_held():
            if message.offset <= flow.top:
                continue
            if previous <= flow.top and not flow.held:
                self._durable.deliver(flow, message)
            else:
                flow.hold(message, previous)
        return not flow.held and flow.behind <= flow.top

    async def _is_hearsay(self, flow: Flow) -> bool:
        """Whether the messages that are missed do not exist: somebody wrote to the live subject past the stream."""
        try:
            last = (await self._durable.look(flow)).state.last_seq
        except RelayError:
            return False
        if flow.behind <= last:
            return False
        if not flow.started:
            return True
        logger.warning("policy %s: messages came that its stream does not have", flow.policy.name)
        flow.behind = 0
        for message, previous in flow.take_held():
            if message.offset <= last:
                flow.hold(message, previous)
        return True

    async def _pause(self, tries: int) -> None:
        first, longest = PAUSE_SECONDS
        await asyncio.sleep(random.uniform(first / 2, min(longest, first * 2 ** min(tries, 10))))  # noqa: S311 - jitter

    async def _fetch(self, flow: Flow) -> bool:
        """Fetch and deliver what is behind the flow's top; False when something of that is gone.

        Raises:
            RelayError: not now.
        """
        return await (self._fetch_wildcard(flow) if flow.wildcard else self._fetch_topic(flow))

    async def _fetch_topic(self, flow: Flow) -> bool:
        life = flow.life
        while True:
            batch = await self._jetstream.read(
                flow.stream.name, flow.subject, start=flow.top, messages=BATCH_MESSAGES, size=BATCH_BYTES
            )
            if not await self._is_whole(flow, life, [trace(one) for one in batch.messages], more=batch.remaining):
                return False
            self._deliver(flow, batch.messages)
            if not batch.remaining:
                return True
            await self._durable.downstream.flushed(flow)  # no faster than it goes out

    async def _fetch_wildcard(self, flow: Flow) -> bool:
        found: list[Stored] = []
        start, size, life = flow.top, 0, flow.life
        while True:
            batch = await self._jetstream.read(
                flow.stream.name, flow.subject, start=start, messages=BATCH_MESSAGES, size=BATCH_BYTES
            )
            found += batch.messages
            size += sum(len(one.payload) for one in batch.messages)
            if not batch.remaining or not batch.messages:
                break
            if len(found) > WILDCARD_MESSAGES or size > WILDCARD_BYTES:
                return False
            start = batch.messages[-1].offset + 1
        if not await self._is_whole(flow, life, [trace(one) for one in found]):
            return False
        self._deliver(flow, found)
        return True

    async def _is_whole(self, flow: Flow, life: int, traces: Sequence[Trace], more: int = 0) -> bool:
        """Whether a read was all there is behind the top of a flow that has not begun anew meanwhile."""
        top = flow.top
        first = 0
        if not flow.kept.has_witness(top, traces) and not flow.is_fresh(self._clock()):
            first = (await self._durable.look(flow)).state.first_seq
            if not flow.forgotten(first):
                first = 0
        return flow.life == life and flow.kept.is_whole(top, traces, more=more, first=first)

    def _deliver(self, flow: Flow, messages: Sequence[Stored]) -> None:
        came = {one.message.offset for one in flow.held}
        for message in messages:
            if message.offset > flow.top:
                flow.repaired = flow.repaired or message.offset not in came
                self._durable.deliver(flow, message)

    # tails

    def tick(self) -> None:
        """Look after what was expected, and from time to time after all topics' last messages. Call it about ten times
        a second.
        """
        now = self._clock()
        while self._expected and self._expected[0][0] <= now:
            _, flow, offset = self._expected.pop(0)
            if flow.started and flow.top < offset:
                flow.behind = max(flow.behind, offset)
                self.mend(flow)
        if self._connection.connected:
            for check in self._checks.values():
                if check.due <= now and not check.running and check.stream.ready.is_set():
                    check.running, check.due = True, inf
                    self._durable.run(self._check(check))

    def reconnected(self) -> None:
        """The connection was gone: whatever was sent meanwhile has not come."""
        for check in self._checks.values():
            check.due = 0.0
            check.reached = -1

    async def _check(self, check: _Check) -> None:
        """Compare the last message of each topic here with the stream's."""
        pause = random.uniform(0.75, 1) * min(CHECK_SECONDS, check.stream.policy.history_seconds / 2)  # noqa: S311 - jitter
        try:
            await self._compare(check)
        except RelayError as error:
            logger.debug("stream %s can't be compared now: %s", check.stream.name, describe(error))
            pause = random.uniform(0.25, 1)  # noqa: S311 - jitter
            if is_gone(error):
                await self._renew(check)
        finally:
            check.running = False
            if check.due == inf:  # not, when a reconnect has asked for the next one meanwhile
                check.due = self._clock() + pause

    async def _renew(self, check: _Check) -> None:
        try:
            if await self._streams.renew(check.stream):
                self._durable.renewed(check.stream.policy.name)
        except RelayError as error:
            logger.warning("stream %s can't be made anew: %s", check.stream.name, describe(error))

    async def _compare(self, check: _Check) -> None:
        policy = check.stream.policy.name
        begun = self._clock()
        tops = {flow: flow.top for flow in self._durable.flows.values() if flow.policy.name == policy and flow.started}
        info = await check.stream.look(self._jetstream)
        if check.stream.take(info):
            self._durable.renewed(policy)
            return
        last = info.state.last_seq
        lives = {flow: flow.life for flow in tops if flow.started}
        for flow in lives:
            if tops[flow] > last:
                logger.warning("topic %s had messages that its stream does not have", flow.name)
                self._durable.lose(flow)
        if last != check.reached:
            await asyncio.sleep(GRACE_SECONDS)
            behind = [flow for flow, life in lives.items() if flow.life == life and flow.top < last]
            topics = [flow for flow in behind if not flow.wildcard]
            for begin in range(0, len(topics), LAST_SUBJECTS):
                await self._compare_topics(topics[begin : begin + LAST_SUBJECTS], info.state)
            for flow in behind:
                if flow.wildcard and flow.life == lives[flow]:
                    self.mend(flow)
        check.reached = last
        for flow, life in lives.items():
            if flow.life == life and not flow.busy:
                flow.checked_at = max(flow.checked_at, begun)
                flow.sure = max(flow.sure, last)

    async def _compare_topics(self, flows: Sequence[Flow], state: StreamState) -> None:
        """Compare the last messages of some topics; raises RelayTimeoutError where they can't be had as of `state`."""
        lives = [flow.life for flow in flows]
        batch = await self._lasts(flows[0].stream, [flow.subject for flow in flows], state)
        lasts = {message.subject: message.offset for message in batch.messages}
        for flow, life in zip(flows, lives, strict=True):
            last = lasts.get(flow.subject)
            if flow.life != life or flow.busy:
                continue
            if last is None:
                # all its messages have gone; perhaps some, too, that were never seen here
                if not flow.is_fresh(self._clock()) and flow.forgotten(state.first_seq):
                    self._durable.lose(flow)
            elif last > flow.top:
                flow.behind = max(flow.behind, last)
                self.mend(flow)

    async def _lasts(self, stream: Stream, subjects: Sequence[str], state: StreamState) -> Batch:
        batch = await self._jetstream.lasts(stream.name, subjects, BATCH_BYTES)
        if not batch.messages and state.messages:
            # an empty answer does not say how far its replica has got; one with the stream's newest message does
            newest = await self._jetstream.last(stream.name, stream.config["subjects"][0])
            if newest is None:
                return batch
            batch = await self._jetstream.lasts(stream.name, [*subjects, newest.subject], BATCH_BYTES)
        if state.messages and batch.up_to < state.last_seq:
            raise RelayTimeoutError("the stream's replicas are behind")
        return batch


class _Check:
    """When a stream's topics are looked at next."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.due = 0.0
        self.running = False
        self.reached = -1
        """The stream's last sequence when all was compared."""
