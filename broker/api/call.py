"""What API methods have in common: who calls, what comes out, and what is checked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker.auth.api_keys import ApiKey
from broker.core.bucket import TokenBucket
from broker.core.policy import TopicPolicy
from broker.node import Node
from broker.operations import Operation, Operations
from broker.relay.control import Peer
from broker.relay.errors import RelayError
from broker.wire.codes import CommandError, ErrorCode

EMPTY = b"{}"
Outcome = bytes | CommandError
"""A result's JSON, or an error."""

_TOO_MANY = ErrorCode.TOO_MANY_REQUESTS

encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Backend:
    """What API methods work with."""

    node: Node
    operations: Operations
    publish_limits: Mapping[str, TokenBucket] = field(default_factory=dict)
    """Of the keys that have one, by their names."""


@dataclass(slots=True)
class Call:
    """Who calls."""

    backend: Backend
    key: ApiKey
    idempotency_key: str = ""
    """From the request's header of that name."""

    @property
    def publish_limit(self) -> TokenBucket | None:
        return None if self.key.publish_rate is None else self.backend.publish_limits[self.key.name]


def bad(detail: str) -> CommandError:
    return CommandError(ErrorCode.BAD_REQUEST, detail)


def check_topic(call: Call, topic: str) -> CommandError | None:
    return _check(call, topic, call.backend.node.locate(topic))


def check_subscription(call: Call, name: str) -> CommandError | None:
    """What is wrong with a topic or a wildcard to be subscribed to, or left."""
    return _check(call, name, call.backend.node.locate_subscription(name))


def _check(call: Call, name: str, policy: TopicPolicy | CommandError) -> CommandError | None:
    if isinstance(policy, CommandError):
        return policy
    if not call.key.may_touch(name):
        return CommandError(ErrorCode.PERMISSION_DENIED, "channel: not among the topics of this API key")
    return None


async def everywhere(call: Call, operation: Operation) -> Outcome:
    try:
        _, unanswered = await call.backend.operations.everywhere(operation)
    except RelayError as error:
        return unreachable(error)
    return encode(named(unanswered)) if unanswered else EMPTY


def unreachable(error: RelayError) -> CommandError:
    return CommandError(ErrorCode.INTERNAL, f"the other nodes can't be asked: {error}")


def named(peers: Sequence[Peer]) -> dict[str, Any]:
    """Who has not answered, where that is somebody: the result is true for all nodes but these."""
    return {"unanswered": [{"uid": peer.uid, "name": peer.name} for peer in peers]} if peers else {}


def all_too_many(outcomes: Sequence[Outcome]) -> CommandError | None:
    """What to answer all of several publications with when each of them was refused by a rate; else None."""
    waits = [one.retry_after for one in outcomes if isinstance(one, CommandError) and one.code is _TOO_MANY]
    if not waits or len(waits) < len(outcomes):
        return None
    last = outcomes[-1]
    assert isinstance(last, CommandError)  # noqa: S101 - all of them are
    return CommandError(_TOO_MANY, f"all {len(waits)} are refused; {last.detail}", max(waits))


def error_body(error: CommandError) -> bytes:
    return encode({"code": int(error.code), "message": error.message})


def error_json(error: CommandError) -> bytes:
    return b'{"error":%b}' % error_body(error)
