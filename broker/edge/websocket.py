"""A WebSocket on a socket: one slotted object a connection, no task, no timer of its own.

Subclasses say what a message means. Everything here runs in callbacks of the event loop and never raises into it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from math import inf
from typing import Any

from broker.core.frames import (
    BINARY,
    CLOSE,
    FAILURE,
    PING,
    PONG,
    TEXT,
    Event,
    FrameReader,
    close_code,
    close_frame,
    frame,
)
from broker.core.wheel import ASLEEP_NOWHERE
from broker.edge.addresses import plain
from broker.edge.handshake import Accepted, Refusal, Request
from broker.edge.writer import Writer, nowhere
from broker.wire.codes import Close, CloseCode, close

logger = logging.getLogger(__name__)

WRITE_BUFFER_BYTES = 65_536
CLOSE_SECONDS = 5.0
"""How long the peer may take to answer a close frame before TCP is cut."""
PINGS_ANSWERED = 32
"""Of the pings that come in one read; of those behind them, only the last is answered (RFC 6455, section 5.5.3)."""
ABNORMAL = 1006


class WebSocketProtocol(Writer, asyncio.Protocol):
    """The server's end of a WebSocket, made by uvicorn for each upgrade request (`Config(ws=…)`)."""

    __slots__ = ("_code", "_deaf", "_reader", "_reading", "_reading_held", "_wake_at", "wheel_slot")

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any]) -> None:
        del config, server_state
        super().__init__(app_state["edge"])
        self.wheel_slot = ASLEEP_NOWHERE
        self._reader: FrameReader | None = None
        self._reading = True
        self._reading_held = False
        """Whoever handles the messages takes no more now."""
        self._deaf = False
        """Nothing is read since replies wait to be written."""
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
        if transport.get_extra_info("sslcontext") is not None:
            transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)  # else it is eight times as much as without TLS
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
            events = reader.feed(data)
            for opcode, payload in events if len(events) <= PINGS_ANSWERED else _without_flood(events):
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
        self.write = nowhere
        self._reader = None
        self._transport = None
        self._drop_queue("closed")
        edge.pressure.gone(self)
        edge.wheel.cancel(self)
        edge.sockets.discard(self)
        edge.entrance.addresses.leave(self)
        if not self._closing:
            self._closing = True
        self.lost(self._code)

    def hear(self, *, listening: bool) -> None:
        self._deaf = not listening
        self._update_reading()

    # outlet

    @property
    def closing(self) -> bool:
        """A close frame has been sent or received, or the socket is gone."""
        return self._closing

    @property
    def address(self) -> str:
        """The client's IP address, as proxies that are trusted tell it; empty where there is none (any more)."""
        known = self.edge.entrance.addresses.of(self)
        if known is not None:
            return known
        peer = None if self._transport is None else self._transport.get_extra_info("peername")
        return plain(str(peer[0])) if isinstance(peer, tuple) else ""

    def pause_reading(self) -> None:
        self._reading_held = True
        self._update_reading()

    def resume_reading(self) -> None:
        self._reading_held = False
        self._update_reading()

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
        self._expire(now)
        if self._closing:
            return None
        try:
            again = self.due(now)
        except Exception:
            # a mistake of ours ends this one connection, and not the wheel's turn
            logger.exception("what was due could not be done", extra={"client": self.label()})
            self.close(close(CloseCode.SERVER_ERROR))
            return None
        if not self._closing:  # else the wheel has its end already
            self.wake_by(min(again, inf if self._queue is None else self._queue.expires_at()))
        return None

    def close(self, reason: Close) -> None:
        """Send a close frame and end the connection when the peer has answered it, or has not in time."""
        self._begin_close(close_frame(reason.code, reason.reason), reason.code)

    # inside

    def _update_reading(self) -> None:
        reading = not self._deaf and not self._reading_held
        transport = self._transport
        if reading == self._reading or transport is None or transport.is_closing():
            return
        self._reading = reading
        if reading:
            transport.resume_reading()
        else:
            transport.pause_reading()

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
        # its answer is to be heard
        self._reading_held = self._deaf = False
        self._update_reading()
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


def _without_flood(events: Sequence[Event]) -> Sequence[Event]:
    """What is to be acted on of one read, which may be pings by the thousands."""
    pings = [at for at, (opcode, _) in enumerate(events) if opcode == PING]
    passed_over = frozenset(pings[PINGS_ANSWERED:-1])
    return [event for at, event in enumerate(events) if at not in passed_over] if passed_over else events
