"""Servers that NATS would never be: to see what becomes of a connection to one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

INFO = b'INFO {"server_id":"x","version":"2.15.0","proto":1,"headers":true,"max_payload":4096}\r\n'


@asynccontextmanager
async def impostor(behave: Behaviour, met: asyncio.Event) -> AsyncIterator[str]:
    """Behaves like this to everybody who connects, and tells when that is first; its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        met.set()
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await behave(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(pings: int) -> Behaviour:
    """Greets, and answers so many PINGs; then it is silent."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        answered = 0
        while True:
            line = await reader.readuntil(b"\r\n")
            if line == b"PING\r\n" and answered < pings:
                answered += 1
                writer.write(b"PONG\r\n")

    return behave


def saying(text: bytes) -> Behaviour:
    """Greets, answers PINGs, and says this behind the second one."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        answered = 0
        while True:
            line = await reader.readuntil(b"\r\n")
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
                answered += 1
                if answered == 2:
                    writer.write(text)

    return behave


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Is no NATS at all."""
    del reader
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(range(256)) * 10)


async def black_hole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes connections, and is silent."""
    del writer
    await reader.read(-1)
