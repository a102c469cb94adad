"""Subscribers that come back by themselves, recover, and write down everything for the accounting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from centrifuge import PublicationContext, SubscribedContext, SubscribingContext
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.harness.accounting import SubscriberLog
from tests.harness.client import WireClient, opened
from tests.harness.node import BrokerNode
from tests.harness.recorder import Recorder, sdk_client

PAUSE_SECONDS = (0.05, 0.3)
"""Before it comes back; each is random, for a node's clients all lose their connections at once."""
OPEN_SECONDS = 3.0
INSUFFICIENT_STATE = 2500
UNRECOVERABLE_POSITION = 112
DROPPED_TAG = "broker.dropped"


class Subscriber:
    """A client of one topic, on the wire. Use `subscriber`.

    When its connection ends it goes to the next node of its list; when its subscription ends with 2500 or later, or is
    refused for now, it subscribes again. It recovers from the last offset and epoch that it has seen.

    Args:
        log: where everything is written down.
        topic: to subscribe to.
        nodes: to connect to, the first one first.
        told_by_error: asks for error 112 instead of `recovered: false`.
    """

    def __init__(
        self, log: SubscriberLog, topic: str, nodes: Sequence[BrokerNode], *, told_by_error: bool = False
    ) -> None:
        self.log = log
        self.topic = topic
        self.nodes = list(nodes)
        self.attempts = 0
        """How often it has tried to connect."""
        self.ends: list[tuple[int, str]] = []
        """How its connections ended."""
        self._flag = 2 if told_by_error else 0
        self._recovers = False
        """What it has asked for at last."""
        self._forgotten = False
        """Error 112 has come: its position is worth nothing."""
        self._ident = 1

    async def run(self) -> None:
        """Be there, until cancelled.

        Raises:
            AssertionError: the node has said something it must not.
        """
        while True:
            node = self.nodes[self.attempts % len(self.nodes)]
            self.attempts += 1
            try:
                async with opened(node.websocket_url, max_queue=None, seconds=OPEN_SECONDS) as client:
                    await self._follow(client)
                    self.ends.append(await client.closed())
            except (OSError, TimeoutError, WebSocketException):
                pass
            await _pause()

    async def _follow(self, client: WireClient) -> None:
        await client.send({"id": 1, "connect": {}}, self._subscribe())
        async for line in client.following():
            if "push" in line:
                again = self._pushed(line["push"])
            elif "id" in line:
                again = self._replied(line)
            else:
                continue
            if again:
                await _pause()
                try:
                    await client.send(self._subscribe())
                except ConnectionClosed:
                    continue  # what came before is still to be written down

    def _subscribe(self) -> dict[str, Any]:
        self._ident += 1
        request: dict[str, Any] = {"channel": self.topic, "recoverable": True, "positioned": True}
        self._recovers = self.log.started and not self._forgotten
        if self._recovers:
            request |= {"recover": True, "offset": self.log.last, "epoch": self.log.epoch}
        if self._flag:
            request["flag"] = self._flag
        return {"id": self._ident, "subscribe": request}

    def _replied(self, line: dict[str, Any]) -> bool:
        """Whether to subscribe again."""
        if line["id"] == 1:
            assert "connect" in line, f"{self.log.name}: {line}"
            return False
        if "error" in line:
            error = line["error"]
            if error["code"] == UNRECOVERABLE_POSITION:
                self.log.told("error 112")
                self._forgotten = True
                return True
            assert error.get("temporary"), f"{self.log.name}: {line}"
            return True
        self._subscribed(line["subscribe"])
        return False

    def _subscribed(self, result: dict[str, Any]) -> None:
        assert result.get("recoverable"), f"{self.log.name}: {result}"
        assert result.get("positioned"), f"{self.log.name}: {result}"
        offset, epoch = result.get("offset", 0), result["epoch"]
        publications = result.get("publications") or []
        if not self._recovers:
            self.log.subscribed(offset, epoch)
        else:
            assert result.get("was_recovering"), f"{self.log.name}: {result}"
            if result.get("recovered"):
                self.log.recovered(epoch)
            else:
                assert not publications, f"{self.log.name}: {result}"
                self.log.not_recovered(offset, epoch)
        self._forgotten = False
        for publication in publications:
            self._got(publication, recovered=True)

    def _pushed(self, push: dict[str, Any]) -> bool:
        """Whether to subscribe again."""
        assert push["channel"] == self.topic, push
        if "pub" in push:
            self._got(push["pub"], recovered=False)
            return False
        code = push.get("unsubscribe", {}).get("code", 0)
        assert code >= INSUFFICIENT_STATE, f"{self.log.name}: {push}"
        if code == INSUFFICIENT_STATE:
            self.log.told("unsubscribed with 2500")
        return True

    def _got(self, publication: dict[str, Any], *, recovered: bool) -> None:
        dropped = DROPPED_TAG in (publication.get("tags") or {})
        self.log.got(publication["data"]["id"], publication.get("offset", 0), recovered=recovered, dropped=dropped)


async def _pause() -> None:
    await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - no secret


def subscriber(
    log: SubscriberLog, topic: str, nodes: Sequence[BrokerNode], *, told_by_error: bool = False
) -> AbstractAsyncContextManager[Subscriber]:
    """A subscriber that runs; its log says if it fails."""
    return _running(Subscriber(log, topic, nodes, told_by_error=told_by_error))


@asynccontextmanager
async def _running(one: Subscriber) -> AsyncIterator[Subscriber]:
    async def run() -> None:
        try:
            await one.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails with it
            one.log.failure = error

    task = asyncio.create_task(run())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class SdkLog(Recorder):
    """An event handler of the Python SDK that keeps a subscriber's log."""

    def __init__(self, log: SubscriberLog) -> None:
        super().__init__()
        self.log = log

    async def on_subscribing(self, context: SubscribingContext) -> None:
        self.events.append(("subscribing", context))
        if context.code == INSUFFICIENT_STATE:
            self.log.told("unsubscribed with 2500")

    async def on_subscribed(self, context: SubscribedContext) -> None:
        self.events.append(("subscribed", context))
        position = context.stream_position
        assert position is not None, "neither recoverable nor positioned"
        note_subscribed(
            self.log, position.offset, position.epoch, asked=context.was_recovering, recovered=context.recovered
        )

    async def on_publication(self, context: PublicationContext) -> None:
        self.events.append(("publication", context))
        tags = context.pub.tags or {}
        self.log.got(context.pub.data["id"], context.pub.offset, dropped=DROPPED_TAG in tags)


def note_subscribed(log: SubscriberLog, offset: int, epoch: str, *, asked: bool, recovered: bool) -> None:
    """What an SDK says of a subscription that it has made."""
    if not asked:
        log.subscribed(offset, epoch)
    elif recovered:
        log.recovered(epoch)
    else:
        log.not_recovered(offset, epoch)


@asynccontextmanager
async def sdk_subscriber(log: SubscriberLog, topic: str, url: str) -> AsyncIterator[SdkLog]:
    """A subscriber with the Python SDK, which recovers by itself."""
    events = SdkLog(log)
    async with sdk_client(url) as client:
        subscription = client.new_subscription(topic, events=events, recoverable=True)
        await subscription.subscribe()
        await events.first("subscribed")
        yield events
