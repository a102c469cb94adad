"""Health and metrics for those who run the node.

Live: the event loop answers. Started: NATS has been reached once. Ready: new clients are welcome.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from broker import __version__
from broker.node import Node

Answer = Callable[[Request], Awaitable[Response]]


def health(
    node: Node, state: str, reasons: Callable[[], Sequence[str]], streams: Callable[[], Mapping[str, str]] = dict
) -> Answer:
    """An endpoint that answers 200 while there is no reason against it, else 503 with the reasons; and the state of the
    streams, where that is part of it.
    """

    async def answer(request: Request) -> Response:
        del request
        against = list(reasons())
        body: dict[str, Any] = {
            "status": f"not {state}" if against else state,
            "reasons": against,
            "node": node.name,
            "version": __version__,
        }
        if told := streams():
            body["streams"] = told
        return Response(json.dumps(body), 503 if against else 200, media_type="application/json")

    return answer


def metrics(node: Node) -> Answer:
    """The Prometheus exposition."""

    async def answer(request: Request) -> Response:
        del request
        node.observe()
        page, content_type = node.metrics.exposition()
        return Response(page, headers={"content-type": content_type})

    return answer
