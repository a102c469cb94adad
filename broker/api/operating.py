"""The API methods for operators, about all connections of all nodes: so they are for keys without bounds to topics."""

from __future__ import annotations

import heapq

import msgspec

from broker.api import requests
from broker.api.call import Call, Outcome, bad, encode, named, unreachable
from broker.api.connections import close_with
from broker.operating.connections import Connections, ConnectionsAnswer, Kick, Throttle, Touched
from broker.operating.draining import Drain, DrainAnswer
from broker.operating.slow import Slow, SlowAnswer, added_up, worst
from broker.relay.control import Peer
from broker.relay.errors import RelayError
from broker.wire.codes import CommandError, ErrorCode

LIMIT = 1000
"""The most entries of an answer's list."""
_FILTERS = ("user", "topic", "node", "address", "client")
_Filtered = requests.Connections | requests.Kick | requests.Throttle


async def connections(call: Call, request: requests.Connections) -> Outcome:
    limit = 100 if request.limit is None else request.limit
    refused = _refused(call) or _check_limit(limit)
    if refused is not None:
        return refused
    try:
        answers, unanswered = await call.backend.operations.everywhere(
            Connections(**_filters(request), limit=limit),
        )
    except RelayError as error:
        return unreachable(error)
    told = [msgspec.json.decode(answer, type=ConnectionsAnswer) for answer in answers]
    # nodes share no clock, so the age is what can be compared
    oldest = heapq.nsmallest(limit, (one for some in told for one in some.connections), key=lambda one: -one.seconds)
    return encode({"connections": oldest, "total": sum(one.total for one in told), **named(unanswered)})


async def kick(call: Call, request: requests.Kick) -> Outcome:
    refused = _refused(call) or _check_filters(request)
    if refused is not None:
        return refused
    end = close_with(request.code, request.reason)
    if isinstance(end, CommandError):
        return end
    return await _touch(call, Kick(**_filters(request), code=end.code, reason=end.reason), "kicked")


async def throttle(call: Call, request: requests.Throttle) -> Outcome:
    refused = _refused(call) or _check_filters(request)
    if refused is not None:
        return refused
    for name in ("command_rate", "publish_rate"):
        rate = getattr(request, name)
        if rate is not None and rate <= 0:
            return bad(f"{name}: must be above 0, or null for what the settings say")
    operation = Throttle(**_filters(request), command_rate=request.command_rate, publish_rate=request.publish_rate)
    return await _touch(call, operation, "throttled")


async def _touch(call: Call, operation: Kick | Throttle, name: str) -> Outcome:
    try:
        answers, unanswered = await call.backend.operations.everywhere(operation)
    except RelayError as error:
        return unreachable(error)
    count = sum(msgspec.json.decode(answer, type=Touched).count for answer in answers)
    return encode({name: count, **named(unanswered)})


async def slow(call: Call, request: requests.Slow) -> Outcome:
    limit = 10 if request.limit is None else request.limit
    refused = _refused(call) or _check_limit(limit)
    if refused is not None:
        return refused
    try:
        answers, unanswered = await call.backend.operations.everywhere(Slow(limit))
    except RelayError as error:
        return unreachable(error)
    told = [msgspec.json.decode(answer, type=SlowAnswer) for answer in answers]
    worst_connections = await worst((one for some in told for one in some.connections), limit)
    worst_topics = await worst(added_up(one for some in told for one in some.topics), limit)
    return encode({"connections": worst_connections, "topics": worst_topics, **named(unanswered)})


async def drain(call: Call, request: requests.Drain) -> Outcome:
    refused = _refused(call)
    if refused is not None:
        return refused
    node, operations = call.backend.node, call.backend.operations
    asked = Drain(request.node or node.uid, request.cancel or False)
    unanswered: list[Peer] = []
    if asked.node in (node.uid, node.name):
        answers = [await operations.here(asked)]  # which works without NATS, too
    else:
        try:
            answers, unanswered = await operations.everywhere(asked)
        except RelayError as error:
            return unreachable(error)
    told = [msgspec.json.decode(answer, type=DrainAnswer) for answer in answers]
    meant = next((one for one in told if one.meant), None)
    if meant is None:
        return _nobody(asked.node, told, unanswered)
    if meant.final:
        return CommandError(ErrorCode.NOT_AVAILABLE, "cancel: the node has been told to end; that can't be taken back")
    return encode({"node": meant.node, "draining": meant.draining, "connections": meant.connections})


def _nobody(name: str, told: list[DrainAnswer], unanswered: list[Peer]) -> CommandError:
    if any(name in (peer.uid, peer.name) for peer in unanswered):
        return CommandError(ErrorCode.INTERNAL, f"node: {name} has not answered; try again")
    there = sorted([*(one.node for one in told), *(peer.name for peer in unanswered)])
    return bad(f"node: {name[:80]!r} is not there; there are {', '.join(there)}")


def _refused(call: Call) -> CommandError | None:
    if not call.key.topics:
        return None
    return CommandError(ErrorCode.PERMISSION_DENIED, "this API key is for some topics only")


def _check_limit(limit: int) -> CommandError | None:
    return None if 1 <= limit <= LIMIT else bad(f"limit: must be from 1 to {LIMIT}")


def _check_filters(request: _Filtered) -> CommandError | None:
    if any(value is not None for value in _filters(request).values()):
        return None
    return bad("user, topic, node, address or client: one of them must be given")


def _filters(request: _Filtered) -> dict[str, str | None]:
    return {name: getattr(request, name) for name in _FILTERS}
