"""A hub that is run by hand, and subscribers that remember what they were given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.core.batch import Batch
from broker.core.hub import Hub, Topic
from broker.core.policy import TopicPolicy
from broker.core.topic import parse_pattern

POLICY = TopicPolicy("default", (parse_pattern(">"),))


class Reader:
    """A subscriber that keeps what it gets."""

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.write: Callable[[bytes], object] = self._keep
        self.written: list[bytes] = []
        self.delivered: list[tuple[str, bytes, int]] = []

    def _keep(self, frame: bytes) -> None:
        self.written.append(frame)

    def deliver(self, topic: Topic, batch: Batch) -> None:
        self.delivered.append((topic.name, batch.frame, batch.messages))


class Broken(Reader):
    """A subscriber whose socket is gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.write = self._fail

    def _fail(self, _: bytes) -> None:
        raise self.error


class Running:
    """A hub whose frames are its payloads in brackets, and what it told of finished fan-outs."""

    def __init__(self, slice_writes: int = 100) -> None:
        self.finished: list[tuple[str, int, list[float]]] = []
        self.framed = 0
        self.hub = Hub(str.encode, self._frame, slice_writes=slice_writes, on_delivered=self._finish)

    def _frame(self, payload: bytes) -> bytes:
        self.framed += 1
        return b"[" + payload + b"]"

    def _finish(self, topic: Topic, subscribers: int, arrivals: list[float]) -> None:
        self.finished.append((topic.name, subscribers, arrivals))

    def add(self, name: str, *readers: Reader) -> Topic:
        for reader in readers:
            topic = self.hub.add(name, POLICY, reader)
        return topic

    def push(self, topic: Topic, *messages: bytes) -> None:
        for message in messages:
            self.hub.push(topic, message, 0.0)

    def drain(self) -> int:
        """Run until nothing is left; how often that took."""
        runs = 1
        while self.hub.run():
            runs += 1
        return runs


def readers_of(count: int) -> list[Reader]:
    return [Reader() for _ in range(count)]


def writes(readers: Sequence[Reader]) -> int:
    return sum(len(reader.written) for reader in readers)
