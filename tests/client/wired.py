"""A client's conversation by way of its socket's own protocol object, in this process: all but the kernel is real."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from broker.edge.client_socket import ClientSocket
from broker.edge.handshake import Accepted, Request
from tests.client.conversing import Line, Stage
from tests.edge.raw import client_frame
from tests.harness.waiting import eventually


class Wire(asyncio.Transport):
    """Takes all that is written, as long as nobody says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.socket: ClientSocket | None = None
        self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, ClientSocket)
        self.socket = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 4711) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            assert self.socket is not None
            asyncio.get_running_loop().call_soon(self.socket.connection_lost, None)

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing comes but what a test says."""

    def resume_reading(self) -> None:
        """Likewise."""


class Wired:
    """A connection, and the client's view of it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.wire = Wire()
        self.socket = ClientSocket(None, None, {"edge": stage.app.edge})
        self.socket._transport = self.wire  # as `upgrade` does, which would ask the door first
        request = Request("GET", "1.1", b"/connection/websocket", [])
        self.socket.open(self.wire, request, Accepted(b"", None), b"")

    def say(self, *commands: Line) -> None:
        """Send commands in one frame."""
        self.socket.data_received(client_frame(0x81, b"\n".join(json.dumps(one).encode() for one in commands)))

    def stop(self) -> None:
        """Take nothing any more."""
        self.socket.pause_writing()

    def go_on(self) -> None:
        self.socket.resume_writing()

    @property
    def lines(self) -> list[Line]:
        """All that has come."""
        found: list[Line] = []
        # what a server sends is not masked, and a reader of clients' frames wants it to be
        data = self.wire.written
        while data:
            size, head = data[1], 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(data[2:head])
            payload, data = data[head : head + size], data[head + size :]
            found += [json.loads(line) for line in payload.split(b"\n") if line[:1] == b"{"]
        return found

    async def answer(self, ident: int) -> Line:
        """The reply to a command."""
        found: Line = await eventually(lambda: next((one for one in self.lines if one.get("id") == ident), None))
        assert "error" not in found, found
        return found

    async def connected(self, *topics: str, token: str = "", **connect: Any) -> Wired:
        """Connect, and subscribe to topics with the ids 2 and on."""
        self.say({"id": 1, "connect": {"token": token, **connect}})
        await self.answer(1)
        for number, topic in enumerate(topics, 2):
            self.say({"id": number, "subscribe": {"channel": topic}})
        for number in range(2, 2 + len(topics)):
            await self.answer(number)
        return self

    def publications(self, topic: str) -> list[Line]:
        """What has come of a topic, recovered ones in replies not included."""
        pushes = [one["push"] for one in self.lines if "push" in one]
        return [push["pub"] for push in pushes if push["channel"] == topic and "pub" in push]

    def data(self, topic: str) -> list[Any]:
        return [pub["data"] for pub in self.publications(topic)]
