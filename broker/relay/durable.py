"""Durable topics: what JetStream has stored and republishes reaches this node's subscribers once each, and in order.

A topic with subscribers here has one NATS subscription to its live subject, and a `Flow` that knows what comes next.
Nothing is read from the stream as long as nothing is missing. See `Mender` for what happens when something is, and
`Seeker` for clients that come back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Protocol

from broker.core.continuity import Verdict, judge
from broker.core.policy import TopicPolicy
from broker.core.ring import RingBudget, RingLimits
from broker.core.topic import is_wildcard
from broker.relay.connection import NatsConnection, confirmed
from broker.relay.errors import JetStreamError, RelayError, RelayTimeoutError, describe
from broker.relay.flow import NEWEST_BYTES, NEWEST_TOPICS, Flow, Ready
from broker.relay.headers import read_block
from broker.relay.jetstream import JetStream, Stored
from broker.relay.live import LINGER_SECONDS
from broker.relay.parser import Sink
from broker.relay.stored import UNKEPT, read_live, removed_up_to
from broker.relay.streams import Streams
from broker.relay.subjects import Subjects

logger = logging.getLogger(__name__)

READY_SECONDS = 10.0
"""How long somebody waits for a topic's position, or for an offset."""
STARTING = 64
"""Topics whose position is asked for at the same time."""
SERVED_AT_ONCE = 32
"""Of those who wait for a topic, so many are served in one turn of the event loop."""
LAG_TRIES = 5
LAG_SECONDS = 0.1
LASTS_BYTES = 8 * 1024 * 1024


class Downstream(Protocol):
    """What takes a topic's messages from here."""

    def encode(self, flow: Flow, message: Stored, topic: str, *, first: bool) -> bytes | None:
        """A publication's push; None for what is none, which is counted the `first` time."""

    def push(self, flow: Flow, line: bytes, offset: int) -> None:
        """Deliver a push to all subscribers."""

    def flushed(self, flow: Flow) -> asyncio.Future[None]:
        """Done when all that was pushed is with the subscribers."""

    def lost(self, flow: Flow) -> None:
        """What comes next for these subscribers can't be had any more: end their subscriptions, at once."""

    def gap(self, outcome: str) -> None:
        """Count a gap by what became of it: `repaired` or `lost`."""

    def congested(self) -> bool:
        """Whether more has come than goes out, so that what is stored had better wait in its stream."""

    def followed(self, flow: Flow) -> bool:
        """Whether the flow has subscribers here."""

    def unexpected(self, flow: Flow) -> None:
        """Count a message that came to the live subject past the stream, and was not delivered."""


