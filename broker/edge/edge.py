"""What all connections of a node's edge share: limits, clock, timers and what is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from broker.core.behind import CatchingUp, CatchUpLane
from broker.core.queue import QueueRules
from broker.core.wheel import TimerWheel
from broker.edge.crowd import Crowd
from broker.edge.entrance import Entrance, EntranceLimits, Unavailable
from broker.edge.handshake import Accepted, Origins, Refusal, Request, open_websocket
from broker.edge.pressure import Pressure
from broker.metrics import Metrics

if TYPE_CHECKING:
    from broker.edge.websocket import WebSocketProtocol


@dataclass(slots=True)
class Edge:
    """The shared part of the edge. Sizes in bytes, times in seconds on `clock`."""

    wheel: TimerWheel
    clock: Callable[[], float]
    metrics: Metrics
    paths: frozenset[bytes]
    """Where a WebSocket can be opened."""
    origins: Origins
    subprotocols: Sequence[str]
    message_bytes: int
    header_bytes: int
    handshake_seconds: float
    queue_rules: QueueRules
    pressure: Pressure
    max_connections: int | None
    make_client: Callable[[Any], Any]
    """Makes the conversation for an opened connection, its outlet."""
    unavailable: Callable[[], Unavailable | None]
    """Why nobody new can be let in now, or None."""
    catch_up: Callable[[CatchingUp, CatchUpLane], None]
    """Reads on for a connection: what comes of a topic behind a place in its history."""
    entrance_limits: EntranceLimits = field(default_factory=EntranceLimits)
    sockets: set[WebSocketProtocol] = field(default_factory=set)
    """All that are open, those that have not sent a command yet too."""
    entrance: Entrance = field(init=False)
    crowd: Crowd = field(init=False)

    def __post_init__(self) -> None:
        self.crowd = Crowd(time.monotonic, lambda turn: asyncio.get_running_loop().call_soon(turn))
        self.entrance = Entrance(self, self.entrance_limits)

    def judge(self, request: Request) -> Accepted | Refusal:
        """Look at an opening handshake by itself, whatever the node has to do at the moment."""
        if request.path not in self.paths:
            return Refusal(HTTPStatus.NOT_FOUND, "there is no WebSocket at this path")
        return open_websocket(request, origins=self.origins, subprotocols=self.subprotocols)

    def refuse(self, transport: asyncio.Transport, refusal: Refusal) -> None:
        """Answer an opening handshake with a refusal, and end its connection."""
        self.refused(refusal)
        transport.write(refusal.encode())
        transport.close()

    def refused(self, refusal: Refusal) -> None:
        self.metrics.connects.labels(refusal.result).inc()

    def delivered(self, counts: Mapping[str, int]) -> None:
        """Count publications that were written late, by policy."""
        for policy, messages in counts.items():
            self.metrics.count_delivered(policy, messages)

    def waited(self, seconds: float) -> None:
        """Count how long the oldest publication of a late write has waited."""
        self.metrics.queue_age.observe(seconds)

    def dropped(self, counts: Mapping[str, int], reason: str) -> None:
        for policy, messages in counts.items():
            if messages:
                self.metrics.dropped.labels(policy, reason).inc(messages)
