from __future__ import annotations

import runpy
import sys
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from broker.core import frames
from broker.core.frames import (
    BINARY,
    CLOSE,
    FAILURE,
    PING,
    PONG,
    TEXT,
    FrameReader,
    close_body,
    close_code,
    close_frame,
    frame,
    text_frame,
)
from tests.core.masked import KEY, LIMIT, header, masked, read, read_bytewise, read_pieces, verdicts

HELLO = (TEXT, b"Hello")
BORDER_LENGTHS = [0, 1, 3, 4, 5, 124, 125, 126, 127, 128, 131, 132, 133, 65535, 65536, 65537]


def test_the_masked_examples_of_rfc_6455_section_5_7_are_read() -> None:
    assert read(bytes.fromhex("818537fa213d7f9f4d5158")) == [HELLO]
    assert read(bytes.fromhex("8a8537fa213d7f9f4d5158")) == [(PONG, b"Hello")]
    assert read(masked(0x01, b"Hel") + masked(0x80, b"lo")) == [HELLO]


def test_the_unmasked_examples_of_rfc_6455_section_5_7_are_built() -> None:
    assert text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert frame(PING, b"Hello") == bytes.fromhex("890548656c6c6f")
    assert frame(BINARY, bytes(256)) == bytes.fromhex("827e0100") + bytes(256)
    assert frame(BINARY, bytes(65536)) == bytes.fromhex("827f0000000000010000") + bytes(65536)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", BORDER_LENGTHS)
def test_a_message_of_any_length_is_read_whole_and_in_pieces(opcode: int, length: int) -> None:
    payload = bytes(i % 128 for i in range(length))
    stream = masked(0x80 | opcode, payload)
    assert read(stream, 70_000) == [(opcode, payload)]
    assert read_bytewise(stream, 70_000) == [(opcode, payload)]


@pytest.mark.parametrize("length", [0, 60, 125, 126, 300])
def test_a_message_is_read_wherever_it_is_cut(length: int) -> None:
    stream = masked(0x81, b"x" * length)
    for cut in range(len(stream)):
        assert read_pieces([stream[:cut], stream[cut:]]) == [(TEXT, b"x" * length)]


def test_frames_in_one_segment_are_read_in_order() -> None:
    stream = masked(0x81, b"a") + masked(0x89, b"b") + masked(0x82, b"\xff") + masked(0x8A) + masked(0x81)
    assert read(stream) == [(TEXT, b"a"), (PING, b"b"), (BINARY, b"\xff"), (PONG, b""), (TEXT, b"")]


def test_control_frames_come_between_fragments() -> None:
    stream = masked(0x01, b"Hel") + masked(0x89, b"?") + masked(0x00) + masked(0x8A, b"!") + masked(0x80, b"lo")
    assert read(stream) == [(PING, b"?"), (PONG, b"!"), HELLO]


def test_a_reader_is_ready_for_the_next_message_after_a_fragmented_one() -> None:
    fragmented = masked(0x01, b"Hel") + masked(0x80, b"lo")
    assert read(fragmented + masked(0x81, b"x") + fragmented + masked(0x82, b"y")) == [
        HELLO,
        (TEXT, b"x"),
        HELLO,
        (BINARY, b"y"),
    ]


@pytest.mark.parametrize("first", sorted(set(range(256)) - {0x01, 0x02, 0x81, 0x82, 0x88, 0x89, 0x8A}))
def test_a_first_byte_that_begins_nothing_is_a_protocol_error(first: int) -> None:
    assert verdicts(read(bytes([first, 0x80]))) == [1002]


