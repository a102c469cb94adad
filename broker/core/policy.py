"""Topic policies: what a topic is, decided by the first policy whose patterns match its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.core.permissions import Access
from broker.core.topic import Pattern

_CACHED_TOPICS = 65_536


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
    """Finds a topic's policy. The answer is remembered for as many topics as fit a fixed bound."""

    __slots__ = ("_known", "policies")

    def __init__(self, policies: Sequence[TopicPolicy]) -> None:
        self.policies = tuple(policies)
        self._known: dict[str, TopicPolicy | None] = {}

    def resolve(self, topic: str) -> TopicPolicy | None:
        try:
            return self._known[topic]
        except KeyError:
            pass
        found = next((p for p in self.policies if any(pattern.matches(topic) for pattern in p.match)), None)
        if len(self._known) >= _CACHED_TOPICS:
            self._known.clear()  # cheaper than bookkeeping, and as rare as 65,536 new topics
        self._known[topic] = found
        return found