class DurableRelay:
    """Carries durable topics between the streams and this node.

    Args:
        connection: to NATS.
        jetstream: its API.
        streams: of the durable policies.
        subjects: how subjects are named.
        downstream: takes the messages.
        clock: a monotonic clock in seconds.
        ring_limits: of each topic's ring.
        rings_bytes: the most bytes of all rings together.
        make_head: what each publication of a topic begins with on the wire.
    """

    def __init__(
        self,
        connection: NatsConnection,
        jetstream: JetStream,
        streams: Streams,
        subjects: Subjects,
        downstream: Downstream,
        clock: Callable[[], float],
        *,
        ring_limits: RingLimits,
        rings_bytes: int,
        make_head: Callable[[str], bytes],
    ) -> None:
        self.jetstream = jetstream
        self.streams = streams
        self.downstream = downstream
        self.clock = clock
        self.flows: dict[str, Flow] = {}
        self.budget = RingBudget(rings_bytes)
        self.mend: Callable[[Flow], None] = _nobody
        """Fetches what is missing; to be set before the first flow."""
        self._connection = connection
        self._subjects = subjects
        self._ring_limits = ring_limits
        self._make_head = make_head
        self._leaving: dict[str, float] = {}
        self._starting = asyncio.Semaphore(STARTING)
        self._order = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    # interest

    def follow(self, policy: TopicPolicy, name: str, members: Sink | None = None) -> Flow:
        """The flow of a topic or wildcard; begun if there is none. It goes on for as long as it is followed.

        Args:
            policy: the topic's.
            name: its name, or the wildcard.
            members: takes what nodes tell each other about its members; not wanted without.
        """
        flow = self.flows.get(name)
        if flow is None:
            flow = self.flows[name] = Flow(
                policy,
                self.streams.by_policy[policy.name],
                name,
                self._subjects.stored(policy.name, name),
                wildcard=is_wildcard(name),
                head=self._make_head(name),
                limits=self._ring_limits,
            )
            # before anything is awaited: what is published from now on is seen
            if members is not None:
                self._connection.subscribe(self._subjects.members(name), members)
            # of one turn, so that both are confirmed together
            interest = self._connection.subscribe(self._subjects.live(policy.name, name), partial(self._arrived, flow))
            self.run(self._start(flow, interest))
        return flow

    def when_started(self, flow: Flow, ready: Ready) -> None:
        """Call back when the flow's position is known (at once, if it is), or can't be had."""
        if flow.started:
            ready(None)
        else:
            flow.waiting.append(ready)

    def sweep(self) -> None:
        """Drop what nobody has followed for some seconds, so that a reloaded page finds it, and let nobody wait for
        ever. Call it about every second.
        """
        now = self.clock()
        for flow in tuple(self.flows.values()):
            flow.memo = None
            if flow.reached:
                self._never_reached(flow, now)
            if flow.waiting or flow.seekers or self.downstream.followed(flow):
                self._leaving.pop(flow.name, None)
            elif self._leaving.setdefault(flow.name, now + LINGER_SECONDS) <= now:
                self._drop(flow)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself, until `stop` at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a mistake in the relay of durable topics", exc_info=error)

    def _drop(self, flow: Flow) -> None:
        if self.flows.get(flow.name) is flow:
            del self.flows[flow.name]
            self._leaving.pop(flow.name, None)
            self._connection.unsubscribe(self._subjects.live(flow.policy.name, flow.name))
            if flow.policy.join_leave:
                self._connection.unsubscribe(self._subjects.members(flow.name))
        flow.end()
        self.budget.gone(flow.ring)
        self._never_reached(flow)

    # beginning

    async def _start(self, flow: Flow, interest: asyncio.Future[bool] | None) -> None:
        """Find out where the topic stands, and let begin who waits."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                if interest is not None:
                    await confirmed(interest)
                await flow.stream.ready.wait()
                async with self._starting:
                    await self._position(flow)
        except (RelayError, TimeoutError) as error:
            logger.debug("topic %s can't begin: %s", flow.name, describe(error))
            self._give_up(flow, error)
            return
        except Exception as error:
            self._give_up(flow, error)
            raise
        for message, previous in flow.take_held():
            self._place(flow, message, previous)
        if flow.behind > flow.top:
            self.mend(flow)  # more came meanwhile than could be held
        self._serve(flow, None)

    def _give_up(self, flow: Flow, error: Exception) -> None:
        self._drop(flow)
        if not isinstance(error, RelayError):
            error = RelayTimeoutError("the stream has not answered as it should")
        self._serve(flow, error)

    async def _position(self, flow: Flow) -> None:
        # asked for first: no message up to there can be missing from an answer that says that there is none
        state = (await self.look(flow)).state
        last = await self.jetstream.last(flow.stream.name, flow.subject)
        # of a stream that has lost nothing yet, the beginning is a position as good as any, and a plainer one
        reached = 0 if last is None and state.first_seq <= 1 else state.last_seq
        flow.newest = None
        if flow.latest_only:
            newest = await self._newest(flow, reached) if flow.wildcard else [] if last is None else [last]
            if newest is not None:
                flow.newest, flow.newest_bytes = {}, 0
                for message in newest:
                    self._keep_newest(flow, message)
        flow.begin(reached, 0 if last is None else last.offset, self.clock())

    async def look(self, flow: Flow) -> Any:
        """The state of a flow's stream as it is now. A stream that was made anew ends all that was."""
        info = await flow.stream.look()
        if flow.stream.take(info):
            self.renewed(flow.policy.name)
        return info

    def renewed(self, policy: str) -> None:
        """A policy's stream was made anew: offsets mean nothing any more."""
        logger.warning("the stream of policy %s was made anew; its subscribers begin again", policy)
        lost = [flow for flow in self.flows.values() if flow.policy.name == policy and flow.started]
        for flow in lost:
            flow.started = False  # at once: nothing of the new stream must pass for the old one's
        self.run(self._lose_all(lost))

    async def _lose_all(self, flows: Sequence[Flow]) -> None:
        for flow in flows:
            self.lose(flow)
            await asyncio.sleep(0)

    async def _newest(self, flow: Flow, reached: int) -> list[Stored] | None:
        """The newest messages of all topics of a wildcard; None when there are too many."""
        for attempt in range(LAG_TRIES):
            try:
                batch = await self.jetstream.lasts(flow.stream.name, [flow.subject], LASTS_BYTES)
            except JetStreamError as error:
                if error.code == 413:
                    return None
                raise
            if batch.remaining:
                return None
            if not batch.messages or batch.up_to >= reached:
                return batch.messages
            await asyncio.sleep(LAG_SECONDS * attempt)  # the replica that answered was behind
        raise RelayTimeoutError("the stream's replicas are behind")

    def _serve(self, flow: Flow, error: RelayError | None) -> None:
        """Tell those who wait, some in each turn of the event loop."""
        for _ in range(min(SERVED_AT_ONCE, len(flow.waiting))):
            flow.waiting.popleft()(error)
        if flow.waiting:
            asyncio.get_running_loop().call_soon(self._serve, flow, error)

    # messages

    def _arrived(self, flow: Flow, subject: bytes, payload: bytes, block: bytes | None) -> None:
        headers = {} if block is None else read_block(block)
        came = read_live(flow.stream.name, payload, headers)
        if came is None:
            self._pass_on(flow, subject, payload, headers)
            return
        message, previous = came
        if not flow.started or flow.busy:
            flow.hold(message, previous)
        elif self.downstream.congested():
            flow.hold(message, previous)
            self.mend(flow)
        else:
            self._place(flow, message, previous)

    def _pass_on(self, flow: Flow, subject: bytes, payload: bytes, headers: Mapping[str, str]) -> None:
        """Deliver what isn't stored on purpose; what came past the stream is none of that."""
        if UNKEPT not in headers:
            self.downstream.unexpected(flow)
            return
        topic = subject[len(self._subjects.live(flow.policy.name, "")) :].decode(errors="replace")
        line = self.downstream.encode(flow, Stored(0, "", payload, headers), topic, first=True)
        if line is not None:
            self.downstream.push(flow, line, flow.top)

    def _place(self, flow: Flow, message: Stored, previous: int) -> None:
        if flow.busy:
            flow.hold(message, previous)
            return
        verdict = judge(flow.top, flow.sure, message.offset, flow.before(message, previous))
        if verdict is Verdict.NEXT and not self._may_hide_a_loss(flow, previous):
            self.deliver(flow, message)
        elif verdict is not Verdict.KNOWN:
            flow.hold(message, previous)
            self.mend(flow)

    def _may_hide_a_loss(self, flow: Flow, previous: int) -> bool:
        """Where the one before is not the one delivered last, that has gone from the stream. So may others have that
        came since this was last looked into.
        """
        linked = previous > 0 and previous == flow.top
        return not linked and not flow.wildcard and not self.is_fresh(flow)

    def is_fresh(self, flow: Flow) -> bool:
        """Whether it was certain so lately that nothing was missing that all messages since are still kept."""
        return not flow.stream.rolls and self.clock() - flow.checked_at < flow.stream.history_seconds

    def deliver(self, flow: Flow, message: Stored) -> None:
        """Hand on the message that comes next."""
        flow.top = message.offset
        flow.sure = max(flow.sure, flow.top)
        if removed_up_to(message):
            flow.ring.clear(message.offset, message.offset)
            flow.memo = None
            self.budget.changed(flow.ring)
            self._forget_newest(flow, message.subject)
        else:
            line = self.downstream.encode(flow, message, self.topic_of(flow, message), first=True)
            if line is not None:
                if flow.latest_only:
                    self._keep_newest(flow, message, line)
                else:
                    flow.ring.append(message.offset, line)
                    self.budget.changed(flow.ring)
                self.downstream.push(flow, line, message.offset)
        if flow.reached:
            self._tell_reached(flow)

    def _keep_newest(self, flow: Flow, message: Stored, line: bytes | None = None) -> None:
        if flow.newest is None or removed_up_to(message):
            return
        if line is None:
            line = self.downstream.encode(flow, message, self.topic_of(flow, message), first=False)
        if line is None:
            return
        self._forget_newest(flow, message.subject)  # so that they are in the order of their offsets
        flow.newest[message.subject] = (message.offset, line)
        flow.newest_bytes += len(line)
        if len(flow.newest) > NEWEST_TOPICS or (flow.newest_bytes > NEWEST_BYTES and len(flow.newest) > 1):
            flow.newest = None

    def _forget_newest(self, flow: Flow, subject: str) -> None:
        if flow.newest is not None and (entry := flow.newest.pop(subject, None)) is not None:
            flow.newest_bytes -= len(entry[1])

    def topic_of(self, flow: Flow, message: Stored) -> str:
        return message.subject[len(self._subjects.stored(flow.policy.name, "")) :]

    def when_reached(self, flow: Flow, offset: int, callback: Callable[[], None]) -> None:
        """Call back when an offset that is known to exist was delivered (at once, if it was), or can't be waited for
        any longer.
        """
        if not flow.started or flow.top >= offset:
            callback()
        else:
            heappush(flow.reached, (offset, next(self._order), self.clock() + READY_SECONDS, callback))

    def _tell_reached(self, flow: Flow) -> None:
        while flow.reached and flow.reached[0][0] <= flow.top:
            heappop(flow.reached)[3]()

    @staticmethod
    def _never_reached(flow: Flow, now: float = inf) -> None:
        """Let nobody wait any longer for an offset that has done so until now."""
        overdue = [entry for entry in flow.reached if entry[2] <= now]
        if overdue:
            flow.reached = [entry for entry in flow.reached if entry[2] > now]
            heapify(flow.reached)
        for _, _, _, callback in overdue:
            callback()

    def lose(self, flow: Flow) -> None:
        """What comes next can't be had: whoever is subscribed is told, and the topic begins again for others."""
        flow.end()
        flow.ring.clear(flow.top, 0)
        self.budget.changed(flow.ring)
        self._never_reached(flow)
        self.downstream.gap("lost")
        self.downstream.lost(flow)
        self.run(self._start(flow, None))


def _nobody(_: object) -> None:
    raise AssertionError("nobody was told what to do here")
