"""HTTP connections: uvicorn's protocol, with heads bounded in size and in time, and no byte behind an upgrade request
lost.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from broker.core.wheel import ASLEEP_NOWHERE
from broker.edge.handshake import Request, http_answer

if TYPE_CHECKING:
    from broker.edge.edge import Edge


BODY_SECONDS = 30.0
"""How long a request's body may take once its head is there."""


class EdgeHttpProtocol(HttpToolsProtocol):
    """One HTTP connection, until it ends or becomes a WebSocket (`Config(http=…)`)."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.cycle: RequestResponseCycle | None  # type: ignore[assignment]  # there is none before the first request
        self.edge: Edge = app_state["edge"]
        self.wheel_slot = ASLEEP_NOWHERE
        self._head_size = 0
        self._segment = 0
        self._judged: list[tuple[bytes, bytes]] | None = None
        self._upgrading = False

    def _should_upgrade(self) -> bool:
        # asked three times for each request
        if self._judged is not self.headers:
            self._judged = self.headers
            self._upgrading = super()._should_upgrade()
        return self._upgrading

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # as the method it overrides, but for the addresses: uvicorn makes socket objects to learn them
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        peer = transport.get_extra_info("peername")
        self.client = peer[:2] if isinstance(peer, tuple) else None  # an IPv6 address has four parts
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.edge.wheel.schedule(self, self.edge.clock() + self.edge.handshake_seconds)

    def wake(self, now: float) -> None:
        """A request has not come whole in time. An idle connection that is kept alive ends by uvicorn's clock."""
        del now
        if not self.transport.is_closing() and not (self.cycle is not None and self.cycle.response_started):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time")

    def connection_lost(self, exc: Exception | None) -> None:
        self.edge.wheel.cancel(self)
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        if self._head_size + self._segment > self.edge.header_bytes:
            # it may be the body that is large: count what the head has
            self._head_size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if self._head_size > self.edge.header_bytes:
                raise ValueError("too large")  # comes out of the parser as an error of its own
        self._head_size = 0
        if self.wheel_slot != ASLEEP_NOWHERE:
            self.edge.wheel.cancel(self)
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        # as the method it overrides, but for the size of the head and for what follows an upgrade request
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        self._segment = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if self._head_size > self.edge.header_bytes:
                self._too_large()
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "this is not HTTP")
        else:
            cycle = self.cycle
            if cycle is None or cycle.more_body or cycle.scope is not self.scope or self.wheel_slot != ASLEEP_NOWHERE:
                self._await_rest()

    def _await_rest(self) -> None:
        """See to it that a request that has come in part comes whole in time. Most come in one piece and need none."""
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:  # a head, or the beginning of one
            self._head_size += self._segment
            seconds = self.edge.handshake_seconds
            if self._head_size > self.edge.header_bytes:
                self._too_large()
                return
        elif cycle.more_body:
            seconds = BODY_SECONDS
        else:
            self.edge.wheel.cancel(self)
            return
        if self.wheel_slot == ASLEEP_NOWHERE:
            self.edge.wheel.schedule(self, self.edge.clock() + seconds)

    def _upgrade(self, rest: bytes) -> None:
        self.connections.discard(self)
        self.parser = None  # type: ignore[assignment]  # it refers back to this object, which is done
        request = Request(self.scope["method"], self.scope["http_version"], self.url, self.headers)
        protocol = self.ws_protocol_class(self.config, self.server_state, self.app_state)  # type: ignore[call-arg, misc]
        protocol.upgrade(self.transport, request, rest)  # type: ignore[union-attr]

    def _too_large(self) -> None:
        detail = f"the request's head is larger than {self.edge.header_bytes} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self.edge.wheel.cancel(self)
        self.transport.write(http_answer(status, detail))
        self.transport.close()
