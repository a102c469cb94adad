"""The connection to NATS: one life after another, each by a client of its own.

nats-py's own reconnect is off. A lost connection, a client that closed itself for good after an -ERR, a read loop that
died unseen and a server that went silent all end the same way here: this life ends, and the next one begins with all
subscriptions made again. That is the only path back, so it is the one that is tested.

What is handed to NATS counts as accepted when a PONG comes back for a PING sent after it. All that one turn of the
event loop sends shares a PING.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from broker.relay.client import RelayClient
from broker.relay.errors import (
    RelayLostError,
    RelayRefusedError,
    RelayTooLargeError,
    RelayUnavailableError,
    describe,
)
from broker.relay.options import CONNECT_SECONDS, NatsOptions, without_secrets
from broker.relay.parser import Sink

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""A server that lets a PING wait longer is given up."""
WATCHDOG_SECONDS = 2.0
CLOSE_SECONDS = 1.0
LAME_DUCK_SECONDS = (0.1, 5.0)
BACKOFF_SECONDS = (0.1, 5.0)
"""The first and the longest wait before another attempt; each is a random part of its bound ("full jitter")."""
HEADER_OVERHEAD_BYTES = 16
UNCONFIRMED_BYTES = 64 * 1024 * 1024
"""What may be on its way to NATS; beyond that it does not keep up."""


Confirmation = asyncio.Future[bool]
"""Done when NATS has what was sent."""


