"""A client on a WebSocket: frames on one side, a conversation on the other."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from broker.edge.handshake import Request
from broker.edge.websocket import WebSocketProtocol
from broker.wire.codes import CloseCode, UnsubscribeCode, close

if TYPE_CHECKING:
    from broker.client.client import Client

JSON_SUBPROTOCOL = "centrifuge-json"
PROTOBUF_SUBPROTOCOL = "centrifuge-protobuf"

_KNOWN_CODES = frozenset({1000, 1001, 1002, 1003, 1006, 1007, 1009, 1011, 1012, 1013, *CloseCode})


class ClientSocket(WebSocketProtocol):
    """Carries one client's conversation."""

    __slots__ = ("_client",)

    _client: Client | None

    def opened(self, request: Request, subprotocol: str | None) -> None:
        self._client = None
        if subprotocol == PROTOBUF_SUBPROTOCOL or _asks_for_protobuf(request):
            # accepted first, so that the SDK learns why; a refused handshake would make it try for ever
            self.close(close(CloseCode.INAPPROPRIATE_PROTOCOL, "only JSON is spoken here"))
            return
        self._client = self.edge.make_client(self)

    def text(self, payload: bytes) -> None:
        if self._client is not None:
            self._client.received(payload)

    def binary(self, payload: bytes) -> None:
        del payload
        self.close(close(CloseCode.INAPPROPRIATE_PROTOCOL, "JSON comes in text frames"))

    def due(self, now: float) -> float:
        return inf if self._client is None else self._client.wake(now)

    def replied(self) -> None:
        if self._client is not None:
            self._client.outlet_goes_on()

    def ended_behind(self, topic: str) -> None:
        if self._client is not None:
            code = UnsubscribeCode.INSUFFICIENT_STATE
            self._client.unsubscribed(topic, code, code.text)

    def label(self) -> str:
        return "-" if self._client is None else self._client.id

    def lost(self, code: int) -> None:
        # clients can send any code; a series for each would let them grow the metrics
        self.edge.metrics.closes.labels(str(code) if code in _KNOWN_CODES else "other").inc()
        client, self._client = self._client, None
        if client is not None:
            client.lost()


def _asks_for_protobuf(request: Request) -> bool:
    if not request.query:
        return False
    query = parse_qs(request.query.decode("latin-1"))
    return "protobuf" in query.get("format", []) + query.get("cf_protocol", [])
