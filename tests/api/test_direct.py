"""The endpoints in this process: what a mistake of ours looks like from outside, and which way a call takes."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route

from broker.api import methods, requests
from broker.api.call import EMPTY, Call
from broker.api.direct import Application
from broker.api.endpoint import Api, ApiEndpoint
from broker.api.problems import Problems
from broker.auth.api_keys import ApiKey, ApiKeys
from broker.edge.http import EdgeHttpProtocol
from broker.metrics import Metrics
from tests.echo import Server, make_edge
from tests.harness.web import Answer, request

pytestmark = pytest.mark.anyio


class Site:
    """An application with the API's endpoints only, on a real socket."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counted: list[tuple[str, int]] = []
        self.routed: list[str] = []

    async def ask(self, path: str, body: bytes = b"{}", method: str = "POST", **headers: str) -> Answer:
        return await request(method, f"http://127.0.0.1:{self.port}{path}", body, {"X-API-Key": "k", **headers})


@asynccontextmanager
async def served() -> AsyncIterator[Site]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site = Site(listener.getsockname()[1])

        def count(method: str, status: int) -> None:
            site.counted.append((method, status))

        api = Api(cast("Any", None), ApiKeys([("k", ApiKey("k"))]), body_bytes=1000, count=count)

        async def page(_: Request) -> PlainTextResponse:
            return PlainTextResponse("a page")

        async def broken(_: Request) -> PlainTextResponse:
            raise RuntimeError("the page broke")

        routes: list[BaseRoute] = [
            *(Route(f"/api/{name}", ApiEndpoint(api, name), methods=["POST"]) for name in ("info", "batch")),
            Route("/api", ApiEndpoint(api), methods=["POST"]),
            Route("/page", page),
            Route("/broken", broken),
        ]

        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[dict[str, Any]]:
            yield {"edge": make_edge(Metrics())}

        problems = Problems(count)
        application = Application(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={HTTPException: problems.on_http_exception, Exception: problems.on_error},
        )
        router = application.router.middleware_stack

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                site.routed.append(scope["path"])
            await router(scope, receive, send)

        application.router.middleware_stack = watched
        server = Server(uvicorn.Config(application, http=EdgeHttpProtocol, lifespan="on", log_config=None))
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield site
        finally:
            server.should_exit = True
            await task


async def fail(call: Call, _: requests.Info) -> bytes:
    raise RuntimeError("the method broke")


async def work(call: Call, _: requests.Info) -> bytes:
    return EMPTY


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/info", b"{}"), ("/api", b'{"info":{}}'), ("/api/batch", b'{"commands":[{"info":{}}]}')],
)
async def test_a_method_that_breaks_is_500_at_once_and_logged_once(
    path: str, body: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(methods.METHODS, "info", methods._method(requests.Info, fail))
    async with served() as site:
        with caplog.at_level(logging.WARNING):
            answer = await site.ask(path, body)
        assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
        assert answer.json()["status"] == 500
        assert b"broke" not in answer.body
        assert [status for _, status in site.counted] == [500]
    (record,) = caplog.records
    assert record.name == "broker.api.endpoint"
    assert path in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the method broke"


async def test_calls_of_the_api_go_past_the_router_and_all_else_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "info", methods._method(requests.Info, work))
    async with served() as site:
        for path, body in (("/api/info", b"{}"), ("/api/info?x=1", b"{}"), ("/api", b'{"info":{}}')):
            answer = await site.ask(path, body)
            assert (answer.status, answer.json()) == (200, {"result": {}})
        assert site.routed == []
        assert (await site.ask("/page", method="GET")).body == b"a page"
        assert (await site.ask("/api/info", method="GET")).status == 405
        assert (await site.ask("/api/info/")).status == 404
        assert site.routed == ["/page", "/api/info", "/api/info/"]
        assert site.counted[3:] == [("other", 405), ("other", 404)]


async def test_a_page_that_breaks_is_a_counted_500(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as site:
        with caplog.at_level(logging.ERROR):
            answer = await site.ask("/broken", method="GET")
        assert json.loads(answer.body)["status"] == answer.status == 500
        assert site.counted == [("other", 500)]
    assert len([record for record in caplog.records if record.exc_info]) == 1
