"""The API methods that tell what is there: topics, their members, and nodes."""

from __future__ import annotations

import asyncio

import msgspec

from broker.api import requests
from broker.api.call import Call, Outcome, check_topic, encode, named, unreachable
from broker.operations import Channels, ChannelsAnswer, Info, NodeInfo
from broker.relay.errors import RelayError
from broker.wire.codes import CommandError, ErrorCode


async def presence(call: Call, request: requests.Presence) -> Outcome:
    refused = _check_presence(call, request.channel)
    if refused is not None:
        return refused
    try:
        listed = await asyncio.shield(call.backend.node.presence.members(request.channel))
    except RelayError as error:
        return unreachable(error)
    if isinstance(listed, CommandError):
        return listed
    return encode({"presence": msgspec.Raw(listed.members), **named(listed.unanswered)})


async def presence_stats(call: Call, request: requests.PresenceStats) -> Outcome:
    refused = _check_presence(call, request.channel)
    if refused is not None:
        return refused
    try:
        counted = await asyncio.shield(call.backend.node.presence.numbers(request.channel))
    except RelayError as error:
        return unreachable(error)
    return encode({"num_clients": counted.clients, "num_users": counted.users, **named(counted.unanswered)})


def _check_presence(call: Call, topic: str) -> CommandError | None:
    refused = check_topic(call, topic)
    if refused is not None:
        return refused
    policy = call.backend.node.locate(topic)
    if isinstance(policy, CommandError) or policy.presence:
        return None
    return CommandError(ErrorCode.NOT_AVAILABLE, "channel: its policy has no presence")


async def history(call: Call, request: requests.History | requests.HistoryRemove) -> Outcome:
    """No policy has it yet."""
    return check_topic(call, request.channel) or CommandError(
        ErrorCode.NOT_AVAILABLE, "channel: its policy has no history"
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
