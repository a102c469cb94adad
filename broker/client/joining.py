"""The first moments of a subscription: from the wish to the first publication."""

from __future__ import annotations

from collections.abc import Callable

from broker.core.batch import Batch
from broker.core.hub import Topic


class Joining:
    """Stands in for a client in the hub until its subscribe command is answered, and holds what comes meanwhile.

    It is never ready, so the hub hands it everything the slow way.
    """

    __slots__ = ("_limit_bytes", "_size_bytes", "held", "overflowed", "ready", "write")

    def __init__(self, limit_bytes: int) -> None:
        self.ready = False
        self.write: Callable[[bytes], object] = _never
        self.held: list[Batch] = []
        self.overflowed = False
        self._limit_bytes = limit_bytes
        self._size_bytes = 0

    def deliver(self, topic: Topic, batch: Batch) -> None:
        del topic
        self._size_bytes += len(batch.frame)
        if self._size_bytes > self._limit_bytes:
            self.overflowed = True
            self.held.clear()
        else:
            self.held.append(batch)


def _never(_: bytes) -> object:
    raise AssertionError("a joining subscriber is never ready")
