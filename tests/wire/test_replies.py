from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.message import ClientInfo
from broker.wire import replies
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.commands import MAX_ID
from broker.wire.payload import one_line
from broker.wire.replies import (
    EMPTY,
    ConnectResult,
    RefreshResult,
    Result,
    SubRefreshResult,
    SubscribeResult,
    error_reply,
    publication_head,
    publication_push,
    publications_of,
    raw,
    reply,
)
from tests.wire.json_values import TEXT, spellings

IDS = st.integers(1, MAX_ID)
RAW = spellings().map(lambda payload: one_line(payload.strip()))
INFOS = st.builds(ClientInfo, TEXT, TEXT, st.none() | RAW, st.none() | RAW)
TAGS = st.none() | st.dictionaries(TEXT, TEXT, max_size=3)


def parsed(line: bytes) -> Any:
    """A line as a client reads it: JSON in UTF-8, without a line break in it."""
    assert b"\n" not in line
    assert b"\r" not in line
    return json.loads(line.decode())


def test_a_ping_is_an_empty_object() -> None:
    assert parsed(replies.PING) == {}


@pytest.mark.parametrize(
    ("method", "result", "expected"),
    [
        ("connect", ConnectResult(client="c", version="1"), {"client": "c", "version": "1"}),
        (
            "connect",
            ConnectResult(
                client="c",
                version="1",
                expires=True,
                ttl=60,
                data=raw(b'{"a":[1,2]}'),
                subs={"a": SubscribeResult(), "b": SubscribeResult(data=raw(b"null"))},
                ping=25,
                pong=True,
                node="n",
            ),
            {
                "client": "c",
                "version": "1",
                "expires": True,
                "ttl": 60,
                "data": {"a": [1, 2]},
                "subs": {"a": {}, "b": {"data": None}},
                "ping": 25,
                "pong": True,
                "node": "n",
            },
        ),
        ("subscribe", SubscribeResult(), {}),
        (
            "subscribe",
            SubscribeResult(
                expires=True,
                ttl=1,
                recoverable=True,
                epoch="e",
                recovered=True,
                offset=2**64 - 1,
                positioned=True,
                data=raw(b"0"),
                was_recovering=True,
            ),
            {
                "expires": True,
                "ttl": 1,
                "recoverable": True,
                "epoch": "e",
                "recovered": True,
                "offset": 2**64 - 1,
                "positioned": True,
                "data": 0,
                "was_recovering": True,
            },
        ),
        (
            "refresh",
            RefreshResult("c", "1", expires=True, ttl=9),
            {"client": "c", "version": "1", "expires": True, "ttl": 9},
        ),
        ("sub_refresh", SubRefreshResult(), {}),
        ("sub_refresh", SubRefreshResult(expires=True, ttl=5), {"expires": True, "ttl": 5}),
        ("publish", EMPTY, {}),
    ],
)
def test_a_reply_holds_its_result_without_zero_values(method: str, result: Result, expected: object) -> None:
    assert parsed(reply(7, method, result)) == {"id": 7, method: expected}


@given(IDS, st.sampled_from(ErrorCode), TEXT)
def test_an_error_is_answered_with_its_code_and_message(ident: int, code: ErrorCode, detail: str) -> None:
    error = CommandError(code, detail)
    body: dict[str, object] = {"code": int(code), "message": error.message}
    if code.temporary:
        body["temporary"] = True
    assert parsed(error_reply(ident, error)) == {"id": ident, "error": body}


def expected_info(info: ClientInfo) -> dict[str, object]:
    body: dict[str, object] = {"user": info.user, "client": info.client}
    if info.conn_info is not None:
        body["conn_info"] = json.loads(info.conn_info)
    if info.chan_info is not None:
        body["chan_info"] = json.loads(info.chan_info)
    return body


