"""The opening handshake of RFC 6455, section 4.2, without any I/O: a request's head in, an answer out."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from hashlib import sha1
from http import HTTPStatus
from urllib.parse import urlsplit

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, as ASGI has them."""


@dataclass(frozen=True, slots=True)
class Request:
    """The head of an upgrade request."""

    method: str
    http_version: str
    target: bytes
    """Path and query as they came."""
    headers: Headers

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no WebSocket, as the HTTP answer says it."""

    status: HTTPStatus
    detail: str
    headers: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    """What it is counted as; by its status without one."""

    @property
    def result(self) -> str:
        """What it is counted as in the metrics."""
        return self.reason or f"http_{self.status.value}"

    def encode(self) -> bytes:
        """The whole answer, an RFC 9457 problem; the connection ends with it."""
        return http_answer(self.status, self.detail, self.headers)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A handshake that succeeded."""

    response: bytes
    subprotocol: str | None


def http_answer(status: HTTPStatus, detail: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """An error as `application/problem+json` (RFC 9457), after which the connection is closed."""
    body = problem_body(status, detail)
    # what a client is told to upgrade to concerns this connection only (RFC 9110, section 7.8)
    upgrade = ", Upgrade" if any(name == "Upgrade" for name, _ in headers) else ""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        f"Connection: close{upgrade}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def problem_body(status: HTTPStatus, detail: str) -> bytes:
    return json.dumps(
        {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    ).encode()


def open_websocket(request: Request, *, origins: Origins, subprotocols: Sequence[str]) -> Accepted | Refusal:
    """Judge an opening handshake.

    Args:
        request: its head.
        origins: which pages may connect.
        subprotocols: those that can be spoken, by preference of the client's order.
    """
    found: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        found.setdefault(name, []).append(value)
    refusal = _head_problem(request, found)
    if refusal is not None:
        return refusal
    versions = found.get(b"sec-websocket-version", [])
    if versions != [b"13"]:
        return Refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            "Sec-WebSocket-Version: only 13 is spoken here",
            (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
        )
    key = found.get(b"sec-websocket-key", [])
    if len(key) != 1 or not _is_key(key[0]):
        return Refusal(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key: must be there once, 16 bytes in base64")
    if not origins.allow(found.get(b"origin", []), found[b"host"][0]):
        return Refusal(HTTPStatus.FORBIDDEN, "Origin: not allowed to connect here")
    chosen = _choose(found.get(b"sec-websocket-protocol", []), subprotocols)
    accept = b64encode(sha1(key[0] + _GUID, usedforsecurity=False).digest())
    protocol = b"" if chosen is None else b"\r\nSec-WebSocket-Protocol: " + chosen.encode()
    return Accepted(_ACCEPTED + accept + protocol + b"\r\n\r\n", chosen)


def _head_problem(request: Request, found: dict[bytes, list[bytes]]) -> Refusal | None:
    if request.method != "GET":
        detail = f"a WebSocket is opened with GET, not {request.method}"
        return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, detail, (("Allow", "GET"),))
    if request.http_version != "1.1":
        return Refusal(HTTPStatus.BAD_REQUEST, "a WebSocket needs HTTP/1.1")
    if len(found.get(b"host", [])) != 1:
        return Refusal(HTTPStatus.BAD_REQUEST, "Host: must be there once")
    if found.get(b"content-length", [b"0"]) != [b"0"] or b"transfer-encoding" in found:
        return Refusal(HTTPStatus.BAD_REQUEST, "a handshake has no body")
    return None


def _is_key(value: bytes) -> bool:
    try:
        return len(b64decode(value, validate=True)) == 16
    except Base64Error:
        return False


def _choose(offered: Sequence[bytes], spoken: Sequence[str]) -> str | None:
    """The first that the client offers and we speak. An empty header (the Python SDK sends one) offers nothing."""
    for value in offered:
        for name in value.decode("latin-1").split(","):
            if name.strip() in spoken:
                return name.strip()
    return None


class Origins:
    """Which pages may open a connection: the defence against cross-site WebSocket hijacking (RFC 6455, section 10.2).

    Args:
        allowed: origins (`https://app.example.com`), with `*` for one label in front of the host or for a port
            (`https://*.example.com`, `http://localhost:*`), or `*` alone for every page. Without any, a page may
            connect only to the host that it comes from; with some that says nothing, for whoever rebinds a name of
            theirs to our address (DNS rebinding) has a page from the host that is asked.
    """

    __slots__ = ("_all", "_exact", "_own_host", "_patterns")

    def __init__(self, allowed: Sequence[str]) -> None:
        self._all = "*" in allowed
        self._own_host = not allowed
        lowered = [origin.lower().rstrip("/") for origin in allowed]
        self._exact = frozenset(origin for origin in lowered if "*" not in origin)
        self._patterns = tuple(_split(origin) for origin in lowered if "*" in origin and origin != "*")

    def allow(self, sent: Sequence[bytes], host: bytes) -> bool:
        """Whether a request with these Origin headers may connect. What is no browser sends none."""
        if not sent or self._all:
            return True
        if len(sent) > 1:
            return False
        origin = sent[0].decode("latin-1").lower()
        if origin in self._exact:
            return True
        if self._own_host:
            scheme, _, rest = origin.partition("://")
            return scheme in ("http", "https") and rest == host.decode("latin-1").lower()
        return any(_fits(_split(origin), pattern) for pattern in self._patterns)


def _split(origin: str) -> tuple[str, str, str]:
    """Scheme, host and port of an origin; the port may be `*`, and is empty where it is the scheme's own."""
    scheme, _, rest = origin.partition("://")
    try:
        parts = urlsplit(f"//{rest.removesuffix(':*')}")
        port = "*" if rest.endswith(":*") else str(parts.port or "")
    except ValueError:  # whoever sends this has made it up; it fits nothing
        return scheme, "", ""
    return scheme, parts.hostname or "", port


def _fits(origin: tuple[str, str, str], pattern: tuple[str, str, str]) -> bool:
    scheme, host, port = origin
    want_scheme, want_host, want_port = pattern
    if scheme != want_scheme or want_port not in ("*", port):
        return False
    if want_host.startswith("*."):
        label, _, domain = host.partition(".")
        return label != "" and domain == want_host[2:]
    return host == want_host
