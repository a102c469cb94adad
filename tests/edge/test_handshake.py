from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import pytest

from broker.edge.handshake import Accepted, Origins, Refusal, Request, open_websocket

GOOD = {
    b"host": b"example.com:8000",
    b"upgrade": b"websocket",
    b"connection": b"Upgrade",
    b"sec-websocket-version": b"13",
    b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
}
SPOKEN = ("json", "protobuf")


def shake(
    *more: tuple[bytes, bytes],
    leave_out: bytes = b"",
    method: str = "GET",
    version: str = "1.1",
    origins: tuple[str, ...] = (),
) -> Accepted | Refusal:
    names = {name for name, _ in more}
    kept = [(name, value) for name, value in GOOD.items() if name != leave_out and name not in names]
    request = Request(method, version, b"/ws?x=1", [*kept, *more])
    return open_websocket(request, origins=Origins(origins), subprotocols=SPOKEN)


def refused(outcome: Accepted | Refusal, status: HTTPStatus, detail: str) -> Refusal:
    assert isinstance(outcome, Refusal)
    assert outcome.status is status
    assert detail in outcome.detail
    return outcome


def test_the_example_of_rfc_6455_is_accepted() -> None:
    outcome = shake()
    assert isinstance(outcome, Accepted)
    assert outcome.response == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    assert outcome.subprotocol is None


def test_a_request_knows_its_path_and_query() -> None:
    request = Request("GET", "1.1", b"/a/b?c=d?e", [])
    assert (request.path, request.query) == (b"/a/b", b"c=d?e")
    assert (Request("GET", "1.1", b"/a", []).path, Request("GET", "1.1", b"/a", []).query) == (b"/a", b"")


@pytest.mark.parametrize("method", ["POST", "HEAD", "CONNECT"])
def test_other_methods_are_refused(method: str) -> None:
    assert refused(shake(method=method), HTTPStatus.METHOD_NOT_ALLOWED, method).headers == (("Allow", "GET"),)


@pytest.mark.parametrize("version", ["1.0", "2", ""])
def test_other_versions_of_http_are_refused(version: str) -> None:
    refused(shake(version=version), HTTPStatus.BAD_REQUEST, "HTTP/1.1")


@pytest.mark.parametrize("versions", [[], [b"8"], [b"14"], [b"13, 8"], [b"13", b"13"], [b""], [b"013"]])
def test_other_versions_of_the_protocol_are_told_which_is_spoken(versions: list[bytes]) -> None:
    outcome = shake(*((b"sec-websocket-version", one) for one in versions), leave_out=b"sec-websocket-version")
    refusal = refused(outcome, HTTPStatus.UPGRADE_REQUIRED, "Sec-WebSocket-Version")
    assert ("Sec-WebSocket-Version", "13") in refusal.headers
    head = refusal.encode().partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert {b"Upgrade: websocket", b"Connection: close, Upgrade"} <= set(head)


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [b""],
        [b"short"],
        [b"dGhlIHNhbXBsZSBub25jZQ"],
        [b"dGhlIHNhbXBsZSBub25jZSE="],
        [b"!!!!IHNhbXBsZSBub25jZQ=="],
        [GOOD[b"sec-websocket-key"]] * 2,
        [b"\xff" * 24],
    ],
)
def test_a_key_is_16_bytes_in_base64_and_there_once(keys: list[bytes]) -> None:
    outcome = shake(*((b"sec-websocket-key", one) for one in keys), leave_out=b"sec-websocket-key")
    refused(outcome, HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key")


@pytest.mark.parametrize("hosts", [[], [b"a", b"b"]])
def test_a_host_is_there_once(hosts: list[bytes]) -> None:
    outcome = shake(*((b"host", one) for one in hosts), leave_out=b"host")
    refused(outcome, HTTPStatus.BAD_REQUEST, "Host")


@pytest.mark.parametrize("body", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
def test_a_handshake_has_no_body(body: tuple[bytes, bytes]) -> None:
    refused(shake(body), HTTPStatus.BAD_REQUEST, "no body")
    assert isinstance(shake((b"content-length", b"0")), Accepted)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        ([b""], None),  # the Python SDK sends this
        ([b"json"], "json"),
        ([b"other, protobuf ,json"], "protobuf"),
        ([b"other", b"json"], "json"),
        ([b"JSON"], None),
        ([b"other"], None),
        ([b"\xff,json"], "json"),
    ],
)
def test_the_first_subprotocol_that_both_speak_is_chosen(offered: list[bytes], chosen: str | None) -> None:
    outcome = shake(*((b"sec-websocket-protocol", value) for value in offered))
    assert isinstance(outcome, Accepted)
    assert outcome.subprotocol == chosen
    assert (b"Sec-WebSocket-Protocol: " in outcome.response) is (chosen is not None)


