"""What a client's conversation needs of the transport that carries it."""

from __future__ import annotations

from typing import Protocol

from broker.core.batch import Batch
from broker.core.hub import Subscriber, Topic
from broker.core.policy import TopicPolicy
from broker.wire.codes import Close


class Outlet(Subscriber, Protocol):
    """The way out to one client, over whatever transport."""

    @property
    def address(self) -> str:
        """The client's IP address, as far as it is known; empty if it isn't."""

    @property
    def queued_bytes(self) -> int:
        """What waits for it."""

    @property
    def dropped(self) -> int:
        """How many publications it was not sent, all told."""

    def send(self, payload: bytes) -> None:
        """Send JSON lines: written now, or queued behind what waits already. Never raises."""

    @property
    def blocked(self) -> bool:
        """Whether the client can't have got what was sent last, because the transport takes nothing."""

    def send_batch(self, topic: Topic, batch: Batch) -> None:
        """Send what came for a topic: as the hub does, for who has not been among its subscribers then."""

    def begin_behind(self, topic: str, policy: TopicPolicy, after: int, owed: int) -> None:
        """Begin a subscription to a durable topic with what comes behind a place in its history (so many publications,
        as far as is known), as fast as it can be sent, behind what is sent now.
        """

    def forget(self, topic: str) -> None:
        """Nothing of this topic is to be sent any more, of what waits neither."""

    def close(self, close: Close) -> None:
        """End the connection with a code and a reason."""

    def wake_by(self, when: float) -> None:
        """See to it that the client is woken at `when` or earlier (seconds on the node's clock)."""

    def pause_reading(self) -> None:
        """Take no more from the client for now."""

    def resume_reading(self) -> None: ...
