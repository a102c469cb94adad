"""Messages of a stream as they come: live, by its republishing, or read from it. And the mark of a removal."""

from __future__ import annotations

from collections.abc import Mapping

from broker.core.continuity import Trace
from broker.relay.jetstream import Stored

REMOVED = "Broker-Removed"
"""On a message that is no publication: its topic's messages up to this offset were removed."""
MAX_DIGITS = 20
"""Of an offset, which has 64 bits."""


UNKEPT = "Broker-Unkept"
"""On a publication to a durable topic's live subject that is for those who are there, and is not stored."""


def read_live(stream: str, payload: bytes, headers: Mapping[str, str]) -> tuple[Stored, int] | None:
    """A message that a stream has republished, and the offset of the one before it in its topic; None for what has
    come to the live subject in another way.
    """
    if headers.get("Nats-Stream") != stream:
        return None
    try:
        offset, previous = int(headers["Nats-Sequence"]), int(headers["Nats-Last-Sequence"])
        return Stored(offset, headers["Nats-Subject"], payload, headers), previous
    except (KeyError, ValueError):
        return None


def removed_up_to(message: Stored) -> int:
    """What the mark of a removal says; 0 for a publication, and for what can't be such a mark."""
    text = message.headers.get(REMOVED, "")
    if not text.isdigit() or not text.isascii() or len(text) > MAX_DIGITS:
        return 0
    offset = int(text)
    return offset if offset < message.offset else 0


def trace(message: Stored) -> Trace:
    return Trace(message.offset, message.subject, removed_up_to(message))
