"""The API methods that tell what is there: topics, their members, and nodes."""

from __future__ import annotations

import asyncio

import msgspec

from broker.api import requests
from broker.api.call import EMPTY, Call, Outcome, check_subscription, check_topic, encode, named, unreachable
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


async def history(call: Call, request: requests.History) -> Outcome:
    policy = check_subscription(call, request.channel) or call.backend.node.locate_subscription(request.channel)
    if isinstance(policy, CommandError):
        return policy
    since = None if request.since is None else (request.since.offset, request.since.epoch)
    outcome = await call.backend.node.durability.history(
        policy,
        request.channel,
        limit=request.limit or 0,
        since=since,
        reverse=request.reverse or False,
        field="history",
    )
    return outcome if isinstance(outcome, CommandError) else encode(outcome)


async def history_remove(call: Call, request: requests.HistoryRemove) -> Outcome:
    policy = check_topic(call, request.channel) or call.backend.node.locate(request.channel)
    if isinstance(policy, CommandError):
        return policy
    return await call.backend.node.durability.remove_history(policy, request.channel) or EMPTY


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
    streams = await call.backend.node.durability.describe()
    return encode({"nodes": nodes, **({"streams": streams} if streams else {}), **named(unanswered)})
