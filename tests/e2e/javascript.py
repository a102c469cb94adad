"""The JavaScript SDK (npm `centrifuge`) under Node, led from here; and whatever else can be led in the same way."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.harness.accounting import SubscriberLog
from tests.harness.subscriber import DROPPED_TAG, INSUFFICIENT_STATE, note_subscribed
from tests.harness.waiting import eventually


class JavaScriptClient:
    """A client in a Node process. Use `javascript_client`."""

    def __init__(
        self, process: asyncio.subprocess.Process, on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self._process = process
        self._on_event = on_event
        self.events: list[dict[str, Any]] = []
        """What happened, in order; see `js/client.mjs`."""

    async def listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if self._on_event is not None:
                self._on_event(event)

    def do(self, command: str, **details: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **details}).encode() + b"\n")

    def of(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    async def at_least(self, count: int, event: str) -> list[dict[str, Any]]:
        def enough() -> bool:
            assert self._process.returncode is None, "the client's process has ended"
            return len(self.of(event)) >= count

        await eventually(enough)
        return self.of(event)

    async def first(self, event: str) -> dict[str, Any]:
        """The first event of this kind, when it comes."""
        return (await self.at_least(1, event))[0]

    def pause(self) -> None:
        """Stop its process, sockets open (SIGSTOP)."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def subscribe(self, channel: str, **options: Any) -> None:
        """Subscribe, and wait until it is."""
        self.do("subscribe", channel=channel, **options)
        await eventually(lambda: any(one["channel"] == channel for one in self.of("subscribed")))


def javascript_client(
    directory: Path, url: str, *, on_event: Callable[[dict[str, Any]], None] | None = None, **options: Any
) -> AbstractAsyncContextManager[JavaScriptClient]:
    """A client, connecting.

    Args:
        directory: with the script and its packages.
        url: of the WebSocket.
        on_event: told of everything as it happens.
        options: `token`, and `renewed` (whether it asks for tokens).
    """
    return led_client(("node", "client.mjs"), directory, url, on_event=on_event, **options)


@asynccontextmanager
async def led_client(
    command: Sequence[str],
    directory: Path,
    url: str,
    *,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> AsyncIterator[JavaScriptClient]:
    """A client, connecting, whose program takes the commands of `js/client.mjs` and says what that says."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    client = JavaScriptClient(process, on_event)
    listening = asyncio.create_task(client.listen())
    try:
        client.do("connect", url=url, **options)
        yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()
        await listening


@asynccontextmanager
async def javascript_subscriber(
    directory: Path, log: SubscriberLog, topic: str, url: str
) -> AsyncIterator[JavaScriptClient]:
    """A subscriber of one topic that recovers by itself, and keeps the accounting's log."""

    def note(event: dict[str, Any]) -> None:
        match event["event"]:
            case "subscribing" if event["code"] == INSUFFICIENT_STATE:
                log.told("unsubscribed with 2500")
            case "subscribed":
                position = event["streamPosition"]
                asked, recovered = event["wasRecovering"], event["recovered"]
                note_subscribed(log, position["offset"], position["epoch"], asked=asked, recovered=recovered)
            case "publication":
                log.got(event["data"]["id"], event.get("offset", 0), dropped=DROPPED_TAG in (event.get("tags") or {}))

    async with javascript_client(directory, url, on_event=note) as client:
        await client.subscribe(topic)
        yield client
