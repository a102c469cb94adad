"""Errors of the HTTP layer itself, as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


def problem_body(status: int, detail: str) -> bytes:
    title = HTTPStatus(status).phrase
    return json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(problem_body(status, detail), status, headers, MEDIA_TYPE)


class Problems:
    """Answers what Starlette itself refuses, and mistakes of ours.

    Args:
        count: told of each answer: no method's name, and the status.
    """

    def __init__(self, count: Callable[[str, int], None]) -> None:
        self._count = count

    async def on_http_exception(self, request: Request, error: Exception) -> Response:
        """Unknown paths and methods."""
        assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for these only
        self._count("other", error.status_code)
        if error.status_code == HTTPStatus.NOT_FOUND:
            return problem(404, f"there is nothing at {request.url.path}")
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return problem(405, f"{request.method} is not possible here", error.headers)
        return problem(error.status_code, error.detail, error.headers)

    async def on_error(self, request: Request, error: Exception) -> Response:
        """A mistake of ours; Starlette logs it with its traceback."""
        del request, error
        self._count("other", 500)
        return problem(500, "the node failed to answer this; its log says why")
