"""The JavaScript SDK (npm `centrifuge`) under Node, led from Python."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.harness.waiting import eventually


class JavaScriptClient:
    """A client in a Node process. Use `javascript_client`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []
        """What happened, in order; see `js/client.mjs`."""

    async def listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.events.append(json.loads(line))

    def do(self, command: str, **details: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **details}).encode() + b"\n")

    def of(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    async def at_least(self, count: int, event: str) -> list[dict[str, Any]]:
        def enough() -> bool:
            assert self._process.returncode is None, "Node has ended"
            return len(self.of(event)) >= count

        await eventually(enough)
        return self.of(event)

    async def first(self, event: str) -> dict[str, Any]:
        """The first event of this kind, when it comes."""
        return (await self.at_least(1, event))[0]

    async def subscribe(self, channel: str, **options: Any) -> None:
        """Subscribe, and wait until it is."""
        self.do("subscribe", channel=channel, **options)
        await eventually(lambda: any(one["channel"] == channel for one in self.of("subscribed")))


@asynccontextmanager
async def javascript_client(directory: Path, url: str, **options: Any) -> AsyncIterator[JavaScriptClient]:
    """A client, connecting.

    Args:
        directory: with the script and its packages.
        url: of the WebSocket.
        options: `token`, and `renewed` (whether it asks for tokens).
    """
    process = await asyncio.create_subprocess_exec(
        "node", "client.mjs", cwd=directory, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    client = JavaScriptClient(process)
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
