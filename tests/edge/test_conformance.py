"""The cases 1 to 5 of the Autobahn test suite, against the echo as a process: messages, pings, reserved bits and
opcodes, fragmentation. What is strict there is required here: all that came before a fault is answered, and the close
frame that answers the fault comes before TCP ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.core.frames import BINARY, PING, PONG, TEXT
from tests.edge.raw import CONTINUATION, FIN, RawClient, binary, client_frame, ping, pong, text

SIZES = [0, 1, 125, 126, 127, 128, 65_535, 65_536]


@pytest.fixture
def client(echo_port: int) -> Iterator[RawClient]:
    with RawClient(echo_port) as client:
        yield client.open()


@pytest.mark.parametrize("size", SIZES)
def test_text_comes_back(client: RawClient, size: int) -> None:
    client.send(text(b"*" * size))
    assert client.read_frame() == (FIN | TEXT, b"*" * size)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_come_back(client: RawClient, size: int) -> None:
    client.send(binary(b"\xfe" * size))
    assert client.read_frame() == (FIN | BINARY, b"\xfe" * size)


@pytest.mark.parametrize("pieces", [997, 8192])
@pytest.mark.parametrize(("first", "byte"), [(FIN | TEXT, b"*"), (FIN | BINARY, b"\xfe")])
def test_a_message_in_pieces_comes_back(client: RawClient, first: int, byte: bytes, pieces: int) -> None:
    client.send_octets(client_frame(first, byte * 65_536), pieces)
    assert client.read_frame() == (first, byte * 65_536)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 300])
def test_a_message_comes_octet_by_octet(client: RawClient, size: int) -> None:
    client.send_octets(text(b"*" * size) + binary(b"\xff" * size))
    assert client.read_frame() == (FIN | TEXT, b"*" * size)
    assert client.read_frame() == (FIN | BINARY, b"\xff" * size)


@pytest.mark.parametrize("payload", [b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125])
def test_a_ping_is_answered_with_its_payload(client: RawClient, payload: bytes) -> None:
    client.send(ping(payload))
    assert client.read_frame() == (FIN | PONG, payload)


def test_a_ping_octet_by_octet_is_answered(client: RawClient) -> None:
    client.send_octets(ping(b"\xfe" * 125))
    assert client.read_frame() == (FIN | PONG, b"\xfe" * 125)


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_a_control_frame_beyond_125_bytes_ends_the_connection(client: RawClient, opcode: int) -> None:
    client.send(client_frame(FIN | opcode, b"\xfe" * 126))
    assert client.read_closing() == ([], 1002)


@pytest.mark.parametrize("payload", [b"", b"unsolicited"])
def test_a_pong_nobody_asked_for_is_passed_over(client: RawClient, payload: bytes) -> None:
    client.send(pong(payload) + ping(b"then a ping"))
    assert client.read_frame() == (FIN | PONG, b"then a ping")


@pytest.mark.parametrize("octets", [1, 4096])
def test_ten_pings_are_answered_in_order(client: RawClient, octets: int) -> None:
    payloads = [b"payload %d" % number for number in range(10)]
    client.send_octets(b"".join(map(ping, payloads)), octets)
    assert [client.read_frame() for _ in payloads] == [(FIN | PONG, payload) for payload in payloads]


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG])
def test_reserved_bits_end_the_connection_once_what_came_before_is_answered(
    client: RawClient, opcode: int, bits: int
) -> None:
    client.send(text("before") + client_frame(FIN | bits << 4 | opcode, b"Hello") + ping(b"after"))
    assert client.read_closing() == ([(FIN | TEXT, b"before")], 1002)


@pytest.mark.parametrize("opcode", [*range(3, 8), *range(11, 16)])
@pytest.mark.parametrize("payload", [b"", b"reserved opcode"])
def test_reserved_opcodes_end_the_connection_once_what_came_before_is_answered(
    client: RawClient, opcode: int, payload: bytes
) -> None:
    client.send(text("before") + client_frame(FIN | opcode, payload) + ping(b"after"))
    assert client.read_closing() == ([(FIN | TEXT, b"before")], 1002)


@pytest.mark.parametrize("opcode", [3, 11])
def test_reserved_opcodes_are_told_octet_by_octet_too(client: RawClient, opcode: int) -> None:
    client.send_octets(text("before"))
    client.send(client_frame(FIN | opcode)[:1])
    client.send(client_frame(FIN | opcode)[1:2])
    assert client.read_closing() == ([(FIN | TEXT, b"before")], 1002)


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_a_fragmented_control_frame_ends_the_connection(client: RawClient, opcode: int) -> None:
    client.send(client_frame(opcode, b"fragment1") + client_frame(FIN | CONTINUATION, b"fragment2"))
    assert client.read_closing() == ([], 1002)


FIRST, SECOND = client_frame(TEXT, b"fragment1"), client_frame(FIN | CONTINUATION, b"fragment2")
JOINED = (FIN | TEXT, b"fragment1fragment2")


@pytest.mark.parametrize("octets", [1, 7, 4096])
def test_fragments_are_joined(client: RawClient, octets: int) -> None:
    client.send_octets(FIRST + SECOND, octets)
    assert client.read_frame() == JOINED


@pytest.mark.parametrize("octets", [1, 4096])
def test_a_ping_between_fragments_is_answered_first(client: RawClient, octets: int) -> None:
    client.send_octets(FIRST + ping(b"ping in between") + SECOND, octets)
    assert client.read_frame() == (FIN | PONG, b"ping in between")
    assert client.read_frame() == JOINED


@pytest.mark.parametrize("octets", [1, 4096])
def test_pings_between_all_of_five_fragments_are_answered_as_they_come(client: RawClient, octets: int) -> None:
    fragments = [client_frame(TEXT if number == 1 else CONTINUATION, b"fragment%d" % number) for number in range(1, 5)]
    stream = fragments[0] + fragments[1] + ping(b"one") + fragments[2] + fragments[3] + ping(b"two")
    client.send_octets(stream, octets)
    # answered although the message is not whole
    assert client.read_frame() == (FIN | PONG, b"one")
    assert client.read_frame() == (FIN | PONG, b"two")
    client.send(client_frame(FIN | CONTINUATION, b"fragment5"))
    assert client.read_frame() == (FIN | TEXT, b"fragment1fragment2fragment3fragment4fragment5")


@pytest.mark.parametrize("first", [CONTINUATION, FIN | CONTINUATION])
@pytest.mark.parametrize("octets", [1, 4096])
def test_a_continuation_of_nothing_ends_the_connection(client: RawClient, first: int, octets: int) -> None:
    stream = client_frame(first, b"non-continuation payload") + text("Hello, world!")
    if octets == 1:
        stream = stream[:2]  # the verdict comes with the header, and nothing more may be in the way of its answer
    client.send_octets(stream, octets)
    assert client.read_closing() == ([], 1002)


def test_a_continuation_behind_a_whole_message_ends_the_connection(client: RawClient) -> None:
    client.send(FIRST + SECOND + client_frame(FIN | CONTINUATION, b"fragment3"))
    assert client.read_closing() == ([JOINED], 1002)


def test_a_message_inside_a_message_ends_the_connection(client: RawClient) -> None:
    client.send(FIRST + text("fragment2"))
    assert client.read_closing() == ([], 1002)


def test_repeated_continuations_of_nothing_end_the_connection(client: RawClient) -> None:
    client.send(text("before") + (client_frame(CONTINUATION, b"one") + client_frame(FIN | CONTINUATION, b"two")) * 2)
    assert client.read_closing() == ([(FIN | TEXT, b"before")], 1002)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_empty_fragments_count(client: RawClient, empty: int) -> None:
    payloads = [b"middle" if number == empty else b"" for number in range(3)]
    client.send(
        client_frame(TEXT, payloads[0])
        + client_frame(CONTINUATION, payloads[1])
        + client_frame(FIN | CONTINUATION, payloads[2])
    )
    assert client.read_frame() == (FIN | TEXT, b"middle")


def test_an_unmasked_frame_ends_the_connection(client: RawClient) -> None:
    client.send(b"\x81\x05Hello")
    assert client.read_closing() == ([], 1002)


@pytest.mark.parametrize("header", ["81fe 007d", "81ff 000000000000ffff", "81ff 8000000000010000"])
def test_a_length_that_is_not_minimal_or_out_of_range_ends_the_connection(client: RawClient, header: str) -> None:
    client.send(bytes.fromhex(header) + bytes(4))
    assert client.read_closing() == ([], 1002)