@pytest.mark.parametrize("first", sorted(set(range(256)) - {0x00, 0x80, 0x88, 0x89, 0x8A}))
def test_a_first_byte_that_does_not_go_on_with_the_message_is_a_protocol_error(first: int) -> None:
    assert verdicts(read(masked(0x01, b"Hel") + bytes([first, 0x80]))) == [1002]


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (masked(0xC1, b"Hello"), b"reserved bits set"),
        (masked(0x91, b"Hello"), b"reserved bits set"),
        (masked(0xA9), b"reserved bits set"),
        (masked(0x83), b"reserved opcode"),
        (masked(0x8B), b"reserved opcode"),
        (masked(0x09, b"x"), b"fragmented control frame"),
        (masked(0x89, bytes(126)), b"control frame longer than 125 bytes"),
        (masked(0x88, bytes(65536)), b"control frame longer than 125 bytes"),
        (masked(0x80, b"x"), b"continuation without a message"),
        (masked(0x00, b"x"), b"continuation without a message"),
        (masked(0x01) + masked(0x81, b"x"), b"new message inside a fragmented one"),
        (masked(0x02) + masked(0x01, b"x"), b"new message inside a fragmented one"),
        (text_frame(b"Hello"), b"frame not masked"),
        (frame(PING, b""), b"frame not masked"),
        (b"\x81\xfe\x00\x7d" + KEY + bytes(125), b"length not in its shortest form"),
        (b"\x81\xff" + (65535).to_bytes(8) + KEY + bytes(65535), b"length not in its shortest form"),
        (b"\x81\xff" + (1 << 63).to_bytes(8) + KEY, b"length beyond 63 bits"),
        (masked(0x88, b"\x03"), b"close frame with half a code"),
    ],
)
def test_a_protocol_error_is_answered_with_1002_and_its_reason(stream: bytes, reason: bytes) -> None:
    expected = [(FAILURE, (1002).to_bytes(2) + reason)]
    assert read(stream, 100_000) == expected
    assert read_bytewise(stream, 100_000) == expected


@pytest.mark.parametrize("length", [0, 1, 125])
def test_a_control_frame_may_have_up_to_125_bytes_whatever_the_limit_for_messages(length: int) -> None:
    assert read(masked(0x89, bytes(length)), 0) == [(PING, bytes(length))]
    assert read_bytewise(masked(0x8A, bytes(length)), 0) == [(PONG, bytes(length))]


def test_what_came_before_a_bad_frame_in_the_same_segment_is_reported_first() -> None:
    assert verdicts(read(masked(0x81, b"Hello") + masked(0x89, b"x") + masked(0x83))) == [HELLO, (PING, b"x"), 1002]


@pytest.mark.parametrize(
    "ending", [masked(0x88), masked(0x83), masked(0x81, b"\xff"), masked(0x01, b"\xff"), header(0x82, LIMIT + 1)]
)
def test_nothing_is_read_after_the_end(ending: bytes) -> None:
    reader = FrameReader(LIMIT)
    assert len(reader.feed(ending + masked(0x81, b"in the same segment"))) == 1
    assert reader.feed(masked(0x81, b"in the next one")) == ()
    assert reader.feed(masked(0x82) * 2) == ()


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_a_close_with_a_code_for_the_wire_is_reported_with_its_reason(code: int) -> None:
    body = code.to_bytes(2) + "ciao, dóme".encode()
    assert read(masked(0x88, body)) == [(CLOSE, body)]
    assert read_bytewise(masked(0x88, body[:2])) == [(CLOSE, body[:2])]


def test_a_close_may_be_empty() -> None:
    assert read(masked(0x88)) == [(CLOSE, b"")]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_with_any_other_code_is_a_protocol_error(code: int) -> None:
    assert verdicts(read(masked(0x88, code.to_bytes(2)))) == [1002]


def test_a_close_with_a_reason_that_is_not_utf_8_is_invalid_data() -> None:
    assert verdicts(read(masked(0x88, b"\x03\xe8\xff"))) == [1007]


def test_a_close_inside_a_fragmented_message_is_legal() -> None:
    assert read(masked(0x01, b"Hel") + masked(0x88, b"\x03\xe8") + masked(0x80, b"lo")) == [(CLOSE, b"\x03\xe8")]


