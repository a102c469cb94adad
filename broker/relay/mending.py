"""Finds what is missing from durable topics, and fetches it.

A gap shows in the next message, which names the one before it. A lost tail shows in nothing, so the last message of
each topic here is looked at after every reconnect and from time to time. A publisher's own ack tells of one, too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from broker.core.continuity import Link, Reading, follow_links
from broker.relay.connection import NatsConnection
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError, RelayTimeoutError, describe
from broker.relay.flow import Flow
from broker.relay.jetstream import LAST_SUBJECTS, JetStream, Stored, StreamInfo
from broker.relay.stored import trace
from broker.relay.streams import Stream, Streams, is_gone

logger = logging.getLogger(__name__)

BATCH_MESSAGES = 256
BATCH_BYTES = 1024 * 1024
"""What one read of a gap asks for."""
WILDCARD_MESSAGES = 8192
WILDCARD_BYTES = 16 * 1024 * 1024
"""The most that is fetched for a wildcard, whose gap has to be seen whole."""
WILDCARD_SECONDS = 0.01
"""How long there is at least between two reads for a wildcard."""
LAG_TRIES = 6
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
        self._expected: deque[tuple[float, Flow, int]] = deque()
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
        try:
            whole = await self._make_whole(flow)
        except Exception:
            self._give_up(flow)  # whatever it was, the subscribers must not wait for ever
            raise
        if not whole:
            self._give_up(flow)
        flow.busy = False

    def _give_up(self, flow: Flow) -> None:
        flow.busy = False
        if flow.started:
            self._durable.lose(flow)

    async def _make_whole(self, flow: Flow) -> bool:
        """Fetch until nothing is missing; False when something of it is gone."""
        fetched = False
        tries = 0
        while flow.started:
            before = flow.top
            try:
                if not await self._fetch(flow):
                    return False
            except RelayError as error:
                logger.debug("a gap of %s can't be fetched now: %s", flow.name, describe(error))
                await self._pause(tries)
                tries += 1
                continue
            fetched = fetched or flow.top > before
            flow.busy = False
            if self._splice(flow):
                if fetched and not flow.wildcard:
                    self._durable.downstream.gap("repaired")
                return True
            flow.busy = True
            tries = 0 if flow.top > before else tries + 1
            if tries >= DOUBT_TRIES and await self._is_hearsay(flow):
                tries = 0
            elif tries:
                await self._pause(tries)  # the replica that answered was behind
        return True

    def _splice(self, flow: Flow) -> bool:
        """Deliver what was held meanwhile, as far as it follows; whether nothing is missing any more."""
        for message, previous in flow.take_held():
            if message.offset <= flow.top:
                continue
            if flow.before(message, previous) <= flow.sure and not flow.held:
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
        size = BATCH_BYTES
        while True:
            batch = await self._jetstream.read(
                flow.stream.name, flow.subject, start=flow.top, messages=BATCH_MESSAGES, size=size
            )
            if not await self._is_whole(flow, batch.messages, more=batch.remaining):
                return False
            before = flow.top
            self._deliver(flow, batch.messages)
            if not batch.remaining or not flow.started:
                return True
            if flow.top == before:  # the last one is as large as all that may come at a time
                size *= 2
            await self._durable.downstream.flushed(flow)  # no faster than it goes out

    async def _fetch_wildcard(self, flow: Flow) -> bool:
        """As there are other topics' messages between its own, there is one read for all that came in some time."""
        await asyncio.sleep(flow.fetched_at + WILDCARD_SECONDS - self._clock())
        flow.fetched_at = self._clock()
        batch = await self._jetstream.read(
            flow.stream.name, flow.subject, start=flow.top, messages=BATCH_MESSAGES, size=BATCH_BYTES
        )
        found = batch.messages
        size = sum(len(one.payload) for one in found)
        while batch.remaining and batch.messages:
            if len(found) > WILDCARD_MESSAGES or size > WILDCARD_BYTES:
                return False
            batch = await self._jetstream.read_on(
                flow.stream.name,
                flow.subject,
                last=found[-1].offset,
                messages=BATCH_MESSAGES,
                size=BATCH_BYTES,
            )
            found += batch.messages
            size += sum(len(one.payload) for one in batch.messages)
        # what came live counts as well: of a topic with many messages the stream may have dropped the first since
        links = [Link(one.message.offset, one.message.subject, one.previous) for one in flow.in_order()]
        oldest = {one.subject: one.offset for one in reversed(found)}
        followed = {
            topic for topic, reached in follow_links(flow.sure, links).items() if oldest.get(topic, 0) <= reached
        }
        if not await self._is_whole(flow, found, followed=followed):
            return False
        end = found[-1].offset if found else flow.top
        live = {one.message.offset: one.message for one in flow.held if one.message.offset <= end}
        self._deliver(flow, [one for _, one in sorted({**live, **{one.offset: one for one in found}}.items())])
        return True

    async def _is_whole(
        self, flow: Flow, messages: Sequence[Stored], more: int = 0, followed: Collection[str] = ()
    ) -> bool:
        sure, first = flow.sure, 0
        traces = [trace(one) for one in messages]
        if len(traces) + more > 1 or not self._durable.is_fresh(flow):
            # how much the stream keeps may have been changed by another node
            first = (await self._durable.look(flow)).state.first_seq
        limit = flow.stream.limit(sure)
        reading = Reading(traces, limit, single=not flow.wildcard, more=more, followed=followed)
        if self._durable.is_fresh(flow):
            first = 0
        return flow.started and reading.is_whole(sure, first)

    def _deliver(self, flow: Flow, messages: Sequence[Stored]) -> None:
        for message in messages:
            if message.offset > flow.top:
                self._durable.deliver(flow, message)

    # tails

    def tick(self) -> None:
        """Look after what was expected, and from time to time after all topics' last messages. Call it about ten times
        a second.
        """
        now = self._clock()
        while self._expected and self._expected[0][0] <= now:
            _, flow, offset = self._expected.popleft()
            if flow.started and flow.top < offset:
                flow.behind = max(flow.behind, offset)
                self.mend(flow)
        if self._connection.connected:
            for check in self._checks.values():
                if check.due <= now and not check.running and check.stream.ready.is_set():
                    check.running = True
                    self._durable.run(self._check(check))

    def reconnected(self) -> None:
        """The connection was gone: whatever was sent meanwhile has not come."""
        for check in self._checks.values():
            check.due = 0.0
            check.reached = -1

    async def _check(self, check: _Check) -> None:
        """Compare the last message of each topic here with the stream's."""
        period = min(CHECK_SECONDS, check.stream.history_seconds / 2)
        try:
            await self._compare(check)
            check.due = self._clock() + random.uniform(0.75, 1) * period  # noqa: S311 - jitter
        except RelayError as error:
            logger.debug("stream %s can't be compared now: %s", check.stream.name, describe(error))
            check.due = self._clock() + random.uniform(0.25, 1)  # noqa: S311 - jitter
            if is_gone(error):
                await self._renew(check)
        finally:
            check.running = False

    async def _renew(self, check: _Check) -> None:
        try:
            if await self._streams.renew(check.stream):
                self._durable.renewed(check.stream.policy.name)
        except RelayError as error:
            logger.warning("stream %s can't be made anew: %s", check.stream.name, describe(error))

    async def _compare(self, check: _Check) -> None:
        """Look whether each flow has what its stream has: then it has missed nothing up to where the stream stands."""
        policy = check.stream.policy.name
        begun = self._clock()
        tops = {flow: flow.top for flow in self._durable.flows.values() if flow.policy.name == policy and flow.started}
        info = await check.stream.look(self._jetstream)
        if check.stream.take(info):
            self._durable.renewed(policy)
            return
        last = info.state.last_seq
        if last != check.reached:
            await asyncio.sleep(GRACE_SECONDS)
            topics = [flow for flow in tops if flow.started and not flow.wildcard and flow.sure < last]
            for begin in range(0, len(topics), LAST_SUBJECTS):
                some = topics[begin : begin + LAST_SUBJECTS]
                await self._compare_topics(some, await self._lasts(check.stream, some, info), last, begun)
            for flow in [flow for flow in tops if flow.started and flow.wildcard and flow.sure < last]:
                message = await self._jetstream.last(flow.stream.name, flow.subject)
                self._settle(flow, 0 if message is None else message.offset, last, begun, info.state.first_seq)
            check.reached = last
        for flow, top in tops.items():
            if flow.started and top > last:
                logger.warning("topic %s had messages that its stream does not have", flow.name)
                self._durable.lose(flow)
            elif flow.sure >= last:
                flow.checked_at = max(flow.checked_at, begun)

    async def _compare_topics(self, flows: Sequence[Flow], lasts: Mapping[str, int], last: int, begun: float) -> None:
        first = 0
        if any(flow.subject not in lasts and not self._durable.is_fresh(flow) for flow in flows):
            first = (await self._durable.look(flows[0])).state.first_seq
        for flow in flows:
            self._settle(flow, lasts.get(flow.subject, 0), last, begun, first)

    def _settle(self, flow: Flow, newest: int, last: int, begun: float, first: int) -> None:
        """Take note of a flow's newest message when the stream stood at `last`; 0 when it had none."""
        if not flow.started:
            return
        if newest > flow.top:
            flow.behind = max(flow.behind, newest)
            self.mend(flow)
        elif flow.busy:
            return
        elif newest < flow.top and first > flow.sure + 1 and not self._durable.is_fresh(flow):
            # what was delivered last has gone, and perhaps some, too, that never came
            self._durable.lose(flow)
        else:
            flow.sure = max(flow.sure, last)
            flow.checked_at = max(flow.checked_at, begun)

    async def _lasts(self, stream: Stream, flows: Sequence[Flow], info: StreamInfo) -> Mapping[str, int]:
        """The offsets of the topics' last messages, from a replica that has got as far as `info` says.

        Raises:
            RelayError: there is none now.
        """
        if not info.state.messages:
            return {}
        subjects = [flow.subject for flow in flows]
        for attempt in range(LAG_TRIES):
            if attempt:
                await self._pause(attempt)
            # the stream's own last message is asked for, too: without any the answer does not say how far it goes
            newest = await self._jetstream.read(
                stream.name, stream.config["subjects"][0], start=info.state.last_seq, messages=1, size=BATCH_BYTES
            )
            if not newest.messages:
                continue
            asked = list(dict.fromkeys([*subjects, newest.messages[0].subject]))
            batch = await self._jetstream.lasts(stream.name, asked, BATCH_BYTES)
            if batch.up_to >= info.state.last_seq:
                return {message.subject: message.offset for message in batch.messages}
        raise RelayTimeoutError("the stream's replicas are behind")


class _Check:
    """When a stream's topics are looked at next."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.due = 0.0
        self.running = False
        self.reached = -1
        """The stream's last sequence when all was compared."""
