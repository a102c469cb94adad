"""The headers of a publication on NATS: `Broker-Publisher` says who, `Broker-Tags` holds tags as a JSON object.

Back ends set them too, so what they hold is checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import UNSET, UnsetType

from broker.core.message import ClientInfo

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
    object of strings are left out.
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
            tags = _decode_tags(text)
        except (msgspec.DecodeError, RecursionError):
            tags = None
    return info, tags


def _raw(value: bytes | None) -> msgspec.Raw | UnsetType:
    return UNSET if value is None else msgspec.Raw(value)


def _bytes(value: msgspec.Raw | UnsetType) -> bytes | None:
    return None if isinstance(value, UnsetType) else bytes(value)
