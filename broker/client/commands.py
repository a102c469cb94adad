"""Which command is done by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from broker.client import connecting, history, presence, publishing, subscribing
from broker.wire import commands as wire

if TYPE_CHECKING:
    from broker.client.client import Client

HANDLERS: dict[type, Callable[[Client, int, Any], None]] = {
    wire.Connect: connecting.connect,
    wire.Subscribe: subscribing.subscribe,
    wire.Unsubscribe: subscribing.unsubscribe,
    wire.Publish: publishing.publish,
    wire.Presence: presence.presence,
    wire.PresenceStats: presence.presence_stats,
    wire.History: history.history,
    wire.Rpc: publishing.rpc,
    wire.Refresh: connecting.refresh,
    wire.SubRefresh: subscribing.sub_refresh,
    wire.Send: publishing.send,
}
