"""`POST /api/<method>` and `POST /api`: a bare ASGI endpoint, for a request/response function costs twice as much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from broker.api.methods import METHODS, Backend, Call, Method, decode, error_body, error_json
from broker.api.problems import MEDIA_TYPE, problem_body
from broker.auth.api_keys import ApiKeys
from broker.wire.codes import CommandError, ErrorCode

BODY_SECONDS = 10.0
"""How long a request's body may take once its head is there."""
RETRY_AFTER = b"1"
_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", MEDIA_TYPE.encode())

_STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.UNKNOWN_TOPIC: HTTPStatus.NOT_FOUND,
    ErrorCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    ErrorCode.METHOD_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.LIMIT_EXCEEDED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.TOO_MANY_REQUESTS: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.UNRECOVERABLE_POSITION: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
}
"""Statuses of errors where the caller asked for statuses; 400 for all others."""


class ApiEndpoint:
    """Answers API calls.

    Args:
        backend: what methods work with.
        keys: who may call.
        body_bytes: the most a request may have.
        count: told of each answer: the method's name (or `other`) and the status.
    """

    def __init__(self, backend: Backend, keys: ApiKeys, *, body_bytes: int, count: Callable[[str, int], None]) -> None:
        self._backend = backend
        self._keys = keys
        self._body_bytes = body_bytes
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name: str | None = scope["path_params"].get("method")
        key = self._keys.identify(scope["headers"])
        if key is None:
            await self._problem(send, name, 401, "a valid API key is needed, in X-API-Key or Authorization: apikey …")
            return
        if name is not None and name not in METHODS:
            await self._problem(send, name, 404, f"there is no API method {name[:40]!r}")
            return
        body = await self._read(receive, scope["headers"])
        if isinstance(body, int):
            if body:
                await self._problem(send, name, body, _BODY_PROBLEMS[body].format(self._body_bytes))
            return
        if name is None:
            named = _name_and_body(body)
            if named is None:
                await self._problem(send, name, 400, "the body must be a JSON object with a method's name")
                return
            name, body = named
            if name not in METHODS:
                error = CommandError(ErrorCode.METHOD_NOT_FOUND, repr(name[:40]))
                await self._error(send, "other", error, as_status=_wants_status(scope))
                return
        if not key.may(name):
            await self._problem(send, name, 403, f"this API key may not call {name}")
            return
        if not _is_object(body):
            await self._problem(send, name, 400, "the body must be a JSON object")
            return
        await self._run(scope, send, name, METHODS[name], Call(self._backend, key), body)

    async def _run(self, scope: Scope, send: Send, name: str, method: Method, call: Call, body: bytes) -> None:
        request = decode(method, body)
        outcome = request if isinstance(request, CommandError) else await method.run(call, request)
        if isinstance(outcome, CommandError):
            await self._error(send, name, outcome, as_status=_wants_status(scope))
        elif name == "batch":  # the one method whose answer has no `result` around it
            await self._answer(send, name, 200, outcome, _JSON)
        else:
            await self._answer(send, name, 200, b'{"result":%b}' % outcome, _JSON)

    async def _read(self, receive: Receive, headers: Any) -> bytes | int:
        """The body; or a status to refuse it with (0: the caller has gone)."""
        message = await receive()
        if not message.get("more_body"):
            body: bytes = message.get("body", b"")
            return body if len(body) <= self._body_bytes else 413
        for header, value in headers:
            if header == b"content-length" and value.isdigit() and int(value) > self._body_bytes:
                return 413
        parts = [message["body"]]
        size = len(parts[0])
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while message.get("more_body"):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 0
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._body_bytes:
                        return 413
        except TimeoutError:
            return 408
        return b"".join(parts)

    async def _error(self, send: Send, name: str, error: CommandError, *, as_status: bool) -> None:
        if error.code is ErrorCode.INTERNAL:
            # what can't be had now is said with a status in any case: balancers and retrying clients look at that
            body = error_body(error) if as_status else error_json(error)
            await self._answer(send, name, 503, body, _JSON, (b"retry-after", RETRY_AFTER))
        elif as_status:
            await self._answer(send, name, int(_STATUS.get(error.code, 400)), error_body(error), _JSON)
        else:
            await self._answer(send, name, 200, error_json(error), _JSON)

    async def _problem(self, send: Send, name: str | None, status: int, detail: str) -> None:
        label = name if name in METHODS else "other"
        await self._answer(send, label, status, problem_body(status, detail), _PROBLEM)

    async def _answer(self, send: Send, name: str, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self._count(name, status)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
        await send({"type": "http.response.body", "body": body})


_BODY_PROBLEMS = {
    408: "the request's body did not come in time",
    413: "the request's body is larger than {} bytes",
}


def _wants_status(scope: Scope) -> bool:
    return any(name == b"x-centrifugo-error-mode" and value.lower() == b"transport" for name, value in scope["headers"])


def _is_object(body: bytes) -> bool:
    """Whether the body can be a JSON object; `null` and nothing at all count as an empty one."""
    if body.startswith(b"{"):
        first = body
    else:
        first = body.strip(b" \t\r\n")
        if first in (b"", b"null"):
            return True
    if not first.startswith(b"{"):
        return False
    try:
        _skip(first)
        if not body.isascii():
            body.decode()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


def _name_and_body(body: bytes) -> tuple[str, bytes] | None:
    """`{"publish": {…}}` or `{"method": "publish", "params": {…}}`, as server libraries send them to `/api`."""
    try:
        body.decode()
        named = _decode_named(body)
        if "method" in named:
            return msgspec.json.decode(named["method"], type=str), bytes(named.get("params", b"{}"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if len(named) != 1:
        return None
    ((name, request),) = named.items()
    return name, bytes(request)


_skip = msgspec.json.Decoder(msgspec.Raw).decode
_decode_named = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
