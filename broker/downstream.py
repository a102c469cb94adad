"""What durable topics bring, on its way to the hub."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker.core.hub import Hub
from broker.core.topic import topic_problem
from broker.metrics import Metrics
from broker.publications import make_push, publication_problem
from broker.relay.flow import Flow
from broker.relay.jetstream import Stored


class HubDownstream:
    """Takes the messages of flows to their subscribers; see `relay.durable.Downstream`.

    Args:
        hub: who is subscribed here.
        metrics: what is counted.
        push: delivers a topic's push, with its offset, to the subscribers.
        congested: whether this node falls behind, so that more had better wait in the streams.
        end: ends all subscriptions to a topic, at once, since what comes next can't be had.
    """

    def __init__(
        self,
        hub: Hub,
        metrics: Metrics,
        push: Callable[[str, bytes, int], None],
        congested: Callable[[], bool],
        end: Callable[[str], None],
    ) -> None:
        self._hub = hub
        self._metrics = metrics
        self._push = push
        self.congested = congested
        self._end = end

    def encode(self, flow: Flow, message: Stored, topic: str, *, first: bool) -> bytes | None:
        problem = publication_problem(flow.policy, message.payload)
        if flow.wildcard and topic_problem(topic) is not None:
            problem = "bad_topic"  # NATS takes names that topics can't have
        if problem is None:
            concrete = topic if flow.wildcard else None
            return make_push(flow.head, message.payload, message.headers, offset=message.offset, topic=concrete)
        if first:
            here = self._hub.topics.get(flow.name)
            subscribers = 0 if here is None else len(here.subscribers)
            self._metrics.dropped.labels(flow.policy.name, problem).inc(max(1, subscribers))
        return None

    def push(self, flow: Flow, line: bytes, offset: int) -> None:
        self._push(flow.name, line, offset)

    def flushed(self, flow: Flow) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        here = self._hub.topics.get(flow.name)
        if here is None:
            done.set_result(None)
        else:
            here.when_flushed(lambda: None if done.done() else done.set_result(None))
        return done

    def lost(self, flow: Flow) -> None:
        self._end(flow.name)

    def gap(self, outcome: str) -> None:
        self._metrics.relay_gaps.labels(outcome).inc()

    def followed(self, flow: Flow) -> bool:
        return flow.name in self._hub.topics

    def unexpected(self, flow: Flow) -> None:
        self._metrics.dropped.labels(flow.policy.name, "not_stored").inc()
