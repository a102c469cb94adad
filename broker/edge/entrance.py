"""Who comes in, of those whose handshake is in order: at once, after a while in the waiting room, or not now."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from broker.core.door import Answer, Door
from broker.edge.addresses import Addresses, Network, plain
from broker.edge.handshake import Accepted, Refusal, Request

if TYPE_CHECKING:
    from broker.edge.edge import Edge
    from broker.edge.websocket import WebSocketProtocol

logger = logging.getLogger(__name__)

HELD_BYTES = 16_384
"""What is taken from somebody who waits before nothing more is read from it. Proper clients send nothing before they
are let in (RFC 6455, section 4.1); reading tells when they hang up."""
LOOK_SECONDS = 0.05
"""How often it is looked, at least, whether those who wait can be let in at all."""
SOONEST_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why a node lets nobody new in."""

    result: str
    """What it is counted as."""
    detail: str
    spread_seconds: float = 0.0
    """Over how long those who are refused are to come again, from a second on."""
    passing: bool = False
    """Those who wait go on waiting meanwhile."""


@dataclass(frozen=True, slots=True)
class EntranceLimits:
    """How many come in, beside `Edge.max_connections`. None is no limit."""

    per_second: float | None = None
    burst: int | None = None
    waiting: int = 4096
    """The most that wait for their turn when more come than `per_second`."""
    per_address: int | None = None
    trusted_proxies: tuple[Network, ...] = ()


class Entrance:
    """The way in for all connections of a node's edge.

    One timer calls those who wait, and only while there are any.
    """

    def __init__(self, edge: Edge, limits: EntranceLimits) -> None:
        self._edge = edge
        self.addresses = Addresses(limits.per_address, limits.trusted_proxies)
        self._door: Door[_Waiting] | None = None
        if limits.per_second is not None:
            self._door = Door(limits.per_second, limits.burst, limits.waiting, edge.handshake_seconds, edge.clock())
        self._calling: asyncio.TimerHandle | None = None
        self._shown = edge.metrics.waiting.labels("door")

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return 0 if self._door is None else len(self._door)

    def enter(
        self,
        protocol: WebSocketProtocol,
        transport: asyncio.Transport,
        request: Request,
        accepted: Accepted,
        rest: bytes,
    ) -> Refusal | None:
        """Open a WebSocket, now or when its turn has come; or say why not."""
        addresses = self.addresses
        address = addresses.find(_peer(transport), request.headers) if addresses.kept else ""
        reason = self._edge.unavailable() or self._no_room(address)
        if reason is not None:
            return _refusal(reason)
        door = self._door
        if door is not None:
            waiting = _Waiting(self, protocol, transport, request, accepted, rest)
            answer = door.knock(waiting, self._edge.clock())
            if answer is Answer.FULL:
                detail = "more clients come than this node lets in (limits.connections_per_second)"
                return _refusal(Unavailable("rate", detail, door.room_seconds))
            if answer is Answer.WAIT:
                self.addresses.enter(protocol, address)
                transport.set_protocol(waiting)
                self._shown.inc()
                if self._calling is None:
                    self._call_later(door)
                return None
        self.addresses.enter(protocol, address)
        protocol.open(transport, request, accepted, rest)
        return None

    def left(self, waiting: _Waiting) -> None:
        """Somebody has hung up who waited."""
        self.addresses.leave(waiting.protocol)
        if self._door is not None and self._door.leave(waiting):
            self._shown.dec()

    def _no_room(self, address: str) -> Unavailable | None:
        most = self._edge.max_connections
        if most is not None and len(self._edge.sockets) + self.waiting >= most:
            return Unavailable("full", "this node has as many connections as it may (limits.max_connections)")
        if self.addresses.full(address):
            detail = "this node has as many connections from your address as it may (limits.connections_per_address)"
            return Unavailable("address", detail)
        return None

    def _call_later(self, door: Door[_Waiting]) -> None:
        seconds = min(max(door.pause(self._edge.clock()), SOONEST_SECONDS), LOOK_SECONDS)
        self._calling = asyncio.get_running_loop().call_later(seconds, self._call, door)

    def _call(self, door: Door[_Waiting]) -> None:
        self._calling = None
        now = self._edge.clock()
        reason = self._edge.unavailable()
        if reason is not None and not reason.passing:
            self._turn_away(door.dismiss(), reason)
            return
        detail = "this node could not let you in in time (limits.connections_per_second)"
        self._turn_away(door.overdue(now), Unavailable("rate", detail, door.room_seconds))
        while reason is None and (called := door.call(now)) is not None:
            self._shown.dec()
            if not called.enter():
                door.give_back()
        if door:
            self._call_later(door)

    def _turn_away(self, dismissed: list[_Waiting], reason: Unavailable) -> None:
        self._shown.dec(len(dismissed))
        for waiting in dismissed:
            self.addresses.leave(waiting.protocol)
            if not waiting.transport.is_closing():
                self._edge.refuse(waiting.transport, _refusal(reason))


class _Waiting(asyncio.Protocol):
    """The socket of one who waits: keeps what comes, and sees when the client hangs up."""

    __slots__ = ("_accepted", "_entrance", "_held", "_paused", "_request", "protocol", "transport")

    def __init__(
        self,
        entrance: Entrance,
        protocol: WebSocketProtocol,
        transport: asyncio.Transport,
        request: Request,
        accepted: Accepted,
        rest: bytes,
    ) -> None:
        self._entrance = entrance
        self.protocol = protocol
        self.transport = transport
        self._request = request
        self._accepted = accepted
        self._held = rest
        self._paused = False

    def data_received(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > HELD_BYTES:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._entrance.left(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._entrance.left(self)

    def enter(self) -> bool:
        """Its turn has come; False when it is about to be gone."""
        if self.transport.is_closing():
            return False
        if self._paused:
            self.transport.resume_reading()
        try:
            self.protocol.open(self.transport, self._request, self._accepted, self._held)
        except Exception:
            # a mistake of ours ends this one connection; the others go on
            logger.exception("a WebSocket could not be opened")
            self.transport.abort()
        return True


def _refusal(reason: Unavailable) -> Refusal:
    seconds = 1 + int(random.uniform(0, reason.spread_seconds))  # noqa: S311 - spread, not secrecy
    headers = (("Retry-After", str(seconds)),)
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, reason.detail, headers, reason.result)


def _peer(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return plain(str(peer[0])) if isinstance(peer, tuple) else ""
