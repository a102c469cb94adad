"""The API methods that act on the connections of a user, on all nodes."""

from __future__ import annotations

from broker.api import requests
from broker.api.call import Call, Outcome, bad, check_subscription, everywhere
from broker.operations import Disconnect, Refresh, Subscribe, Unsubscribe
from broker.wire.codes import REASON_BYTES, Close, CloseCode, CommandError, ErrorCode

_MAX_TIME = 2**53
"""Unix seconds beyond this are no number that JSON carries exactly."""


async def subscribe(call: Call, request: requests.Subscribe) -> Outcome:
    refused = check_subscription(call, request.channel) or _check_target(request)
    if refused is not None:
        return refused
    for name in ("b64info", "b64data"):
        if getattr(request, name) is not None:
            return bad(f"{name}: is for bytes, which JSON clients can't be sent")
    if not 0 <= (request.expire_at or 0) <= _MAX_TIME:
        return bad("expire_at: must be a time in seconds since 1970")
    return await everywhere(
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
        refused = check_subscription(call, request.channel)
    if refused is None and not request.channel and call.key.topics:
        refused = CommandError(ErrorCode.PERMISSION_DENIED, "channel: this API key is for some topics only")
    if refused is not None:
        return refused
    return await everywhere(call, Unsubscribe(user=request.user, client=request.client or "", channel=request.channel))


async def disconnect(call: Call, request: requests.Disconnect) -> Outcome:
    refused = _check_target(request)
    if refused is not None:
        return refused
    nested = request.disconnect or requests.DisconnectWith()
    end = close_with(nested.code or request.code, nested.reason or request.reason, "disconnect.")
    if isinstance(end, CommandError):
        return end
    return await everywhere(
        call,
        Disconnect(
            user=request.user,
            client=request.client or "",
            code=end.code,
            reason=end.reason,
            whitelist=request.whitelist or [],
        ),
    )


def close_with(code: int | None, reason: str | None, field: str = "") -> Close | CommandError:
    """The close that a caller asks for; without a code 3503, and without a reason the code's usual one. `field` is what
    the names begin with in errors.
    """
    code = code or CloseCode.FORCE_DISCONNECT
    reason = reason or _usual_reason(code)
    if not 3000 <= code <= 4999:
        return bad(f"{field}code: must be from 3000 to 4999")
    if len(reason.encode(errors="replace")) > REASON_BYTES:
        return bad(f"{field}reason: at most {REASON_BYTES} bytes are allowed")
    return Close(code, reason)


def _usual_reason(code: int) -> str:
    try:
        return CloseCode(code).text
    except ValueError:
        return "disconnected by the server"


async def refresh(call: Call, request: requests.Refresh) -> Outcome:
    refused = _check_target(request)
    if refused is not None:
        return refused
    if not 0 <= (request.expire_at or 0) <= _MAX_TIME:
        return bad("expire_at: must be a time in seconds since 1970")
    return await everywhere(
        call,
        Refresh(
            user=request.user,
            client=request.client or "",
            expired=request.expired or False,
            expire_at=request.expire_at or 0,
        ),
    )


def _check_target(
    request: requests.Subscribe | requests.Unsubscribe | requests.Disconnect | requests.Refresh,
) -> CommandError | None:
    # to pass over it would act on more connections than were meant
    return bad("session: connections have none here; name the client") if request.session else None
