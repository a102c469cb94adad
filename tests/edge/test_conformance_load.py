"""The cases 9 and 10 of the Autobahn test suite: large messages, many messages, and messages in many pieces."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from broker.core.frames import BINARY, CLOSE, PONG, TEXT
from broker.edge.websocket import PINGS_ANSWERED
from tests.echo import MESSAGE_BYTES
from tests.edge.raw import CONTINUATION, FIN, RawClient, client_frame, ping, text


@pytest.fixture
def client(echo_port: int) -> Iterator[RawClient]:
    with RawClient(echo_port) as client:
        yield client.open()


def send_all(client: RawClient, data: bytes) -> threading.Thread:
    """Send while the test reads: an echo that is not read ends in neither side getting on."""
    thread = threading.Thread(target=client.send, args=(data,))
    thread.start()
    return thread


def fragmented(opcode: int, payload: bytes, size: int) -> bytes:
    starts = range(0, len(payload), size)
    frames = [client_frame(CONTINUATION if at else opcode, payload[at : at + size]) for at in starts]
    return b"".join(frames) + client_frame(FIN | CONTINUATION)


@pytest.mark.parametrize("size", [65_536, 262_144, MESSAGE_BYTES])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_large_message_comes_back(client: RawClient, opcode: int, size: int) -> None:
    sending = send_all(client, client_frame(FIN | opcode, b"BAsd7&jh" * (size // 8)))
    assert client.read_frame() == (FIN | opcode, b"BAsd7&jh" * (size // 8))
    sending.join()


@pytest.mark.parametrize("size", [64, 256, 1024, 4096, 16_384, 65_536, 262_144])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_large_message_in_fragments_comes_back(client: RawClient, opcode: int, size: int) -> None:
    sending = send_all(client, fragmented(opcode, b"BAsd7&jh" * (MESSAGE_BYTES // 8), size))
    assert client.read_frame() == (FIN | opcode, b"BAsd7&jh" * (MESSAGE_BYTES // 8))
    sending.join()


@pytest.mark.parametrize("octets", [64, 1024, 65_536])
def test_a_large_message_in_small_segments_comes_back(client: RawClient, octets: int) -> None:
    sending = threading.Thread(target=client.send_octets, args=(text(b"*" * MESSAGE_BYTES), octets))
    sending.start()
    assert client.read_frame() == (FIN | TEXT, b"*" * MESSAGE_BYTES)
    sending.join()


def test_large_text_of_many_bytes_a_character_comes_back(client: RawClient) -> None:
    payload = ("κόσμε\U0001f600" * 70_000).encode()[: MESSAGE_BYTES // 15 * 15]
    payload = payload.decode(errors="ignore").encode()
    sending = send_all(client, fragmented(TEXT, payload, 997))
    assert client.read_frame() == (FIN | TEXT, payload)
    sending.join()


def test_one_byte_more_than_the_limit_is_refused_from_its_header(client: RawClient) -> None:
    client.send(client_frame(FIN | BINARY, bytes(MESSAGE_BYTES + 1))[:14])
    assert client.read_closing() == ([], 1009)


def test_fragments_are_added_up(client: RawClient) -> None:
    first = client_frame(BINARY, bytes(MESSAGE_BYTES))
    client.send(first + client_frame(FIN | CONTINUATION, b"!")[:6])
    assert client.read_closing() == ([], 1009)


@pytest.mark.parametrize("size", [0, 16, 1024, 16_384])
def test_a_thousand_messages_come_back_in_order(client: RawClient, size: int) -> None:
    payloads = [b"%04d" % number + b"*" * size for number in range(1000)]
    sending = send_all(client, b"".join(map(text, payloads)))
    assert [client.read_frame() for _ in payloads] == [(FIN | TEXT, payload) for payload in payloads]
    sending.join()


def test_many_large_messages_wait_for_a_reader_that_comes_late(client: RawClient) -> None:
    payload = b"*" * MESSAGE_BYTES
    sending = send_all(client, text(payload) * 40 + ping(b"the end"))
    # the server stops reading when its output is full, so that the sender is stuck until somebody reads
    sending.join(0.3)
    assert sending.is_alive()
    for _ in range(40):
        assert client.read_frame() == (FIN | TEXT, payload)
    assert client.read_frame() == (FIN | PONG, b"the end")
    sending.join()


def test_of_a_hundred_thousand_pings_some_of_each_read_are_answered_in_order_and_the_last_one_is(
    client: RawClient,
) -> None:
    flood = b"".join(ping(b"%05d" % number) for number in range(100_000))
    sending = send_all(client, flood + client_frame(FIN | CLOSE))
    *pongs, end = client.read_end().split(bytes([FIN | PONG, 5]))
    sending.join()
    assert end == b"99999" + bytes([FIN | CLOSE, 0])
    answered = [int(number) for number in pongs[1:]]
    assert answered == sorted(set(answered))
    assert answered[:PINGS_ANSWERED] == list(range(PINGS_ANSWERED))
    assert len(answered) < 50_000  # a read brings some thousands


def test_endless_empty_fragments_are_cheap(client: RawClient) -> None:
    client.send(client_frame(TEXT, b"Hello") + client_frame(CONTINUATION) * 200_000)
    client.send(client_frame(FIN | CONTINUATION, b"!"))
    assert client.read_frame() == (FIN | TEXT, b"Hello!")
