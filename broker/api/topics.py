"""The API methods that tell what is there: topics and nodes."""

from __future__ import annotations

import msgspec

from broker.api import requests
from broker.api.call import Call, Outcome, check_topic, encode, named, unreachable
from broker.operations import Channels, ChannelsAnswer, Info, NodeInfo
from broker.relay.errors import RelayError
from broker.wire.codes import CommandError, ErrorCode


async def presence_or_history(
    call: Call,
    request: requests.Presence | requests.PresenceStats | requests.History | requests.HistoryRemove,
) -> Outcome:
    """No policy has either yet."""
    return check_topic(call, request.channel) or CommandError(
        ErrorCode.NOT_AVAILABLE, "channel: its policy has neither presence nor history"
    )


async def channels(call: Call, request: requests.Channels) -> Outcome:
    try:
        answers, unanswered = await call.backend.operations.everywhere(Channels(request.pattern or ""))
    except RelayError as error:
        return unreachable(error)
    total: dict[str, int] = {}
    for answer in answers:
        for topic, count in msgspec.json.decode(answer, type=ChannelsAnswer).counts.items():
            if call.key.may_touch(topic):
                total[topic] = total.get(topic, 0) + count
    found = {topic: {"num_clients": count} for topic, count in total.items()}
    return encode({"channels": found, **named(unanswered)})


async def info(call: Call, request: requests.Info) -> Outcome:
    del request
    try:
        answers, unanswered = await call.backend.operations.everywhere(Info())
    except RelayError as error:
        return unreachable(error)
    nodes = [msgspec.json.decode(answer, type=NodeInfo) for answer in answers]
    return encode({"nodes": nodes, **named(unanswered)})
