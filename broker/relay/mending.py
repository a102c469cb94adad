"""Fetches what is missing from durable topics, before what follows is delivered.

A gap shows in the next message, which names the one before it, or in a publisher's ack. What shows in neither,
`Checker` finds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence

from broker.core.continuity import Link, Reading, follow_links
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError, describe
from broker.relay.flow import Flow
from broker.relay.jetstream import JetStream, Stored
from broker.relay.stored import trace

logger = logging.getLogger(__name__)

BATCH_MESSAGES = 256
BATCH_BYTES = 1024 * 1024
"""What one read of a gap asks for."""
WILDCARD_MESSAGES = 8192
WILDCARD_BYTES = 16 * 1024 * 1024
"""The most that is fetched for a wildcard, whose gap has to be seen whole."""
WILDCARD_SECONDS = 0.01
"""How long there is at least between two reads for a wildcard."""
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
        clock: a monotonic clock in seconds.
    """

    def __init__(self, durable: DurableRelay, clock: Callable[[], float]) -> None:
        self._durable = durable
        self._jetstream: JetStream = durable.jetstream
        self._clock = clock
        self._expected: deque[tuple[float, Flow, int]] = deque()
        durable.mend = self.mend

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
        life = flow.life
        try:
            whole = await self._make_whole(flow, life)
        except Exception:
            self._give_up(flow, life)  # whatever it was, the subscribers must not wait for ever
            raise
        if not whole:
            self._give_up(flow, life)

    def _give_up(self, flow: Flow, life: int) -> None:
        if flow.life == life and flow.started:
            self._durable.lose(flow)

    async def _make_whole(self, flow: Flow, life: int) -> bool:
        """Fetch until nothing is missing; False when something of it is gone."""
        fetched = False
        tries = 0
        while flow.life == life:
            before = flow.top
            await self._room()
            try:
                found = await self._fetch(flow, life)
            except RelayError as error:
                logger.debug("a gap of %s can't be fetched now: %s", flow.name, describe(error))
                await self._pause(tries)
                tries += 1
                continue
            if found is None or flow.life != life:
                return False
            fetched = fetched or found
            flow.busy = False
            if self._splice(flow):
                if fetched:
                    self._durable.downstream.gap("repaired")
                return True
            flow.busy = True
            tries = 0 if flow.top > before else tries + 1
            if tries >= DOUBT_TRIES and await self._is_hearsay(flow, life):
                tries = 0
            elif tries:
                await self._pause(tries)  # the replica that answered was behind
        return False

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

    async def _is_hearsay(self, flow: Flow, life: int) -> bool:
        """Whether the messages that are missed do not exist: somebody wrote to the live subject past the stream."""
        try:
            last = (await self._durable.look(flow)).state.last_seq
        except RelayError:
            return False
        if flow.behind <= last or flow.life != life:
            return False
        logger.warning("policy %s: messages came that its stream does not have", flow.policy.name)
        flow.behind = 0
        for message, previous in flow.take_held():
            if message.offset <= last:
                flow.hold(message, previous)
        return True

    async def _room(self) -> None:
        """Wait until what has come to this node is with the subscribers, but for some of it."""
        while self._durable.downstream.congested():
            await self._pause(0)

    async def _pause(self, tries: int) -> None:
        first, longest = PAUSE_SECONDS
        await asyncio.sleep(random.uniform(first / 2, min(longest, first * 2 ** min(tries, 10))))  # noqa: S311 - jitter

    async def _fetch(self, flow: Flow, life: int) -> bool | None:
        """Fetch and deliver what is behind the flow's top.

        Returns:
            Whether that was anything that has not come by itself; None when something is gone.

        Raises:
            RelayError: not now.
        """
        return await (self._fetch_wildcard(flow, life) if flow.wildcard else self._fetch_topic(flow, life))

    async def _fetch_topic(self, flow: Flow, life: int) -> bool | None:
        size = BATCH_BYTES
        missed = False
        while True:
            # from the last one that was delivered on: that it is still there shows that nothing behind it has gone
            batch = await self._jetstream.read(
                flow.stream.name, flow.subject, start=flow.top, messages=BATCH_MESSAGES + 1, size=size
            )
            if not await self._is_whole(flow, life, batch.messages, more=batch.remaining):
                return None
            before = flow.top
            missed = self._deliver(flow, batch.messages) or missed
            if not batch.remaining:
                return missed
            if flow.top == before:  # the last one is as large as all that may come at a time
                size *= 2
            await self._durable.downstream.flushed(flow)  # no faster than it goes out
            await self._room()

    async def _fetch_wildcard(self, flow: Flow, life: int) -> bool | None:
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
                return None
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
        if not await self._is_whole(flow, life, found, followed=followed):
            return None
        end = found[-1].offset if found else flow.top
        live = {one.message.offset: one.message for one in flow.held if one.message.offset <= end}
        return self._deliver(flow, [one for _, one in sorted({**live, **{one.offset: one for one in found}}.items())])

    async def _is_whole(
        self, flow: Flow, life: int, messages: Sequence[Stored], more: int = 0, followed: Collection[str] = ()
    ) -> bool:
        """Whether a read was all there is behind what is sure of a flow that has not begun anew meanwhile."""
        sure, first = flow.sure, 0
        traces = [trace(one) for one in messages]
        if len(traces) + more > 1 or not self._durable.is_fresh(flow):
            # how much the stream keeps may have been changed by another node
            first = (await self._durable.look(flow)).state.first_seq
        limit = flow.stream.limit(sure)
        reading = Reading(traces, limit, single=not flow.wildcard, more=more, followed=followed)
        if self._durable.is_fresh(flow):
            first = 0
        return flow.life == life and reading.is_whole(sure, first)

    def _deliver(self, flow: Flow, messages: Sequence[Stored]) -> bool:
        """Deliver what is new of some messages; whether any of it has not come by itself meanwhile."""
        came = {one.message.offset for one in flow.held}
        missed = False
        for message in messages:
            if message.offset > flow.top:
                missed = missed or message.offset not in came
                self._durable.deliver(flow, message)
        return missed

    def tick(self) -> None:
        """Look after what was expected. Call it about ten times a second."""
        now = self._clock()
        while self._expected and self._expected[0][0] <= now:
            _, flow, offset = self._expected.popleft()
            if flow.started and flow.top < offset:
                flow.behind = max(flow.behind, offset)
                self.mend(flow)
