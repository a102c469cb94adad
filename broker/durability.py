"""The durable side of a node: joins the streams, the hub and the clients that come back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.admission import Admission
from broker.catching_up import CatchUp
from broker.core.hub import Hub, Topic
from broker.core.policy import TopicPolicy
from broker.core.ring import RingLimits
from broker.core.topic import is_wildcard, topic_problem
from broker.downstream import HubDownstream
from broker.metrics import Metrics
from broker.publications import make_push, publication_problem
from broker.relay.checking import Checker
from broker.relay.connection import NatsConnection
from broker.relay.durable import DurableRelay
from broker.relay.errors import RelayError, RelayUnavailableError
from broker.relay.flow import Flow
from broker.relay.history import Archive, Since, Unrecoverable
from broker.relay.inbox import Inbox
from broker.relay.jetstream import Ack, JetStream
from broker.relay.mending import Mender
from broker.relay.parser import Sink
from broker.relay.seeking import Seeker
from broker.relay.streams import Stream, Streams
from broker.relay.subjects import Subjects
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.replies import HistoryResult, publication_head, publications_of


@dataclass(frozen=True, slots=True)
class DurableOptions:
    """What the durable side has to know of the settings."""

    replicas: int
    ring: RingLimits
    rings_bytes: int
    recovery_bytes: int
    """The most that one client is given of what it missed."""
    history_bytes: int
    """The most that one request of a history is answered with."""
    piece_messages: int
    piece_bytes: int
    """As much is read at a time for a connection that catches up."""
    history_messages: int
    """The most publications one request of a history is answered with."""


class Durability:
    """Streams, flows and histories of one node.

    Args:
        options: see there.
        connection: to NATS.
        subjects: how subjects are named.
        uid: the node's.
        policies: all of them.
        hub: who is subscribed here.
        metrics: what is counted.
        clock: a monotonic clock in seconds.
        push: delivers a topic's push, with its offset, to the subscribers.
        congested: whether this node falls behind, so that more had better wait in the streams.
        end: ends all subscriptions to a topic, at once, since what comes next can't be had.
    """

    def __init__(
        self,
        options: DurableOptions,
        *,
        connection: NatsConnection,
        subjects: Subjects,
        uid: str,
        policies: Sequence[TopicPolicy],
        hub: Hub,
        metrics: Metrics,
        clock: Callable[[], float],
        push: Callable[[str, bytes, int], None],
        congested: Callable[[], bool],
        end: Callable[[str], None],
    ) -> None:
        self._subjects = subjects
        self._inbox = Inbox(connection, subjects, uid, clock)
        self._jetstream = JetStream(self._inbox, metrics.relay_reads.inc)
        self.streams = Streams(self._jetstream, subjects, policies, options.replicas)
        self._relay = DurableRelay(
            connection,
            self._jetstream,
            self.streams,
            subjects,
            HubDownstream(hub, metrics, push, congested, end),
            clock,
            ring_limits=options.ring,
            rings_bytes=options.rings_bytes,
            make_head=publication_head,
        )
        self._mender = Mender(self._relay, clock)
        self._checker = Checker(self._relay, connection, clock)
        seeker = Seeker(self._relay, options.recovery_bytes, clock)
        self.admission = Admission(self._relay, seeker, hub, metrics)
        self.catch_up = CatchUp(self._relay, hub, metrics, options.piece_messages, options.piece_bytes)
        self._options = options
        self._archive = Archive(self._jetstream, self.streams, subjects, options.history_bytes)
        self._settled = False
        self.settling: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when a stream can't be made as the settings say."""

    # life

    def start(self) -> None:
        if self.streams.by_policy:
            self._inbox.start()

    def connected(self) -> None:
        """The connection to NATS is there, perhaps again."""
        if self.streams.by_policy and not self._settled:
            self._settled = True
            self._relay.run(self._settle())
        self._checker.reconnected()

    def disconnected(self) -> None:
        self._inbox.lost()

    def tick(self) -> None:
        """Call it about ten times a second."""
        self._inbox.sweep()
        self._mender.tick()
        self._checker.tick()

    def sweep(self) -> None:
        """Call it about every second."""
        self._relay.sweep()

    async def stop(self) -> None:
        self.settling.cancel()
        await self._relay.stop()

    async def _settle(self) -> None:
        try:
            await self.streams.settle()
        except Exception as error:  # noqa: BLE001 - whoever runs the node ends with it
            self.settling.set_exception(error)

    # publishing

    def publish(
        self, policy: TopicPolicy, topic: str, data: bytes, headers: Mapping[str, str] | None, key: str
    ) -> asyncio.Future[Ack]:
        """Store a publication; see `JetStream.publish`.

        Args:
            policy: the topic's.
            topic: its name.
            data: JSON on one line.
            headers: to go with it.
            key: makes a repeat of it within the policy's time return the first one's ack; empty for none.

        Raises:
            RelayUnavailableError, RelayTooLargeError: nothing was sent.
        """
        stream = self.streams.by_policy[policy.name]
        if not stream.epoch:
            raise RelayUnavailableError(f"stream {stream.name} is not there yet")
        sent = dict(headers or {})
        if key:
            sent["Nats-Msg-Id"] = message_id(topic, key)
        subject = self._subjects.stored(policy.name, topic)
        acked = self._jetstream.publish(stream.name, subject, data, sent or None)
        if topic in self._relay.flows:
            acked.add_done_callback(lambda done: self._stored(topic, done))
        return acked

    async def describe(self) -> list[dict[str, Any]]:
        """The streams' states, as far as they can be asked for now; else as they were known last."""
        return [await self._describe(stream) for stream in self.streams.by_policy.values()]

    async def _describe(self, stream: Stream) -> dict[str, Any]:
        problem = None
        try:
            stream.note(await stream.look())
        except RelayError as error:
            problem = str(error)
        info = stream.info
        told: dict[str, Any] = {"name": stream.name, "policy": stream.policy.name, "ready": stream.ready.is_set()}
        if info is not None:
            told |= {
                "epoch": stream.epoch,
                "messages": info.state.messages,
                "bytes": info.state.bytes,
                "first_offset": info.state.first_seq,
                "last_offset": info.state.last_seq,
                "replicas": info.config.get("num_replicas", 1),
                "leader": info.cluster.leader,
                "behind": [one.name for one in info.cluster.replicas if not one.current or one.offline],
            }
        return told if problem is None else {**told, "problem": problem}

    async def receipt(self, policy: TopicPolicy, ack: Ack) -> tuple[int, str]:
        """Where a publication was stored: offset and epoch."""
        stream = self.streams.by_policy[policy.name]
        if not ack.duplicate and stream.info is not None and ack.offset <= stream.info.state.last_seq:
            # lower than what was there before: perhaps the stream was made anew
            with suppress(RelayError):
                if stream.take(await stream.look()):
                    self._relay.renewed(policy.name)
        return ack.offset, stream.epoch

    def when_delivered(self, offset: int, here: Topic, callback: Callable[[], None]) -> None:
        """Call back when a publication that was stored is with this node's subscribers of a topic, or wildcard."""
        flow = self._relay.flows.get(here.name)
        if flow is None:
            callback()
        else:
            self._relay.when_reached(flow, offset, lambda: here.when_flushed(callback))

    def _stored(self, topic: str, done: asyncio.Future[Ack]) -> None:
        flow = self._relay.flows.get(topic)
        if flow is not None and not done.cancelled() and done.exception() is None:
            self._mender.expect(flow, done.result().offset)

    # history

    async def history(
        self,
        policy: TopicPolicy,
        topic: str,
        *,
        limit: int,
        since: tuple[int, str] | None,
        reverse: bool,
        field: str,
    ) -> HistoryResult | CommandError:
        """Answer a history request.

        Args:
            policy: the topic's.
            topic: its name, or a wildcard.
            limit: the most publications; 0 for the position only, a negative one for as many as are allowed.
            since: offset and epoch to begin at.
            reverse: whether the newest come first.
            field: what the request is called in errors.
        """
        if not policy.durable:
            return CommandError(ErrorCode.NOT_AVAILABLE, "channel: its policy keeps no history")
        position = None
        if since is not None:
            if reverse and since[0] == 0:
                return CommandError(ErrorCode.BAD_REQUEST, f"{field}.since.offset: there is nothing before 0")
            position = Since(*since)
        most = self._options.history_messages
        wanted = most if limit < 0 else min(limit, most)
        try:
            found = await self._archive.read(policy, topic, limit=wanted, since=position, reverse=reverse)
        except RelayError as error:
            return CommandError(ErrorCode.INTERNAL, f"{error}; try again")
        if isinstance(found, Unrecoverable):
            return CommandError(ErrorCode.UNRECOVERABLE_POSITION)
        head = publication_head(topic)
        wildcard = is_wildcard(topic)
        begin = len(self._subjects.stored(policy.name, ""))
        pushes = [
            make_push(
                head,
                message.payload,
                message.headers,
                offset=message.offset,
                topic=message.subject[begin:] if wildcard else None,
            )
            for message in found.messages
            if publication_problem(policy, message.payload) is None
            and (not wildcard or topic_problem(message.subject[begin:]) is None)
        ]
        return HistoryResult(msgspec.Raw(publications_of(head, pushes)), found.epoch, found.offset)

    async def remove_history(self, policy: TopicPolicy, topic: str) -> CommandError | None:
        """Remove a topic's history; its position stays."""
        if not policy.durable:
            return CommandError(ErrorCode.NOT_AVAILABLE, "channel: its policy keeps no history")
        try:
            await self._archive.remove(policy, topic)
        except RelayError as error:
            return CommandError(ErrorCode.INTERNAL, f"{error}; try again")
        return None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself, until the node stops at the latest."""
        self._relay.run(work)

    # subscribing

    def follow(self, policy: TopicPolicy, name: str, members: Sink | None) -> Flow:
        """See `DurableRelay.follow`."""
        return self._relay.follow(policy, name, members)


def message_id(topic: str, key: str) -> str:
    """The `Nats-Msg-Id` of a publication: JetStream compares them within a stream, we promise it within a topic. A key
    may hold what no header may.
    """
    return hashlib.sha256(f"{topic}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:40]
