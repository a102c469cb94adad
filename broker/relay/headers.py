"""Headers of messages on NATS. A publication's `Broker-Publisher` says who, its `Broker-Tags` holds a JSON object.

Back ends set them too, so what they hold is checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.message import OWN_TAGS, ClientInfo

PUBLISHER = "Broker-Publisher"
TAGS = "Broker-Tags"


class _Publisher(msgspec.Struct, omit_defaults=True):
    user: str = ""
    client: str = ""
    # not `| None`: msgspec takes a Raw in a union for nothing at all, but for this one
    conn_info: msgspec.Raw | UnsetType = UNSET
    chan_info: msgspec.Raw | UnsetType = UNSET


_encode = msgspec.json.encode
_decode_publisher = msgspec.json.Decoder(_Publisher).decode
_decode_tags = msgspec.json.Decoder(dict[str, str]).decode


def read_block(block: bytes) -> dict[str, str]:
    """The headers of a block as it came (`NATS/1.0`, lines, an empty line). Of a name that stands there twice the last
    one counts: NATS adds its own behind what a publisher has sent, who so can't imitate them.

    Source: https://docs.nats.io/reference/reference-protocols/nats-protocol#hpub
    """
    headers = {}
    for line in block.decode("utf-8", "replace").split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        headers[name] = value.strip()
    return headers


def read_status(block: bytes) -> int:
    """The status in a block's first line, as NATS itself answers with (`NATS/1.0 503`); 0 for an ordinary message."""
    first = block[: block.find(b"\r\n")].split()
    return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0


def publication_headers(info: ClientInfo | None, tags: Mapping[str, str] | None) -> dict[str, str]:
    headers = {}
    if info is not None:
        publisher = _Publisher(info.user, info.client, _raw(info.conn_info), _raw(info.chan_info))
        headers[PUBLISHER] = _encode(publisher).decode()
    if tags:
        headers[TAGS] = _encode(tags).decode()
    return headers


def read_headers(headers: Mapping[str, str]) -> tuple[ClientInfo | None, dict[str, str] | None]:
    """Who published, and the tags. A publisher that is no JSON object is taken for a user's name; tags that are no
    object of strings are left out, and so are those that are the broker's own.
    """
    info = None
    who = headers.get(PUBLISHER)
    if who:
        try:
            publisher = _decode_publisher(who)
        except (msgspec.DecodeError, RecursionError):
            publisher = _Publisher(user=who)
        info = ClientInfo(publisher.user, publisher.client, _bytes(publisher.conn_info), _bytes(publisher.chan_info))
    tags = None
    text = headers.get(TAGS)
    if text:
        try:
            tags = {name: value for name, value in _decode_tags(text).items() if not name.startswith(OWN_TAGS)}
        except (msgspec.DecodeError, RecursionError):
            tags = None
    return info, tags


def _raw(value: bytes | None) -> msgspec.Raw | UnsetType:
    return UNSET if value is None else msgspec.Raw(value)


def _bytes(value: msgspec.Raw | UnsetType) -> bytes | None:
    # line breaks between tokens would break the frame's lines
    return None if isinstance(value, UnsetType) else bytes(value).translate(None, b"\r\n")
