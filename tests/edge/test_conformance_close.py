"""The cases 7 of the Autobahn test suite: the closing handshake."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.core.frames import CLOSE, PONG, TEXT
from tests.edge.raw import CONTINUATION, FIN, RawClient, client_frame, close, ping, text


@pytest.fixture
def client(echo_port: int) -> Iterator[RawClient]:
    with RawClient(echo_port) as client:
        yield client.open()


def assert_closed(client: RawClient, code: bytes) -> None:
    """A close frame with this code, and behind it the end of TCP."""
    assert client.read_frame() == (FIN | CLOSE, code)
    assert client.read_end() == b""


def test_a_message_before_the_close_is_answered(client: RawClient) -> None:
    client.send(text("Hello"))
    assert client.read_frame() == (FIN | TEXT, b"Hello")
    client.send(close())
    assert_closed(client, b"\x03\xe8")


def test_a_second_close_is_passed_over(client: RawClient) -> None:
    client.send(close() + close())
    assert_closed(client, b"\x03\xe8")


def test_what_comes_behind_a_close_is_passed_over(client: RawClient) -> None:
    client.send(close() + ping(b"ping") + text("more") + b"\xff\xff\xff")
    assert_closed(client, b"\x03\xe8")


def test_a_close_inside_a_fragmented_message_is_echoed(client: RawClient) -> None:
    client.send(client_frame(TEXT, b"fragment1") + close() + client_frame(FIN | CONTINUATION, b"fragment2"))
    assert_closed(client, b"\x03\xe8")


def test_a_large_message_before_the_close_comes_back_whole(client: RawClient) -> None:
    client.send(text(b"BAsd7&jh23" * 26_214) + ping(b"between") + close())
    assert client.read_frame() == (FIN | TEXT, b"BAsd7&jh23" * 26_214)
    assert client.read_frame() == (FIN | PONG, b"between")
    assert_closed(client, b"\x03\xe8")


def test_a_close_without_a_code_is_echoed_without(client: RawClient) -> None:
    client.send(close(None))
    assert_closed(client, b"")


def test_half_a_code_is_a_fault(client: RawClient) -> None:
    client.send(client_frame(FIN | CLOSE, b"a"))
    assert client.read_closing() == ([], 1002)


@pytest.mark.parametrize("reason", [b"", b"Hello World!", b"*" * 123, "κόσμε".encode()])
def test_a_reason_is_taken(client: RawClient, reason: bytes) -> None:
    client.send(close(1000, reason))
    assert_closed(client, b"\x03\xe8")


def test_a_reason_beyond_123_bytes_is_a_fault(client: RawClient) -> None:
    client.send(close(1000, b"*" * 124))
    assert client.read_closing() == ([], 1002)


def test_a_fragmented_close_is_a_fault(client: RawClient) -> None:
    client.send(client_frame(CLOSE, b"\x03\xe8"))
    assert client.read_closing() == ([], 1002)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
def test_a_valid_code_is_echoed(client: RawClient, code: int) -> None:
    client.send(close(code))
    assert_closed(client, code.to_bytes(2))


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_an_invalid_code_is_a_fault(client: RawClient, code: int) -> None:
    client.send(close(code))
    assert client.read_closing() == ([], 1002)


def test_a_close_octet_by_octet_is_echoed(client: RawClient) -> None:
    client.send_octets(close(1001, b"going"))
    assert_closed(client, b"\x03\xe9")


def test_a_client_that_just_goes_disturbs_nobody(echo_port: int, client: RawClient) -> None:
    with RawClient(echo_port) as other:
        other.open()
        other.send(text("half a frame")[:7])
    client.send(text("still here"))
    assert client.read_frame() == (FIN | TEXT, b"still here")
