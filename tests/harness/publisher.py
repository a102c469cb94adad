"""A back end that publishes at a steady rate, and gives nothing up."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import aiohttp

from tests.harness.accounting import Accounting
from tests.harness.node import BrokerNode
from tests.harness.tokens import API_KEY
from tests.harness.waiting import eventually

AT_ONCE = 32
"""Publications that may wait for their receipts; when so many do, no others are begun."""
REQUEST_SECONDS = 8.0
PAUSE_SECONDS = (0.1, 0.5)
"""Before another attempt."""
STOP_SECONDS = 60.0


class Publisher:
    """Publishes messages with ids of their own, over HTTP, to one node after the other.

    What fails with 503, 429 or the connection is tried again, at the next node and with the same idempotency key, until
    there is a receipt: so every id ends acknowledged. Use it as an async context manager; leaving it waits for that.

    Args:
        accounting: where everything is written down.
        nodes: to publish to; the list may be changed meanwhile.
        rate: publications per second.
        padding: bytes of ballast in each.
    """

    def __init__(
        self, accounting: Accounting, nodes: Sequence[BrokerNode], *, rate: float = 100, padding: int = 0
    ) -> None:
        self.accounting = accounting
        self.nodes = list(nodes)
        self.retries = 0
        """How often something had to be sent again."""
        self._interval = 1 / rate
        self._padding = "x" * padding
        self._numbers = itertools.count(1)
        self._free = asyncio.Semaphore(AT_ONCE)
        self._under_way: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._session: aiohttp.ClientSession | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            headers={"X-API-Key": API_KEY},
        )
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        try:
            if kind is None:
                await self.stop()
        finally:
            tasks = [*self._under_way, *filter(None, [self._ticking])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._session.close()

    async def stop(self) -> None:
        """Begin nothing more, and wait until everything is acknowledged."""
        assert self._ticking is not None
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)
        await eventually(lambda: not self._under_way, STOP_SECONDS)
        self.check()

    def check(self) -> None:
        """End a test at once whose publisher was answered with something that it can't deal with.

        Raises:
            RuntimeError: no assertion, so that nobody waits any longer.
        """
        if self._failures:
            raise RuntimeError(f"the publisher has failed: {self._failures[0]!r}") from self._failures[0]

    async def publish(self, node: BrokerNode) -> str:
        """Publish one message more, through this node first; its id."""
        ident = self._next()
        await self._publish(ident, [node])
        return ident

    def _next(self) -> str:
        ident = f"m{next(self._numbers)}"
        self.accounting.sends(ident)
        return ident

    async def _tick(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            await self._free.acquire()
            # after an outage nothing is made up for: the rate is what counts
            due = max(due + self._interval, clock() - 1)
            await asyncio.sleep(max(0.0, due - clock()))
            ident = self._next()
            at = len(self.accounting.published)
            task = asyncio.create_task(self._publish(ident, [*self.nodes[at % len(self.nodes) :], *self.nodes]))
            self._under_way.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._free.release()
        self._under_way.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)

    async def _publish(self, ident: str, nodes: Sequence[BrokerNode]) -> None:
        data = {"id": ident, **({"padding": self._padding} if self._padding else {})}
        body = json.dumps({"channel": self.accounting.topic, "data": data, "idempotency_key": ident}).encode()
        for node in itertools.cycle(nodes):
            if await self._attempt(node, ident, body):
                return
            self.retries += 1
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - no secret

    async def _attempt(self, node: BrokerNode, ident: str, body: bytes) -> bool:
        """Whether there is a receipt now."""
        assert self._session is not None
        try:
            async with self._session.post(f"{node.operations_url}/api/publish", data=body) as response:
                status, answer = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        if status in {502, 503, 504} and b"<html>" in answer:
            return False  # a proxy says so, whose node has gone
        if status in {429, 503}:
            assert "retry-after" in response.headers, answer
            return False
        result = json.loads(answer).get("result") if status == 200 else None
        if result is None:
            self.accounting.refuses(ident, f"{status} {answer!r}")
        assert result is not None, f"{ident}: {status} {answer!r}"
        assert result.get("offset", 0) > 0, f"{ident}: no receipt: {answer!r}"
        assert result.get("epoch"), f"{ident}: no receipt: {answer!r}"
        self.accounting.acks(ident, result["offset"], result["epoch"])
        return True
