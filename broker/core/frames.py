"""RFC 6455 frames as a server reads and writes them, without any I/O.

A `FrameReader` turns whatever a socket delivered into events; `frame` and its kin build what goes out. Nothing a client
sends raises an exception: a violation is an event too, and carries the body of the close frame that answers it.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from struct import Struct
from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # wheels without the C extension
    from websockets.utils import apply_mask

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
FAILURE: Final = 16  # beyond the four bits of an opcode: never on the wire

Event = tuple[int, bytes]
"""What was read, and its bytes: the whole message for TEXT (in valid UTF-8) and BINARY, the payload for PING and PONG,
for CLOSE a body found valid (empty, or a code and a reason), for FAILURE the body of the close frame to end with."""

_FIN: Final = 0x80
_MASKED: Final = 0x80
_RESERVED: Final = 0x70
_CONTROL: Final = 0x08
_OPCODES: Final = frozenset({0, TEXT, BINARY, CLOSE, PING, PONG})
_LAST_EVENTS: Final = frozenset({CLOSE, FAILURE})
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
_CLOSE_CODE: Final = Struct("!H")
_HEADER_7: Final = Struct("!BB")
_HEADER_16: Final = Struct("!BBH")
_HEADER_64: Final = Struct("!BBQ")
_SHORT_TEXT_HEADERS: Final = tuple(_HEADER_7.pack(_FIN | TEXT, length) for length in range(126))


def close_body(code: int, reason: str = "") -> bytes:
    """The body of a close frame; a long reason is cut, between characters, to what a control frame holds.

    The caller picks a code that may be sent, RFC 6455 7.4: 1005, 1006 and 1015 never are.
    """
    return _CLOSE_CODE.pack(code) + reason.encode(errors="replace")[:123].decode(errors="ignore").encode()


def close_code(body: bytes) -> int:
    """The code in a close frame's body; 1005 when there is none, RFC 6455 7.1.5."""
    return int.from_bytes(body[:2]) if body else 1005


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole frame as a server sends it: final and not masked, RFC 6455 5.1."""
    length = len(payload)
    if length < 126:
        return _HEADER_7.pack(_FIN | opcode, length) + payload
    if length < 65536:
        return _HEADER_16.pack(_FIN | opcode, 126, length) + payload
    return _HEADER_64.pack(_FIN | opcode, 127, length) + payload


def text_frame(payload: bytes) -> bytes:
    """`frame(TEXT, payload)`, quicker: this is what a fan-out makes."""
    length = len(payload)
    if length < 126:
        return _SHORT_TEXT_HEADERS[length] + payload
    return frame(TEXT, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, close_body(code, reason))


# The first bytes that may come next, RFC 6455 5.2 and 5.4: FIN, three reserved bits that no extension of ours has
# claimed, and the opcode. Control frames come between fragments too, and are never fragments themselves (5.5).
_BETWEEN_MESSAGES: Final = frozenset({0x01, 0x81, 0x02, 0x82, 0x88, 0x89, 0x8A})  # a data frame begins or is a message
_INSIDE_A_MESSAGE: Final = frozenset({0x00, 0x80, 0x88, 0x89, 0x8A})  # a continuation goes on with it or ends it
_WHOLE: Final = frozenset({0x81, 0x82, 0x88, 0x89, 0x8A})  # an event in one frame

_RESERVED_BITS: Final = close_body(1002, "reserved bits set")
_RESERVED_OPCODE: Final = close_body(1002, "reserved opcode")
_FRAGMENTED_CONTROL: Final = close_body(1002, "fragmented control frame")
_LONG_CONTROL: Final = close_body(1002, "control frame longer than 125 bytes")
_NOTHING_TO_CONTINUE: Final = close_body(1002, "continuation without a message")
_INTERRUPTED: Final = close_body(1002, "new message inside a fragmented one")
_NOT_MASKED: Final = close_body(1002, "frame not masked")
_NOT_MINIMAL: Final = close_body(1002, "length not in its shortest form")
_LENGTH_RANGE: Final = close_body(1002, "length beyond 63 bits")
_HALF_A_CODE: Final = close_body(1002, "close frame with half a code")
_BAD_CLOSE_CODE: Final = close_body(1002, "close code not valid on the wire")
_NOT_UTF_8: Final = close_body(1007, "not UTF-8")
_TOO_BIG: Final = close_body(1009, "message too big")


class FrameReader:
    """The reading end of one connection: bytes in, events out.

    The caller answers a CLOSE with a close frame and a FAILURE with `frame(CLOSE, body)`, then ends the connection.
    There is one reader for each connection, so an idle one holds no buffer.
    """

    __slots__ = ("_ended", "_limit", "_message", "_rest")

    def __init__(self, message_bytes: int) -> None:
        """Reads messages of up to and including `message_bytes`, their fragments added up."""
        self._limit = message_bytes
        self._rest = b""  # a header or a control frame that is not all there: at most 130 bytes
        self._message: _Message | None = None
        self._ended = False

    def feed(self, data: bytes) -> Sequence[Event]:
        """What `data` completes, in order; nothing more after a CLOSE or a FAILURE.

        However a stream is cut, the events are the same.
        """
        size = len(data)
        # Most segments are one short text frame: six bytes of header that count the others.
        if (
            5 < size < 132
            and data[0] == 0x81
            and data[1] == 0x80 + size - 6
            and self._message is None
            and not self._rest
            and not self._ended
            and size - 6 <= self._limit
        ):
            payload = apply_mask(data[6:], data[2:6])
            if payload.isascii() or _is_utf_8(payload):
                return ((TEXT, payload),)
        if self._ended:
            return ()
        if self._rest:
            data, self._rest = self._rest + data, b""
        events: list[Event] = []
        position, end = 0, len(data)
        while position < end:
            message = self._message
            if message is None or not message.missing:
                position = self._read_frame(data, position, events)
            else:
                position = self._read_payload(data, position, events, message)
        if events and events[-1][0] in _LAST_EVENTS:
            self._ended = True
            self._message = None
        return events

    def _read_frame(self, data: bytes, position: int, events: list[Event]) -> int:
        """Reads the frame that begins at `position`, or what is there of it; returns where to go on."""
        message = self._message
        header = _header(data, position, self._limit, message)
        if header is None:
            self._rest = data[position:]
            return len(data)
        if isinstance(header, bytes):
            events.append((FAILURE, header))
            return len(data)
        first, start, length = header
        opcode = first & 0x0F
        stop = start + length
        if first in _WHOLE and stop <= len(data):
            event = _judge(opcode, apply_mask(data[start:stop], data[start - 4 : start]))
            events.append(event)
            return len(data) if event[0] in _LAST_EVENTS else stop
        if opcode & _CONTROL:
            self._rest = data[position:]
            return len(data)
        if message is None:
            message = self._message = _Message(opcode)
        message.begin_frame(final=first >= _FIN, mask=data[start - 4 : start], length=length)
        return self._read_payload(data, start, events, message)

    def _read_payload(self, data: bytes, position: int, events: list[Event], message: _Message) -> int:
        """Moves what is there of a frame's payload into its message; returns where to go on."""
        stop = min(position + message.missing, len(data))
        if not message.take(data[position:stop]):
            events.append((FAILURE, _NOT_UTF_8))
            return len(data)
        if message.final and not message.missing:
            self._message = None
            events.append(message.event())
            return len(data) if events[-1][0] == FAILURE else stop
        return stop


