"""A WebSocket client that sends whatever bytes it is told to, and reads frames one by one."""

from __future__ import annotations

import socket
from typing import Self

from websockets.speedups import apply_mask

from broker.core.frames import BINARY, CLOSE, PING, PONG, TEXT
from broker.edge.websocket import CLOSE_SECONDS

FIN = 0x80
CONTINUATION = 0
SECONDS = 10.0
KEY = bytes.fromhex("37fa213d")

Frame = tuple[int, bytes]
"""A frame's first byte and its payload."""


def client_frame(first: int, payload: bytes = b"", key: bytes = KEY) -> bytes:
    """A masked frame, its first byte as given."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = bytes([0x80 | 126]) + size.to_bytes(2)
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8)
    return bytes([first]) + length + key + apply_mask(payload, key)


def text(payload: bytes | str) -> bytes:
    return client_frame(FIN | TEXT, payload.encode() if isinstance(payload, str) else payload)


def binary(payload: bytes) -> bytes:
    return client_frame(FIN | BINARY, payload)


def ping(payload: bytes = b"") -> bytes:
    return client_frame(FIN | PING, payload)


def pong(payload: bytes = b"") -> bytes:
    return client_frame(FIN | PONG, payload)


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return client_frame(FIN | CLOSE, b"" if code is None else code.to_bytes(2) + reason)


def upgrade_request(path: str = "/echo", *more: str, leave_out: str = "") -> bytes:
    """An opening handshake; `more` are further headers, `leave_out` names one that is not sent."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: test",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    kept = [line for line in lines if not leave_out or not line.startswith(f"{leave_out}:")]
    return "\r\n".join([*kept, *more, "", ""]).encode("latin-1")


class RawClient:
    """One TCP connection, blocking, with a time limit on all that it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def open(self, path: str = "/echo") -> RawClient:
        self.send(upgrade_request(path))
        head = self.read_head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_octets(self, data: bytes, size: int = 1) -> None:
        """In pieces, each in a segment of its own."""
        for position in range(0, len(data), size):
            self.socket.sendall(data[position : position + size])

    def read_head(self) -> bytes:
        """An HTTP answer's head."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._more()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _more(self) -> None:
        data = self.socket.recv(262_144)
        if not data:
            raise EOFError(f"the server ended the connection behind {self._rest!r}")
        self._rest += data

    def read_frame(self) -> Frame:
        first, second = self.read(2)
        assert second < 0x80, "a server never masks"
        size = second
        if size == 126:
            size = int.from_bytes(self.read(2))
        elif size == 127:
            size = int.from_bytes(self.read(8))
        return first, self.read(size)

    def read_end(self) -> bytes:
        """All that comes until the server ends the connection."""
        data, self._rest = self._rest, b""
        while piece := self.socket.recv(262_144):
            data += piece
        return data

    def read_closing(self) -> tuple[list[Frame], int]:
        """The frames up to a close frame, and its code (1005 without one), behind which TCP must end."""
        frames = []
        while (frame := self.read_frame())[0] != FIN | CLOSE:
            frames.append(frame)
        body = frame[1]
        self.send(client_frame(FIN | CLOSE, body[:2]))
        self.socket.settimeout(CLOSE_SECONDS / 2)  # at once, not when the server's patience is at its end
        assert self.read_end() == b""
        return frames, int.from_bytes(body[:2]) if body else 1005
