from __future__ import annotations

import pytest

from broker.core.message import ClientInfo
from broker.relay.connection import confirmed
from broker.relay.headers import PUBLISHER, TAGS, publication_headers, read_headers
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
