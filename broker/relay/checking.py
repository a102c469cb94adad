"""Finds lost tails of durable topics: messages that no other one that comes later tells of.

The last message of each topic here is compared with its stream's after every reconnect, and from time to time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from math import inf

from broker.relay.connection import NatsConnection
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError, RelayTimeoutError, describe
from broker.relay.flow import Flow
from broker.relay.jetstream import LAST_SUBJECTS, StreamInfo
from broker.relay.streams import Stream, is_gone

logger = logging.getLogger(__name__)

CHECK_SECONDS = 10.0
GRACE_SECONDS = 0.2
"""What is on its way is not lost yet."""
READ_BYTES = 1024 * 1024
LAG_TRIES = 6
LAG_SECONDS = 0.02


class Checker:
    """Compares the flows of a node with their streams.

    Args:
        durable: the flows.
        connection: to NATS.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, durable: DurableRelay, connection: NatsConnection, clock: Callable[[], float]) -> None:
        self._durable = durable
        self._jetstream = durable.jetstream
        self._streams = durable.streams
        self._connection = connection
        self._clock = clock
        self._checks = [_Check(stream) for stream in self._streams.by_policy.values()]

    def tick(self) -> None:
        """Begin the checks that are due. Call it about ten times a second."""
        if not self._connection.connected:
            return
        now = self._clock()
        for check in self._checks:
            if check.due <= now and not check.running and check.stream.ready.is_set():
                check.running, check.due = True, inf
                self._durable.run(self._check(check))

    def reconnected(self) -> None:
        """The connection was gone: whatever was sent meanwhile has not come."""
        for check in self._checks:
            check.due = 0.0
            check.reached = -1

    async def _check(self, check: _Check) -> None:
        """Compare the last message of each topic here with the stream's."""
        pause = random.uniform(0.75, 1) * min(CHECK_SECONDS, check.stream.history_seconds / 2)  # noqa: S311 - jitter
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
        """Look whether each flow has what its stream has: then it has missed nothing up to where the stream stands."""
        policy = check.stream.policy.name
        begun = self._clock()
        tops = {flow: flow.top for flow in self._durable.flows.values() if flow.policy.name == policy and flow.started}
        lives = {flow: flow.life for flow in tops}
        info = await check.stream.look()
        if check.stream.take(info):
            self._durable.renewed(policy)
            return
        last = info.state.last_seq
        if last != check.reached:
            await asyncio.sleep(GRACE_SECONDS)
            await self._compare_topics([flow for flow in tops if not flow.wildcard and flow.sure < last], info, begun)
            await self._compare_wildcards([flow for flow in tops if flow.wildcard and flow.sure < last], info, begun)
            check.reached = last
        for flow, top in tops.items():
            if lives[flow] != flow.life:
                continue
            if top > last:
                logger.warning("topic %s had messages that its stream does not have", flow.name)
                self._durable.lose(flow)
            elif flow.sure >= last:
                flow.checked_at = max(flow.checked_at, begun)

    async def _compare_topics(self, flows: Sequence[Flow], info: StreamInfo, begun: float) -> None:
        for begin in range(0, len(flows), LAST_SUBJECTS):
            some = [(flow, flow.life) for flow in flows[begin : begin + LAST_SUBJECTS] if flow.started]
            if not some:
                continue
            those = [flow for flow, _ in some]
            lasts = await self._lasts(those[0].stream, those, info)
            first = await self._first(those, lasts)
            for flow, life in some:
                if flow.life == life:
                    self._settle(flow, lasts.get(flow.subject, 0), info.state.last_seq, begun, first)

    async def _compare_wildcards(self, flows: Sequence[Flow], info: StreamInfo, begun: float) -> None:
        for flow in flows:
            life = flow.life
            message = await self._jetstream.last(flow.stream.name, flow.subject)
            newest = 0 if message is None else message.offset
            if flow.started and flow.life == life:
                self._settle(flow, newest, info.state.last_seq, begun, info.state.first_seq)

    async def _first(self, flows: Sequence[Flow], lasts: Mapping[str, int]) -> int:
        """The stream's first sequence, where some of the flows have to know it."""
        if all(flow.subject in lasts or self._durable.is_fresh(flow) for flow in flows):
            return 0
        return (await flows[0].stream.look()).state.first_seq

    def _settle(self, flow: Flow, newest: int, last: int, begun: float, first: int) -> None:
        """Take note of a flow's newest message when the stream stood at `last`; 0 when it had none."""
        if newest > flow.top:
            flow.behind = max(flow.behind, newest)
            self._durable.mend(flow)
        elif flow.busy:
            return
        elif (not newest or newest < flow.top) and first > flow.sure + 1 and not self._durable.is_fresh(flow):
            # what was there has gone, and perhaps some, too, that never came
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
                await asyncio.sleep(random.uniform(0.5, 1) * LAG_SECONDS * 2**attempt)  # noqa: S311 - jitter
            # the stream's own last message is asked for, too: without any the answer does not say how far it goes
            newest = await self._jetstream.read(
                stream.name, stream.config["subjects"][0], start=info.state.last_seq, messages=1, size=READ_BYTES
            )
            if not newest.messages:
                continue
            asked = list(dict.fromkeys([*subjects, newest.messages[0].subject]))
            batch = await self._jetstream.lasts(stream.name, asked, READ_BYTES)
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
