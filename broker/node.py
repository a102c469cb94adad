"""One node: joins the relay and the hub, and knows its clients.

A message's way through a node: `publish` hands it to the relay; what the relay brings back goes through `_arrived` to
the hub, which writes it to the subscribers. A publication for this node's own subscribers takes the same way as any
other, so that the order is the same for everybody.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from broker.auth.tokens import TokenVerifier
from broker.core.frames import text_frame
from broker.core.hub import Hub, Subscriber, Topic
from broker.core.message import ClientInfo
from broker.core.policy import PolicyTable, TopicPolicy
from broker.core.topic import escape_token, topic_problem
from broker.core.wheel import TimerWheel
from broker.membership import Membership
from broker.metrics import Metrics
from broker.operations import Operations
from broker.presence import PresenceReader
from broker.relay.connection import Confirmation, NatsConnection
from broker.relay.control import ControlBus, Peer
from broker.relay.errors import RelayError, RelayRefusedError, RelayTooLargeError
from broker.relay.headers import publication_headers, read_block, read_headers
from broker.relay.live import LiveRelay
from broker.relay.options import NatsOptions
from broker.relay.subjects import Subjects
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.payload import is_json, one_line
from broker.wire.replies import publication_head, publication_push

if TYPE_CHECKING:
    from broker.client.client import Client

logger = logging.getLogger(__name__)

SLICE_WRITES = 128
"""Subscribers served in one turn of the event loop: about a millisecond of writes. What else there is to do takes
several turns, a publisher's answer for example, and must not wait for a large fan-out in each of them."""
TICK_SECONDS = 0.1
_KNOWN_TOPICS = 65_536


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node has to know of the settings; times in seconds."""

    name: str
    prefix: str
    anonymous: bool
    personal_topic: str
    expiry_leeway_seconds: float
    connect_seconds: float
    topics_per_connection: int
    queue_bytes: int
    ping_interval_seconds: float
    pong_timeout_seconds: float
    presence_members: int

    @property
    def ping_seconds(self) -> int:
        """The interval as clients are told: whole seconds, rounded up, since they wait for it and a bit more."""
        return -int(-self.ping_interval_seconds // 1)


class Node:
    """A node of the cluster.

    Args:
        options: see there.
        policies: in the order in which they are tried.
        tokens: verifies clients' tokens.
        nats: where NATS is.
        metrics: what is counted.
    """

    def __init__(
        self,
        options: NodeOptions,
        *,
        policies: PolicyTable,
        tokens: TokenVerifier,
        nats: NatsOptions,
        metrics: Metrics,
    ) -> None:
        self.options = options
        self.name = options.name
        self.uid = str(uuid.uuid4())
        self.clock = time.monotonic
        self._loop = asyncio.get_running_loop()  # kept: asking for it costs a system call each time
        self.started_at = self.clock()
        self.tokens = tokens
        self.metrics = metrics
        self.wheel = TimerWheel(self.clock(), tick_seconds=TICK_SECONDS)
        self.hub = Hub(publication_head, text_frame, slice_writes=SLICE_WRITES, on_delivered=self._delivered)
        self.clients: dict[str, Client] = {}
        self.users: dict[str, set[Client]] = {}
        self.draining = False
        self._policies = policies
        self._located: dict[str, TopicPolicy | CommandError] = {}
        self.connection = NatsConnection(nats, self._relay_changed)
        subjects = Subjects(options.prefix)
        self._live = LiveRelay(self.connection, subjects, self._arrived, self.clock)
        self.control = ControlBus(self.connection, subjects, Peer(self.uid, self.name), self.clock)
        self.membership = Membership(self.connection, subjects, self.uid, self._tell)
        self.control.on_gone, self.control.on_back = self.membership.gone, self.membership.back
        self.operations = Operations(self)
        self.presence = PresenceReader(self.operations, options.presence_members)
        self._counting: Confirmation | None = None
        self._counts: dict[tuple[str, str], int] = {}
        self._was_connected = False
        self._fanning_out = False
        self._tick_due = 0.0
        self._ticks = 0
        self._ticking: asyncio.TimerHandle | None = None
        self.relaying: asyncio.Task[None] | None = None
        """Keeps the connection to NATS; it has no end of its own."""

    # life

    def start(self) -> None:
        """Begin to connect to NATS and to keep time."""
        self.control.start()
        self.membership.start()
        self.relaying = asyncio.create_task(self.connection.run())
        self._tick_due = self.clock() + TICK_SECONDS
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)

    async def stop(self) -> None:
        """Leave the cluster."""
        self.control.leave()
        await self.connection.settle()
        await self.membership.stop()
        if self._ticking is not None:
            self._ticking.cancel()
        if self.relaying is not None:
            self.relaying.cancel()
            await asyncio.gather(self.relaying, return_exceptions=True)

    def _tick(self) -> None:
        now = self.clock()
        self.metrics.loop_lag.observe(max(0.0, now - self._tick_due))
        self._tick_due = now + TICK_SECONDS
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)
        self._ticks += 1
        if self._ticks % 10 == 0:
            self._live.sweep()
            self.control.tick()
            self.observe()
        self.wheel.advance(now)

    def observe(self) -> None:
        """Bring the gauges up to date."""
        metrics = self.metrics
        metrics.fold()
        metrics.connections.set(len(self.clients))
        metrics.topics.set(len(self.hub.topics))
        metrics.subscriptions.set(self.hub.subscriptions)
        metrics.members.set(self.membership.members.total)
        metrics.relay_connected.set(self.connection.connected)
        metrics.draining.set(self.draining)

    def _relay_changed(self, connected: bool) -> None:  # noqa: FBT001 - a callback's one argument
        self.metrics.relay_connected.set(connected)
        if connected:
            self._was_connected = True
            self.control.connected()
            self.membership.reconcile()

    def reasons_against_startup(self) -> list[str]:
        return [] if self._was_connected else ["NATS has not been reached yet"]

    def reasons_against_readiness(self) -> list[str]:
        """Why new clients had better go to another node."""
        reasons = []
        if self.draining:
            reasons.append("the node is draining")
        if not self.connection.connected:
            reasons.append("NATS is not connected")
        elif not self.control.acquainted:
            reasons.append("the other nodes have not been heard yet")
        return reasons

    # clients

    def register(self, client: Client) -> None:
        self.clients[client.id] = client
        assert client.session is not None  # noqa: S101 - registered when it has one
        self.users.setdefault(client.session.user, set()).add(client)

    def unregister(self, client: Client) -> None:
        assert client.session is not None  # noqa: S101 - registered when it had one
        if self.clients.pop(client.id, None) is None:
            return
        of_user = self.users[client.session.user]
        of_user.discard(client)
        if not of_user:
            del self.users[client.session.user]

    def personal_topic(self, user: str) -> str | None:
        """The topic that a user is subscribed to by the server; None where that isn't asked for, or for nobody."""
        if not self.options.personal_topic or not user:
            return None
        return self.options.personal_topic.replace("{sub}", escape_token(user))

    @staticmethod
    def ttl(expires_at: float | None) -> int:
        """Whole seconds until a time (Unix seconds), one at least, and at most what 32 bits hold; 0 for never."""
        return 0 if expires_at is None else min(max(1, int(expires_at - time.time())), 0xFFFFFFFF)

    # topics

    def locate(self, topic: str, field: str = "channel") -> TopicPolicy | CommandError:
        """A topic's policy, or what is wrong with its name, which `field` held."""
        found = self._located.get(topic)
        if found is None:
            problem = topic_problem(topic)
            if problem is not None:
                return CommandError(ErrorCode.BAD_REQUEST, f"{field}: {problem}")
            found = self._policies.resolve(topic) or CommandError(ErrorCode.UNKNOWN_TOPIC)
            if len(self._located) >= _KNOWN_TOPICS:
                self._located.clear()  # cheaper than bookkeeping, and as rare as that many new topics
            self._located[topic] = found
        return found

    def want(self, policy: TopicPolicy, topic: str) -> Confirmation | None:
        """See `LiveRelay.want`. The subscriber is to be in the hub before anything is awaited."""
        members = partial(self.membership.heard, topic) if policy.join_leave else None
        return self._live.want(policy.name, topic, members=members)

    def leave(self, topic: str, subscriber: Subscriber) -> None:
        if self.hub.remove(topic, subscriber):
            self._live.release(topic)

    @staticmethod
    def when_wanted(waiting: Confirmation, topic: Topic, settled: Callable[[CommandError | None], None]) -> None:
        """Call `settled` when the interest that `want` returned is there, and what has come already is delivered."""

        def done(future: Confirmation) -> None:
            problem = future.exception()
            if isinstance(problem, RelayRefusedError):
                settled(CommandError(ErrorCode.INTERNAL, str(problem)))
            elif problem is not None:
                settled(CommandError(ErrorCode.INTERNAL, "NATS can't be reached; try again"))
            else:
                topic.when_flushed(lambda: settled(None))

        waiting.add_done_callback(done)

    # messages

    def publish(
        self,
        policy: TopicPolicy,
        topic: str,
        data: bytes,
        *,
        info: ClientInfo | None = None,
        tags: Mapping[str, str] | None = None,
        source: str,
        field: str = "data",
    ) -> CommandError | Confirmation:
        """Hand a publication to NATS.

        Args:
            policy: the topic's.
            topic: a name that `locate` found sound.
            data: JSON on one line.
            info: the client that publishes.
            tags: for the subscribers.
            source: `http` or `websocket`, for the metrics.
            field: what the data is called in errors.

        Returns:
            What is done when NATS has it; `publish_error` says what went wrong otherwise. Or why it was refused.
        """
        if len(data) > policy.message_bytes:
            self.metrics.published.labels(policy.name, source, "too_large").inc()
            detail = f"{field}: {len(data)} bytes, at most {policy.message_bytes} are allowed"
            return CommandError(ErrorCode.LIMIT_EXCEEDED, detail)
        headers = publication_headers(info, tags) if info or tags else None
        try:
            accepted = self._live.publish(policy.name, topic, data, headers)
        except RelayTooLargeError as error:
            self.metrics.published.labels(policy.name, source, "too_large").inc()
            return CommandError(ErrorCode.LIMIT_EXCEEDED, f"{field}: {error}")
        except RelayError as error:
            self.metrics.published.labels(policy.name, source, "unavailable").inc()
            return CommandError(ErrorCode.INTERNAL, f"{error}; nothing was published, try again")

        self._count_accepted(accepted, policy.name, source)
        return accepted

    def _count_accepted(self, accepted: Confirmation, policy: str, source: str) -> None:
        """Count a publication when it is known how it ended. All of one confirmation are counted together."""
        if accepted is not self._counting:
            self._counting = accepted
            counts = self._counts = {}
            accepted.add_done_callback(partial(self._count_published, counts))
        key = (policy, source)
        self._counts[key] = self._counts.get(key, 0) + 1

    def _count_published(self, counts: Mapping[tuple[str, str], int], outcome: Confirmation) -> None:
        problem = outcome.exception()
        result = "ok" if problem is None else "refused" if isinstance(problem, RelayRefusedError) else "unknown"
        for (policy, source), count in counts.items():
            self.metrics.count_published(policy, source, result, count)

    @staticmethod
    def publish_error(outcome: Confirmation) -> CommandError | None:
        """What to say of a finished publish that failed."""
        problem = outcome.exception()
        if problem is None:
            return None
        if isinstance(problem, RelayRefusedError):
            return CommandError(ErrorCode.INTERNAL, str(problem))
        return CommandError(
            ErrorCode.INTERNAL,
            "the connection to NATS was lost before it confirmed; it may have been published or not",
        )

    def _arrived(self, name: str, subject: bytes, data: bytes, block: bytes | None) -> None:
        """A message of a topic, from NATS."""
        del subject
        topic = self.hub.topics.get(name)
        if topic is None:
            return  # the last subscriber has left, the interest lingers
        # back ends publish here too, past our API, and one bad line would break every subscriber's connection
        if len(data) > topic.policy.message_bytes or not is_json(data):
            reason = "too_large" if len(data) > topic.policy.message_bytes else "not_json"
            self.metrics.dropped.labels(topic.policy.name, reason).inc(len(topic.subscribers))
            return
        info, tags = read_headers(read_block(block)) if block else (None, None)
        self._push(topic, publication_push(topic.head, one_line(data), info, tags), self.clock())

    def _tell(self, name: str, line: bytes) -> None:
        """Send the subscribers of a topic what is no publication, in its place among these."""
        topic = self.hub.topics.get(name)
        if topic is not None:
            self._push(topic, line, None)

    def _push(self, topic: Topic, line: bytes, arrived: float | None) -> None:
        if self.hub.push(topic, line, arrived) and not self._fanning_out:
            self._fanning_out = True
            self._loop.call_soon(self._fan_out)

    def _fan_out(self) -> None:
        try:
            self._fanning_out = self.hub.run()
        except Exception:
            # of one topic; the others go on
            logger.exception("a fan-out failed")
        if self._fanning_out:
            self._loop.call_soon(self._fan_out)

    def _delivered(self, topic: Topic, subscribers: int, arrivals: list[float]) -> None:
        self.metrics.count_delivered(topic.policy.name, subscribers * len(arrivals))
        now = self.clock()
        observe = self.metrics.publish_to_write.observe
        for arrived in arrivals:
            observe(now - arrived)
