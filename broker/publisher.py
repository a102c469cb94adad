"""What a node publishes: handed to NATS, and counted by how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from broker.core.bucket import TokenBucket
from broker.core.message import ClientInfo
from broker.core.policy import TopicPolicy
from broker.durability import Durability
from broker.metrics import Metrics
from broker.relay.connection import Confirmation
from broker.relay.errors import RelayError, RelayLostError, RelayRefusedError, RelayTooLargeError
from broker.relay.headers import publication_headers
from broker.relay.jetstream import Ack
from broker.relay.live import LiveRelay
from broker.relay.stored import UNKEPT
from broker.wire.codes import CommandError, ErrorCode, too_many

Published = asyncio.Future[Any]
"""A publication on its way: done when NATS has it. Of a durable topic's, the result is an `Ack`."""


class Publisher:
    """Hands publications of clients and back ends to NATS.

    Args:
        live: takes those of live topics.
        durability: takes those of durable ones.
        metrics: what is counted.
        policies: whose rates are held.
        most_in_flight: the most publications that may wait for NATS.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        live: LiveRelay,
        durability: Durability,
        metrics: Metrics,
        *,
        policies: Iterable[TopicPolicy],
        most_in_flight: int,
        clock: Callable[[], float],
    ) -> None:
        self._live = live
        self._durability = durability
        self._metrics = metrics
        self.clock = clock
        self.most_in_flight = most_in_flight
        self.in_flight = 0
        """Publications that wait for NATS."""
        self._limits = {
            policy.name: TokenBucket(policy.publish_rate, policy.publish_rate, clock())
            for policy in policies
            if policy.publish_rate is not None
        }
        self._counting: Confirmation | None = None
        self._counts: dict[tuple[str, str], int] = {}

    def publish(
        self,
        policy: TopicPolicy,
        topic: str,
        data: bytes,
        *,
        info: ClientInfo | None = None,
        tags: Mapping[str, str] | None = None,
        key: str = "",
        keep: bool = True,
        source: str,
        field: str = "data",
        limit: TokenBucket | None = None,
    ) -> CommandError | Published:
        """Hand a publication to NATS.

        Args:
            policy: the topic's.
            topic: a name that `locate` found sound.
            data: JSON on one line.
            info: the client that publishes.
            tags: for the subscribers.
            keep: False for a publication that has no place in a durable topic's history.
            key: makes a repeat with the same key the same publication, where the topic is durable.
            source: `http` or `websocket`, for the metrics.
            field: what the data is called in errors.
            limit: of who publishes. What is refused for another reason takes nothing from it.

        Returns:
            What is done when NATS has it, and for a durable topic when it is stored, with its place there;
            `publish_error` says what went wrong otherwise. Or why it was refused.
        """
        if len(data) > policy.message_bytes:
            self._metrics.published.labels(policy.name, source, "too_large").inc()
            detail = f"{field}: {len(data)} bytes, at most {policy.message_bytes} are allowed"
            return CommandError(ErrorCode.LIMIT_EXCEEDED, detail)
        if self.in_flight >= self.most_in_flight:
            self._metrics.count_published(policy.name, source, "busy", 1)
            waiting = f"{self.in_flight} publications wait for NATS, as many as limits.publishes_in_flight allows"
            return CommandError(ErrorCode.INTERNAL, f"{waiting}; nothing was published, try again")
        if limit is not None or policy.publish_rate is not None:
            refused = self._charge(policy, limit, source)
            if refused is not None:
                self._metrics.count_published(policy.name, source, "rate_limited", 1)
                return refused
        headers = publication_headers(info, tags) if info or tags else None
        try:
            if policy.durable and keep:
                acked = self._durability.publish(policy, topic, data, headers, key)
                self.in_flight += 1
                acked.add_done_callback(partial(self._count_stored, policy.name, source))
                return acked
            if policy.durable:
                headers = {**(headers or {}), UNKEPT: "1"}
            accepted = self._live.publish(policy.name, topic, data, headers)
        except RelayTooLargeError as error:
            self._give_back(policy, limit)
            self._metrics.published.labels(policy.name, source, "too_large").inc()
            return CommandError(ErrorCode.LIMIT_EXCEEDED, f"{field}: {error}")
        except RelayError as error:
            self._give_back(policy, limit)
            self._metrics.published.labels(policy.name, source, "unavailable").inc()
            return CommandError(ErrorCode.INTERNAL, f"{error}; nothing was published, try again")

        self._count_accepted(accepted, policy.name, source)
        return accepted

    def _charge(self, policy: TopicPolicy, limit: TokenBucket | None, source: str) -> CommandError | None:
        """Take a publication from the limits that hold for it, from all or from none; or which of them refuses it."""
        now = self.clock()
        if limit is not None and (wait := limit.take(now)):
            where = "with this API key" if source == "http" else "on this connection"
            return too_many("publications", limit.rate, where, wait)
        shared = self._limits.get(policy.name)
        if shared is not None and (wait := shared.take(now)):
            if limit is not None:
                limit.give_back()
            return too_many("publications", shared.rate, f"to topics of policy {policy.name}", wait)
        return None

    def _give_back(self, policy: TopicPolicy, limit: TokenBucket | None) -> None:
        if limit is not None:
            limit.give_back()
        if policy.publish_rate is not None:
            self._limits[policy.name].give_back()

    def _count_accepted(self, accepted: Confirmation, policy: str, source: str) -> None:
        """Count a publication when it is known how it ended. All of one confirmation are counted together."""
        if accepted is not self._counting:
            self._counting = accepted
            counts = self._counts = {}
            accepted.add_done_callback(partial(self._count_published, counts))
        self.in_flight += 1
        key = (policy, source)
        self._counts[key] = self._counts.get(key, 0) + 1

    def _count_published(self, counts: Mapping[tuple[str, str], int], outcome: Confirmation) -> None:
        problem = outcome.exception()
        result = "ok" if problem is None else "refused" if isinstance(problem, RelayRefusedError) else "unknown"
        for (policy, source), count in counts.items():
            self.in_flight -= count
            self._metrics.count_published(policy, source, result, count)

    def _count_stored(self, policy: str, source: str, outcome: asyncio.Future[Ack]) -> None:
        self.in_flight -= 1
        problem = outcome.exception()
        result = "ok" if problem is None else "unknown" if isinstance(problem, RelayLostError) else "refused"
        if problem is None and outcome.result().duplicate:
            result = "duplicate"
        self._metrics.count_published(policy, source, result, 1)


def publish_error(policy: TopicPolicy, problem: BaseException, *, keyed: bool = False) -> CommandError:
    """What to say of a finished publish that has failed, to somebody who has (or has not) given a key with it."""
    if not isinstance(problem, RelayLostError):
        return CommandError(ErrorCode.INTERNAL, f"{problem}; try again")
    if policy.durable:
        advice = (
            "to repeat it with the same idempotency_key is safe"
            if keyed
            else "to repeat it may store it twice; with an idempotency_key that would be safe"
        )
        text = f"{problem}: the outcome is unknown, the message may have been stored or not; {advice}"
        return CommandError(ErrorCode.INTERNAL, text)
    return CommandError(
        ErrorCode.INTERNAL,
        "the connection to NATS was lost before it confirmed; it may have been published or not",
    )
