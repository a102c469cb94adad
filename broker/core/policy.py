"""Topic policies: what a topic is, decided by the first policy whose patterns match its name.

A wildcard, which somebody subscribes to, belongs to a policy when all topics that it matches do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from broker.core.permissions import Access, Readers
from broker.core.topic import Pattern

_NAMED = 3
"""As many policies a refusal names; the list of all could be much longer than what was asked."""


class Recovery(StrEnum):
    """What a client that comes back to a durable topic gets."""

    STREAM = "stream"
    """All that it missed, or the truth that this can't be had."""
    LATEST = "latest"
    """The newest publication only; so does everybody who comes for the first time."""


class Overflow(StrEnum):
    """What becomes of a topic's publications for a connection that does not keep up."""

    DISCONNECT = "disconnect"
    """None is left out: the connection is closed, and comes back."""
    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    CONFLATE = "conflate"
    """A newer one takes the place of the one before it with the same key."""
    CATCH_UP = "catch_up"
    """None is left out: they are read from the stream when the connection can take more."""


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
    overflow: Overflow = Overflow.DISCONNECT
    conflate_key: tuple[str, ...] = ()
    """Where in the data the key is by which publications are conflated: the tokens of a JSON pointer (RFC 6901). Empty:
    all of a topic have the same."""
    publish_rate: float | None = None
    """The most publications per second that one node takes for all topics of the policy; None for no limit."""

    @property
    def keeps_members(self) -> bool:
        """Whether it matters who is subscribed."""
        return self.presence or self.join_leave


class PolicyTable:
    """Finds the policy of a topic, the first one whose patterns match, and that of a wildcard."""

    __slots__ = ("_policies",)

    def __init__(self, policies: Sequence[TopicPolicy]) -> None:
        self._policies = tuple(policies)

    def __iter__(self) -> Iterator[TopicPolicy]:
        return iter(self._policies)

    def resolve(self, topic: str) -> TopicPolicy | None:
        for policy in self._policies:
            if any(pattern.matches(topic) for pattern in policy.match):
                return policy
        return None

    def resolve_wildcard(self, wildcard: Pattern) -> TopicPolicy | str:
        """The policy that all topics of a wildcard belong to, or why there is none, in words for whoever asked.

        One of the policy's patterns has to cover the wildcard, and no pattern of an earlier policy may overlap it.
        Where only several patterns together would cover it, it is refused: one of them can be written that does.
        """
        sharing: list[str] = []
        for policy in self._policies:
            covering = any(pattern.covers(wildcard) for pattern in policy.match)
            if covering and not sharing:
                return policy
            if covering or any(pattern.overlaps(wildcard) for pattern in policy.match):
                sharing.append(policy.name)
            if covering:
                break  # no topic is left for those behind it
        if not sharing:
            return f"no policy has topics that {wildcard.text} matches"
        if len(sharing) == 1:
            return f"policy {sharing[0]} has some of the topics that {wildcard.text} matches, but no pattern for all"
        names = ", ".join(sharing[:_NAMED]) + (", …" if sharing[_NAMED:] else "")
        return f"{wildcard.text} overlaps several policies ({names}); it has to stay within one"
