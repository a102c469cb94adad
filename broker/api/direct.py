"""The shortest way to the API's endpoints: a publish need not pass Starlette's two middlewares and its router."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from broker.api.endpoint import ApiEndpoint


class Application(Starlette):
    """Starlette, but calls of the API go straight to their endpoints, which answer for their own mistakes.

    All else is the router's: other verbs on the same paths, and the lifespan.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.router.redirect_slashes = False  # a redirect would lead to whatever host the client has named
        self._endpoints = {
            route.path: route.endpoint
            for route in self.routes
            if isinstance(route, Route) and isinstance(route.endpoint, ApiEndpoint)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)
