"""Connections to real NATS servers, and what came by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from broker.relay.connection import NatsConnection
from broker.relay.headers import read_block
from broker.relay.options import NatsOptions
from tests.harness.waiting import eventually


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Inbox:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.subjects: list[str] = []
        self.payloads: list[bytes] = []
        self.headers: list[Mapping[str, str] | None] = []

    def __call__(self, subject: bytes, payload: bytes, block: bytes | None) -> None:
        self.subjects.append(subject.decode())
        self.payloads.append(payload)
        self.headers.append(None if block is None else read_block(block))

    async def has(self, *payloads: bytes) -> None:
        """Wait until exactly these have come."""
        expected = list(payloads)
        await eventually(lambda: self.payloads == expected)


class Connection(NatsConnection):
    """A connection that remembers what it has told of itself."""

    def __init__(self, *urls: str) -> None:
        self.changes: list[bool] = []
        super().__init__(NatsOptions(servers=urls, name="test"), self.changes.append)

    async def up(self) -> None:
        await eventually(lambda: self.changes[-1:] == [True])

    async def down(self) -> None:
        await eventually(lambda: not self.connected)

    async def another_life(self, lives: int) -> None:
        """Wait until it is up for the so-manieth time."""
        await eventually(lambda: self.connected and self.changes.count(True) >= lives)


@asynccontextmanager
async def running(*urls: str, wait: bool = True) -> AsyncIterator[Connection]:
    """A connection that runs, and is there unless told not to wait."""
    connection = Connection(*urls)
    task = asyncio.create_task(connection.run())
    try:
        if wait:
            await connection.up()
        yield connection
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
