"""The table of API methods, and how they are called: one by one, or several in a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.api import connections, operating, publishing, requests, topics
from broker.api.call import EMPTY, Call, Outcome, all_too_many, bad, error_json
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.commands import describe

_BATCH_AT_ONCE = 100
"""Commands of a parallel batch that run at the same time."""

_Named = tuple[str, Outcome]
"""A command's method, and what came of it."""


@dataclass(frozen=True, slots=True)
class Method:
    """An API method: what it takes and what it does."""

    request: type[msgspec.Struct]
    run: Callable[[Call, Any], Awaitable[Outcome]]
    decode: Callable[[bytes], Any]
    reads: bool = False
    """It changes nothing, and can be called with GET and its request in the query, too."""


async def batch(call: Call, request: requests.Batch) -> Outcome:
    if not request.commands:
        return EMPTY
    outcomes: list[_Named] = []
    at_once = _BATCH_AT_ONCE if request.parallel else 1
    for begin in range(0, len(request.commands), at_once):
        some = request.commands[begin : begin + at_once]
        outcomes += await asyncio.gather(*(_one_of_batch(call, bytes(command)) for command in some))
    refused = all_too_many([outcome for _, outcome in outcomes])
    if refused is not None:
        return refused
    replies = (
        error_json(outcome) if isinstance(outcome, CommandError) else b'{"%b":%b}' % (name.encode(), outcome)
        for name, outcome in outcomes
    )
    return b'{"replies":[%b]}' % b",".join(replies)


async def _one_of_batch(call: Call, command: bytes) -> _Named:
    try:
        named = _decode_command(command)
    except (msgspec.DecodeError, RecursionError):
        return "", bad("a command must be an object with its method as the only name")
    if len(named) != 1:
        return "", bad("a command must have its method as the only name")
    ((name, body),) = named.items()
    return name, await run(call, name, bytes(body))


async def run(call: Call, name: str, body: bytes) -> Outcome:
    """Call a method by name, as it stands in a batch."""
    method = METHODS.get(name)
    if method is None or name == "batch":
        return CommandError(ErrorCode.METHOD_NOT_FOUND, repr(name[:40]))
    if not call.key.may(name):
        return CommandError(ErrorCode.PERMISSION_DENIED, f"this API key may not call {name}")
    request = decode(method, body)
    return request if isinstance(request, CommandError) else await method.run(call, request)


def decode(method: Method, body: bytes) -> Any:
    """A method's request, or what is wrong with it (as a CommandError)."""
    try:
        if not body.isascii():
            body.decode()  # what passes through undecoded is JSON only in UTF-8
        return method.decode(body)
    except msgspec.ValidationError as error:
        if body.strip() == b"null":
            return method.request()
        return bad(describe(error))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return bad("malformed JSON") if body.strip() else method.request()


def _method(
    request: type[msgspec.Struct], run: Callable[[Call, Any], Awaitable[Outcome]], *, reads: bool = False
) -> Method:
    return Method(request, run, msgspec.json.Decoder(request).decode, reads)


_decode_command = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

METHODS: dict[str, Method] = {
    "publish": _method(requests.Publish, publishing.publish),
    "broadcast": _method(requests.Broadcast, publishing.broadcast),
    "subscribe": _method(requests.Subscribe, connections.subscribe),
    "unsubscribe": _method(requests.Unsubscribe, connections.unsubscribe),
    "disconnect": _method(requests.Disconnect, connections.disconnect),
    "refresh": _method(requests.Refresh, connections.refresh),
    "presence": _method(requests.Presence, topics.presence),
    "presence_stats": _method(requests.PresenceStats, topics.presence_stats),
    "history": _method(requests.History, topics.history),
    "history_remove": _method(requests.HistoryRemove, topics.history_remove),
    "channels": _method(requests.Channels, topics.channels),
    "info": _method(requests.Info, topics.info),
    "connections": _method(requests.Connections, operating.connections),
    "kick": _method(requests.Kick, operating.kick),
    "throttle": _method(requests.Throttle, operating.throttle),
    "slow": _method(requests.Slow, operating.slow, reads=True),
    "drain": _method(requests.Drain, operating.drain),
    "batch": _method(requests.Batch, batch),
}
