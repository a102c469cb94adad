"""What a client's conversation needs of the transport that carries it."""

from __future__ import annotations

from typing import Protocol

from broker.core.hub import Subscriber
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

    def send_publications(self, frame: bytes, policy: str, messages: int) -> None:
        """Send what is framed already, and holds so many publications of a policy."""

    def close(self, close: Close) -> None:
        """End the connection with a code and a reason."""

    def wake_by(self, when: float) -> None:
        """See to it that the client is woken at `when` or earlier (seconds on the node's clock)."""

    def pause_reading(self) -> None:
        """Take no more from the client for now."""

    def resume_reading(self) -> None: ...