class NatsConnection:
    """Keeps a connection to NATS, for as long as `run` runs.

    Args:
        options: servers and credentials.
        on_change: told when the connection is there (True) and when it is gone (False).
    """

    def __init__(self, options: NatsOptions, on_change: Callable[[bool], None]) -> None:
        self._options = options
        self._on_change = on_change
        self._known = list(options.servers)
        self._loop = asyncio.get_running_loop()  # kept: asking for it costs a system call each time
        self._sinks: dict[str, Sink] = {}
        self._numbers: dict[str, int] = {}
        """The subscriptions of this life, by subject."""
        self._client: RelayClient | None = None
        """Set while connected."""
        self._round: asyncio.Future[bool] | None = None
        """Shared by all that is sent in this turn of the loop."""
        self._round_bytes = 0
        self._unconfirmed: dict[asyncio.Future[bool], int] = {}
        self._unconfirmed_bytes = 0
        self._ended = asyncio.Event()
        self._restored = self._no_connection()
        self.max_payload = 1024 * 1024

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def restored(self) -> Confirmation:
        """Done when this life's server has all subscriptions; failed while there is no connection."""
        return self._restored

    def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> Confirmation:
        """Send a message, with where to answer it; in order with all that is published and subscribed here.

        Returns:
            Done when NATS has it. Fails with RelayLostError when the connection ends before. Others wait for the same
            future, so it must not be cancelled; add a callback, or use `confirmed`.

        Raises:
            RelayUnavailableError: not connected, or too much waits already. Nothing was sent.
            RelayTooLargeError: beyond the server's `max_payload`. Nothing was sent.
        """
        client = self._client
        if client is None:
            raise RelayUnavailableError("not connected to NATS")
        size = len(payload)
        if headers is not None:
            # a message beyond the limit would make the server end the connection, for all of this node's clients
            size += HEADER_OVERHEAD_BYTES + sum(len(name) + 4 * len(value) + 4 for name, value in headers.items())
        if size > self.max_payload:
            raise RelayTooLargeError(f"{size} bytes with headers, the NATS server takes {self.max_payload}")
        if self._unconfirmed_bytes + self._round_bytes + size > UNCONFIRMED_BYTES:
            raise RelayUnavailableError("NATS does not keep up")
        client.post(subject, payload, headers, reply)
        self._round_bytes += size
        return self._this_round()

    def send(self, subject: str, payload: bytes) -> None:
        """Send a message nobody waits for. Without a connection it is not sent."""
        with suppress(RelayUnavailableError):
            self.publish(subject, payload)

    def subscribe(self, subject: str, sink: Sink) -> Confirmation:
        """Take a subject's messages, over reconnects too, until `unsubscribe`.

        Returns:
            Done when NATS has the interest. Without a connection it fails with RelayLostError at once; the interest
            is kept all the same and made with the next connection. As with `publish`, not to be cancelled.
        """
        self._sinks[subject] = sink
        client = self._client
        if client is None:
            return self._no_connection()
        self._numbers[subject] = client.post_subscription(subject, sink)
        return self._this_round()

    def unsubscribe(self, subject: str) -> None:
        self._sinks.pop(subject, None)
        number = self._numbers.pop(subject, None)
        if number is not None and self._client is not None:
            self._client.post_unsubscription(number)
            self._this_round()

    async def settle(self) -> None:
        """Wait until NATS has all that was sent, as far as there is a connection."""
        if self._client is not None:
            with suppress(RelayLostError, RelayRefusedError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await confirmed(self._this_round())

    def _no_connection(self) -> Confirmation:
        future: Confirmation = self._loop.create_future()
        _fail(future, "not connected to NATS")
        return future

    def _this_round(self) -> Confirmation:
        round_ = self._round
        if round_ is None:
            round_ = self._round = self._loop.create_future()
            round_.add_done_callback(self._round_done)
            self._loop.call_soon(self._end_round, round_)
        return round_

    def _end_round(self, round_: Confirmation) -> None:
        if self._round is not round_ or self._client is None:
            return  # that life has ended
        self._unconfirmed[round_] = self._round_bytes
        self._unconfirmed_bytes += self._round_bytes
        self._round, self._round_bytes = None, 0
        try:
            self._client.confirm(round_)
        except (OSError, RuntimeError) as error:
            logger.warning("cannot send to NATS: %s", describe(error))
            self._ended.set()

    def _round_done(self, round_: Confirmation) -> None:
        self._unconfirmed_bytes -= self._unconfirmed.pop(round_, 0)
        if not round_.cancelled():
            round_.exception()  # whoever waits for it looks, too; but perhaps nobody does

    async def run(self) -> None:
        """Connect, serve, and begin again when it ends; until cancelled."""
        attempt = 0
        said = ""
        while True:
            server = self._known[attempt % len(self._known)]
            try:
                client = await self._connect(server)
            except Exception as error:  # noqa: BLE001 - whatever a server makes nats-py raise, the next attempt is the answer
                attempt += 1
                text = f"cannot connect to NATS at {without_secrets(server)}: {describe(error)}"
                if text != said:  # not a line for each attempt of a long outage
                    logger.warning("%s; trying again", text)
                    said = text
                first, longest = BACKOFF_SECONDS
                await asyncio.sleep(random.uniform(0, min(longest, first * 2 ** min(attempt, 10))))  # noqa: S311 - jitter
                continue
            attempt, said = 0, ""
            logger.info("connected to NATS at %s", without_secrets(server))
            try:
                await self._live(client)
            finally:
                self._end_life()
                await _close(client)
            logger.warning("lost the connection to NATS")
            random.shuffle(self._known)

    async def _connect(self, server: str) -> RelayClient:
        # each life has an event of its own, so that what the last one still has to say can't end the next
        ended = self._ended = asyncio.Event()

        async def closed() -> None:
            ended.set()

        async def lame_duck() -> None:
            logger.info("the NATS server is about to leave; connecting elsewhere")
            # not all nodes at once
            self._loop.call_later(random.uniform(*LAME_DUCK_SECONDS), ended.set)  # noqa: S311 - jitter

        client = RelayClient()
        try:
            arguments = {
                **self._options.arguments(server),
                "error_cb": _log_error,
                "closed_cb": closed,
                "lame_duck_mode_cb": lame_duck,
            }
            await _within(2 * CONNECT_SECONDS, client.connect(**arguments))
        except BaseException:
            await _close(client)
            raise
        return client

    async def _live(self, client: RelayClient) -> None:
        """One life: from the subscriptions made again to the connection's end."""
        self._numbers = {subject: client.post_subscription(subject, sink) for subject, sink in self._sinks.items()}
        self._client = client
        self.max_payload = client.max_payload
        self._known = self._options.with_discovered(client.discovered_servers)
        watching = asyncio.create_task(self._watch())

        def answered(restored: Confirmation) -> None:
            if self._client is client and not isinstance(restored.exception(), RelayLostError):
                self._on_change(True)

        try:
            # not awaited: what ends this life may come before it is confirmed
            self._restored = self._this_round()
            self._restored.add_done_callback(answered)
            await self._ended.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _end_life(self) -> None:
        self._client = None
        self._numbers = {}
        self._restored = self._no_connection()
        lost = list(self._unconfirmed)
        if self._round is not None:
            lost.append(self._round)
            self._round, self._round_bytes = None, 0
        for future in lost:
            if not future.done():
                _fail(future, "the connection to NATS was lost before it confirmed")
        self._on_change(False)

    async def _watch(self) -> None:
        """Find out that the connection is dead, although nobody is told."""
        while True:
            try:
                # not wait_for: it can swallow a cancellation (python/cpython#86296), and this would never end
                async with asyncio.timeout(ANSWER_SECONDS):
                    await confirmed(self._this_round())
            except TimeoutError:
                logger.warning("NATS has not answered for %g seconds", ANSWER_SECONDS)
                self._ended.set()
            except RelayLostError:
                self._ended.set()
            except RelayRefusedError:
                pass  # it has answered
            await asyncio.sleep(WATCHDOG_SECONDS)


async def _log_error(error: Exception) -> None:
    # what ends a connection is told where it is made again; what the server doesn't permit is told nowhere else
    level = logging.WARNING if "permissions violation" in str(error) else logging.DEBUG
    logger.log(level, "NATS: %s", describe(error))


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Let nats-py work, but not for longer. It has a task of its own, as nats-py swallows cancellations while it
    flushes: ours would be lost, and this connection never end.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(_look_at)
    try:
        done, _ = await asyncio.wait((task,), timeout=seconds)
        if not done:
            raise TimeoutError
        task.result()
    finally:
        task.cancel()


def _look_at(task: asyncio.Task[None]) -> None:
    """What a task that was given up still raises is no news."""
    if not task.cancelled():
        task.exception()


async def _close(client: RelayClient) -> None:
    """Close a client, also one whose server has stopped reading."""
    try:
        await _within(CLOSE_SECONDS, client.close())
    except Exception as error:  # noqa: BLE001 - it is given up in any case
        logger.debug("closing the NATS client: %s", describe(error))
        client.cut()


def _fail(future: Confirmation, text: str) -> None:
    future.set_exception(RelayLostError(text))
    future.exception()  # looked at: that nobody waits for it is no mistake


_T = TypeVar("_T")


async def confirmed(confirmation: asyncio.Future[_T]) -> _T:
    """Wait for a confirmation, without cancelling it for the others when this is cancelled.

    Raises:
        RelayError: it did not come.
    """
    if not confirmation.done():
        waiter = confirmation.get_loop().create_future()
        confirmation.add_done_callback(partial(_wake, waiter))
        await waiter
    return confirmation.result()


def _wake(waiter: asyncio.Future[None], _: object) -> None:
    if not waiter.done():
        waiter.set_result(None)
