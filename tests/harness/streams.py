"""JetStream as its administrator sees it: what a test asks of streams, or does to them, behind the broker's back.

Source: https://docs.nats.io/reference/reference-protocols/nats_api_reference
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import nats
from nats.aio.client import Client

from tests.harness.waiting import eventually

SECOND = 1_000_000_000
"""JetStream counts time in nanoseconds."""
SECONDS = 5.0
PLACEMENT_SECONDS = 40.0
NO_PEERS = "no suitable peers"


def stream_name(prefix: str, policy: str) -> str:
    """What the broker calls a durable policy's stream."""
    return f"{prefix}_{policy}".upper()


def stream_config(prefix: str, policy: str, *, replicas: int = 1, **changes: Any) -> dict[str, Any]:
    """A stream like the one that the broker makes for a durable policy.

    Args:
        prefix: of the subjects.
        policy: the policy's name.
        replicas: how many servers keep it.
        changes: members of the configuration to add or replace.
    """
    return {
        "name": stream_name(prefix, policy),
        "subjects": [f"{prefix}.{policy}.in.>"],
        "republish": {"src": f"{prefix}.{policy}.in.>", "dest": f"{prefix}.{policy}.live.>"},
        "allow_direct": True,
        "num_replicas": replicas,
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_age": 3600 * SECOND,
        "max_msgs_per_subject": 1001,
        "duplicate_window": 120 * SECOND,
        "deny_delete": True,
        **changes,
    }


@dataclass(frozen=True)
class Stored:
    """JetStream's receipt."""

    sequence: int
    duplicate: bool


class StreamError(AssertionError):
    """JetStream refused; an assertion, so that what is waited for may come later."""


class Streams:
    """A connection to NATS for the administration of streams. Use `streams_at`.

    Args:
        urls: of servers; the first that answers is used, and when it is lost, the next call finds another.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._client: Client | None = None

    async def client(self) -> Client:
        """A client that is connected.

        Raises:
            StreamError: no server answers.
        """
        if self._client is not None and self._client.is_connected:
            return self._client
        await self.close()
        problem: Exception | None = None
        for url in self._urls:
            # not nats-py's own reconnect, which forgets to close the connection that was lost
            client = self._client = Client()
            try:
                await client.connect(
                    [url],
                    error_cb=_told,
                    allow_reconnect=False,
                    # of the first connection, too: by default it tries one that refuses for two minutes
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=2,
                    ping_interval=1,
                    max_outstanding_pings=2,
                )
            except (OSError, TimeoutError, nats.errors.Error) as error:
                problem = error
                await self.close()
            else:
                return client
        raise StreamError(f"no server answers: {problem!r}") from problem

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def call(self, operation: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call `$JS.API.<operation>`, which must succeed.

        Raises:
            StreamError: it did not, or nobody answered.
        """
        try:
            client = await self.client()
            message = await client.request(f"$JS.API.{operation}", json.dumps(request or {}).encode(), SECONDS)
        except nats.errors.Error as error:
            raise StreamError(f"{operation}: {error!r}") from error
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            raise StreamError(f"{operation}: {answer['error']}")
        return answer

    async def create(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Make a stream. A leader has peers to place it on only when it has heard from them, which comes a moment
        after its election; and there may be an election at any time on a busy machine.
        """

        async def created() -> dict[str, Any] | None:
            try:
                return await self.call(f"STREAM.CREATE.{config['name']}", config)
            except StreamError as error:
                if NO_PEERS in str(error):
                    raise AssertionError(str(error)) from error
                raise

        made: dict[str, Any] = await eventually(created, PLACEMENT_SECONDS)
        return made

    async def update(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return await self.call(f"STREAM.UPDATE.{config['name']}", config)

    async def info(self, name: str) -> dict[str, Any]:
        return await self.call(f"STREAM.INFO.{name}")

    async def names(self, subject: str) -> list[str]:
        """The streams that take what is published to a subject."""
        found: list[str] = (await self.call("STREAM.NAMES", {"subject": subject})).get("streams") or []
        return found

    async def delete(self, name: str) -> None:
        await self.call(f"STREAM.DELETE.{name}")

    async def store(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> Stored:
        """Publish to a stream, as a back end with a NATS connection does; it must be stored."""
        try:
            client = await self.client()
            message = await client.request(subject, payload, SECONDS, headers=dict(headers or {}))
        except nats.errors.Error as error:
            raise StreamError(f"{subject}: {error!r}") from error
        receipt = json.loads(message.data)
        if "error" in receipt:
            raise StreamError(f"{subject}: {receipt['error']}")
        return Stored(receipt["seq"], receipt.get("duplicate", False))

    async def send(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Publish to core NATS, and wait until the server has it."""
        client = await self.client()
        await client.publish(subject, payload, headers=dict(headers or {}))
        await client.flush()

    async def store_unseen(self, name: str, subject: str, payload: bytes) -> Stored:
        """Store a message that never comes by the live subject, as if it had been lost there.

        The stream's republishing is off for the moment in which the message is stored.
        """
        config = (await self.info(name))["config"]
        await self.update({key: value for key, value in config.items() if key != "republish"})
        try:
            return await self.store(subject, payload)
        finally:
            await self.update(config)


async def _told(error: Exception) -> None:
    """The outcome of each call says enough."""


@asynccontextmanager
async def streams_at(url: str) -> AsyncIterator[Streams]:
    """A connection of the test's own to the servers with this URL (several with commas between them)."""
    streams = Streams(url.split(","))
    try:
        yield streams
    finally:
        await streams.close()
