"""What can be asked of all nodes at once: to act on the clients of a user, and to tell what is there.

Each operation is done on this node and, over NATS, on all others; see `ControlBus`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from fnmatch import fnmatchcase
from math import inf
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from broker import __version__
from broker.core.session import Subscription
from broker.relay.control import Peer
from broker.relay.errors import RelayUnavailableError
from broker.relay.members import object_of
from broker.wire import replies
from broker.wire.codes import Close, CloseCode, CommandError, UnsubscribeCode, close
from broker.wire.payload import one_line

if TYPE_CHECKING:
    from broker.client.client import Client
    from broker.node import Node


MEMBER_BYTES = 1024
"""What members take in a listing, on average, at most."""
NOBODY = msgspec.Raw(b"{}")


class Whose(msgspec.Struct):
    """The clients of a user (empty: the anonymous), all or the one that is named."""

    user: str = ""
    client: str = ""


class Subscribe(Whose):
    channel: str = ""
    # not `| None`: msgspec takes a Raw in a union for nothing at all, but for this one
    info: msgspec.Raw | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET
    expire_at: int = 0


class Unsubscribe(Whose):
    channel: str = ""
    """Empty: all."""


class Disconnect(Whose):
    code: int = CloseCode.FORCE_DISCONNECT
    reason: str = CloseCode.FORCE_DISCONNECT.text
    whitelist: list[str] = []
    """Clients that stay."""


class Refresh(Whose):
    expired: bool = False
    expire_at: int = 0
    """Unix seconds; 0: never."""


class Channels(msgspec.Struct):
    pattern: str = ""


class Info(msgspec.Struct):
    pass


class Presence(msgspec.Struct):
    channel: str = ""


class PresenceStats(msgspec.Struct):
    channel: str = ""


class ChannelsAnswer(msgspec.Struct):
    counts: dict[str, int]


class PresenceAnswer(msgspec.Struct):
    clients: int
    size_bytes: int
    members: msgspec.Raw = NOBODY
    """What others see of each, by client; of nobody where they are too many."""


class PresenceStatsAnswer(msgspec.Struct):
    clients: int
    users: int
    packed_users: bytes
    """See `Members.packed_users`."""


class NodeInfo(msgspec.Struct):
    """A node as `info` shows it; uptime in seconds."""

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: int


class Done(msgspec.Struct):
    pass


Operation = msgspec.Struct
"""One of the structs that somebody has offered to do."""
Does = Callable[[Any], Awaitable[msgspec.Struct]]
_encode = msgspec.json.encode


class Operations:
    """Does operations on the clients of one node, and asks the other nodes for the same."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._do: dict[type[Operation], Does] = {}
        self._names: dict[type[Operation], str] = {}
        self._kinds: dict[str, type[Operation]] = {}
        self.offer("subscribe", Subscribe, self._subscribe)
        self.offer("unsubscribe", Unsubscribe, self._unsubscribe)
        self.offer("disconnect", Disconnect, self._disconnect)
        self.offer("refresh", Refresh, self._refresh)
        self.offer("channels", Channels, self._channels)
        self.offer("info", Info, self._info)
        self.offer("presence", Presence, self._presence)
        self.offer("presence_stats", PresenceStats, self._presence_stats)
        node.control.handle = self.handle

    def offer(self, name: str, kind: type[Operation], do: Does) -> None:
        """Do operations of this kind, which other nodes ask for by this name, from now on."""
        self._do[kind], self._names[kind], self._kinds[name] = do, name, kind

    async def handle(self, name: str, arguments: bytes) -> bytes:
        """What another node asks: an operation's name and its arguments in JSON; the answer in JSON."""
        return await self.here(msgspec.json.decode(arguments, type=self._kinds[name]))

    async def here(self, operation: Operation) -> bytes:
        """Do it on this node alone; the answer in JSON."""
        return _encode(await self._do[type(operation)](operation))

    async def everywhere(self, operation: Operation) -> tuple[list[bytes], list[Peer]]:
        """Do it on all nodes.

        Returns:
            The answers in JSON, this node's first, and the nodes that have not answered in time.

        Raises:
            RelayError: the others can't be asked now. Where that is so before anything is sent, nothing is done here
                either.
        """
        if not self._node.connection.connected:
            raise RelayUnavailableError("not connected to NATS")
        mine, gathered = await asyncio.gather(
            self._do[type(operation)](operation),
            self._node.control.ask(self._names[type(operation)], _encode(operation)),
        )
        return [_encode(mine), *gathered.answers], gathered.unanswered

    def _clients(self, whose: Whose) -> Iterator[Client]:
        for client in tuple(self._node.users.get(whose.user, ())):
            if whose.client in ("", client.id) and not client.closed:
                yield client

    async def _subscribe(self, operation: Subscribe) -> Done:
        policy = self._node.locate_subscription(operation.channel)
        if isinstance(policy, CommandError):  # another node has other settings, or older ones
            return Done()
        joined = []
        for client in self._clients(operation):
            session = client.session
            if session is None or operation.channel in session.subscriptions:
                continue
            subscription = Subscription(
                policy,
                info=_bytes(operation.info),
                ends_at=client.expires_by(operation.expire_at or None),
                server_side=True,
            )
            joined.append(_join(client, operation, subscription))
        await asyncio.gather(*joined)
        return Done()

    async def _unsubscribe(self, operation: Unsubscribe) -> Done:
        for client in self._clients(operation):
            if client.session is not None:
                topics = [operation.channel] if operation.channel else list(client.session.subscriptions)
                for topic in topics:
                    client.unsubscribed(topic, UnsubscribeCode.SERVER, UnsubscribeCode.SERVER.text)
        return Done()

    async def _disconnect(self, operation: Disconnect) -> Done:
        for client in self._clients(operation):
            if client.id not in operation.whitelist:
                client.close(Close(operation.code, operation.reason))
        return Done()

    async def _refresh(self, operation: Refresh) -> Done:
        for client in self._clients(operation):
            if operation.expired:
                client.close(close(CloseCode.EXPIRED))
            elif client.session is not None:
                expires_at = operation.expire_at or None
                client.session.ends_at = client.expires_by(expires_at)
                if client.session.ends_at < inf:
                    client.outlet.wake_by(client.session.ends_at)
                client.send(replies.refresh_push(expires=expires_at is not None, ttl=self._node.ttl(expires_at)))
        return Done()

    async def _channels(self, operation: Channels) -> ChannelsAnswer:
        return ChannelsAnswer(
            {
                name: len(topic.subscribers)
                for name, topic in self._node.hub.topics.items()
                if not operation.pattern or fnmatchcase(name, operation.pattern)
            }
        )

    async def _info(self, operation: Info) -> NodeInfo:
        del operation
        node = self._node
        return NodeInfo(
            uid=node.uid,
            name=node.name,
            version=__version__,
            num_clients=len(node.clients),
            num_users=len(node.users),
            num_subs=node.hub.subscriptions,
            num_channels=len(node.hub.topics),
            uptime=int(node.clock() - node.started_at),
        )

    async def _presence(self, operation: Presence) -> PresenceAnswer:
        members, topic = self._node.membership.members, operation.channel
        clients, size_bytes = members.clients(topic), members.size_bytes(topic)
        limit = self._node.options.presence_members
        if clients > limit or size_bytes > limit * MEMBER_BYTES:
            return PresenceAnswer(clients, size_bytes)
        return PresenceAnswer(clients, size_bytes, object_of(members.entries(topic)))

    async def _presence_stats(self, operation: PresenceStats) -> PresenceStatsAnswer:
        members, topic = self._node.membership.members, operation.channel
        return PresenceStatsAnswer(members.clients(topic), members.users(topic), members.packed_users(topic))


def _join(client: Client, operation: Subscribe, subscription: Subscription) -> asyncio.Future[None]:
    """Subscribe one client; done when it is, or can't be."""
    joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finished() -> None:
        if not joined.done():
            joined.set_result(None)

    client.subscribe_by_server(operation.channel, subscription, _bytes(operation.data), finished)
    return joined


def _bytes(value: msgspec.Raw | UnsetType) -> bytes | None:
    return None if isinstance(value, UnsetType) else one_line(bytes(value))
