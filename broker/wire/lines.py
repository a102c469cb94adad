"""Publications that are encoded already, looked at once more: for connections that don't keep up."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.message import OWN_TAGS

DROPPED = OWN_TAGS + "dropped"
"""The tag that tells how many publications of the subscription are missing right before this one."""
_DROPPED = DROPPED.encode()
_END = b"}}}"


class _Publication(msgspec.Struct):
    data: msgspec.Raw
    tags: dict[str, str] | UnsetType = UNSET
    channel: str = ""


class _Push(msgspec.Struct):
    pub: _Publication


class _Line(msgspec.Struct):
    push: _Push


class _Tagged(msgspec.Struct):
    """All of a publication, in the order of the wire."""

    data: msgspec.Raw
    info: msgspec.Raw | UnsetType = UNSET
    tags: dict[str, str] = {}
    offset: int | UnsetType = UNSET
    channel: str | UnsetType = UNSET


class _TaggedPush(msgspec.Struct):
    channel: str
    pub: _Tagged


class _TaggedLine(msgspec.Struct):
    push: _TaggedPush


_decode = msgspec.json.Decoder(_Line).decode
_decode_all = msgspec.json.Decoder(_TaggedLine).decode
_encode = msgspec.json.encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def declare(line: bytes, missing: int) -> bytes:
    """A publication's push with the tag that says how many are missing before it, beside those it says already."""
    if _decode(line).push.pub.tags is UNSET:
        return b'%b,"tags":{"%b":"%d"}%b' % (line.removesuffix(_END), _DROPPED, missing, _END)
    whole = _decode_all(line)
    tags = whole.push.pub.tags
    tags[DROPPED] = str(int(tags.get(DROPPED, "0")) + missing)
    return _encode(whole)


def missing_before(line: bytes) -> int:
    """How many publications a line says are missing before it; 0 if it doesn't."""
    if _DROPPED not in line:
        return 0
    tags = _decode(line).push.pub.tags
    return 0 if isinstance(tags, UnsetType) else int(tags.get(DROPPED, "0"))


def key_of(line: bytes, pointer: tuple[str, ...]) -> Hashable:
    """What a publication is conflated by: its topic, and what is at a place in its data.

    Args:
        line: the publication's push.
        pointer: the tokens of a JSON pointer (RFC 6901); without any, all of a topic have the same key.

    Returns:
        Equal values for equal JSON; None where there is nothing at that place, or the line is no publication.
    """
    try:
        publication = _decode(line).push.pub
        value = publication.data
        for token in pointer:
            found = _member(value, token)
            if found is None:
                return None
            value = found
        return publication.channel, _comparable(bytes(value)) if pointer else ""
    except (msgspec.DecodeError, RecursionError):
        return None


def _member(value: msgspec.Raw, token: str) -> msgspec.Raw | None:
    """What is at one token of a pointer. In an array only a number without a leading zero leads anywhere."""
    kind = bytes(value).lstrip()[:1]
    if kind == b"{":
        return _members(value).get(token)
    if kind == b"[" and token.isascii() and token.isdigit() and (token == "0" or token[0] != "0"):  # noqa: S105
        items = _items(value)
        return items[int(token)] if int(token) < len(items) else None
    return None


def _comparable(value: bytes) -> Hashable:
    decoded = msgspec.json.decode(value)
    if isinstance(decoded, (dict, list)):
        return ("json", _encode(decoded, order="deterministic"))
    # else true would be the same as 1
    return (type(decoded) in (int, float), decoded) if not isinstance(decoded, bool) else ("bool", decoded)
