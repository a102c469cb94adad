"""Many clients that do nothing but come back whenever they are let go."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from websockets.exceptions import WebSocketException

from tests.harness.client import opened
from tests.harness.waiting import eventually

PAUSE_SECONDS = (0.05, 0.3)


@dataclass(frozen=True)
class End:
    """A connection's."""

    at: float
    node: str
    """The name of the node that it was to."""
    code: int


class Crowd:
    """What has become of them. Use `crowd`."""

    def __init__(self) -> None:
        self.there: dict[int, str] = {}
        """The names of the nodes that they are connected to now, by client."""
        self.beginnings: list[tuple[float, str]] = []
        """When connections were answered, and by which node."""
        self.ends: list[End] = []
        self.failures: list[BaseException] = []

    def at(self, node: str) -> int:
        """How many are connected to it."""
        return Counter(self.there.values())[node]

    def ends_at(self, node: str) -> list[float]:
        """When connections to it have ended, in order."""
        return [end.at for end in self.ends if end.node == node]

    def beginnings_at(self, node: str) -> list[float]:
        """When connections to it have begun, in order."""
        return [at for at, name in self.beginnings if name == node]

    async def complete(self, count: int) -> None:
        """Wait until so many are connected."""

        def all_there() -> bool:
            self.check()
            return len(self.there) == count

        await eventually(all_there, 60)

    def check(self) -> None:
        if self.failures:
            raise RuntimeError(f"somebody of the crowd has failed: {self.failures[0]!r}") from self.failures[0]

    async def _come_and_go(self, number: int, url: str) -> None:
        while True:
            try:
                async with opened(url, seconds=5) as client:
                    self.there[number] = node = (await client.call("connect"))["node"]
                    self.beginnings.append((time.monotonic(), node))
                    code, _ = await client.closed(3600)
                    self.ends.append(End(time.monotonic(), node, code))
            except (OSError, TimeoutError, WebSocketException):
                pass  # refused, or cut
            finally:
                self.there.pop(number, None)
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - no secret

    async def run(self, number: int, url: str) -> None:
        try:
            await self._come_and_go(number, url)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails with it
            self.failures.append(error)


@asynccontextmanager
async def crowd(url: str, count: int) -> AsyncIterator[Crowd]:
    """So many clients that are connected, and come back."""
    people = Crowd()
    tasks = [asyncio.create_task(people.run(number, url)) for number in range(count)]
    try:
        await people.complete(count)
        yield people
        people.check()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
