"""What must hold for any stream: cuts do not matter, and `websockets` comes to the same verdict."""

from __future__ import annotations

from codecs import getincrementaldecoder
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from broker.core.frames import BINARY, CLOSE, FAILURE, PING, PONG, TEXT, Event, close_code
from tests.core.masked import LIMIT, header, mask, masked, read, read_bytewise, read_pieces, verdicts

KEYS = st.binary(min_size=4, max_size=4)
TEXTS = st.text(max_size=40).map(str.encode)
# Bytes at the borders of the ranges in RFC 3629 4.
NEAR_TEXTS = st.lists(
    st.sampled_from(b"a\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff"),
    max_size=8,
).map(bytes)
PAYLOADS = TEXTS | NEAR_TEXTS | st.binary(max_size=40)
CLOSE_BODIES = (
    st.just(b"")
    | st.binary(max_size=4)
    | st.builds(
        lambda code, reason: code.to_bytes(2) + reason,
        st.sampled_from([999, 1000, 1003, 1004, 1005, 1011, 1014, 1015, 2999, 3000, 4999, 5000]),
        TEXTS | NEAR_TEXTS,
    )
)
# The beginnings of characters beyond ASCII: within 64 code points only the last byte changes.
BEGINNINGS = {
    chr(point).encode()[:length]
    for point in range(0x80, 0x110000, 64)
    if not 0xD800 <= point < 0xE000
    for length in (1, 2, 3)
}


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """A legal message in any number of fragments with pings and pongs between them, and what it is to be read as."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(TEXTS if opcode == TEXT else st.binary(max_size=300))
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    fragments = [payload[start:stop] for start, stop in pairwise([0, *cuts, len(payload)])]
    stream, events = b"", []
    for number, fragment in enumerate(fragments):
        for kind, body in draw(st.lists(st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)), max_size=2)):
            stream += masked(0x80 | kind, body, draw(KEYS))
            events.append((kind, body))
        first = (opcode if number == 0 else 0) | (0x80 if number == len(fragments) - 1 else 0)
        stream += masked(first, fragment, draw(KEYS))
    return stream, [*events, (opcode, payload)]


LEGAL_STREAMS = st.lists(messages(), max_size=4).map(
    lambda parts: (b"".join(stream for stream, _ in parts), [event for _, events in parts for event in events])
)


@st.composite
def sloppy_frames(draw: st.DrawFn) -> bytes:
    """A frame that may be illegal in itself or where it stands."""
    first = draw(st.sampled_from([0x00, 0x80, 0x01, 0x81, 0x01, 0x81, 0x02, 0x82, 0x88, 0x89]) | st.integers(0, 255))
    payload = draw(CLOSE_BODIES if first == 0x88 else PAYLOADS)
    announced = draw(st.just(len(payload)) | st.sampled_from([126, LIMIT, LIMIT + 1, 65536, 1 << 63]))
    key = draw(KEYS)
    return header(first, announced, key) + mask(payload, key)


ANY_STREAMS = (
    LEGAL_STREAMS.map(lambda legal: legal[0])
    | st.lists(sloppy_frames(), max_size=8).map(b"".join)
    | st.binary(max_size=200)
)


def oracle(stream: bytes) -> list[Event | int]:
    """The verdict of `websockets`, which leaves adding fragments up and judging text to us."""
    server = ServerProtocol(state=State.OPEN, max_size=LIMIT)
    server.receive_data(stream)
    found: list[Event | int] = []
    opcode, payload = TEXT, b""
    decoder = getincrementaldecoder("utf-8")()
    for event in server.events_received():
        assert isinstance(event, Frame)
        data = bytes(event.data)
        if event.opcode in {Opcode.CLOSE, Opcode.PING, Opcode.PONG}:
            found.append((int(event.opcode), data))
            continue
        if event.opcode != Opcode.CONT:
            opcode, payload = int(event.opcode), b""
            decoder.reset()
        payload += data
        try:
            if opcode == TEXT:
                decoder.decode(data, final=event.fin)
        except UnicodeDecodeError:
            return [*found, 1007]
        if event.fin:
            found.append((opcode, payload))
    if server.parser_exc is not None:
        assert server.close_sent is not None
        found.append(int(server.close_sent.code))
    return found


@given(legal=LEGAL_STREAMS)
@settings(deadline=None)
def test_legal_streams_are_read_as_what_they_were_made_of_and_as_websockets_reads_them(
    legal: tuple[bytes, list[Event]],
) -> None:
    stream, events = legal
    assert read(stream) == events
    assert oracle(stream) == events


@given(stream=ANY_STREAMS, data=st.data())
@settings(deadline=None, max_examples=300)
def test_any_cut_of_any_stream_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    whole = read(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    assert read_pieces(stream[start:stop] for start, stop in pairwise([0, *cuts, len(stream)])) == whole
    assert read_bytewise(stream) == whole


@given(stream=ANY_STREAMS)
@example(masked(0x01, b"Hel") + masked(0x88, b"\x03\xe8"))
@example(masked(0xC1, bytes(LIMIT + 1)))
@example(b"\x81\xfe\x00\x05" + b"key." + b"Hello")
@settings(deadline=None, max_examples=500)
def test_websockets_comes_to_the_same_verdict(stream: bytes) -> None:
    # It judges whole frames, we judge as bytes come. Zeros complete any frame within the limit, and no frame begins so.
    stream += bytes(LIMIT + 200)
    events = read(stream)
    ours, theirs = verdicts(events), oracle(stream)
    kind, body = events[-1]
    if kind == CLOSE and theirs[-1] == 1002:  # it holds a close inside a fragmented message for an error
        assert ours[:-1] == theirs[:-1]
    elif (
        kind == FAILURE and body[2:] == b"length not in its shortest form"
    ):  # it takes any length, RFC 6455 5.2 does not
        assert ours[:-1] == theirs[: len(ours) - 1]
    elif theirs[-1] == 1009:  # it judges the length first, and only then what cannot be a frame at any length
        assert ours[:-1] == theirs[:-1]
        assert close_code(body) in {1002, 1009}
    else:
        assert ours == theirs


def may_become_text(beginning: bytes) -> bool:
    return any(
        tail in BEGINNINGS or not tail
        for head, tail in ((beginning[: len(beginning) - n], beginning[len(beginning) - n :]) for n in range(4))
        if head.decode(errors="ignore").encode() == head
    )


def test_of_all_two_bytes_text_fails_on_those_that_begin_no_text() -> None:
    start = header(0x81, 9, bytes(4))
    for number in range(65536):
        beginning = number.to_bytes(2)
        assert bool(read(start + beginning)) != may_become_text(beginning)


@given(beginning=NEAR_TEXTS, cut=st.integers(0, 8))
@settings(deadline=None, max_examples=500)
def test_text_fails_as_soon_as_it_can_no_longer_become_text(beginning: bytes, cut: int) -> None:
    expected = [] if may_become_text(beginning) else [1007]
    assert verdicts(read(header(0x81, 9, bytes(4)) + beginning)) == expected
    assert verdicts(read(masked(0x01, beginning[:cut]) + masked(0x00, beginning[cut:]))) == expected
