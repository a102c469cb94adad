"""Who and what is behind on a node, as it is told to operators."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.hub import Subscriber


@dataclass(slots=True)
class SlowConnection:
    """A connection that does not keep up, or has not.

    Args:
        outlet: the way out to it.
        queued_bytes: what waits for it.
        queued_messages: the publications among that.
        lag_seconds: since when the oldest of it has waited.
        dropped: publications that were given up for it since it connected.
    """

    outlet: Subscriber
    queued_bytes: int
    queued_messages: int
    lag_seconds: float
    dropped: int


@dataclass(slots=True)
class SlowTopic:
    """A topic with subscribers that don't keep up, or haven't.

    Args:
        topic: its name, or the wildcard.
        policy: the name of its policy.
        queued_bytes: what waits of it, for all connections together.
        slow: for how many connections something waits.
        lag_seconds: since when the oldest of it has waited.
        dropped: publications that were given up, counted for each connection.
    """

    topic: str
    policy: str
    queued_bytes: int
    slow: int
    lag_seconds: float
    dropped: int
