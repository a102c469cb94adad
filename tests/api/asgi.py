"""Calls of the HTTP API without HTTP: the application in this process, so that thousands can be made at once."""

from __future__ import annotations

import json
from typing import Any

from broker.app import App
from tests.harness.tokens import API_KEY
from tests.harness.web import Answer


async def call(app: App, method: str, request: Any, *, key: str = API_KEY, **headers: str) -> Answer:
    """What `POST /api/<method>` is answered with; `_` in names of headers stands for `-`."""
    named = {"x-api-key": key, **{name.replace("_", "-").lower(): value for name, value in headers.items()}}
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/api/{method}",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(request).encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    await app.public(scope, receive, send)
    head, body = sent
    got = {name.decode(): value.decode() for name, value in head["headers"]}
    return Answer(head["status"], got, body["body"])