def test_a_refusal_is_a_whole_answer() -> None:
    answer = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, 'full, "really"', (("Retry-After", "1"),)).encode()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, date, *others = head.split(b"\r\n")
    assert status == b"HTTP/1.1 503 Service Unavailable"
    name, _, value = date.decode().partition(": ")
    assert name == "Date"
    assert value.endswith(" GMT")
    assert abs((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()) < 5
    assert others == [
        b"Content-Type: application/problem+json",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        b"Retry-After: 1",
    ]
    assert json.loads(body)["detail"] == 'full, "really"'


def test_a_page_elsewhere_is_refused() -> None:
    refused(shake((b"origin", b"https://evil.example")), HTTPStatus.FORBIDDEN, "Origin")


@pytest.mark.parametrize(
    ("allowed", "origin", "verdict"),
    [
        ((), b"http://example.com:8000", True),  # the page's own host
        ((), b"https://EXAMPLE.com:8000", True),
        ((), b"http://example.com", False),
        ((), b"http://example.com:8001", False),
        ((), b"ftp://example.com:8000", False),
        ((), b"null", False),
        ((), b"", False),
        (("*",), b"null", True),
        (("*",), b"anything at all", True),
        (("https://app.example.org",), b"https://app.example.org", True),
        (("https://app.example.org/",), b"HTTPS://App.Example.Org", True),
        (("HTTPS://APP.example.org",), b"https://app.example.org", True),
        (("https://app.example.org",), b"http://app.example.org", False),
        (("https://app.example.org",), b"http://example.com:8000", False),  # where its name leads here: DNS rebinding
        (("https://*.example.org",), b"https://example.com:8000", False),
        (("https://app.example.org",), b"https://app.example.org:444", False),
        (("https://app.example.org",), b"https://app.example.org.evil.example", False),
        (("https://*.example.org",), b"https://a.example.org", True),
        (("https://*.example.org",), b"https://example.org", False),
        (("https://*.example.org",), b"https://.example.org", False),
        (("https://*.example.org",), b"https://a.b.example.org", False),
        (("https://*.example.org",), b"https://evil-example.org", False),
        (("https://*.example.org",), b"https://a.example.org:8443", False),
        (("https://*.example.org",), b"http://a.example.org", False),
        (("https://*.example.org",), b"https://evil.example/a.example.org", False),
        (("https://*.example.org:8443",), b"https://a.example.org:8443", True),
        (("http://localhost:*",), b"http://localhost:3000", True),
        (("http://localhost:*",), b"http://localhost", True),
        (("http://localhost:*",), b"http://localhost.evil.example:3000", False),
        (("http://*.test:*",), b"http://a.test:1", True),
        (("https://*.example.org",), b"https://[::1", False),
        (("https://*.example.org",), b"https://[zz]", False),
        (("https://*.example.org",), b"https://a.example.org:port", False),
        (("https://*.example.org",), b"\xff\xfe", False),
        (("http://[::1]:*",), b"http://[::1]:3000", True),
    ],
)
def test_origins(allowed: tuple[str, ...], origin: bytes, verdict: bool) -> None:  # noqa: FBT001 - a table's column
    assert Origins(allowed).allow([origin], GOOD[b"host"]) is verdict


def test_what_is_no_browser_sends_no_origin_and_a_browser_sends_one() -> None:
    origins = Origins(["https://a.example"])
    assert origins.allow([], b"x")
    assert not origins.allow([b"https://a.example"] * 2, b"x")
