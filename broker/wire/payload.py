"""Payloads: JSON that is checked but never decoded."""

from __future__ import annotations

import msgspec

_skip = msgspec.json.Decoder(msgspec.Raw).decode


def is_json(payload: bytes) -> bool:
    """Whether the bytes are one JSON value in UTF-8 (RFC 8259)."""
    try:
        # skips over the value with its syntax checked; the UTF-8 of strings is left to us
        _skip(payload)
        if not payload.isascii():
            payload.decode()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


def one_line(payload: bytes) -> bytes:
    """A JSON value without line breaks, otherwise as it came: a frame's lines are objects of their own. Strings never
    hold raw ones, and no two tokens are kept apart by space alone.
    """
    if b"\n" in payload or b"\r" in payload:
        return payload.translate(None, b"\r\n")
    return payload