@given(TEXT, RAW, st.none() | INFOS, TAGS, st.integers(0, 2**63 - 1), st.none() | TEXT)
def test_a_publication_says_where_what_by_whom_and_at_which_place(
    subscribed: str, data: bytes, info: ClientInfo | None, tags: dict[str, str] | None, offset: int, topic: str | None
) -> None:
    head = publication_head(subscribed)
    line = publication_push(head, data, info, tags, offset=offset, topic=topic)
    body: dict[str, object] = {"data": json.loads(data)}
    if offset:
        body["offset"] = offset
    if topic is not None:
        body["channel"] = topic
    if info is not None:
        body["info"] = expected_info(info)
    if tags:
        body["tags"] = tags
    assert parsed(line) == {"push": {"channel": subscribed, "pub": body}}
    assert parsed(publications_of(head, [line, line])) == [body, body]


@given(TEXT, RAW, st.none() | INFOS, TAGS)
def test_a_publications_data_passes_byte_by_byte(
    topic: str, data: bytes, info: ClientInfo | None, tags: dict[str, str] | None
) -> None:
    head = publication_head(topic)
    line = publication_push(head, data, info, tags)
    assert line[: len(head) + len(data)] == head + data


@given(INFOS)
def test_infos_of_a_token_pass_byte_by_byte(info: ClientInfo) -> None:
    line = publication_push(publication_head("a"), b"1", info, None)
    for part in (info.conn_info, info.chan_info):
        assert part is None or part in line


def test_a_publication_of_the_server_names_nobody() -> None:
    assert publication_push(publication_head("a"), b'{"x":1}', None, None) == (
        b'{"push":{"channel":"a","pub":{"data":{"x":1}}}}'
    )


def test_an_anonymous_client_is_named_with_an_empty_user() -> None:
    line = publication_push(publication_head("a"), b"1", ClientInfo("", "c"), None)
    assert parsed(line)["push"]["pub"]["info"] == {"user": "", "client": "c"}


@given(TEXT, st.none() | RAW)
def test_a_subscribe_push_holds_the_data_that_it_was_given(topic: str, data: bytes | None) -> None:
    expected = {} if data is None else {"data": json.loads(data)}
    assert parsed(replies.subscribe_push(topic, SubscribeResult(data=raw(data)))) == {
        "push": {"channel": topic, "subscribe": expected}
    }


@given(TEXT, st.integers(2000, 2999), TEXT)
def test_an_unsubscribe_push_has_a_code_and_a_reason_always(topic: str, code: int, reason: str) -> None:
    expected = {"push": {"channel": topic, "unsubscribe": {"code": code, "reason": reason}}}
    assert parsed(replies.unsubscribe_push(topic, code, reason)) == expected


@pytest.mark.parametrize(
    ("expires", "ttl", "expected"),
    [(True, 60, {"expires": True, "ttl": 60}), (False, 0, {}), (True, 0, {"expires": True})],
)
def test_a_refresh_push_says_how_long_the_connection_lasts(
    expires: bool,  # noqa: FBT001 - a row of the table
    ttl: int,
    expected: object,
) -> None:
    assert parsed(replies.refresh_push(expires=expires, ttl=ttl)) == {"push": {"refresh": expected}}


def test_no_value_is_not_null() -> None:
    assert raw(None) is None
    assert raw(b"null") is not None


def test_joins_and_leaves_show_who_it_is() -> None:
    info = replies.info_json(ClientInfo("ann", "c1", b'{"a":1.50}', b"[2]"))
    shown = b'{"user":"ann","client":"c1","conn_info":{"a":1.50},"chan_info":[2]}'
    assert info == shown
    assert replies.join_push('t"', info) == b'{"push":{"channel":"t\\"","join":{"info":%b}}}' % shown
    assert replies.leave_push("t", info) == b'{"push":{"channel":"t","leave":{"info":%b}}}' % shown


def test_presence_is_there_when_it_is_empty_and_its_numbers_when_they_are_nought() -> None:
    assert replies.reply(1, "presence", replies.presence_result(b"{}")) == b'{"id":1,"presence":{"presence":{}}}'
    numbers = replies.PresenceStatsResult(0, 0)
    assert replies.reply(1, "presence_stats", numbers) == b'{"id":1,"presence_stats":{"num_clients":0,"num_users":0}}'
