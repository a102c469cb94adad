"""Publications as subscribers get them, made of what NATS brings."""

from __future__ import annotations

from collections.abc import Mapping

from broker.core.policy import TopicPolicy
from broker.relay.headers import read_headers
from broker.wire.payload import is_json, one_line
from broker.wire.replies import publication_push


def publication_problem(policy: TopicPolicy, data: bytes) -> str | None:
    """Why a message is no publication, as the metrics name it; None when it is one.

    Back ends publish to NATS, too, past our API, and one bad line would break every subscriber's connection.
    """
    if len(data) > policy.message_bytes:
        return "too_large"
    return None if is_json(data) else "not_json"


def make_push(
    head: bytes, data: bytes, headers: Mapping[str, str] | None, *, offset: int = 0, topic: str | None = None
) -> bytes:
    """A publication's push; see `publication_push`.

    Args:
        head: of what it goes to.
        data: JSON.
        headers: it came with.
        offset: its place in the history; 0 without one.
        topic: it was published to, where it goes to a wildcard subscription.
    """
    info, tags = read_headers(headers) if headers else (None, None)
    return publication_push(head, one_line(data), info, tags, offset=offset, topic=topic)
