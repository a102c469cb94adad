"""What back ends send: one struct for each API method. Names are the wire's: a topic is a `channel` here.

Source: https://centrifugal.dev/docs/server/server_api
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType


class Publish(msgspec.Struct):
    """Publish data to a topic."""

    channel: str = ""
    data: msgspec.Raw | UnsetType = UNSET
    b64data: str | None = None
    tags: dict[str, str] | None = None
    skip_history: bool | None = None
    idempotency_key: str | None = None
    delta: bool | None = None


class Broadcast(msgspec.Struct):
    """Publish the same data to several topics."""

    channels: list[str] = []
    data: msgspec.Raw | UnsetType = UNSET
    b64data: str | None = None
    tags: dict[str, str] | None = None
    skip_history: bool | None = None
    idempotency_key: str | None = None
    delta: bool | None = None


class Subscribe(msgspec.Struct):
    """Subscribe a user's connections to a topic, from the server's side."""

    user: str = ""
    channel: str = ""
    client: str | None = None
    session: str | None = None
    info: msgspec.Raw | UnsetType = UNSET
    b64info: str | None = None
    data: msgspec.Raw | UnsetType = UNSET
    b64data: str | None = None
    expire_at: int | None = None


class Unsubscribe(msgspec.Struct):
    """End a user's subscription to a topic, or to all of them."""

    user: str = ""
    channel: str = ""
    client: str | None = None
    session: str | None = None


class DisconnectWith(msgspec.Struct):
    """The close code and the reason that the client is given."""

    code: int = 0
    reason: str = ""


class Disconnect(msgspec.Struct):
    """Close a user's connections."""

    user: str = ""
    client: str | None = None
    session: str | None = None
    whitelist: list[str] | None = None
    disconnect: DisconnectWith | None = None
    code: int | None = None
    reason: str | None = None


class Refresh(msgspec.Struct):
    """Change when a user's connections expire."""

    user: str = ""
    client: str | None = None
    session: str | None = None
    expired: bool | None = None
    expire_at: int | None = None


class Presence(msgspec.Struct):
    """Ask who is subscribed to a topic."""

    channel: str = ""


class PresenceStats(msgspec.Struct):
    """Ask how many are subscribed to a topic."""

    channel: str = ""


class Position(msgspec.Struct):
    """A place in a topic's history."""

    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    epoch: str = ""


class History(msgspec.Struct):
    """Ask for what was published to a topic."""

    channel: str = ""
    limit: int | None = None
    since: Position | None = None
    reverse: bool | None = None


class HistoryRemove(msgspec.Struct):
    """Forget what was published to a topic."""

    channel: str = ""


class Channels(msgspec.Struct):
    """Ask which topics have subscribers. The pattern is a glob: `*` any text, `?` any character."""

    pattern: str | None = None


class Info(msgspec.Struct):
    """Ask for the nodes of the cluster."""


class Connections(msgspec.Struct):
    """Ask which connections there are: those to which all that is given applies, the oldest first."""

    user: str | None = None
    topic: str | None = None
    node: str | None = None
    address: str | None = None
    client: str | None = None
    limit: int | None = None


class Kick(msgspec.Struct):
    """Close the connections to which all that is given applies."""

    user: str | None = None
    topic: str | None = None
    node: str | None = None
    address: str | None = None
    client: str | None = None
    code: int | None = None
    reason: str | None = None


class Throttle(msgspec.Struct):
    """Bound what the connections may do to which all that is given applies; without a rate, as the settings say."""

    user: str | None = None
    topic: str | None = None
    node: str | None = None
    address: str | None = None
    client: str | None = None
    command_rate: float | None = None
    publish_rate: float | None = None


class Slow(msgspec.Struct):
    """Ask for the connections and topics that keep up the least."""

    limit: int | None = None


class Drain(msgspec.Struct):
    """Have a node let its connections go, or take that back. Without a node, the one that is asked."""

    node: str | None = None
    cancel: bool | None = None


class Batch(msgspec.Struct):
    """Several commands in one request, each an object with its method as the only name."""

    commands: list[msgspec.Raw] = []
    parallel: bool | None = None