class _Message:
    """A text or binary message that is not whole yet; its memory grows with what came, not with what was announced."""

    __slots__ = ("_judged", "_mask", "_opcode", "_payload", "final", "missing")

    def __init__(self, opcode: int) -> None:
        self._opcode = opcode
        # One growing buffer, as a list of fragments could cost an object for each byte of the limit.
        self._payload = bytearray()
        self._judged = 0  # so many bytes are whole characters
        self._mask = b""
        self.final = False
        self.missing = 0  # bytes of the current frame's payload

    def __len__(self) -> int:
        return len(self._payload)

    def begin_frame(self, *, final: bool, mask: bytes, length: int) -> None:
        self.final = final
        self._mask = mask
        self.missing = length

    def take(self, masked: bytes) -> bool:
        """Adds a piece of the current frame's payload; false when the text can no longer become UTF-8."""
        if not masked:  # an empty fragment: a client can send them for ever, so they are to be cheap
            return True
        size = len(masked)
        self.missing -= size
        piece = apply_mask(masked, self._mask)
        turn = size % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        self._payload += piece
        return self._opcode == BINARY or self._judge(piece)

    def _judge(self, piece: bytes) -> bool:
        payload, judged = self._payload, self._judged
        if judged + len(piece) == len(payload) and piece.isascii():
            self._judged = len(payload)
            return True
        try:
            judged += utf_8_decode(payload[judged:], "strict", False)[1]
        except UnicodeDecodeError:
            return False
        self._judged = judged
        # Half a surrogate (ED A0 to ED BF, RFC 3629 3) waits for its third byte in Python's decoder; it is bad already.
        return payload[judged : judged + 1] != b"\xed" or payload[judged + 1 :] < b"\xa0"

    def event(self) -> Event:
        if self._opcode == TEXT and self._judged != len(self._payload):
            return FAILURE, _NOT_UTF_8
        return self._opcode, bytes(self._payload)


