"""The connection to NATS: one life after another, each by a nats-py client of its own.

nats-py's own reconnect is off. A lost connection, a client that closed itself for good after an -ERR, a read loop that
died unseen and a server that went silent all end the same way here: this life ends, and the next one begins with all
subscriptions made again. That is the only path back, so it is the one that is tested.

What is handed to NATS counts as accepted when a PONG comes back for a PING sent after it. Publishes share PINGs: while
one is on its way, all that comes in meanwhile waits for the next.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

logger = logging.getLogger(__name__)

Sink = Callable[[Msg], None]
"""Takes a message, at once and without waiting. It is called from the client's read loop."""

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
"""A server that lets a PING wait longer is given up."""
WATCHDOG_SECONDS = 2.0
CLOSE_SECONDS = 1.0
BACKOFF_SECONDS = (0.1, 5.0)
"""The first and the longest wait before another attempt; each is a random part of its bound ("full jitter")."""
HEADER_OVERHEAD_BYTES = 16
OUTBOX_MESSAGES = 65_536
OUTBOX_BYTES = 64 * 1024 * 1024


class RelayError(Exception):
    """NATS cannot do it now."""


class RelayUnavailableError(RelayError):
    """There is no connection to NATS, or too much waits for it: nothing was sent."""


class RelayTooLargeError(RelayError):
    """More than the NATS server takes in one message: nothing was sent."""


class RelayLostError(RelayError):
    """The connection ended before NATS confirmed: it may have happened or not."""


@dataclass(frozen=True, slots=True)
class NatsOptions:
    """Where NATS is and how to sign in. Paths are of files, read at each connect."""

    servers: Sequence[str]
    name: str
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials_file: str | None = None
    nkey_file: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None


class _Dispatch:
    """A sink in the shape of the future that `Client.subscribe` takes.

    nats-py hands a message to a subscription's future from its read loop, without the queue and the task that each
    callback subscription has: 5 KB and two loop turns less, no pending limit at which messages are dropped. What the
    node cannot take in time stays in the socket, and NATS sees it.
    """

    __slots__ = ("_sink",)

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        try:
            self._sink(message)
        except Exception:
            # let through, it would end nats-py's read loop in silence
            logger.exception("a message from NATS could not be handled")


