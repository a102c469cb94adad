"""Bytes on a TCP connection, for what no well-behaved client would send."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

SECONDS = 15.0
PATH = "/connection/websocket"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def upgrade(path: str = PATH, changes: Mapping[str, str | None] | None = None) -> bytes:
    """An upgrade request's head.

    Args:
        path: asked for.
        changes: headers to add or replace; None to leave one out.
    """
    headers: dict[str, str | None] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **(changes or {}),
    }
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
    return f"GET {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def masked(payload: bytes, opcode: int = TEXT, *, length: int | None = None) -> bytes:
    """A client's frame, final. `length` lies about the payload's."""
    size = len(payload) if length is None else length
    head = bytes([0x80 | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


class RawConnection:
    """A TCP connection. Use `dialled`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """An HTTP answer's status and headers, names in lower case."""
        async with asyncio.timeout(SECONDS):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}

    async def frame(self) -> tuple[int, bytes]:
        """A server's frame: opcode and payload."""
        async with asyncio.timeout(SECONDS):
            first, second = await self._reader.readexactly(2)
            size = second & 127
            if size == 126:
                (size,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
            return first & 15, await self._reader.readexactly(size)

    async def close_code(self) -> int:
        """The code of the close frame that comes next, maybe after others."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                (code,) = struct.unpack("!H", payload[:2])
                return int(code)

    async def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def dialled(port: int, *, read_ahead_bytes: int = 65_536) -> AsyncIterator[RawConnection]:
    """A TCP connection to this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=read_ahead_bytes)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):  # the server may have been faster
            await writer.wait_closed()


@asynccontextmanager
async def upgraded(port: int) -> AsyncIterator[RawConnection]:
    """A WebSocket on which nothing was said yet."""
    async with dialled(port) as connection:
        await connection.send(upgrade())
        assert (await connection.head())[0] == 101
        yield connection
