"""The Python SDK on a lead, as `js/client.mjs` has the JavaScript one: one JSON command a line on standard input, and
on standard output what happens. In a process of its own, which a test can stop.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from centrifuge import (
    Client,
    ClientEventHandler,
    ConnectedContext,
    ConnectingContext,
    DisconnectedContext,
    PublicationContext,
    SubscribedContext,
    SubscribingContext,
    SubscriptionEventHandler,
    UnsubscribedContext,
)


def say(event: str, **details: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


class OfClient(ClientEventHandler):  # type: ignore[misc]  # the library has no types
    async def on_connecting(self, ctx: ConnectingContext) -> None:
        say("connecting", code=ctx.code, reason=ctx.reason)

    async def on_connected(self, ctx: ConnectedContext) -> None:
        say("connected", client=ctx.client)

    async def on_disconnected(self, ctx: DisconnectedContext) -> None:
        say("disconnected", code=ctx.code, reason=ctx.reason)


class OfSubscription(SubscriptionEventHandler):  # type: ignore[misc]  # the library has no types
    def __init__(self, channel: str) -> None:
        self._channel = channel

    async def on_subscribing(self, ctx: SubscribingContext) -> None:
        say("subscribing", channel=self._channel, code=ctx.code, reason=ctx.reason)

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        say("subscribed", channel=self._channel, wasRecovering=ctx.was_recovering, recovered=ctx.recovered)

    async def on_unsubscribed(self, ctx: UnsubscribedContext) -> None:
        say("unsubscribed", channel=self._channel, code=ctx.code, reason=ctx.reason)

    async def on_publication(self, ctx: PublicationContext) -> None:
        say("publication", channel=self._channel, data=ctx.pub.data, tags=ctx.pub.tags, offset=ctx.pub.offset)


async def main() -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    client: Client | None = None
    async for line in lines:
        command = json.loads(line)
        match command["command"]:
            case "connect":
                client = Client(
                    command["url"], events=OfClient(), proxy=None, min_reconnect_delay=0.05, max_reconnect_delay=0.3
                )
                await client.connect()
            case "subscribe":
                assert client is not None
                channel = command["channel"]
                subscription = client.new_subscription(channel, events=OfSubscription(channel), recoverable=True)
                await subscription.subscribe()


if __name__ == "__main__":
    asyncio.run(main())
