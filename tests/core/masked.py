"""Frames as a client sends them, legal or not, and readings of them."""

from __future__ import annotations

from collections.abc import Iterable

from broker.core.frames import FAILURE, Event, FrameReader, close_code

KEY = bytes.fromhex("37fa213d")  # the one of RFC 6455 5.7
LIMIT = 1000


def masked(first: int, payload: bytes = b"", key: bytes = KEY) -> bytes:
    """A frame with its first byte as given."""
    return header(first, len(payload), key) + mask(payload, key)


def mask(payload: bytes, key: bytes) -> bytes:
    """Byte by byte, as RFC 6455 5.3 spells it."""
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def header(first: int, length: int, key: bytes = KEY) -> bytes:
    if length < 126:
        return bytes([first, 0x80 | length]) + key
    if length < 65536:
        return bytes([first, 0x80 | 126]) + length.to_bytes(2) + key
    return bytes([first, 0x80 | 127]) + length.to_bytes(8) + key


def read(stream: bytes, limit: int = LIMIT) -> list[Event]:
    return list(FrameReader(limit).feed(stream))


def read_pieces(pieces: Iterable[bytes], limit: int = LIMIT) -> list[Event]:
    reader = FrameReader(limit)
    return [event for piece in pieces for event in reader.feed(piece)]


def read_bytewise(stream: bytes, limit: int = LIMIT) -> list[Event]:
    return read_pieces((stream[i : i + 1] for i in range(len(stream))), limit)


def verdicts(events: Iterable[Event]) -> list[Event | int]:
    """Events, with a failure told by its code alone."""
    return [close_code(body) if kind == FAILURE else (kind, body) for kind, body in events]
