"""What does not keep up: connections that something waits for, and the topics that it is of."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.hub import Subscriber


@dataclass(frozen=True, slots=True)
class SlowConnection:
    """A connection that something waits for, or that was not sent all."""

    outlet: Subscriber
    queued_bytes: int
    queued_messages: int
    lag_seconds: float
    """For how long the oldest of it has waited."""
    dropped: int
    """Publications it was not sent."""


@dataclass(frozen=True, slots=True)
class SlowTopic:
    """A topic with publications that wait, or were not sent."""

    topic: str
    policy: str
    queued_bytes: int
    slow: int
    """Connections that they wait for."""
    lag_seconds: float
    dropped: int
