"""The kinds of lanes, by their topics' overflow policies."""

from __future__ import annotations

from broker.core.behind import CatchUpLane
from broker.core.holding import HoldingLane
from broker.core.lane import Lane, Lines
from broker.core.lossy import ConflatingLane, DroppingLane
from broker.core.policy import Overflow, TopicPolicy


def make_lane(name: str, policy: TopicPolicy, lines: Lines, after: int) -> Lane:
    """The lane of a topic, by its policy.

    Args:
        name: the topic's.
        policy: the topic's.
        lines: what is to be known of encoded messages.
        after: the topic's place up to which the connection has everything.
    """
    match policy.overflow:
        case Overflow.DROP_OLDEST | Overflow.DROP_NEWEST:
            return DroppingLane(name, policy, lines)
        case Overflow.CONFLATE:
            return ConflatingLane(name, policy, lines)
        case Overflow.CATCH_UP:
            return CatchUpLane(name, policy, lines, after)
    return HoldingLane(name, policy)
