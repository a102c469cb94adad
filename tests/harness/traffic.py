"""A topic in use while something goes wrong: a publisher, subscribers, and the books."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from tests.harness.accounting import Accounting
from tests.harness.node import BrokerNode
from tests.harness.publisher import Publisher
from tests.harness.subscriber import subscriber
from tests.harness.waiting import eventually

T = TypeVar("T")

TOPIC = "chat.room"
FAULT_SECONDS = 60.0
"""Enough for JetStream to elect leaders and for everybody to come back."""


def durable(**changes: Any) -> dict[str, Any]:
    """A policy `chat` for durable topics `chat.…`, of which nothing is lost for its age or number."""
    return {
        "name": "chat",
        "match": ["chat.>"],
        "durable": True,
        "history_messages": 20_000,
        "history_seconds": 3600,
        "subscribe": "anyone",
        "publish": "anyone",
        **changes,
    }


def durable_settings(*, replicas: int = 1, limits: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A node's settings, with one durable policy.

    Args:
        replicas: how many servers keep the stream.
        limits: of the section.
        changes: to the policy.
    """
    return {
        "nats": {"replicas": replicas},
        "topics": [durable(**changes)],
        "limits": {"history_messages": 20_000, **(limits or {})},
    }


class Traffic:
    """What runs while a test does its worst. Use `traffic`."""

    def __init__(self, accounting: Accounting, publisher: Publisher, stack: AsyncExitStack) -> None:
        self.accounting = accounting
        self.publisher = publisher
        self._stack = stack

    async def joined_by(self, another: AbstractAsyncContextManager[T]) -> T:
        """Enter a subscriber who stays until the books are checked."""
        return await self._stack.enter_async_context(another)

    async def goes_on(self, count: int = 30) -> None:
        """Wait until this many publications that were begun after this moment are acknowledged and have arrived."""
        published = self.accounting.published
        begin = len(published)

        def enough() -> bool:
            self.publisher.check()
            self.accounting.raise_failures()
            later = published[begin:]
            acked = [ident for ident in later if ident in self.accounting.receipts][:count]
            assert len(acked) == count, f"{len(acked)} of {len(later)} acknowledged"
            return self.accounting.delivered(acked)

        await eventually(enough, FAULT_SECONDS)


@asynccontextmanager
async def traffic(
    nodes: Sequence[BrokerNode],
    *,
    publish_to: Sequence[BrokerNode] | None = None,
    subscribers: int = 3,
    rate: float = 100,
    padding: int = 0,
    excuses: bool = False,
) -> AsyncIterator[Traffic]:
    """Traffic that flows before, during and after the block; then everything that was acknowledged must be everywhere.

    Args:
        nodes: with subscribers, who go to the next one when they lose theirs.
        publish_to: the nodes to publish to; without it, all.
        subscribers: on each node.
        rate: publications per second.
        padding: bytes of ballast in each publication.
        excuses: whether subscribers may be told that they miss something. Not told, they may miss nothing in any case.
    """
    accounting = Accounting(TOPIC)
    async with AsyncExitStack() as stack:
        for at, node in enumerate(nodes):
            for number in range(subscribers):
                log = accounting.log(f"subscriber {number + 1} of {node.port}")
                order = [*nodes[at:], *nodes[:at]]
                # some are told of what they miss by error 112, the others by `recovered: false`
                await stack.enter_async_context(subscriber(log, TOPIC, order, told_by_error=number % 2 == 1))

        def all_there() -> bool:
            accounting.raise_failures()
            return all(log.started for log in accounting.logs)

        await eventually(all_there)
        async with Publisher(accounting, publish_to or nodes, rate=rate, padding=padding) as publisher:
            running = Traffic(accounting, publisher, stack)
            await running.goes_on()
            yield running
            await running.goes_on()
        # the last one comes behind whatever is still under way
        await last_words(accounting, publish_to or nodes)
        await accounting.settled(FAULT_SECONDS)
        if not excuses:
            accounting.check_that_nothing_was_excused()
        assert not accounting.in_doubt, accounting.in_doubt


async def last_words(accounting: Accounting, nodes: Sequence[BrokerNode]) -> None:
    """Publish one message more through each node."""
    for node in nodes:
        ident = f"last of {node.port}"
        accounting.sends(ident)
        receipt = await eventually(partial(node.store, accounting.topic, {"id": ident}, idempotency_key=ident))
        accounting.acks(ident, receipt.offset, receipt.epoch)
