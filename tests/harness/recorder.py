"""The Python SDK, with everything that it reports written down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from centrifuge import Client, ClientState

from tests.harness.waiting import eventually


class Recorder:
    """An event handler for the SDK's clients and subscriptions."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        """What happened (`connected`, `publication`, …), with its context."""

    def __getattr__(self, name: str) -> Callable[[Any], Awaitable[None]]:
        if not name.startswith("on_"):
            raise AttributeError(name)

        async def record(context: Any) -> None:
            self.events.append((name.removeprefix("on_"), context))

        return record

    def of(self, kind: str) -> list[Any]:
        return [context for name, context in self.events if name == kind]

    @property
    def data(self) -> list[Any]:
        """Of all publications, in order."""
        return [context.pub.data for context in self.of("publication")]

    async def first(self, kind: str) -> Any:
        """The first event of this kind, when it comes."""
        return (await self.at_least(1, kind))[0]

    async def at_least(self, count: int, kind: str, seconds: float = 15) -> list[Any]:
        await eventually(lambda: len(self.of(kind)) >= count, seconds)
        return self.of(kind)


@asynccontextmanager
async def sdk_client(url: str, recorder: Recorder | None = None, **options: Any) -> AsyncIterator[Client]:
    """A client of `centrifuge-python`, connecting."""
    options = {"min_reconnect_delay": 0.05, "max_reconnect_delay": 0.3, **options}
    client = Client(url, events=recorder or Recorder(), proxy=None, **options)
    await client.connect()
    try:
        yield client
    finally:
        if client.state is not ClientState.DISCONNECTED:
            await client.disconnect()
        # it closes its sockets in the background
        await eventually(lambda: not client._background_tasks)


async def subscribed(client: Client, topic: str, **options: Any) -> Recorder:
    """Subscribe to a topic, and wait until it is."""
    recorder = Recorder()
    subscription = client.new_subscription(topic, events=recorder, **options)
    await subscription.subscribe()
    await recorder.first("subscribed")
    return recorder
