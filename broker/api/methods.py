"""What each API method does. An outcome is a value: a result's JSON, or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.api import requests
from broker.auth.api_keys import ApiKey
from broker.node import Node
from broker.operations import (
    Channels,
    ChannelsAnswer,
    Disconnect,
    Info,
    NodeInfo,
    Operation,
    Operations,
    Refresh,
    Subscribe,
    Unsubscribe,
)
from broker.relay.connection import Confirmation, RelayError, confirmed
from broker.relay.control import Peer
from broker.wire.codes import REASON_BYTES, CloseCode, CommandError, ErrorCode
from broker.wire.commands import describe
from broker.wire.payload import one_line

EMPTY = b"{}"
Outcome = bytes | CommandError
_BATCH_AT_ONCE = 100

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Backend:
    """What API methods work with."""

    node: Node
    operations: Operations


@dataclass(slots=True)
class Call:
    """Who calls."""

    backend: Backend
    key: ApiKey


@dataclass(frozen=True, slots=True)
class Method:
    """An API method: what it takes and what it does."""

    request: type[msgspec.Struct]
    run: Callable[[Call, Any], Awaitable[Outcome]]
    decode: Callable[[bytes], Any]


def _bad(detail: str) -> CommandError:
    return CommandError(ErrorCode.BAD_REQUEST, detail)


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
        return _bad("b64data: is for bytes, which JSON clients can't be sent; use data")
    if request.data is msgspec.UNSET:
        return _bad("data: missing")
    return node.publish(policy, topic, one_line(bytes(request.data)), tags=request.tags, source="http")


async def broadcast(call: Call, request: requests.Broadcast) -> Outcome:
    if not request.channels:
        return _bad("channels: must name one topic at least")
    # all are handed over before the first is waited for, so that they share the way to NATS and back
    started = [_publish(call, topic, request) for topic in request.channels]
    outcomes = [one if isinstance(one, CommandError) else await _settled(call, one) for one in started]
    responses = b",".join(b'{"result":{}}' if error is None else error_json(error) for error in outcomes)
    return b'{"responses":[%b]}' % responses


async def subscribe(call: Call, request: requests.Subscribe) -> Outcome:
    refused = _check_topic(call, request.channel) or _check_target(request)
    if refused is not None:
        return refused
    for name in ("b64info", "b64data"):
        if getattr(request, name) is not None:
            return _bad(f"{name}: is for bytes, which JSON clients can't be sent")
    if (request.expire_at or 0) < 0:
        return _bad("expire_at: must not be negative")
    return await _everywhere(
        call,
        Subscribe(
            user=request.user,
            client=request.client or "",
            channel=request.channel,
            info=request.info,
            data=request.data,
            expire_at=request.expire_at or 0,
        ),
    )


async def unsubscribe(call: Call, request: requests.Unsubscribe) -> Outcome:
    refused = _check_target(request)
    if refused is None and request.channel:
        refused = _check_topic(call, request.channel)
    if refused is None and not request.channel and call.key.topics:
        refused = CommandError(ErrorCode.PERMISSION_DENIED, "channel: this API key is for some topics only")
    if refused is not None:
        return refused
    return await _everywhere(call, Unsubscribe(user=request.user, client=request.client or "", channel=request.channel))


async def disconnect(call: Call, request: requests.Disconnect) -> Outcome:
    refused = _check_target(request)
    if refused is not None:
        return refused
    nested = request.disconnect or requests.DisconnectWith()
    code = nested.code or request.code or CloseCode.FORCE_DISCONNECT
    reason = nested.reason or request.reason or _usual_reason(code)
    if not 3000 <= code <= 4999:
        return _bad("disconnect.code: must be from 3000 to 4999")
    if len(reason.encode(errors="replace")) > REASON_BYTES:
        return _bad(f"disconnect.reason: at most {REASON_BYTES} bytes are allowed")
    return await _everywhere(
        call,
        Disconnect(
            user=request.user,
            client=request.client or "",
            code=code,
            reason=reason,
            whitelist=request.whitelist or [],
        ),
    )


def _usual_reason(code: int) -> str:
    try:
        return CloseCode(code).text
    except ValueError:
        return "disconnected by the server"


async def refresh(call: Call, request: requests.Refresh) -> Outcome:
    refused = _check_target(request)
    if refused is not None:
        return refused
    if (request.expire_at or 0) < 0:
        return _bad("expire_at: must not be negative")
    return await _everywhere(
        call,
        Refresh(
            user=request.user,
            client=request.client or "",
            expired=request.expired or False,
            expire_at=request.expire_at or 0,
        ),
    )


def _check_topic(call: Call, topic: str) -> CommandError | None:
    policy = call.backend.node.locate(topic)
    if isinstance(policy, CommandError):
        return policy
    if not call.key.may_touch(topic):
        return CommandError(ErrorCode.PERMISSION_DENIED, "channel: not among the topics of this API key")
    return None


def _check_target(
    request: requests.Subscribe | requests.Unsubscribe | requests.Disconnect | requests.Refresh,
) -> CommandError | None:
    # to pass over it would act on more connections than were meant
    return _bad("session: connections have none here; name the client") if request.session else None


async def _everywhere(call: Call, operation: Operation) -> Outcome:
    try:
        _, unanswered = await call.backend.operations.everywhere(operation)
    except RelayError as error:
        return _unreachable(error)
    return _encode(_unanswered(unanswered)) if unanswered else EMPTY


def _unreachable(error: RelayError) -> CommandError:
    return CommandError(ErrorCode.INTERNAL, f"the other nodes can't be asked: {error}")


def _unanswered(peers: Sequence[Peer]) -> dict[str, Any]:
    """Who has not answered, where that is somebody: the result is true for all nodes but these."""
    return {"unanswered": [{"uid": peer.uid, "name": peer.name} for peer in peers]} if peers else {}


async def presence_or_history(
    call: Call,
    request: requests.Presence | requests.PresenceStats | requests.History | requests.HistoryRemove,
) -> Outcome:
    """No policy has either yet."""
    return _check_topic(call, request.channel) or CommandError(
        ErrorCode.NOT_AVAILABLE, "channel: its policy has neither presence nor history"
    )


async def channels(call: Call, request: requests.Channels) -> Outcome:
    try:
        answers, unanswered = await call.backend.operations.everywhere(Channels(request.pattern or ""))
    except RelayError as error:
        return _unreachable(error)
    total: dict[str, int] = {}
    for answer in answers:
        for topic, count in msgspec.json.decode(answer, type=ChannelsAnswer).counts.items():
            if call.key.may_touch(topic):
                total[topic] = total.get(topic, 0) + count
    found = {topic: {"num_clients": count} for topic, count in total.items()}
    return _encode({"channels": found, **_unanswered(unanswered)})


async def info(call: Call, request: requests.Info) -> Outcome:
    del request
    try:
        answers, unanswered = await call.backend.operations.everywhere(Info())
    except RelayError as error:
        return _unreachable(error)
    nodes = [msgspec.json.decode(answer, type=NodeInfo) for answer in answers]
    return _encode({"nodes": nodes, **_unanswered(unanswered)})


async def batch(call: Call, request: requests.Batch) -> Outcome:
    if not request.commands:
        return EMPTY
    replies: list[bytes] = []
    at_once = _BATCH_AT_ONCE if request.parallel else 1
    for begin in range(0, len(request.commands), at_once):
        some = request.commands[begin : begin + at_once]
        replies += await asyncio.gather(*(_one_of_batch(call, bytes(command)) for command in some))
    return b'{"replies":[%b]}' % b",".join(replies)


async def _one_of_batch(call: Call, command: bytes) -> bytes:
    try:
        named = _decode_command(command)
    except (msgspec.DecodeError, RecursionError):
        return error_json(_bad("a command must be an object with its method as the only name"))
    if len(named) != 1:
        return error_json(_bad("a command must have its method as the only name"))
    ((name, body),) = named.items()
    outcome = await run(call, name, bytes(body))
    if isinstance(outcome, CommandError):
        return error_json(outcome)
    return b'{"%b":%b}' % (name.encode(), outcome)


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
        return _bad(describe(error))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _bad("malformed JSON") if body.strip() else method.request()


def error_json(error: CommandError) -> bytes:
    return b'{"error":%b}' % error_body(error)


def error_body(error: CommandError) -> bytes:
    return _encode({"code": int(error.code), "message": error.message})


def _method(request: type[msgspec.Struct], run: Callable[[Call, Any], Awaitable[Outcome]]) -> Method:
    return Method(request, run, msgspec.json.Decoder(request).decode)


_decode_command = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

METHODS: dict[str, Method] = {
    "publish": _method(requests.Publish, publish),
    "broadcast": _method(requests.Broadcast, broadcast),
    "subscribe": _method(requests.Subscribe, subscribe),
    "unsubscribe": _method(requests.Unsubscribe, unsubscribe),
    "disconnect": _method(requests.Disconnect, disconnect),
    "refresh": _method(requests.Refresh, refresh),
    "presence": _method(requests.Presence, presence_or_history),
    "presence_stats": _method(requests.PresenceStats, presence_or_history),
    "history": _method(requests.History, presence_or_history),
    "history_remove": _method(requests.HistoryRemove, presence_or_history),
    "channels": _method(requests.Channels, channels),
    "info": _method(requests.Info, info),
    "batch": _method(requests.Batch, batch),
}
