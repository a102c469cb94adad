"""A client that can stop reading, and go on: a phone in a tunnel."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from tests.harness.raw import CLOSE, PING, PONG, TEXT, masked, upgrade
from tests.harness.waiting import eventually

DROPPED_TAG = "broker.dropped"
SMALL = 4096
"""Bytes of a receive buffer that is soon full."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A publication as a client got it. Its data has a number `n`, and perhaps a key `k`."""

    topic: str
    """The one it was published to, also where it came by a wildcard."""
    number: int
    key: str | None
    dropped: int
    """How many are missing before it, as its tag declares."""
    offset: int


class Reader(asyncio.Protocol):
    """A WebSocket client of the Centrifuge protocol (JSON). Use `reading`.

    Args:
        pongs: whether pings of the protocol (`{}`) are answered.
    """

    def __init__(self, *, pongs: bool = True) -> None:
        self.events: list[dict[str, Any]] = []
        """Every line that came, in order."""
        self.arrivals: list[Arrival] = []
        self.pings = 0
        self.end: tuple[int, str] | None = None
        """Code and reason of the close frame; 1006 when TCP ended without."""
        self.bytes_per_second: float | None = None
        """How fast it reads; None for as fast as it can."""
        self._pongs = pongs
        self._ident = 0
        self._stopped = False
        self._received = bytearray()
        self._open = False
        self._transport: asyncio.Transport | None = None

    # what the test does

    def stop(self) -> None:
        """Read nothing more."""
        self._stopped = True
        self._connection.pause_reading()

    def go_on(self) -> None:
        self._stopped = False
        if not self._connection.is_closing():
            self._connection.resume_reading()

    def send(self, *commands: Any) -> None:
        """Send commands in one frame; the ids of those that have none are made up."""
        for command in commands:
            if "id" not in command:
                self._ident += 1
                command["id"] = self._ident
        self.send_frame("\n".join(json.dumps(command) for command in commands).encode())

    def send_frame(self, payload: bytes, opcode: int = TEXT) -> None:
        self.send_bytes(masked(payload, opcode))

    def send_bytes(self, data: bytes) -> None:
        self._connection.write(data)

    @property
    def backlog(self) -> int:
        """Bytes that the server has not taken yet, beside those that the kernel holds."""
        return self._connection.get_write_buffer_size()

    def told(self, ident: int) -> bool:
        return any(line.get("id") == ident for line in self.events)

    async def reply(self, ident: int) -> dict[str, Any]:
        def come() -> dict[str, Any] | None:
            found = next((line for line in self.events if line.get("id") == ident), None)
            if found is None and self.end is not None:
                raise RuntimeError(f"the connection ended first: {self.end}")
            return found

        found: dict[str, Any] = await eventually(come)
        return found

    async def call(self, method: str, **request: Any) -> dict[str, Any]:
        """Send a command that must succeed; its result."""
        command: dict[str, Any] = {method: request}
        self.send(command)
        reply = await self.reply(command["id"])
        assert "error" not in reply, reply
        result: dict[str, Any] = reply[method]
        return result

    @property
    def unsubscribed(self) -> list[tuple[str, int]]:
        """Topics and codes of the unsubscribe pushes."""
        pushes = [line["push"] for line in self.events if "push" in line]
        return [(push["channel"], push["unsubscribe"]["code"]) for push in pushes if "unsubscribe" in push]

    def of(self, topic: str) -> list[Arrival]:
        return [one for one in self.arrivals if one.topic == topic]

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(upgrade())

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if not self._open:
            at = received.find(b"\r\n\r\n")
            if at < 0:
                return
            assert received.startswith(b"HTTP/1.1 101"), bytes(received)
            del received[: at + 4]
            self._open = True
        while (taken := _frame_in(received)) is not None:
            self._frame(*taken)
        if self.bytes_per_second is not None and not self._connection.is_closing():
            self._connection.pause_reading()
            asyncio.get_running_loop().call_later(len(data) / self.bytes_per_second, self._sip)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.end is None:
            self.end = (1006, "")

    # inside

    @property
    def _connection(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    @property
    def is_open(self) -> bool:
        """The handshake is done."""
        return self._open

    def _sip(self) -> None:
        if not self._stopped and not self._connection.is_closing():
            self._connection.resume_reading()

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self.end = (struct.unpack("!H", payload[:2])[0], payload[2:].decode())
            self.send_frame(payload[:2], CLOSE)
        elif opcode == PING:
            self.send_frame(payload, PONG)
        elif opcode == TEXT:
            for line in payload.split(b"\n"):
                self._line(json.loads(line))

    def _line(self, line: dict[str, Any]) -> None:
        self.events.append(line)
        if line == {}:
            self.pings += 1
            if self._pongs:
                self.send_frame(b"{}")
        push = line.get("push", {})
        if "pub" in push:
            self._arrived(push["channel"], push["pub"])
        for publication in line.get("subscribe", {}).get("publications") or []:
            self._arrived("", publication)

    def _arrived(self, topic: str, publication: dict[str, Any]) -> None:
        data = publication["data"]
        tags = publication.get("tags") or {}
        dropped = int(tags.get(DROPPED_TAG, "0"))
        where = publication.get("channel") or topic or data["t"]
        self.arrivals.append(Arrival(where, data["n"], data.get("k"), dropped, publication.get("offset", 0)))


def _frame_in(received: bytearray) -> tuple[int, bytes] | None:
    """Take the first whole frame (opcode and payload) out of what was received."""
    if len(received) < 2:
        return None
    size, begin = received[1] & 127, 2
    if size == 126:
        begin = 4
    elif size == 127:
        begin = 10
    if len(received) < begin:
        return None
    if size > 125:
        size = int.from_bytes(received[2:begin])
    if len(received) < begin + size:
        return None
    opcode, payload = received[0] & 15, bytes(received[begin : begin + size])
    del received[: begin + size]
    return opcode, payload


@asynccontextmanager
async def reading(
    port: int, *topics: str, receive_bytes: int | None = SMALL, pongs: bool = True, token: str = ""
) -> AsyncIterator[Reader]:
    """A client that has connected and subscribed, and reads.

    Args:
        port: of the node, on this machine.
        topics: to subscribe to.
        receive_bytes: of the socket's receive buffer; None for what the system gives.
        pongs: whether pings are answered.
        token: to connect with.
    """
    plug = socket.socket()
    if receive_bytes is not None:
        # before it connects: the window that is offered then is never taken back
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plug.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(plug, ("127.0.0.1", port))
    transport, reader = await loop.create_connection(lambda: Reader(pongs=pongs), sock=plug)
    try:
        await eventually(lambda: reader.is_open)
        await reader.call("connect", **({"token": token} if token else {}))
        for topic in topics:
            await reader.call("subscribe", channel=topic)
        yield reader
    finally:
        transport.abort()
