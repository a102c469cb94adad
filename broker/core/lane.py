"""What waits of one topic for a connection that can't take more just now: what all kinds of it have in common.

A lane never loses a publication in silence: what it gives up is counted, and told with the next publication that gets
through, or it is what the lane's end tells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from broker.core.batch import Batch
from broker.core.policy import TopicPolicy

ENTRY_OVERHEAD_BYTES = 120
"""What an entry costs beside its bytes: an object, a number or two, its place in a container."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What a queue has to know of encoded messages.

    Args:
        frame: frames lines, joined by line feeds, for the transport.
        declare: a publication's line with how many are missing before it, beside those that it says already.
        missing_before: how many a line says are missing before it; 0 if it doesn't.
        key_of: a publication's key (None for none) in its line, by the tokens of a JSON pointer.
    """

    frame: Callable[[bytes], bytes]
    declare: Callable[[bytes, int], bytes]
    missing_before: Callable[[bytes], int]
    key_of: Callable[[bytes, tuple[str, ...]], Hashable]


class Given(NamedTuple):
    """What was taken from a lane for a write.

    Args:
        data: framed.
        messages: how many publications it holds.
        at: since when the first of it has waited (seconds).
    """

    data: bytes
    messages: int
    at: float


class Lane(ABC):
    """One topic's.

    Args:
        name: the topic's.
        policy: the topic's.
    """

    __slots__ = ("lost", "messages", "name", "policy", "size_bytes")

    sheds = True
    """Whether it can give up some of what waits."""

    def __init__(self, name: str, policy: TopicPolicy) -> None:
        self.name = name
        self.policy = policy
        self.size_bytes = 0
        self.messages = 0
        """Publications that wait."""
        self.lost = 0
        """Publications given up since whoever counts them looked last."""

    @abstractmethod
    def push(self, batch: Batch, now: float) -> None:
        """Append what has come."""

    @abstractmethod
    def take(self, at_most_bytes: int) -> Given:
        """The oldest of it, at least one entry. There has to be one."""

    @abstractmethod
    def waits_since(self) -> float | None:
        """Since when the oldest has waited (seconds)."""

    def ages_since(self) -> float | None:
        """Since when the oldest has waited that may wait for some time only (seconds)."""
        return self.waits_since()

    @abstractmethod
    def expire(self, before: float) -> bool:
        """Give up what has waited since before a time (seconds); False where that ends the connection."""

    def shed(self, size_bytes: int, messages: int) -> None:
        """Give up as much, or all there is to give up."""
        raise NotImplementedError

    @property
    @abstractmethod
    def waiting(self) -> bool:
        """Whether there is anything to take."""

    @property
    def settled(self) -> bool:
        """Whether the next publication may go past it."""
        return not self.waiting
