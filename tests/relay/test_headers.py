from __future__ import annotations

import pytest

from broker.core.message import ClientInfo
from broker.relay.connection import confirmed
from broker.relay.headers import PUBLISHER, TAGS, publication_headers, read_block, read_headers, read_status
from tests.harness.nats import NatsServer
from tests.relay.relaying import Inbox, running

INFOS = [
    ClientInfo("", "c"),
    ClientInfo("ann", "c"),
    ClientInfo("Åsa λ 🎈", "c", b'{"name":"\\u00c5sa \xc3\x85"}', b"[1,2]"),
    ClientInfo('"quoted": \\ ', "c", b"null"),
    ClientInfo("a\r\nX-Injected: yes", "c"),
]
TAGS_ = [None, {"a": "b"}, {"λ": "🎈", "empty": ""}, {"a\r\nb: c": "line\r\nbreak\n"}]


@pytest.mark.anyio
@pytest.mark.parametrize("info", [None, *INFOS])
@pytest.mark.parametrize("tags", TAGS_)
async def test_who_published_and_the_tags_come_through_nats_as_they_were(
    server: NatsServer, info: ClientInfo | None, tags: dict[str, str] | None
) -> None:
    async with running(server.url) as connection:
        inbox = Inbox()
        connection.subscribe("headers", inbox)
        headers = publication_headers(info, tags)
        await confirmed(connection.publish("headers", b"{}", headers or None))
        assert inbox.payloads == [b"{}"]
        came = inbox.headers[0] or {}
        assert set(came) <= {PUBLISHER, TAGS}
        assert read_headers(came) == (info, tags)


def test_nothing_to_say_needs_no_headers() -> None:
    assert publication_headers(None, None) == {}
    assert publication_headers(None, {}) == {}


@pytest.mark.parametrize("headers", [{}, {PUBLISHER: "", TAGS: ""}, {"Nats-Msg-Id": "x"}])
def test_without_headers_nobody_is_named(headers: dict[str, str]) -> None:
    assert read_headers(headers) == (None, None)


@pytest.mark.parametrize("who", ["billing", "[1]", "{", '{"user":1}', "[" * 100_000])
def test_a_publisher_that_is_no_object_is_a_users_name(who: str) -> None:
    assert read_headers({PUBLISHER: who}) == (ClientInfo(who, ""), None)


@pytest.mark.parametrize("tags", ["x", "[]", '{"a":1}', "{", "null", '{"a":null}', "{" * 100_000])
def test_tags_that_are_no_object_of_strings_are_left_out(tags: str) -> None:
    assert read_headers({TAGS: tags}) == (None, None)


def test_a_back_end_may_name_itself_in_part() -> None:
    assert read_headers({PUBLISHER: '{"user":"billing","more":1}'}) == (ClientInfo("billing", ""), None)


def test_of_a_header_that_stands_there_twice_the_last_one_counts() -> None:
    block = b"NATS/1.0\r\nNats-Sequence: 999\r\nX:y\r\nNats-Sequence: 7\r\n\r\n"
    assert read_block(block) == {"Nats-Sequence": "7", "X": "y"}


@pytest.mark.parametrize("block", [b"\xff\xff\xff\xff\r\n", b"", b"NATS/1.0", b"NATS/1.0\r\n\r\n"])
def test_what_is_no_header_block_holds_no_headers(block: bytes) -> None:
    assert read_block(block) == {}


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"NATS/1.0 503\r\n\r\n", 503),
        (b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n", 204),
        (b"NATS/1.0\r\nA: b\r\n\r\n", 0),
        (b"NATS/1.0 x\r\n\r\n", 0),
        (b"", 0),
    ],
)
def test_a_status_stands_in_the_first_line(block: bytes, status: int) -> None:
    assert read_status(block) == status