_Operation = tuple[str, bytes | None, Mapping[str, str] | None]
"""Subject, payload (None: subscribe to the subject, or unsubscribe when nobody wants it any more), headers."""


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
        self._sinks: dict[str, Sink] = {}
        self._outbox: list[_Operation] = []
        self._outbox_bytes = 0
        self._unsent: list[asyncio.Future[None]] = []
        self._unconfirmed: list[asyncio.Future[None]] = []
        self._something_to_send = asyncio.Event()
        self._something_to_confirm = asyncio.Event()
        self._ended = asyncio.Event()
        self.connected = False
        self.max_payload = 1024 * 1024

    def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> asyncio.Future[None]:
        """Send a message; in order with all that is published and subscribed here.

        Returns:
            Done when NATS has it. Fails with RelayLostError when the connection ends before.

        Raises:
            RelayUnavailableError: not connected, or too much waits already. Nothing was sent.
            RelayTooLargeError: beyond the server's `max_payload`. Nothing was sent.
        """
        if not self.connected:
            raise RelayUnavailableError("not connected to NATS")
        size = len(payload)
        if headers is not None:
            # a message beyond the limit would make the server end the connection, for all of this node's clients
            size += HEADER_OVERHEAD_BYTES + sum(len(k) + 4 * len(v) + 4 for k, v in headers.items())
        if size > self.max_payload:
            raise RelayTooLargeError(f"{size} bytes with headers, the NATS server takes {self.max_payload}")
        waiting = len(self._unsent) + len(self._unconfirmed)
        if waiting >= OUTBOX_MESSAGES or self._outbox_bytes + len(payload) > OUTBOX_BYTES:
            raise RelayUnavailableError("NATS does not keep up")
        self._outbox_bytes += len(payload)
        return self._enqueue((subject, payload, headers))

    def send(self, subject: str, payload: bytes) -> None:
        """Send a message nobody waits for. Without a connection it is not sent."""
        with suppress(RelayUnavailableError):
            self.publish(subject, payload).add_done_callback(_retrieve)

    def subscribe(self, subject: str, sink: Sink) -> asyncio.Future[None]:
        """Take a subject's messages, over reconnects too, until `unsubscribe`.

        Returns:
            Done when NATS has the interest. Without a connection it fails with RelayLostError at once; the interest
            is kept all the same and made with the next connection.
        """
        self._sinks[subject] = sink
        if not self.connected:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(RelayLostError("not connected to NATS"))
            return future
        return self._enqueue((subject, None, None))

    def unsubscribe(self, subject: str) -> None:
        if self._sinks.pop(subject, None) is not None and self.connected:
            self._enqueue((subject, None, None)).add_done_callback(_retrieve)

    async def settle(self) -> None:
        """Wait until NATS has all that was sent, as far as there is a connection."""
        waiting = [*self._unsent, *self._unconfirmed]
        if waiting:
            await asyncio.wait(waiting, timeout=CLOSE_SECONDS)

    def _enqueue(self, operation: _Operation) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outbox.append(operation)
        self._unsent.append(future)
        self._something_to_send.set()
        return future

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
                text = f"cannot connect to NATS at {_public(server)}: {describe(error)}"
                if text != said:  # not a line for each attempt of a long outage
                    logger.warning("%s; trying again", text)
                    said = text
                first, longest = BACKOFF_SECONDS
                await asyncio.sleep(random.uniform(0, min(longest, first * 2 ** min(attempt, 10))))  # noqa: S311 - jitter
                continue
            attempt, said = 0, ""
            logger.info("connected to NATS at %s", _public(server))
            try:
                await self._live(client)
            finally:
                self._end_life()
                await _close(client)
            logger.warning("lost the connection to NATS")
            random.shuffle(self._known)

    async def _connect(self, server: str) -> Client:
        self._ended.clear()
        client = Client()
        options = self._options
        arguments: dict[str, Any] = {
            "servers": [server],
            "name": options.name,
            "allow_reconnect": False,
            "connect_timeout": CONNECT_SECONDS,
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "error_cb": _log_error,
            "closed_cb": self._closed,
            "lame_duck_mode_cb": self._lame_duck,
            "user": options.user,
            "password": options.password,
            "token": options.token,
            "user_credentials": options.credentials_file,
            "nkeys_seed": options.nkey_file,
            "skip_subject_validation": True,  # topics and prefixes were checked before they came here
        }
        if options.tls_ca or options.tls_cert or server.startswith(("tls:", "wss:")):
            context = ssl.create_default_context(cafile=options.tls_ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if options.tls_cert:
                context.load_cert_chain(options.tls_cert, options.tls_key)
            arguments["tls"] = context
        try:
            await asyncio.wait_for(client.connect(**arguments), 2 * CONNECT_SECONDS)
        except BaseException:
            await _close(client)
            raise
        return client

    async def _live(self, client: Client) -> None:
        """One life: from the subscriptions made again to the connection's end."""
        subscriptions: dict[str, Subscription] = {}
        for subject in tuple(self._sinks):
            await self._settle(client, subscriptions, subject)
        try:
            await client.rtt(ANSWER_SECONDS)  # type: ignore[arg-type]
        except (nats.errors.Error, OSError):
            return
        if client.is_closed:
            return
        self.max_payload = client.max_payload
        self._known = list(dict.fromkeys([*self._options.servers, *_discovered(client, self._options.servers)]))
        self.connected = True
        for subject in self._sinks.keys() ^ subscriptions.keys():  # wanted or dropped while the first were made
            self._enqueue((subject, None, None)).add_done_callback(_retrieve)
        self._on_change(True)
        duties = [
            asyncio.create_task(self._ended.wait()),
            asyncio.create_task(self._send_all(client, subscriptions)),
            asyncio.create_task(self._confirm_all(client)),
            asyncio.create_task(self._watch(client)),
        ]
        try:
            # whichever ends first, by whatever, is the end of this life
            await asyncio.wait(duties, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for duty in duties:
                duty.cancel()
            for outcome in await asyncio.gather(*duties, return_exceptions=True):
                if isinstance(outcome, Exception):
                    logger.warning("NATS: %s", describe(outcome))

    def _end_life(self) -> None:
        was_connected, self.connected = self.connected, False
        lost = self._unsent + self._unconfirmed
        self._outbox, self._unsent, self._unconfirmed = [], [], []
        self._outbox_bytes = 0
        self._something_to_send.clear()
        self._something_to_confirm.clear()
        for future in lost:
            if not future.done():
                future.set_exception(RelayLostError("the connection to NATS was lost before it confirmed"))
        if was_connected:
            self._on_change(False)

    async def _settle(self, client: Client, subscriptions: dict[str, Subscription], subject: str) -> None:
        """Bring the client's interest in a subject to what is wanted now."""
        sink = self._sinks.get(subject)
        if sink is not None and subject not in subscriptions:
            dispatch = cast("asyncio.Future[Msg]", _Dispatch(sink))
            subscriptions[subject] = await client.subscribe(subject, future=dispatch)
        elif sink is None and subject in subscriptions:
            await subscriptions.pop(subject).unsubscribe()

    async def _send_all(self, client: Client, subscriptions: dict[str, Subscription]) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            outbox, self._outbox = self._outbox, []
            self._unconfirmed += self._unsent
            self._unsent = []
            self._outbox_bytes = 0
            for subject, payload, headers in outbox:
                if payload is None:
                    await self._settle(client, subscriptions, subject)
                else:
                    await client.publish(subject, payload, headers=dict(headers) if headers else None)
            self._something_to_confirm.set()

    async def _confirm_all(self, client: Client) -> None:
        while True:
            await self._something_to_confirm.wait()
            self._something_to_confirm.clear()
            waiting, self._unconfirmed = self._unconfirmed, []
            try:
                # rtt, not flush: flush returns without a PONG when nats-py's own tasks have died
                await client.rtt(ANSWER_SECONDS)  # type: ignore[arg-type]
            except BaseException:
                self._unconfirmed = waiting + self._unconfirmed
                raise
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def _watch(self, client: Client) -> None:
        """Find out that the connection is dead although nobody sends anything."""
        while True:
            await asyncio.sleep(WATCHDOG_SECONDS)
            await client.rtt(ANSWER_SECONDS)  # type: ignore[arg-type]

    async def _closed(self) -> None:
        self._ended.set()

    async def _lame_duck(self) -> None:
        """The server will leave soon: go elsewhere, but not all nodes at once."""
        logger.info("the NATS server is about to leave; connecting elsewhere")
        asyncio.get_running_loop().call_later(random.uniform(0.1, 5), self._ended.set)  # noqa: S311 - jitter


async def _log_error(error: Exception) -> None:
    logger.warning("NATS: %s", describe(error))


async def _close(client: Client) -> None:
    """Close a client, also one whose server has stopped reading."""
    try:
        await asyncio.wait_for(client.close(), CLOSE_SECONDS)
    except Exception as error:  # noqa: BLE001 - it is given up in any case
        logger.debug("closing the NATS client: %s", describe(error))
        if client._transport is not None:  # noqa: SLF001 - close() hung before it came to that
            client._transport.close()  # type: ignore[no-untyped-call]  # noqa: SLF001


def _discovered(client: Client, configured: Sequence[str]) -> list[str]:
    """Servers that the cluster told of, in the form in which one is configured."""
    scheme = urlsplit(configured[0]).scheme or "nats"
    return [f"{scheme}://{url.netloc}" for url in client.discovered_servers]


def _public(server: str) -> str:
    """A server's URL without what may be a secret in it."""
    url = urlsplit(server)
    return f"{url.scheme}://{url.hostname}:{url.port or 4222}"


def describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody waits for this one: its outcome is seen by the connection's own watch."""
    if not future.cancelled():
        future.exception()
