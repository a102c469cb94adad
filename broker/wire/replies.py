"""Replies and pushes that clients get, as JSON lines without the frame around them.

Zero values are left out. Source: https://centrifugal.dev/docs/transports/client_protocol
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from broker.core.message import ClientInfo
from broker.wire.codes import CommandError

PING = b"{}"
_DATA = b'{"data":'

_encode = msgspec.json.encode


class Info(msgspec.Struct, omit_defaults=True):
    """ClientInfo on the wire."""

    user: str
    client: str
    conn_info: msgspec.Raw | None = None
    chan_info: msgspec.Raw | None = None


class SubscribeResult(msgspec.Struct, omit_defaults=True):
    expires: bool = False
    ttl: int = 0
    recoverable: bool = False
    epoch: str = ""
    publications: msgspec.Raw | None = None
    """A list of publications, encoded."""
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: msgspec.Raw | None = None
    was_recovering: bool = False


class ConnectResult(msgspec.Struct, omit_defaults=True):
    client: str
    version: str
    expires: bool = False
    ttl: int = 0
    data: msgspec.Raw | None = None
    subs: Mapping[str, SubscribeResult] = {}
    ping: int = 0
    pong: bool = False
    node: str = ""


class RefreshResult(msgspec.Struct, omit_defaults=True):
    client: str
    version: str
    expires: bool = False
    ttl: int = 0


class SubRefreshResult(msgspec.Struct, omit_defaults=True):
    expires: bool = False
    ttl: int = 0


class HistoryResult(msgspec.Struct):
    publications: msgspec.Raw
    """A list of publications, encoded; empty ones too are there."""
    epoch: str
    offset: int


class PresenceResult(msgspec.Struct):
    presence: msgspec.Raw


class PresenceStatsResult(msgspec.Struct):
    num_clients: int
    num_users: int


class Empty(msgspec.Struct):
    pass


EMPTY = Empty()
Result = (
    ConnectResult
    | SubscribeResult
    | RefreshResult
    | SubRefreshResult
    | HistoryResult
    | PresenceResult
    | PresenceStatsResult
    | Empty
)


def raw(value: bytes | None) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(value)


def presence_result(members: bytes) -> PresenceResult:
    """The result with this JSON object of infos, by client."""
    return PresenceResult(msgspec.Raw(members))


def reply(ident: int, method: str, result: Result) -> bytes:
    return b'{"id":%d,"%b":%b}' % (ident, method.encode(), _encode(result))


def error_reply(ident: int, error: CommandError) -> bytes:
    temporary = b',"temporary":true' if error.code.temporary else b""
    return b'{"id":%d,"error":{"code":%d,"message":%b%b}}' % (ident, error.code, _encode(error.message), temporary)


def client_info(info: ClientInfo) -> Info:
    return Info(info.user, info.client, raw(info.conn_info), raw(info.chan_info))


def info_json(info: ClientInfo) -> bytes:
    return _encode(client_info(info))


def _push(topic: str, kind: bytes, body: bytes) -> bytes:
    return b'{"push":{"channel":%b,"%b":%b}}' % (_encode(topic), kind, body)


def publication_head(topic: str) -> bytes:
    """What every publication of a topic begins with; made once a topic."""
    return b'{"push":{"channel":%b,"pub":%b' % (_encode(topic), _DATA)


def publication_push(
    head: bytes,
    data: bytes,
    info: ClientInfo | None,
    tags: Mapping[str, str] | None,
    *,
    offset: int = 0,
    topic: str | None = None,
) -> bytes:
    """A publication's push.

    Args:
        head: of what it goes to; see `publication_head`.
        data: JSON on one line, copied as it is.
        info: the client that published it.
        tags: what the publisher added.
        offset: its place in the topic's history; 0 without one.
        topic: it was published to, where it goes to a wildcard subscription.
    """
    if info is None and not tags and topic is None:
        return b'%b%b,"offset":%d}}}' % (head, data, offset) if offset else b"%b%b}}}" % (head, data)
    info_json = b"" if info is None else b',"info":' + _encode(client_info(info))
    tags_json = b',"tags":' + _encode(tags) if tags else b""
    offset_json = b',"offset":%d' % offset if offset else b""
    topic_json = b"" if topic is None else b',"channel":' + _encode(topic)
    return b"%b%b%b%b%b%b}}}" % (head, data, info_json, tags_json, offset_json, topic_json)


def publications_of(head: bytes, pushes: Iterable[bytes]) -> bytes:
    """The list of publications, as it stands in replies, that were made into pushes with this head."""
    begin = len(head) - len(_DATA)
    return b"[%b]" % b",".join([memoryview(push)[begin:-2] for push in pushes])


def subscribe_push(topic: str, result: SubscribeResult) -> bytes:
    return _push(topic, b"subscribe", _encode(result))


def unsubscribe_push(topic: str, code: int, reason: str) -> bytes:
    return _push(topic, b"unsubscribe", b'{"code":%d,"reason":%b}' % (code, _encode(reason)))


def join_push(topic: str, info: bytes) -> bytes:
    """Somebody has become a member of a topic; see `info_json`."""
    return _push(topic, b"join", b'{"info":%b}' % info)


def leave_push(topic: str, info: bytes) -> bytes:
    """Somebody is no member of a topic any more."""
    return _push(topic, b"leave", b'{"info":%b}' % info)


def refresh_push(*, expires: bool, ttl: int) -> bytes:
    return b'{"push":{"refresh":%b}}' % _encode(SubRefreshResult(expires, ttl))
