"""Which connections and topics don't keep up, by what waits for them, for how long, and what they were not sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from broker.core.pressure import SlowConnection, SlowTopic
from broker.operating.slices import first

if TYPE_CHECKING:
    from broker.node import Node

MOST_TOPICS = 1000
"""A topic can be slow on several nodes, so each tells of more than are asked for, as long as they are not too many."""


class Slow(msgspec.Struct):
    limit: int = 10


class Measured(Protocol):
    """What the lists are in order of."""

    @property
    def queued_bytes(self) -> int: ...
    @property
    def lag_seconds(self) -> float: ...
    @property
    def dropped(self) -> int: ...


class ConnectionEntry(msgspec.Struct):
    """A slow connection, as an operator sees it."""

    client: str
    user: str
    node: str
    address: str
    queued_bytes: int
    queued_messages: int
    lag_seconds: float
    """For how long the oldest message has waited."""
    dropped: int


class TopicEntry(msgspec.Struct):
    """A slow topic, as an operator sees it."""

    topic: str
    policy: str
    queued_bytes: int
    slow: int
    """Connections."""
    lag_seconds: float
    dropped: int


class SlowAnswer(msgspec.Struct):
    """The worst of a node by each measure, in no order."""

    connections: list[ConnectionEntry]
    topics: list[TopicEntry]


@dataclass(frozen=True, slots=True)
class SlowSource:
    """Where a node's slow connections and topics are to be had."""

    slow_connections: Callable[[], Iterable[SlowConnection]]
    slow_topics: Callable[[], Iterable[SlowTopic]]


M = TypeVar("M", bound=Measured)

MEASURES: dict[str, Callable[[Measured], float]] = {
    "by_queued_bytes": lambda one: one.queued_bytes,
    "by_lag": lambda one: one.lag_seconds,
    "by_drops": lambda one: one.dropped,
}


async def worst(things: Iterable[M], limit: int) -> dict[str, list[M]]:
    """The worst first, by each measure; who has nothing of it is in none."""
    all_of_them = list(things)
    return {
        name: [one for one in await first(all_of_them, limit, lambda one: -measure(one)) if measure(one) > 0]  # noqa: B023 - used within the turn
        for name, measure in MEASURES.items()
    }


def added_up(topics: Iterable[TopicEntry]) -> list[TopicEntry]:
    """Each topic once, with what it is on all nodes together."""
    total: dict[str, TopicEntry] = {}
    for one in topics:
        known = total.get(one.topic)
        if known is None:
            total[one.topic] = one
            continue
        known.queued_bytes += one.queued_bytes
        known.slow += one.slow
        known.lag_seconds = max(known.lag_seconds, one.lag_seconds)
        known.dropped += one.dropped
    return list(total.values())


class SlowHere:
    """What does not keep up on one node."""

    def __init__(self, node: Node, source: SlowSource) -> None:
        self._node = node
        self._source = source
        node.operations.offer("slow", Slow, self._do)

    async def _do(self, operation: Slow) -> SlowAnswer:
        connections = await worst(self._source.slow_connections(), operation.limit)
        topics = await worst(self._source.slow_topics(), MOST_TOPICS)
        found = {id(one): one for some in connections.values() for one in some}
        named = {one.topic: one for some in topics.values() for one in some}
        described = (self._describe(one) for one in found.values())
        return SlowAnswer([one for one in described if one is not None], [_topic(one) for one in named.values()])

    def _describe(self, slow: SlowConnection) -> ConnectionEntry | None:
        client = self._node.client_of(slow.outlet)
        if client is None or client.session is None:  # it has not said who it is, or is gone
            return None
        return ConnectionEntry(
            client=client.id,
            user=client.session.user,
            node=self._node.name,
            address=client.outlet.address,
            queued_bytes=slow.queued_bytes,
            queued_messages=slow.queued_messages,
            lag_seconds=round(slow.lag_seconds, 3),
            dropped=slow.dropped,
        )


def _topic(slow: SlowTopic) -> TopicEntry:
    return TopicEntry(
        topic=slow.topic,
        policy=slow.policy,
        queued_bytes=slow.queued_bytes,
        slow=slow.slow,
        lag_seconds=round(slow.lag_seconds, 3),
        dropped=slow.dropped,
    )
