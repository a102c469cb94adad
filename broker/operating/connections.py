"""Finding connections on a node, and acting on those that are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from broker.operating.slices import CLOSED_AT_ONCE, SCANNED_AT_ONCE, first, slices
from broker.wire.codes import Close

if TYPE_CHECKING:
    from broker.client.client import Client
    from broker.node import Node


class Filters(msgspec.Struct):
    """Which connections are meant: those to which all of it applies."""

    user: str | None = None
    """Empty: the anonymous."""
    topic: str | None = None
    """Subscribed to it; a wildcard by its own name."""
    node: str | None = None
    """The node's name or uid."""
    address: str | None = None
    client: str | None = None


class Connections(Filters):
    limit: int = 100


class Kick(Filters):
    code: int = 0
    reason: str = ""


class Throttle(Filters):
    command_rate: float | None = None
    """Commands per second; None: as the settings say."""
    publish_rate: float | None = None


class Connection(msgspec.Struct):
    """A connection, as an operator sees it."""

    client: str
    user: str
    node: str
    address: str
    seconds: float
    """Since it was opened."""
    topics: int
    queued_bytes: int
    dropped: int


class ConnectionsAnswer(msgspec.Struct):
    connections: list[Connection]
    """The oldest of them, the oldest first."""
    total: int
    """How many there are."""


class Touched(msgspec.Struct):
    """To how many it was done."""

    count: int


class ConnectionsHere:
    """The connections of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        node.operations.offer("connections", Connections, self._connections)
        node.operations.offer("kick", Kick, self._kick)
        node.operations.offer("throttle", Throttle, self._throttle)

    async def _connections(self, operation: Connections) -> ConnectionsAnswer:
        found = await self._matching(operation)
        now = self._node.clock()
        oldest = await first(found, operation.limit, lambda client: client.since)
        return ConnectionsAnswer([self._describe(client, now) for client in oldest], len(found))

    async def _kick(self, operation: Kick) -> Touched:
        kicked = 0
        async for some in slices(await self._matching(operation), CLOSED_AT_ONCE):
            for client in some:
                if not client.closed:
                    client.close(Close(operation.code, operation.reason))
                    kicked += 1
        return Touched(kicked)

    async def _throttle(self, operation: Throttle) -> Touched:
        throttled = 0
        async for some in slices(await self._matching(operation), SCANNED_AT_ONCE):
            for client in some:
                if not client.closed:
                    client.throttle(operation.command_rate, operation.publish_rate)
                    throttled += 1
        return Touched(throttled)

    async def _matching(self, filters: Filters) -> list[Client]:
        node = self._node
        if filters.node is not None and filters.node not in (node.name, node.uid):
            return []
        candidates: tuple[Client, ...]
        if filters.client is not None:
            client = node.clients.get(filters.client)
            candidates = () if client is None else (client,)
        elif filters.user is not None:
            candidates = tuple(node.users.get(filters.user, ()))
        else:
            candidates = tuple(node.clients.values())
        found: list[Client] = []
        async for some in slices(candidates, SCANNED_AT_ONCE):
            found += (client for client in some if _matches(client, filters))
        return found

    def _describe(self, client: Client, now: float) -> Connection:
        session = client.the_session()
        return Connection(
            client=client.id,
            user=session.user,
            node=self._node.name,
            address=client.outlet.address,
            seconds=round(now - client.since, 3),
            topics=len(session.subscriptions),
            queued_bytes=client.outlet.queued_bytes,
            dropped=client.outlet.dropped,
        )


def _matches(client: Client, filters: Filters) -> bool:
    session = client.session
    return (
        session is not None
        and not client.closed
        and filters.user in (None, session.user)
        and (filters.topic is None or filters.topic in session.subscriptions)
        and filters.address in (None, client.outlet.address)
    )