def _header(data: bytes, position: int, limit: int, message: _Message | None) -> tuple[int, int, int] | bytes | None:
    """A frame's first byte, where its payload starts and how long that is.

    None while the header is not all there; the body of the answer as soon as it is a violation, RFC 6455 5.2.
    """
    start = position + 6
    if len(data) < position + 2:
        return None
    first, second = data[position], data[position + 1]
    if first not in (_BETWEEN_MESSAGES if message is None else _INSIDE_A_MESSAGE):
        return _first_byte_fault(first)
    if second < _MASKED:
        return _NOT_MASKED
    length = second - _MASKED
    if length > 125:
        if first & _CONTROL:
            return _LONG_CONTROL
        width, shortest = (2, 126) if length == 126 else (8, 65536)
        start += width
        if len(data) < start - 4:
            return None
        length = int.from_bytes(data[position + 2 : start - 4])
        if length < shortest:
            return _NOT_MINIMAL
        if length >> 63:
            return _LENGTH_RANGE
    if not first & _CONTROL and length + (len(message) if message is not None else 0) > limit:
        return _TOO_BIG
    return (first, start, length) if len(data) >= start else None


def _first_byte_fault(first: int) -> bytes:
    """Why a first byte that is in none of the two tables, or not in the one that counts, may not come now."""
    opcode = first & 0x0F
    if first & _RESERVED:
        return _RESERVED_BITS
    if opcode not in _OPCODES:
        return _RESERVED_OPCODE
    if opcode & _CONTROL:
        return _FRAGMENTED_CONTROL
    return _INTERRUPTED if opcode else _NOTHING_TO_CONTINUE


def _judge(opcode: int, payload: bytes) -> Event:
    """The event of a frame that is a message of its own, or a control frame."""
    if opcode == CLOSE:
        return _judge_close(payload)
    if opcode == TEXT and not payload.isascii() and not _is_utf_8(payload):
        return FAILURE, _NOT_UTF_8
    return opcode, payload


def _judge_close(body: bytes) -> Event:
    """RFC 6455 5.5.1 and 7.4; 1012 to 1014 are from IANA's registry."""
    if len(body) == 1:
        return FAILURE, _HALF_A_CODE
    if not _is_utf_8(body[2:]):
        return FAILURE, _NOT_UTF_8
    code = close_code(body)
    if body and code not in _CLOSE_CODES and not 3000 <= code < 5000:
        return FAILURE, _BAD_CLOSE_CODE
    return CLOSE, body


def _is_utf_8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
