"""One node: joins the relay and the hub, and knows its clients.

A message's way through a node: the publisher hands it to the relay; what the relay brings back goes through `_arrived`
to the hub, which writes it to the subscribers. A publication for this node's own subscribers takes the same way as any
other, so that the order is the same for everybody.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from broker.auth.tokens import TokenVerifier
from broker.core.aging import Aging
from broker.core.hub import Subscriber, Topic
from broker.core.offenders import Offenders
from broker.core.overload import OverloadLimits
from broker.core.pace import Rates
from broker.core.policy import PolicyTable, TopicPolicy
from broker.core.topic import escape_token, is_wildcard, parse_pattern, subscription_problem, topic_problem
from broker.core.wheel import TimerWheel
from broker.durability import Durability, DurableOptions
from broker.fan_out import FanOut
from broker.lobby import Lobby
from broker.membership import Membership
from broker.metrics import Metrics
from broker.operations import Operations
from broker.overload import OverloadWatch
from broker.presence import PresenceReader
from broker.publications import make_push, publication_problem
from broker.publisher import Publisher
from broker.relay.connection import Confirmation, NatsConnection
from broker.relay.control import ControlBus, Peer
from broker.relay.errors import RelayRefusedError
from broker.relay.flow import Flow
from broker.relay.headers import read_block
from broker.relay.live import LiveRelay
from broker.relay.options import NatsOptions
from broker.relay.subjects import Subjects
from broker.wire import replies
from broker.wire.codes import CommandError, ErrorCode, UnsubscribeCode

if TYPE_CHECKING:
    from broker.client.client import Client

logger = logging.getLogger(__name__)

ENDED_AT_ONCE = 128
"""Clients that are told in one turn of the event loop that a subscription has ended."""
TICK_SECONDS = 0.1
_KNOWN_TOPICS = 65_536
_ENDED = UnsubscribeCode.INSUFFICIENT_STATE


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
    pending_bytes: int
    rates: Rates | None
    """What each client is held to; None for nothing."""
    publishes_in_flight: int
    max_connection_age_seconds: float | None
    closes_per_second: float
    """Of those that have reached that age."""
    connections_waiting: int
    connections_per_user: int | None
    overload: OverloadLimits

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
        durable: how topics with history are kept.
        metrics: what is counted.
    """

    def __init__(
        self,
        options: NodeOptions,
        *,
        policies: PolicyTable,
        tokens: TokenVerifier,
        nats: NatsOptions,
        durable: DurableOptions,
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
        self._fan_out = FanOut(metrics, self.clock, options.pending_bytes, self._end_subscriptions)
        self.hub = self._fan_out.hub
        self.clients: dict[str, Client] = {}
        self.users: dict[str, set[Client]] = {}
        self._by_outlet: dict[Subscriber, Client] = {}
        self.draining = False
        self.observers: list[Callable[[], None]] = []
        """Bring gauges up to date that aren't the node's own."""
        age_seconds = options.max_connection_age_seconds
        self.aging = None if age_seconds is None else Aging(age_seconds, options.closes_per_second, self.started_at)
        self.lobby = Lobby(options.connections_waiting, time.monotonic, self._loop.call_soon)
        self.overload = OverloadWatch(options.overload, metrics)
        self._policies = policies
        self._located: dict[str, TopicPolicy | CommandError] = {}
        self._located_wildcards: dict[str, TopicPolicy | CommandError] = {}
        self.connection = NatsConnection(nats, self._relay_changed)
        self._subjects = subjects = Subjects(options.prefix)
        self._live = LiveRelay(self.connection, subjects, self._arrived, self.clock)
        self.control = ControlBus(self.connection, subjects, Peer(self.uid, self.name), self.clock)
        self.durability = Durability(
            durable,
            connection=self.connection,
            subjects=subjects,
            uid=self.uid,
            policies=tuple(policies),
            hub=self.hub,
            metrics=metrics,
            clock=self.clock,
            push=self._fan_out.push_stored,
            congested=lambda: self._fan_out.congested,
            end=self._end_subscriptions,
        )
        self.publisher = Publisher(
            self._live,
            self.durability,
            metrics,
            policies=policies,
            most_in_flight=options.publishes_in_flight,
            clock=self.clock,
        )
        self.offenders = Offenders()
        """Who went on too fast, and was sent away for it."""
        self._ending: deque[tuple[Client, str]] = deque()
        self.membership = Membership(self.connection, subjects, self.uid, self._fan_out.tell)
        self.control.on_gone, self.control.on_back = self.membership.gone, self.membership.back
        self.operations = Operations(self)
        self.presence = PresenceReader(self.operations, options.presence_members)
        self._was_connected = False
        self._tick_due = 0.0
        self._ticks = 0
        self._ticking: asyncio.TimerHandle | None = None
        self.relaying: asyncio.Task[None] | None = None
        """Keeps the connection to NATS; it has no end of its own."""

    # life

    def start(self) -> None:
        """Begin to connect to NATS and to keep time."""
        self.control.start()
        self.durability.start()
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
        await self.durability.stop()
        if self.relaying is not None:
            self.relaying.cancel()
            await asyncio.gather(self.relaying, return_exceptions=True)

    def _tick(self) -> None:
        now = self.clock()
        lag = max(0.0, now - self._tick_due)
        self.metrics.loop_lag.observe(lag)
        self.overload.observe(now, lag)
        self._tick_due = now + TICK_SECONDS
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)
        self._ticks += 1
        self.durability.tick()
        if self._ticks % 10 == 0:
            self._live.sweep()
            self.durability.sweep()
            self.control.tick()
            self.observe()
        self.wheel.advance(now)

    def drains(self, *, draining: bool) -> None:
        """It lets its clients go, and takes no new ones; or does so no more."""
        self.draining = draining
        self.observe()

    def observe(self) -> None:
        """Bring the gauges up to date."""
        metrics = self.metrics
        metrics.fold()
        self._fan_out.observe()
        for observe in self.observers:
            observe()
        metrics.connections.set(len(self.clients))
        metrics.waiting.labels("lobby").set(len(self.lobby))
        metrics.topics.set(len(self.hub.topics))
        metrics.subscriptions.set(self.hub.subscriptions)
        metrics.members.set(self.membership.members.total)
        metrics.relay_connected.set(self.connection.connected)
        metrics.publishes_in_flight.set(self.publisher.in_flight)
        metrics.draining.set(self.draining)

    def _relay_changed(self, connected: bool) -> None:  # noqa: FBT001 - a callback's one argument
        self.metrics.relay_connected.set(connected)
        if connected:
            self._was_connected = True
            self.control.connected()
            self.membership.reconcile()
            self.durability.connected()
        else:
            self.durability.disconnected()

    def reasons_against_startup(self) -> list[str]:
        if not self._was_connected:
            return ["NATS has not been reached yet"]
        return self.durability.streams.reasons_against()

    def reasons_against_readiness(self) -> list[str]:
        """Why new clients had better go to another node."""
        reasons = []
        if self.draining:
            reasons.append("the node is draining")
        if self.overload.active:
            reasons.append("the node is overloaded")
        if not self.connection.connected:
            reasons.append("NATS is not connected")
        elif not self.control.acquainted:
            reasons.append("the other nodes have not been heard yet")
        reasons += self.durability.streams.reasons_against()
        return reasons

    # clients

    def register(self, client: Client) -> None:
        self.clients[client.id] = client
        self._by_outlet[client.outlet] = client
        assert client.session is not None  # noqa: S101 - registered when it has one
        self.users.setdefault(client.session.user, set()).add(client)

    def unregister(self, client: Client) -> None:
        assert client.session is not None  # noqa: S101 - registered when it had one
        if self.clients.pop(client.id, None) is None:
            return
        if self.aging is not None:
            self.aging.forget(client.id)
        del self._by_outlet[client.outlet]
        of_user = self.users[client.session.user]
        of_user.discard(client)
        if not of_user:
            del self.users[client.session.user]

    def client_of(self, outlet: Subscriber) -> Client | None:
        """Whose connection this is; None where it is gone, or has not sent its connect command yet."""
        return self._by_outlet.get(outlet)

    def connections_of(self, user: str) -> int:
        """How many connections a user has to this node; those that are being closed are none any more."""
        return sum(not client.closed for client in self.users.get(user, ()))

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

    def locate_subscription(self, name: str, field: str = "channel") -> TopicPolicy | CommandError:
        """The policy of what is to be subscribed to, a topic or a wildcard, or why it can't be."""
        if not is_wildcard(name):
            return self.locate(name, field)
        found = self._located_wildcards.get(name)
        if found is None:
            problem = subscription_problem(name)
            if problem is not None:
                return CommandError(ErrorCode.BAD_REQUEST, f"{field}: {problem}")
            policy = self._policies.resolve_wildcard(parse_pattern(name))
            found = CommandError(ErrorCode.PERMISSION_DENIED, policy) if isinstance(policy, str) else policy
            if len(self._located_wildcards) >= _KNOWN_TOPICS:
                self._located_wildcards.clear()
            self._located_wildcards[name] = found
        return found

    def want(self, policy: TopicPolicy, topic: str) -> Confirmation | None:
        """See `LiveRelay.want`. The subscriber is to be in the hub before anything is awaited."""
        members = partial(self.membership.heard, topic) if policy.join_leave else None
        return self._live.want(policy.name, topic, members=members)

    def follow(self, policy: TopicPolicy, topic: str) -> Flow:
        """See `DurableRelay.follow`."""
        members = partial(self.membership.heard, topic) if policy.join_leave else None
        return self.durability.follow(policy, topic, members)

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

    def _arrived(self, name: str, subject: bytes, data: bytes, block: bytes | None) -> None:
        """A message of a topic, or of one that a wildcard matches, from NATS."""
        topic = self.hub.topics.get(name)
        if topic is None:
            return  # the last subscriber has left, the interest lingers
        concrete: str | None = None
        if topic.wildcard:
            concrete = self._subjects.topic(topic.policy.name, subject)
            if concrete is None:
                self.metrics.dropped.labels(topic.policy.name, "bad_topic").inc(len(topic.subscribers))
                return
        problem = publication_problem(topic.policy, data)
        if problem is not None:
            self.metrics.dropped.labels(topic.policy.name, problem).inc(len(topic.subscribers))
            return
        line = make_push(topic.head, data, read_block(block) if block else None, topic=concrete)
        self._fan_out.push(topic, line)

    def _end_subscriptions(self, name: str) -> None:
        """End all subscriptions to a topic, whose next publications can't be had. Nobody gets anything of it any more;
        the clients are told some in each turn of the event loop.
        """
        here = self.hub.topics.get(name)
        subscribers = () if here is None else tuple(here.subscribers)
        clients = [client for one in subscribers if (client := self._by_outlet.get(one)) and client.detach(name)]
        for one in subscribers:  # those, too, whose subscription is only about to begin
            self.leave(name, one)
        if not self._ending and clients:
            self._loop.call_soon(self._tell_ended)
        self._ending += ((client, name) for client in clients)

    def _tell_ended(self) -> None:
        for _ in range(min(ENDED_AT_ONCE, len(self._ending))):
            client, name = self._ending.popleft()
            if client.session is None or name in client.session.subscriptions:
                continue  # it has come back by itself
            client.send(replies.unsubscribe_push(name, _ENDED, _ENDED.text))
        if self._ending:
            self._loop.call_soon(self._tell_ended)
