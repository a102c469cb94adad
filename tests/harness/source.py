"""A back end that numbers what it publishes, and the books of what its subscribers got of that."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tests.harness.node import BrokerNode
from tests.harness.reader import Arrival, Reader
from tests.harness.waiting import eventually

BATCH = 50
STALL_ROUNDS = 2000
"""More than any kernel's buffers take."""


class Source:
    """Publishes `{"t": topic, "n": number, "k": key, "p": padding}` over HTTP.

    Args:
        node: to publish to.
    """

    def __init__(self, node: BrokerNode) -> None:
        self.node = node
        self.published: defaultdict[str, list[str | None]] = defaultdict(list)
        """By topic: the keys of what was published, in order."""
        self.epoch = ""
        """Of the durable topics."""

    async def publish(self, topic: str, count: int = 1, *, padding: int = 0, keys: Sequence[str] | None = None) -> None:
        """Publish in order; all must succeed.

        Args:
            topic: to publish to.
            count: how many.
            padding: bytes of ballast in each.
            keys: of the publications, in turn; None for none.
        """
        done = self.published[topic]
        while count > 0:
            some = min(BATCH, count)
            commands = []
            for _ in range(some):
                key = keys[len(done) % len(keys)] if keys else None
                commands.append({"publish": {"channel": topic, "data": _data(topic, len(done), key, padding)}})
                done.append(key)
            answer = await self.node.api("batch", {"commands": commands})
            replies = answer.json()["replies"]
            assert len(replies) == some
            assert all("error" not in reply["publish"] and "error" not in reply for reply in replies), replies[0]
            self.epoch = replies[-1]["publish"].get("epoch", "")
            count -= some

    async def until_slow(
        self,
        topic: str,
        *,
        padding: int = 8000,
        keys: Sequence[str] | None = None,
        connections: int = 1,
        step: int = 10,
    ) -> None:
        """Publish until the node says that so many connections don't keep up, asking it after every `step`."""
        for _ in range(STALL_ROUNDS):
            await self.publish(topic, step, padding=padding, keys=keys)
            if await self.node.metric("broker_slow_connections") >= connections:
                return
        raise AssertionError("no connection ever got slow")


def _data(topic: str, number: int, key: str | None, padding: int) -> dict[str, Any]:
    data: dict[str, Any] = {"t": topic, "n": number}
    if key is not None:
        data["k"] = key
    if padding:
        data["p"] = "x" * padding
    return data


def check_all(arrivals: Sequence[Arrival], count: int, begin: int = 0) -> None:
    """All of them came, in order, none twice, and nothing was declared missing."""
    assert [one.number for one in arrivals] == list(range(begin, count)), _gaps(arrivals)
    assert not any(one.dropped for one in arrivals)


def check_declared(arrivals: Sequence[Arrival], count: int, begin: int = 0) -> int:
    """They came in order, and each said exactly how many were missing right before it.

    Returns:
        How many were missing.
    """
    due, missing = begin, 0
    for one in arrivals:
        assert one.number == due + one.dropped, f"{one} came when {due} was due"
        due = one.number + 1
        missing += one.dropped
    assert due == count, f"{count} were published, and {due} of them delivered or declared"
    return missing


def check_conflated(arrivals: Sequence[Arrival], keys: Sequence[str | None]) -> int:
    """What came and what was declared is what was published; of each key in order, and the newest of each.

    Args:
        arrivals: of one topic.
        keys: of what was published to it, in order.

    Returns:
        How many were missing.
    """
    missing = sum(one.dropped for one in arrivals)
    assert len(arrivals) + missing == len(keys), f"{len(arrivals)} and {missing} declared, of {len(keys)}"
    newest: dict[str | None, int] = {}
    for one in arrivals:
        assert keys[one.number] == one.key
        assert one.number > newest.get(one.key, -1), f"{one} came after {newest[one.key]}"
        newest[one.key] = one.number
    for key in set(keys) - {None}:
        last = max(number for number, one in enumerate(keys) if one == key)
        assert newest.get(key) == last, f"the newest of {key} is {last}, and {newest.get(key)} came"
    return missing


def _gaps(arrivals: Sequence[Arrival]) -> str:
    numbers = [one.number for one in arrivals]
    breaks = [(one, two) for one, two in itertools.pairwise(numbers) if two != one + 1]
    return f"{len(numbers)} came, from {numbers[:1]} to {numbers[-1:]}, with breaks {breaks[:5]}"


async def last_arrived(source: Source, topic: str, *readers: Reader, seconds: float = 30) -> None:
    """Wait until each reader has what was published last to a topic."""
    last = len(source.published[topic]) - 1

    def have() -> bool:
        for reader in readers:
            came = reader.of(topic)
            if not any(one.number == last for one in came):
                if reader.end is not None:
                    raise RuntimeError(f"{reader.end} after {_gaps(came)}; the last one is {last}")
                raise AssertionError(f"{_gaps(came)}; the last one is {last}")
        return True

    await eventually(have, seconds)