@pytest.mark.parametrize("first", [0x81, 0x82])
@pytest.mark.parametrize("limit", [0, 1, 60, 125, 126, 1000, 65535, 65536])
def test_the_limit_is_inclusive(first: int, limit: int) -> None:
    assert read(masked(first, bytes(limit)), limit) == [(first & 15, bytes(limit))]
    assert verdicts(read(masked(first, bytes(limit + 1)), limit)) == [1009]


def test_the_limit_adds_fragments_up() -> None:
    start = masked(0x02, b"12345") + masked(0x00) + masked(0x89, b"no part of it")
    assert read(start + masked(0x80, b"67890"), 10)[1:] == [(BINARY, b"1234567890")]
    assert verdicts(read(start + masked(0x80, b"67890!"), 10))[1:] == [1009]


def test_a_message_has_the_whole_limit_after_another_one() -> None:
    message = masked(0x02, b"12345") + masked(0x80, b"67890")
    assert read(message + message, 10) == [(BINARY, b"1234567890")] * 2


@pytest.mark.parametrize("length", [1001, 65536, (1 << 63) - 1])
def test_too_big_is_told_from_the_length_before_even_the_key_has_come(length: int) -> None:
    assert verdicts(read(header(0x81, length)[:-4])) == [1009]


def test_a_violation_in_the_first_two_bytes_is_told_before_the_length_has_come() -> None:
    assert verdicts(read(b"\x81\x7e")) == [1002]
    assert verdicts(read(b"\x89\xfe")) == [1002]


@pytest.mark.parametrize("text", ["κόσμε", "\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"])
def test_text_beyond_ascii_is_read_wherever_it_is_cut(text: str) -> None:
    payload = text.encode()
    assert read(masked(0x81, payload)) == [(TEXT, payload)]
    assert read_bytewise(masked(0x81, payload)) == [(TEXT, payload)]
    for cut in range(len(payload)):
        stream = masked(0x01, payload[:cut]) + masked(0x00) + masked(0x80, payload[cut:])
        assert read(stream) == [(TEXT, payload)]
        assert read_bytewise(stream) == [(TEXT, payload)]


