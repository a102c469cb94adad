"""The API methods that publish."""

from __future__ import annotations

import asyncio

import msgspec

from broker.api import requests
from broker.api.call import EMPTY, Call, Outcome, bad, error_json
from broker.relay.connection import Confirmation, confirmed
from broker.relay.errors import RelayError
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.payload import one_line

_AT_ONCE = 200
"""Topics of a broadcast that are published in one turn of the event loop."""


async def publish(call: Call, request: requests.Publish) -> Outcome:
    accepted = _publish(call, request.channel, request)
    if isinstance(accepted, CommandError):
        return accepted
    return await _settled(call, accepted) or EMPTY


async def _settled(call: Call, accepted: Confirmation) -> CommandError | None:
    try:
        await confirmed(accepted)
    except RelayError:
        return call.backend.node.publish_error(accepted)
    return None


def _publish(call: Call, topic: str, request: requests.Publish | requests.Broadcast) -> CommandError | Confirmation:
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
    return node.publish(policy, topic, one_line(bytes(request.data)), tags=request.tags, source="http")


async def broadcast(call: Call, request: requests.Broadcast) -> Outcome:
    if not request.channels:
        return bad("channels: must name one topic at least")
    # all are handed over before the first is waited for, so that they share the way to NATS and back
    started = []
    for topic in request.channels:
        started.append(_publish(call, topic, request))
        if len(started) % _AT_ONCE == 0:
            await asyncio.sleep(0)  # a list may name a hundred thousand; others have their turn, too
    outcomes = [one if isinstance(one, CommandError) else await _settled(call, one) for one in started]
    responses = b",".join(b'{"result":{}}' if error is None else error_json(error) for error in outcomes)
    return b'{"responses":[%b]}' % responses
