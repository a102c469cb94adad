"""HTTP connections: uvicorn's protocol, with heads bounded in size and in time, and no byte behind an upgrade request
lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from broker.core.wheel import ASLEEP_NOWHERE
from broker.edge.handshake import Refusal, Request, http_answer, problem_body

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

    from broker.edge.edge import Edge


BODY_SECONDS = 30.0
"""How long a request's body may take once its head is there."""
LINGER_SECONDS = 2.0
"""How long a connection that has had its last answer is still read from (RFC 9112, section 9.6)."""


class _BodyStillComes:
    """The transport of an answer whose request has not come whole: closing waits for the client to take the answer."""

    __slots__ = ("_cycle", "_linger", "_transport", "is_closing", "write")

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport, linger: Callable[[], None]) -> None:
        self._cycle = cycle
        self._transport = transport
        self._linger = linger
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        if self._cycle.more_body:
            self._linger()
        else:
            self._transport.close()


class EdgeHttpProtocol(HttpToolsProtocol):
    """One HTTP connection, until it ends or becomes a WebSocket (`Config(http=…)`).

    While a request has not come whole, the wheel wakes this at its deadline; else it sleeps nowhere. Idle connections
    that are kept alive end by uvicorn's clock.
    """

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
        """What has come of the head; behind it, what has come since the last of the body: trailers."""
        self._segment = 0
        self._behind = False
        """Whether the segment began with what is not counted, or is counted already."""
        self._past_head = False
        self._new = True
        """Whether nothing has come yet."""
        self._ending = False
        """Whether nothing that comes is looked at any more."""
        self._keep_alive = True
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
        """A request has not come whole in time, or a client does not end what has ended here."""
        del now
        if self._ending:
            self.transport.abort()  # a close would wait for a client that does not read
        elif not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time")

    def connection_lost(self, exc: Exception | None) -> None:
        self.edge.wheel.cancel(self)
        self.edge.crowd.leave(self)
        self._unset_keepalive_if_required()  # uvicorn leaves it where there was an error
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()

    def on_header(self, name: bytes, value: bytes) -> None:
        # as the method it overrides, but for trailers: that adds them to the headers, without end and while the
        # application reads them
        if self._past_head:
            self._behind = True
            self._head_size += len(name) + len(value)
            if self._head_size > self.edge.header_bytes:
                raise ValueError("too large")  # comes out of the parser as an error of its own
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._head_size + self._segment > self.edge.header_bytes:
            # it may be the body that is large: count what the head has
            self._head_size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if self._head_size > self.edge.header_bytes:
                raise ValueError("too large")
        self._head_size = 0
        self._past_head = True
        if self.wheel_slot != ASLEEP_NOWHERE:
            self.edge.wheel.cancel(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        # as the method it overrides, but for what is counted
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope or cycle.response_complete:
            return  # an upgrade request's, which is refused; or nobody wants it
        self._head_size = 0
        self._behind = True
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        # as the method it overrides, but for what is counted, and for the deadline
        self._past_head = False
        self._head_size = 0
        self._behind = True
        if self.wheel_slot != ASLEEP_NOWHERE:
            self._came_whole()
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope or cycle.response_complete:
            return
        cycle.more_body = False
        cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._new:
            self._new = False
            self.edge.crowd.enter(self, data)
        else:
            self.received(data)

    def received(self, data: bytes) -> None:
        # as uvicorn's `data_received`, but for the size of the head and for what follows an upgrade request
        self._unset_keepalive_if_required()
        if self._ending or self.transport.is_closing():
            return
        self._segment = len(data)
        self._behind = False
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
            # a response can't be complete yet when its request has come just now: this was nothing but line ends
            if cycle is None or cycle.more_body or cycle.response_complete or cycle.scope is not self.scope:
                self._await_rest()

    def _await_rest(self) -> None:
        """See to it that a request that has come in part comes whole in time. Most come in one piece and need none."""
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope or not cycle.more_body:
            seconds = self.edge.handshake_seconds  # a head, or the beginning of one
            if self._behind:
                # where in the segment it began is not known; it is counted whole from the next on
                self._head_size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            else:
                self._head_size += self._segment
        else:
            seconds = BODY_SECONDS
            self._head_size += 0 if self._behind else self._segment
            if not isinstance(cycle.transport, _BodyStillComes):
                self._expect_body(cycle)
        if self._head_size > self.edge.header_bytes:
            self._too_large()
        elif self.wheel_slot == ASLEEP_NOWHERE:
            self.edge.wheel.schedule(self, self.edge.clock() + seconds)

    def _expect_body(self, cycle: RequestResponseCycle) -> None:
        """Let an answer that is given before the body is there be the connection's last (RFC 9112, section 9.3)."""
        cycle.transport = _BodyStillComes(cycle, self.transport, self._linger)  # type: ignore[assignment]
        self._keep_alive = cycle.keep_alive
        cycle.keep_alive = False  # so that uvicorn says it in the answer, and closes after it

    def _came_whole(self) -> None:
        self.edge.wheel.cancel(self)
        cycle = self.cycle
        if (
            cycle is not None
            and cycle.scope is self.scope
            and isinstance(cycle.transport, _BodyStillComes)
            and not cycle.response_started
        ):
            cycle.transport = self.transport
            cycle.keep_alive = self._keep_alive

    def _upgrade(self, rest: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # its answer would come in the middle of the frames
            detail = "a WebSocket can't be opened before the requests in front of it are answered"
            self.edge.refused(Refusal(HTTPStatus.BAD_REQUEST, detail))
            self._refuse(HTTPStatus.BAD_REQUEST, detail)
            return
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        self.parser = None  # type: ignore[assignment]  # it refers back to this object, which is done
        request = Request(self.scope["method"], self.scope["http_version"], self.url, self.headers)
        protocol = self.ws_protocol_class(self.config, self.server_state, self.app_state)  # type: ignore[call-arg, misc]
        protocol.upgrade(self.transport, request, rest)  # type: ignore[union-attr]

    def _too_large(self) -> None:
        detail = f"the request's head is larger than {self.edge.header_bytes} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """End the connection with an answer in its turn; without one where an answer is under way."""
        self.edge.wheel.cancel(self)
        self._ending = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer_last(status, detail)
        elif cycle.scope is not self.scope or not cycle.more_body:
            cycle.keep_alive = False  # it is the last of those that are answered
        elif self.pipeline:
            # its body will not come, and its turn is yet to come
            self._count(status)
            self.pipeline[0] = (cycle, _refusal(status, detail))
        elif cycle.response_started:
            self.edge.wheel.schedule(self, self.edge.clock() + LINGER_SECONDS)
        else:
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
            self._answer_last(status, detail)

    def _answer_last(self, status: HTTPStatus, detail: str) -> None:
        self._count(status)
        self.transport.write(http_answer(status, detail))
        self._linger()

    def _count(self, status: HTTPStatus) -> None:
        self.edge.metrics.http_requests.labels("other", str(status.value)).inc()

    def _linger(self) -> None:
        """End the connection behind the last answer; a reset, as a close behind unread bytes is, could destroy it."""
        self._ending = True
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.edge.wheel.schedule(self, self.edge.clock() + LINGER_SECONDS)


def _refusal(status: HTTPStatus, detail: str) -> ASGI3Application:
    """An application that answers with nothing but this."""
    body = problem_body(status, detail)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]

    async def refuse(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return refuse