# The first two are Autobahn's 6.4; the others are RFC 3629's overlong forms, surrogates and bytes that are never used.
BAD_TEXTS = [
    ("κόσμε".encode() + b"\xf4", b"\x90"),
    (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5", b"\xff"),
    (b"plain ", b"\x80"),
    (b"plain ", b"\xc0"),
    (b"\xe0", b"\x9f"),
    (b"\xed", b"\xa0"),
    (b"\xed", b"\xbf"),
    (b"\xf0", b"\x8f"),
    (b"\xf0\x90\x80", b"\x20"),
    (b"\xe1\xbd", b"\xc2"),
]


@pytest.mark.parametrize(("good", "bad"), BAD_TEXTS)
def test_text_fails_at_its_first_bad_byte_though_the_frame_is_not_whole(good: bytes, bad: bytes) -> None:
    payload = masked(0x81, good + bad + b"and more to come")
    before = len(header(0x81, 0)) + len(good)
    reader = FrameReader(LIMIT)
    assert list(reader.feed(payload[:before])) == []
    assert verdicts(reader.feed(payload[before : before + 1])) == [1007]


@pytest.mark.parametrize(("good", "bad"), BAD_TEXTS)
def test_text_fails_at_its_first_bad_byte_though_the_message_is_not_whole(good: bytes, bad: bytes) -> None:
    assert read(masked(0x01, good) + masked(0x00)) == []
    assert verdicts(read(masked(0x01, good) + masked(0x89) + masked(0x00, bad))) == [(PING, b""), 1007]


@pytest.mark.parametrize("text", [b"\xce", b"ab\xe1\xbd", b"\xf0\x90\x80"])
def test_text_that_ends_inside_a_character_is_invalid_data(text: bytes) -> None:
    assert verdicts(read(masked(0x81, text))) == [1007]
    assert verdicts(read_bytewise(masked(0x81, text))) == [1007]
    assert verdicts(read(masked(0x01, text) + masked(0x80) + masked(0x81, b"never read"))) == [1007]


def test_binary_messages_need_not_be_utf_8() -> None:
    assert read(masked(0x02, b"\xff") + masked(0x80, b"\xce")) == [(BINARY, b"\xff\xce")]


def test_a_segment_without_bytes_changes_nothing() -> None:
    reader = FrameReader(LIMIT)
    assert list(reader.feed(b"")) == []
    assert list(reader.feed(b"\x81")) == []
    assert list(reader.feed(b"")) == []
    assert list(reader.feed(masked(0x81, b"Hello")[1:])) == [HELLO]


def test_bytes_that_look_like_a_whole_frame_are_payload_inside_another() -> None:
    inner = masked(0x81, b"Hello", bytes(4))
    reader = FrameReader(LIMIT)
    assert list(reader.feed(header(0x82, 2 * len(inner), bytes(4)))) == []
    assert list(reader.feed(inner)) == []
    assert list(reader.feed(inner)) == [(BINARY, inner * 2)]


def test_bytes_that_look_like_a_whole_frame_are_payload_of_a_control_frame() -> None:
    inner = masked(0x81, b"Hello", bytes(4))
    reader = FrameReader(LIMIT)
    assert list(reader.feed(header(0x89, len(inner), bytes(4)))) == []
    assert list(reader.feed(inner)) == [(PING, inner)]


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG])
@given(payload=st.binary(max_size=125) | st.sampled_from([b"x" * n for n in BORDER_LENGTHS]))
@settings(deadline=None)
def test_built_frames_are_read_by_the_websockets_client(opcode: int, payload: bytes) -> None:
    if opcode > 2:
        payload = payload[:125]
    client = ClientProtocol(parse_uri("ws://localhost"), state=State.OPEN, max_size=None)
    client.receive_data(frame(opcode, payload))
    assert client.events_received() == [Frame(Opcode(opcode), payload)]
    assert text_frame(payload) == frame(TEXT, payload)


@given(code=st.sampled_from([1000, 1001, 1009, 1012, 3000, 4999]), reason=st.text(max_size=200))
@settings(deadline=None)
def test_close_frames_are_read_by_the_websockets_client(code: int, reason: str) -> None:
    client = ClientProtocol(parse_uri("ws://localhost"), state=State.OPEN)
    client.receive_data(close_frame(code, reason))
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == code
    assert reason.startswith(client.close_rcvd.reason)
    assert close_code(close_body(code, reason)) == code


def test_a_long_reason_is_cut_between_characters() -> None:
    assert close_body(1000, "x" * 124) == b"\x03\xe8" + b"x" * 123
    assert close_body(1000, "x" * 122 + "é") == b"\x03\xe8" + b"x" * 122
    assert close_body(1000, "é" * 100) == b"\x03\xe8" + "é".encode() * 61
    assert len(close_frame(1000, "x" * 200)) == 127


def test_a_reason_that_is_no_text_does_not_keep_a_connection_from_closing() -> None:
    assert close_body(1000, "half a \ud800 pair") == b"\x03\xe8half a ? pair"


def test_a_close_without_a_body_has_code_1005() -> None:
    assert close_code(b"") == 1005
    assert close_code(b"\x03\xe8bye") == 1000


def test_frames_are_read_without_the_c_extension_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    fallback = cast("type[FrameReader]", runpy.run_path(str(frames.__file__))["FrameReader"])
    reader = fallback(LIMIT)
    assert list(reader.feed(masked(0x81, b"Hello") + masked(0x01, b"Hel") + masked(0x80, b"lo"))) == [HELLO, HELLO]
    assert list(reader.feed(masked(0x01)[:-2])) == []
    assert list(reader.feed(masked(0x01)[-2:] + masked(0x80))) == [(TEXT, b"")]
