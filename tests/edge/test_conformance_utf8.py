"""The cases 6 of the Autobahn test suite: text is UTF-8, judged as it arrives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.core.frames import TEXT
from tests.edge.raw import CONTINUATION, FIN, RawClient, client_frame, text

GREEK = "Hello-µ@ßöäüàá-UTF-8!!".encode()
KOSME = "κόσμε".encode()

VALID = {
    "greek": GREEK,
    "kosme": KOSME,
    "one byte": b"\x00",
    "first of two bytes": b"\xc2\x80",
    "first of three bytes": b"\xe0\xa0\x80",
    "first of four bytes": b"\xf0\x90\x80\x80",
    "last of one byte": b"\x7f",
    "last of two bytes": b"\xdf\xbf",
    "last of three bytes": b"\xef\xbf\xbf",
    "last of all": b"\xf4\x8f\xbf\xbf",
    "below the surrogates": b"\xed\x9f\xbf",
    "above the surrogates": b"\xee\x80\x80",
    "replacement character": b"\xef\xbf\xbd",
    "non-characters": b"\xef\xbf\xbe\xf0\x9f\xbf\xbe\xf0\x9f\xbf\xbf\xf3\xbf\xbf\xbe",
}
INVALID = {
    "a surrogate in the middle": KOSME + b"\xed\xa0\x80" + b"edited",
    "first of five bytes": b"\xf8\x88\x80\x80\x80",
    "first of six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "beyond the last": b"\xf4\x90\x80\x80",
    "a continuation": b"\x80",
    "many continuations": b"\x80\xbf" * 3,
    "a first byte alone": b"\xc3",
    "a first byte and a space": b"\xc0\x20",
    "three bytes' first and a space": b"\xe0\x20",
    "cut short": b"\xe0\xa0",
    "cut short of four": b"\xf0\x90\x80",
    "fe": b"\xfe",
    "ff": b"\xff",
    "overlong slash of two": b"\xc0\xaf",
    "overlong slash of three": b"\xe0\x80\xaf",
    "overlong slash of four": b"\xf0\x80\x80\xaf",
    "overlong zero": b"\xc0\x80",
    "overlong boundary": b"\xe0\x9f\xbf",
    "high surrogate": b"\xed\xa0\x80",
    "low surrogate": b"\xed\xbf\xbf",
    "surrogate pair": b"\xed\xa0\x80\xed\xb0\x80",
}


@pytest.fixture
def client(echo_port: int) -> Iterator[RawClient]:
    with RawClient(echo_port) as client:
        yield client.open()


@pytest.mark.parametrize("payload", VALID.values(), ids=VALID.keys())
def test_valid_text_comes_back_whole_and_in_fragments_of_one_octet(client: RawClient, payload: bytes) -> None:
    client.send(text(payload))
    assert client.read_frame() == (FIN | TEXT, payload)
    fragments = [client_frame(CONTINUATION if at else TEXT, payload[at : at + 1]) for at in range(len(payload))]
    client.send(b"".join(fragments) + client_frame(FIN | CONTINUATION))
    assert client.read_frame() == (FIN | TEXT, payload)


@pytest.mark.parametrize("payload", VALID.values(), ids=VALID.keys())
def test_valid_text_comes_back_octet_by_octet(client: RawClient, payload: bytes) -> None:
    client.send_octets(text(payload))
    assert client.read_frame() == (FIN | TEXT, payload)


@pytest.mark.parametrize("payload", INVALID.values(), ids=INVALID.keys())
def test_invalid_text_ends_the_connection_once_what_came_before_is_answered(client: RawClient, payload: bytes) -> None:
    client.send(text("before") + text(payload))
    assert client.read_closing() == ([(FIN | TEXT, b"before")], 1007)


@pytest.mark.parametrize("payload", INVALID.values(), ids=INVALID.keys())
def test_invalid_text_in_fragments_ends_the_connection(client: RawClient, payload: bytes) -> None:
    fragments = [client_frame(CONTINUATION if at else TEXT, payload[at : at + 1]) for at in range(len(payload))]
    client.send(b"".join(fragments) + client_frame(FIN | CONTINUATION))
    assert client.read_closing() == ([], 1007)


@pytest.mark.parametrize("bad", [b"\xf4\x90", b"\xed\xa0", b"\xc0", b"\xff"])
def test_a_bad_octet_is_found_before_its_message_is_whole(client: RawClient, bad: bytes) -> None:
    client.send(client_frame(TEXT, KOSME))
    client.send(client_frame(CONTINUATION, bad))
    # neither the rest of the message nor another octet has been sent
    assert client.read_closing() == ([], 1007)


def test_a_bad_octet_is_found_before_its_frame_is_whole(client: RawClient) -> None:
    whole = text(KOSME + b"\xf4\x90" + b"what would come behind it" * 20)
    client.send(whole[: 8 + len(KOSME) + 2])
    assert client.read_closing() == ([], 1007)


def test_a_bad_close_reason_is_answered_as_bad_text(client: RawClient) -> None:
    client.send(client_frame(FIN | 8, (1000).to_bytes(2) + b"\xce\xba\xed\xa0\x80"))
    assert client.read_closing() == ([], 1007)


def test_bytes_need_not_be_text(client: RawClient) -> None:
    client.send(client_frame(FIN | 2, b"\xff\xfe\xed\xa0\x80"))
    assert client.read_frame() == (FIN | 2, b"\xff\xfe\xed\xa0\x80")
