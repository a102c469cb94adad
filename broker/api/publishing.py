"""The API methods that publish."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from broker.api import requests
from broker.api.call import EMPTY, Call, Outcome, all_too_many, bad, error_json
from broker.core.message import OWN_TAGS
from broker.core.policy import TopicPolicy
from broker.publisher import Published, publish_error
from broker.relay.connection import confirmed
from broker.relay.errors import RelayError
from broker.relay.jetstream import Ack
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.payload import one_line

_AT_ONCE = 200
"""Topics of a broadcast that are published in one turn of the event loop."""
_WINDOW = 1000
"""The most topics of a broadcast that wait for NATS, or half of all publications that may, if that is less."""
KEY_CHARACTERS = 256
"""The most an idempotency key may have."""

_Started = tuple[TopicPolicy, Published, bool]
"""What was published where, and whether with an idempotency key."""


async def publish(call: Call, request: requests.Publish) -> Outcome:
    started = _publish(call, request.channel, request)
    if isinstance(started, CommandError):
        return started
    return await _settled(call, *started)


async def _outcome(call: Call, started: CommandError | _Started) -> Outcome:
    return started if isinstance(started, CommandError) else await _settled(call, *started)


async def _settled(call: Call, policy: TopicPolicy, published: Published, keyed: bool) -> Outcome:  # noqa: FBT001 - of a tuple
    """What became of a publication: where a durable one is stored, or what went wrong."""
    node = call.backend.node
    try:
        ack = await confirmed(published)
    except RelayError as error:
        return publish_error(policy, error, keyed=keyed)
    if not isinstance(ack, Ack):
        return EMPTY
    offset, epoch = await node.durability.receipt(policy, ack)
    return b'{"offset":%d,"epoch":"%b"}' % (offset, epoch.encode())


def _publish(call: Call, topic: str, request: requests.Publish | requests.Broadcast) -> CommandError | _Started:
    node = call.backend.node
    policy = node.locate(topic)
    if isinstance(policy, CommandError):
        return policy
    if not call.key.may_touch(topic):
        return CommandError(ErrorCode.PERMISSION_DENIED, "channel: not among the topics of this API key")
    if request.b64data is not None:
        return bad("b64data: is for bytes, which JSON clients can't be sent; use data")
    if request.data is msgspec.UNSET:
        return bad("data: missing")
    if request.tags and any(name.startswith(OWN_TAGS) for name in request.tags):
        return bad(f"tags: names that begin with {OWN_TAGS} are the broker's own")
    key = _idempotency_key(call, request)
    if isinstance(key, CommandError):
        return key
    data = one_line(bytes(request.data))
    keep = not request.skip_history
    published = node.publisher.publish(
        policy, topic, data, tags=request.tags, key=key, keep=keep, source="http", limit=call.publish_limit
    )
    return published if isinstance(published, CommandError) else (policy, published, bool(key))


def _idempotency_key(call: Call, request: requests.Publish | requests.Broadcast) -> str | CommandError:
    key = request.idempotency_key or ""
    if call.idempotency_key and key and key != call.idempotency_key:
        return bad("idempotency_key: is another one than the Idempotency-Key header's")
    key = key or call.idempotency_key
    if len(key) > KEY_CHARACTERS:
        return bad(f"idempotency_key: {len(key)} characters, at most {KEY_CHARACTERS} are allowed")
    return key


async def broadcast(call: Call, request: requests.Broadcast) -> Outcome:
    if not request.channels:
        return bad("channels: must name one topic at least")
    most = call.backend.node.publisher.most_in_flight
    at_once, window = min(_AT_ONCE, most), min(_WINDOW, max(1, most // 2))
    outcomes: list[Outcome] = []
    started: deque[CommandError | _Started] = deque()
    # many are handed over before the first is waited for, so that they share the way to NATS and back
    for number, topic in enumerate(request.channels, 1):
        started.append(_publish(call, topic, request))
        if number % at_once == 0:
            await asyncio.sleep(0)  # a list may name a hundred thousand; others have their turn, too
        while len(started) >= window:
            first = started.popleft()
            outcomes.append(await _outcome(call, first))
            if not isinstance(first, CommandError) and isinstance(outcomes[-1], CommandError):
                window = len(request.channels)  # NATS is in trouble: to wait for each in turn would take for ever
    outcomes += [await _outcome(call, one) for one in started]
    refused = all_too_many(outcomes)
    if refused is not None:
        return refused
    responses = (error_json(one) if isinstance(one, CommandError) else b'{"result":%b}' % one for one in outcomes)
    return b'{"responses":[%b]}' % b",".join(responses)
