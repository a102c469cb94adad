"""A WebSocket on a socket: one slotted object a connection, no task, no timer of its own.

Subclasses say what a message means. Everything here runs in callbacks of the event loop and never raises into it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from typing import Any

from broker.core.frames import BINARY, CLOSE, FAILURE, PING, PONG, TEXT, FrameReader, close_code, close_frame, frame
from broker.core.hub import Topic
from broker.core.queue import OutboundQueue
from broker.core.wheel import ASLEEP_NOWHERE
from broker.edge.addresses import plain
from broker.edge.edge import Edge
from broker.edge.handshake import Accepted, Refusal, Request
from broker.wire.codes import Close, CloseCode, close

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""How long the peer may take to answer a close frame before TCP is cut."""
WRITE_BYTES = 65_536
"""How much of a queue goes into one write."""
ABNORMAL = 1006


class WebSocketProtocol(asyncio.Protocol):
    """The server's end of a WebSocket, made by uvicorn for each upgrade request (`Config(ws=…)`)."""

    __slots__ = (
        "_closing",
        "_code",
        "_paused",
        "_queue",
        "_reader",
        "_reading_held",
        "_transport",
        "_wake_at",
        "edge",
        "ready",
        "wheel_slot",
        "write",
    )

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any]) -> None:
        del config, server_state
        self.edge: Edge = app_state["edge"]
        self.ready = False
        self.write: Callable[[bytes], object] = _nowhere
        self.wheel_slot = ASLEEP_NOWHERE
        self._transport: asyncio.Transport | None = None
        self._reader: FrameReader | None = None
        self._queue: OutboundQueue | None = None
        self._closing = False
        self._paused = False
        self._reading_held = False
        self._wake_at = inf
        self._code = ABNORMAL

    # what subclasses say

    def opened(self, request: Request, subprotocol: str | None) -> None:
        """The handshake is done."""

    def text(self, payload: bytes) -> None:
        """A whole text message, valid UTF-8."""
        raise NotImplementedError

    def binary(self, payload: bytes) -> None:
        """A whole binary message."""
        raise NotImplementedError

    def due(self, now: float) -> float:
        """It is time for something; return when it is again (seconds on the edge's clock)."""
        del now
        return inf

    def label(self) -> str:
        """What logs call this connection."""
        return "-"

    def lost(self, code: int) -> None:
        """The connection has ended, by this code (1006: without a close frame)."""

    # the handshake

    def upgrade(self, transport: asyncio.Transport, request: Request, rest: bytes) -> None:
        """Answer an upgrade request and take its socket over.

        Args:
            transport: the request's.
            request: its head.
            rest: what came behind it in the same segment; the first frames perhaps.
        """
        self._transport = transport
        judged = self.edge.judge(request)
        refusal = (
            judged if isinstance(judged, Refusal) else self.edge.entrance.enter(self, transport, request, judged, rest)
        )
        if refusal is not None:
            self.edge.refuse(transport, refusal)

    def open(self, transport: asyncio.Transport, request: Request, accepted: Accepted, rest: bytes) -> None:
        """Take the socket over, and what has come on it already."""
        self._open(transport, request, accepted)
        if rest and not transport.is_closing():
            self.data_received(rest)

    def _open(self, transport: asyncio.Transport, request: Request, accepted: Accepted) -> None:
        transport.set_protocol(self)
        transport.write(accepted.response)
        self._reader = FrameReader(self.edge.message_bytes)
        self.write = transport.write
        self.ready = True
        self.edge.sockets.add(self)
        self.opened(request, accepted.subprotocol)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            return
        try:
            for opcode, payload in reader.feed(data):
                if opcode == CLOSE:
                    self._peer_closes(payload)
                elif self._closing:
                    continue
                elif opcode == TEXT:
                    self.text(payload)
                elif opcode == PING:
                    self._send(frame(PONG, payload))
                elif opcode == BINARY:
                    self.binary(payload)
                elif opcode == FAILURE:
                    self._fail(payload)
        except Exception:
            # a mistake of ours ends this one connection, and is seen
            logger.exception("a message could not be handled", extra={"client": self.label()})
            self.close(close(CloseCode.SERVER_ERROR))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # however it ended, the close code tells
        edge = self.edge
        self.ready = False
        self.write = _nowhere
        self._reader = None
        self._transport = None
        self._drop_queue("closed")
        edge.wheel.cancel(self)
        edge.sockets.discard(self)
        edge.entrance.addresses.leave(self)
        if not self._closing:
            self._closing = True
        self.lost(self._code)

    def pause_writing(self) -> None:
        """The socket takes no more: from now on everything queues, and nothing more is read from who doesn't read."""
        self._paused = True
        self.ready = False
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        queue = self._queue
        transport = self._transport
        if transport is None:
            return
        while queue and not self._paused:
            before = queue.size_bytes
            batch, counts = queue.take(WRITE_BYTES)
            self.edge.queued(queue.size_bytes - before)
            if not self._write(batch):
                self.edge.dropped(counts, "closed")
                return
            self.edge.delivered(counts)
        if self._paused:  # the write may have filled the socket again
            return
        self._drop_queue("closed")
        self.ready = not self._closing
        if not self._reading_held and not transport.is_closing():
            transport.resume_reading()

    # outlet

    @property
    def address(self) -> str:
        """The client's IP address, as proxies that are trusted tell it; empty where there is none (any more)."""
        known = self.edge.entrance.addresses.of(self)
        if known is not None:
            return known
        peer = None if self._transport is None else self._transport.get_extra_info("peername")
        return plain(str(peer[0])) if isinstance(peer, tuple) else ""

    def send(self, payload: bytes) -> None:
        """Send a text message."""
        self._send(frame(TEXT, payload))

    def send_binary(self, payload: bytes) -> None:
        """Send a binary message."""
        self._send(frame(BINARY, payload))

    def send_publications(self, data: bytes, policy: str, messages: int) -> None:
        """Send a frame that is made already, and holds so many publications of a policy."""
        if not self.ready:
            self._enqueue(data, policy, messages)
        elif self._write(data):
            self.edge.delivered({policy: messages})

    def deliver(self, topic: Topic, data: bytes, messages: int) -> None:
        """The hub's slow path: this connection can't take the frame now."""
        self._enqueue(data, topic.policy.name, messages)

    def pause_reading(self) -> None:
        self._reading_held = True
        if self._transport is not None and not self._paused:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._reading_held = False
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def wake_by(self, when: float) -> None:
        if when < self._wake_at:
            self._wake_at = when
            self.edge.wheel.schedule(self, when)

    def wake(self, now: float) -> float | None:
        """The wheel's call."""
        self._wake_at = inf
        if self._transport is None:
            return None
        if self._closing:
            self._transport.abort()
            return None
        queue = self._queue
        if queue and now >= queue.expires_at():
            self.close(close(CloseCode.SLOW, "too long behind"))
            return None
        try:
            again = self.due(now)
        except Exception:
            # a mistake of ours ends this one connection, and not the wheel's turn
            logger.exception("what was due could not be done", extra={"client": self.label()})
            self.close(close(CloseCode.SERVER_ERROR))
            return None
        if not self._closing:  # else the wheel has its end already
            self.wake_by(min(again, queue.expires_at() if queue else inf))
        return None

    def close(self, reason: Close) -> None:
        """Send a close frame and end the connection when the peer has answered it, or has not in time."""
        self._begin_close(close_frame(reason.code, reason.reason), reason.code)

    # inside

    def _send(self, data: bytes) -> None:
        if self.ready:
            self._write(data)
        else:
            self._enqueue(data)

    def _write(self, data: bytes) -> bool:
        try:
            self.write(data)
        except (OSError, RuntimeError):
            self.ready = False  # the socket is gone; connection_lost is on its way
            return False
        return True

    def _enqueue(self, data: bytes, policy: str = "", messages: int = 0) -> None:
        """Queue a frame; when the queue is full, that ends the connection."""
        if self._closing or self._transport is None:
            return
        queue = self._queue
        now = self.edge.clock()
        if queue is None:
            queue = self._queue = OutboundQueue(self.edge.queue_bytes, self.edge.queue_age_seconds)
            self.edge.slow(+1)
        if not queue.push(data, now, policy, messages):
            if messages:
                self.edge.dropped({policy: messages}, "slow")
            self.close(close(CloseCode.SLOW))
            return
        self.edge.queued(len(data))
        self.wake_by(queue.expires_at())

    def _drop_queue(self, reason: str) -> None:
        if self._queue is not None:
            self.edge.dropped(self._queue.waiting(), reason)
            self.edge.queued(-self._queue.size_bytes)
            self.edge.slow(-1)
            self._queue = None

    def _fail(self, body: bytes) -> None:
        """What came breaks the protocol. Whatever follows can't be read any more, not even the answer to the close
        frame: so TCP ends in this direction right behind it (RFC 6455, section 7.1.7).
        """
        self._begin_close(frame(CLOSE, body), close_code(body))
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()  # to close would cut the frame off: what was not read makes the kernel reset TCP
        else:
            transport.close()

    def _begin_close(self, data: bytes, code: int) -> None:
        transport = self._transport
        if self._closing or transport is None:
            return
        self._closing = True
        self._code = code
        self.ready = False
        # what waited can't be delivered any more; the close frame has to get through
        self._drop_queue("slow" if code == CloseCode.SLOW else "closed")
        self._write(data)
        if transport.is_closing():
            return
        if self._paused or self._reading_held:
            # its answer is to be heard
            transport.resume_reading()
        self.edge.wheel.schedule(self, self.edge.clock() + CLOSE_SECONDS)

    def _peer_closes(self, body: bytes) -> None:
        """A close frame came: the answer to ours, or the peer's own wish, which is echoed (RFC 6455, section 5.5.1)."""
        transport = self._transport
        if transport is None:
            return
        if not self._closing:
            self._closing = True
            self._code = close_code(body)
            self.ready = False
            self._drop_queue("closed")
            self._write(frame(CLOSE, body[:2]))
            # who does not read does not let TCP end
            self.edge.wheel.schedule(self, self.edge.clock() + CLOSE_SECONDS)
        transport.close()


def _nowhere(_: bytes) -> object:
    raise OSError("the connection is gone")
