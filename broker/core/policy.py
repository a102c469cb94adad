"""Topic policies: what a topic is, decided by the first policy whose patterns match its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.core.permissions import Access
from broker.core.topic import Pattern


@dataclass(frozen=True, slots=True)
class TopicPolicy:
    """The rules of a family of topics. Every topic belongs to exactly one policy, or to none and does not exist."""

    name: str
    """Part of the NATS subjects: `[a-z0-9_-]+`."""
    match: tuple[Pattern, ...]
    subscribe: Access = Access.GRANTED
    publish: Access = Access.GRANTED
    message_bytes: int = 65_536
    """The most bytes of JSON a publication's data may have."""


class PolicyTable:
    """Finds the policy of a topic: the first one whose patterns match."""

    __slots__ = ("_policies",)

    def __init__(self, policies: Sequence[TopicPolicy]) -> None:
        self._policies = tuple(policies)

    def resolve(self, topic: str) -> TopicPolicy | None:
        for policy in self._policies:
            if any(pattern.matches(topic) for pattern in policy.match):
                return policy
        return None
