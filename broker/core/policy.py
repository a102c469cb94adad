"""Topic policies: what a topic is, decided by the first policy whose patterns match its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from broker.core.permissions import Access, Readers
from broker.core.topic import Pattern


class Recovery(StrEnum):
    """What a client that comes back to a durable topic gets."""

    STREAM = "stream"
    """All that it missed, or the truth that this can't be had."""
    LATEST = "latest"
    """The newest publication only; so does everybody who comes for the first time."""


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
    read: Readers = Readers.SUBSCRIBERS
    """Who may ask for presence and history."""
    presence: bool = False
    """Whether it can be asked who is subscribed."""
    join_leave: bool = False
    """Whether subscribers are told who comes and goes."""
    durable: bool = False
    """Whether publications are stored, in a stream of the policy's own. What follows means nothing without it."""
    history_messages: int = 1000
    """The most publications kept of a topic."""
    history_seconds: float = 86_400.0
    """How long they are kept."""
    history_bytes: int | None = None
    """The most bytes kept of all the policy's topics together; None for no limit."""
    idempotency_seconds: float = 120.0
    """For how long a repeated publication is recognised by its key."""
    recovery: Recovery = Recovery.STREAM

    @property
    def keeps_members(self) -> bool:
        """Whether it matters who is subscribed."""
        return self.presence or self.join_leave


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
