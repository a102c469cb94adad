"""`POST /api/<method>` and `POST /api`, and GET where a method takes it.

A bare ASGI endpoint, for a request/response function costs twice as much.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from broker.api.call import Backend, Call, encode, error_body, error_json
from broker.api.methods import METHODS, decode
from broker.api.problems import MEDIA_TYPE, problem_body
from broker.auth.api_keys import ApiKeys
from broker.wire.codes import CommandError, ErrorCode

logger = logging.getLogger(__name__)

_NUMBER = re.compile("-?[0-9]{1,15}")
_JSON = (b"content-type", b"application/json")
_JSON_ONLY = (_JSON,)
_PROBLEM = (b"content-type", MEDIA_TYPE.encode())

_STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.UNKNOWN_TOPIC: HTTPStatus.NOT_FOUND,
    ErrorCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    ErrorCode.METHOD_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.LIMIT_EXCEEDED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.UNRECOVERABLE_POSITION: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
}
"""Statuses of errors where the caller asked for statuses; 400 for all others."""
_TRY_AGAIN: Mapping[ErrorCode, int] = {
    ErrorCode.INTERNAL: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.TOO_MANY_REQUESTS: HTTPStatus.TOO_MANY_REQUESTS,
}
"""Statuses of errors that have one in any case, with Retry-After (RFC 9110, section 10.2.3; RFC 6585, section 4)."""


Header = tuple[bytes, bytes]
_Answer = tuple[str, int, bytes, tuple[Header, ...]]
"""The method's name as it is counted, the status, the body, and the headers but for the length."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong with a request, before any method looks at it."""

    status: int
    detail: str
    headers: tuple[Header, ...] = ()


_NO_KEY = _Problem(
    401,
    "a valid API key is needed, in X-API-Key or after `apikey ` in Authorization",
    ((b"www-authenticate", b"apikey"),),  # RFC 9110, section 15.5.2
)
_FAILED = _Problem(500, "the node failed to answer this; its log says why")


@dataclass(frozen=True, slots=True)
class Api:
    """What all endpoints of the API share."""

    backend: Backend
    keys: ApiKeys
    """Who may call."""
    body_bytes: int
    """The most that a request's body may have."""
    count: Callable[[str, int], None]
    """Told of each answer: the method's name, and the status."""


class ApiEndpoint:
    """Answers calls of one method; without a name those to `/api`, where the body names the method.

    An object, neither a function nor a method: Starlette takes it for the ASGI application that it is.
    """

    def __init__(self, api: Api, name: str = "") -> None:
        self._backend = api.backend
        self._keys = api.keys
        self._body_bytes = api.body_bytes
        self._count = api.count
        self._too_large = _Problem(413, f"the request's body is larger than {api.body_bytes} bytes")
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._serve(scope, receive)
        except Exception:
            logger.exception("a call of %s failed", f"/api/{self._name}" if self._name else "/api")
            answer = _FAILED
        if answer is None:
            return
        if isinstance(answer, _Problem):
            body = problem_body(answer.status, answer.detail)
            answer = (self._name or "other", answer.status, body, (_PROBLEM, *answer.headers))
        name, status, body, headers = answer
        self._count(name, status)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
        await send({"type": "http.response.body", "body": body})

    async def _serve(self, scope: Scope, receive: Receive) -> _Answer | _Problem | None:
        """The answer to a call; or what is wrong with the request itself; or None when the caller has gone."""
        name = self._name
        key = self._keys.identify(scope["headers"])
        if key is None:
            return _NO_KEY
        body = await self._read(receive, scope)
        if not isinstance(body, bytes):
            return body
        if not name:
            named = _name_and_body(body)
            if named is None:
                return _Problem(400, "the body must be a JSON object with a method's name")
            name, body = named
        method = METHODS.get(name)
        if method is None:
            return self._failed("other", CommandError(ErrorCode.METHOD_NOT_FOUND, repr(name[:40])), scope)
        if not key.may(name):
            return _Problem(403, f"this API key may not call {name}")
        request = decode(method, body)
        if not isinstance(request, CommandError):
            outcome = await method.run(Call(self._backend, key, _idempotency_key(scope["headers"])), request)
        elif _is_object(body):
            outcome = request
        else:
            return _Problem(400, "the body must be a JSON object")
        if isinstance(outcome, CommandError):
            return self._failed(name, outcome, scope)
        # batch is the one method whose answer has no `result` around it
        return name, 200, outcome if name == "batch" else b'{"result":%b}' % outcome, _JSON_ONLY

    def _failed(self, name: str, error: CommandError, scope: Scope) -> _Answer:
        self._backend.node.metrics.errors.labels("http", str(int(error.code))).inc()
        return _error(name, error, scope)

    async def _read(self, receive: Receive, scope: Scope) -> bytes | _Problem | None:
        """The body; or what is wrong with it; or None when the caller has gone. Its time is bounded by the edge."""
        if scope["method"] != "POST":
            return _body_of(scope["query_string"])
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if message["type"] == "http.disconnect":
                return None
            return body if len(body) <= self._body_bytes else self._too_large
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._body_bytes:
                return self._too_large
        parts = [body]
        size = len(body)
        while message.get("more_body") and size <= self._body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        if size > self._body_bytes:
            return self._too_large
        return b"".join(parts)


def _error(name: str, error: CommandError, scope: Scope) -> _Answer:
    as_status = _wants_status(scope)
    body = error_body(error) if as_status else error_json(error)
    status = _TRY_AGAIN.get(error.code)
    if status is not None:
        # what can't be had now is said with a status in any case: balancers and retrying clients look at that
        return name, status, body, (_JSON, (b"retry-after", b"%d" % max(1, ceil(error.retry_after))))
    return name, int(_STATUS.get(error.code, 400)) if as_status else 200, body, _JSON_ONLY


def _body_of(query: bytes) -> bytes:
    """A GET's query as the body that a POST would have; what looks like a number is one."""
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return encode({name: int(text) if _NUMBER.fullmatch(text) else text for name, text in given})


def _idempotency_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/ (which puts it in quotes)."""
    for name, value in headers:
        if name == b"idempotency-key":
            return value.decode("latin-1").strip('"')
    return ""


def _wants_status(scope: Scope) -> bool:
    return any(name == b"x-centrifugo-error-mode" and value.lower() == b"transport" for name, value in scope["headers"])


def _is_object(body: bytes) -> bool:
    """Whether the body is a JSON object at all, whatever is in it."""
    try:
        body.decode()
        _decode_named(body)
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


_decode_named = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
