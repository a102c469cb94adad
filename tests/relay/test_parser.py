"""The parser against nats-py's own, which it takes the place of."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from broker.relay.client import RelayClient
from broker.relay.parser import MAX_LINE_BYTES, RelayParser

Event = tuple[Any, ...]


class Heard:
    """What a parser tells its client, in the names that nats-py uses."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def _process_pong(self) -> None:
        self.events.append(("pong",))

    async def _process_ping(self) -> None:
        self.events.append(("ping",))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.events.append(("info", info))

    async def _process_err(self, text: str) -> None:
        self.events.append(("error", text))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        del reply
        self.events.append(("message", sid, subject, data, headers))


class _Sinks(dict[int, Any]):
    """Somebody is subscribed to everything."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def get(self, number: int, default: Any = None) -> Any:
        del default
        return lambda subject, data, block: self._heard.events.append(("message", number, subject, data, block))


def ours(*pieces: bytes) -> list[Event]:
    heard = Heard()
    parser = RelayParser(cast("RelayClient", heard), _Sinks(heard))
    asyncio.run(_feed(parser, pieces))
    return heard.events


def theirs(*pieces: bytes) -> list[Event]:
    heard = Heard()
    asyncio.run(_feed(Parser(heard), pieces))
    return heard.events


async def _feed(parser: RelayParser | Parser, pieces: tuple[bytes, ...]) -> None:
    for piece in pieces:
        await parser.parse(piece)


subjects = st.text("abc.-_é", min_size=1, max_size=12).map(str.encode)


def _message(subject: bytes, number: int, reply: bytes, payload: bytes) -> bytes:
    return b"MSG %b %d %b%d\r\n%b\r\n" % (subject, number, reply and reply + b" ", len(payload), payload)


def _with_headers(subject: bytes, number: int, reply: bytes, payload: bytes) -> bytes:
    headers = b"NATS/1.0\r\nA: b\r\n\r\n"
    sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
    return b"HMSG %b %d %b%b\r\n%b%b\r\n" % (subject, number, reply and reply + b" ", sizes, headers, payload)


misleading = [b"\r\n", b"PING\r\n", b"MSG a 1 1"]

lines = st.one_of(
    st.sampled_from(
        [
            b"PING\r\n",
            b"PONG\r\n",
            b"+OK\r\n",
            b"-ERR 'Stale Connection'\r\n",
            b'INFO {"server_id":"x","max_payload":1048576}\r\n',
        ]
    ),
    st.builds(_message, subjects, st.integers(1, 99), st.just(b"") | subjects, st.binary(max_size=40)),
    st.builds(_with_headers, subjects, st.integers(1, 99), st.just(b"") | subjects, st.binary(max_size=40)),
    # payloads that look like the protocol
    st.builds(
        _message, subjects, st.integers(1, 9), st.just(b""), st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 1 1"])
    ),
)


@given(st.lists(lines, max_size=8), st.data())
def test_any_cut_of_a_stream_tells_the_client_what_the_library_parser_would(
    stream: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert ours(*pieces) == ours(whole) == theirs(whole)


@pytest.mark.parametrize(
    "text",
    [
        b"HELLO\r\n",
        b"MSG a\r\n",
        b"MSG a 1\r\n",
        b"MSG a x 1\r\n",
        b"MSG a 1 x\r\n",
        b"HMSG a 1 2\r\n",
        b"\r\n",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_not_nats_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        ours(text)


@pytest.mark.parametrize("subject", [b"a\x0b7", b"a\x0c", b"\x0b1\x0b", b"a.\x1c.b", b"a\x85\xa0b", b"\xff"])
def test_no_subject_can_pass_for_more_than_a_subject(subject: bytes) -> None:
    assert ours(_message(subject, 1, b"", b"hi")) == [("message", 1, subject, b"hi", None)]
    assert ours(_message(subject, 1, b"r\x0b2", b"hi")) == [("message", 1, subject, b"hi", None)]
    (event,) = ours(_with_headers(subject, 1, b"", b"hi"))
    assert event[:4] == ("message", 1, subject, b"hi")


def test_a_line_that_never_ends_is_given_up() -> None:
    with pytest.raises(ProtocolError):
        ours(b"INFO " + b"x" * MAX_LINE_BYTES)


def test_a_message_that_nobody_wants_any_more_is_passed_over() -> None:
    heard = Heard()
    parser = RelayParser(cast("RelayClient", heard), {})
    asyncio.run(_feed(parser, (b"MSG a 1 2\r\nhi\r\nPING\r\n",)))
    assert heard.events == [("ping",)]


def test_a_sink_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(subject: bytes, payload: bytes, block: bytes | None) -> None:
        raise LookupError(subject, payload, block)

    heard = Heard()
    parser = RelayParser(cast("RelayClient", heard), {1: fail})
    asyncio.run(_feed(parser, (b"MSG a 1 2\r\nhi\r\nPING\r\n",)))
    assert heard.events == [("ping",)]
    assert "could not be handled" in caplog.text


def test_a_new_connection_begins_without_what_the_last_one_left() -> None:
    heard = Heard()
    parser = RelayParser(cast("RelayClient", heard), {})
    asyncio.run(_feed(parser, (b"MSG a 1 20\r\nhal",)))
    parser.reset()
    asyncio.run(_feed(parser, (b"PONG\r\n",)))
    assert heard.events == [("pong",)]
