from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.wire import commands
from broker.wire.codes import Close, CloseCode, ErrorCode
from broker.wire.commands import ABSENT, MAX_ID, PONG, Command, Undecodable, decode_command
from tests.wire.json_values import JUNK, TEXT, VALUES, damaged, spellings

METHODS = {
    "connect": commands.Connect,
    "subscribe": commands.Subscribe,
    "unsubscribe": commands.Unsubscribe,
    "publish": commands.Publish,
    "presence": commands.Presence,
    "presence_stats": commands.PresenceStats,
    "history": commands.History,
    "rpc": commands.Rpc,
    "refresh": commands.Refresh,
    "sub_refresh": commands.SubRefresh,
    "send": commands.Send,
}
REQUESTS: dict[str, dict[str, Any]] = {
    "connect": {
        "token": "t",
        "data": {"a": 1},
        "name": "js",
        "version": "1",
        "headers": {"h": "v"},
        "subs": {"ch": {"recover": True, "epoch": "e", "offset": 5}},
    },
    "subscribe": {
        "channel": "a",
        "token": "t",
        "data": [1],
        "recover": True,
        "epoch": "e",
        "offset": 2**64 - 1,
        "positioned": True,
        "recoverable": True,
        "join_leave": True,
        "delta": "fossil",
        "flag": 3,
    },
    "unsubscribe": {"channel": "a"},
    "publish": {"channel": "a", "data": "x"},
    "presence": {"channel": "a"},
    "presence_stats": {"channel": "a"},
    "history": {"channel": "a", "limit": -1, "since": {"offset": 7, "epoch": "e"}, "reverse": True},
    "rpc": {"method": "m", "data": None},
    "refresh": {"token": "t"},
    "sub_refresh": {"channel": "a", "token": "t"},
    "send": {"data": 1},
}


def command(ident: int, method: str, request: object) -> bytes:
    return json.dumps({"id": ident, method: request}).encode()


def closed(reason: str) -> Close:
    return Close(CloseCode.BAD_REQUEST, f"bad request: {reason}")


@pytest.mark.parametrize("method", METHODS)
def test_a_command_is_decoded_with_all_its_fields(method: str) -> None:
    decoded = decode_command(command(1, method, REQUESTS[method]))
    assert isinstance(decoded, Command)
    assert decoded.id == 1
    request = decoded.request()
    assert type(request) is METHODS[method]
    assert json.loads(msgspec.json.encode(request)) == REQUESTS[method]
    assert REQUESTS[method].keys() == set(request.__struct_fields__)


@pytest.mark.parametrize("method", METHODS)
def test_a_command_may_leave_out_every_field(method: str) -> None:
    decoded = decode_command(command(MAX_ID, method, {}))
    assert isinstance(decoded, Command)
    assert type(decoded.request()) is METHODS[method]


@pytest.mark.parametrize("method", METHODS)
def test_fields_we_do_not_know_are_passed_over(method: str) -> None:
    decoded = decode_command(command(1, method, REQUESTS[method] | {"tf": {"x": 1}, "future": None}))
    assert isinstance(decoded, Command)
    assert json.loads(msgspec.json.encode(decoded.request())) == REQUESTS[method]


def test_the_tables_above_name_every_method() -> None:
    assert REQUESTS.keys() == METHODS.keys() == set(Command.__struct_fields__) - {"id"}


def test_a_payload_that_is_absent_differs_from_null() -> None:
    absent, null = decode_command(b'{"id":1,"publish":{}}'), decode_command(b'{"id":1,"publish":{"data":null}}')
    assert isinstance(absent, Command)
    assert absent.publish is not None
    assert bytes(absent.publish.data) == bytes(ABSENT) == b""
    assert isinstance(null, Command)
    assert null.publish is not None
    assert bytes(null.publish.data) == b"null"


@given(spellings())
def test_a_payload_passes_byte_by_byte(payload: bytes) -> None:
    payload = payload.strip()
    decoded = decode_command(b'{"id":1,"publish":{"channel":"a","data": %b }}' % payload)
    assert isinstance(decoded, Command)
    assert decoded.publish is not None
    assert bytes(decoded.publish.data) == payload


@pytest.mark.parametrize("line", [b"{}", b" { } ", b'{"id":0}'])
def test_an_empty_object_is_a_pong(line: bytes) -> None:
    assert decode_command(line) is PONG
    assert PONG.request() is None


def test_a_send_needs_no_id() -> None:
    decoded = decode_command(b'{"send":{"data":1}}')
    assert isinstance(decoded, Command)
    assert decoded.id == 0


@pytest.mark.parametrize("ident", [-1, MAX_ID + 1, 2**64, -(2**70)])
@pytest.mark.parametrize("rest", ["", ',"publish":{}', ',"unknown":{}'])
def test_an_id_out_of_range_closes(ident: int, rest: str) -> None:
    assert decode_command(b'{"id":%d%b}' % (ident, rest.encode())) == closed("id: not an unsigned 32-bit number")


@pytest.mark.parametrize(
    "line", [b"[]", b"null", b"1", b'"a"', b'{"id":"1"}', b'{"id":1.5}', b'{"id":true}', b'{"id":null}']
)
def test_json_that_is_no_command_closes(line: bytes) -> None:
    assert decode_command(line) == closed("no command")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{}\n{}",
        b'{"id":1,}',
        b'{"id":01}',
        b"\xff",
        b'{"id":1,"publish":{"data":NaN}}',
        b'{"id":1,"publish":{"data":[1,]}}',
        b'{"id":1,"publish":{"channel":"\xff"}}',
        b'{"id":1,"subscribe":{"channel":"\\ud800"}}',
        b'{"id":1,"\xff":{}}',
        b'{"id":1,"x":' + b"[" * 100_000,
        b'{"id":1,"publish":{"data":' + b"[" * 5000 + b"]" * 5000 + b"}}",
    ],
)
def test_a_line_that_is_no_json_closes(line: bytes) -> None:
    assert decode_command(line) == closed("malformed JSON")


@pytest.mark.parametrize("content", [b'{"channel":1}', b"1", b'{"channel":"a","data":}'])
@pytest.mark.parametrize("ident", [b"0", b"-1", b"4294967296"])
def test_content_that_is_wrong_in_a_command_without_a_sound_id_closes(content: bytes, ident: bytes) -> None:
    decoded = decode_command(b'{"id":%b,"publish":%b}' % (ident, content))
    assert decoded in (closed("no command"), closed("malformed JSON"))


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"id":7,"subscribe":{"channel":1}}', "subscribe.channel: expected str, got int"),
        (b'{"id":7,"subscribe":{"offset":"5"}}', "subscribe.offset: expected int, got str"),
        (b'{"id":7,"subscribe":3}', "subscribe: expected object | null, got int"),
        (b'{"id":7,"history":{"since":{"epoch":1}}}', "history.since.epoch: expected str, got int"),
        (b'{"id":7,"connect":{"headers":{"a":1}}}', "connect.headers[...]: expected str, got int"),
        (b'{"publish":{"channel":[]},"id":7}', "publish.channel: expected str, got array"),
    ],
)
def test_content_that_is_wrong_is_answered_naming_the_field(line: bytes, detail: str) -> None:
    decoded = decode_command(line)
    assert isinstance(decoded, Undecodable)
    assert (decoded.id, decoded.error.code, decoded.error.detail) == (7, ErrorCode.BAD_REQUEST, detail)


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"id":7,"fly":{}}', "'fly'"),
        (b'{"fly":{},"id":7}', "'fly'"),
        (b'{"id":7}', "no method given"),
        (b'{"id":7,"subscribe":null}', "'subscribe'"),
        (b'{"id":7,"%b":1}' % (b"x" * 1000), f"'{'x' * 40}'"),
        (b'{"id":7,"a\\nb":1}', r"'a\nb'"),
    ],
)
def test_a_method_that_does_not_exist_is_answered_naming_it(line: bytes, detail: str) -> None:
    decoded = decode_command(line)
    assert isinstance(decoded, Undecodable)
    assert (decoded.id, decoded.error.code, decoded.error.detail) == (7, ErrorCode.METHOD_NOT_FOUND, detail)


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_two_methods_in_one_command_are_refused_instead_of_one_of_them_guessed(first: str, second: str) -> None:
    outcome = decode_command(json.dumps({"id": 7, first: {}, second: {}}).encode())
    if first == second:
        assert isinstance(outcome, Command)
    else:
        assert isinstance(outcome, Undecodable)
        assert (outcome.id, outcome.error.code) == (7, ErrorCode.BAD_REQUEST)
        assert isinstance(decode_command(json.dumps({first: {}, second: {}}).encode()), Close)


def test_a_method_that_does_not_exist_closes_without_an_id() -> None:
    assert decode_command(b'{"fly":{}}') == closed("command without id")


@pytest.mark.parametrize("template", [b'{"id":1,"fly":%b}', b'{"id":1,"publish":{"data":%b}}', b'{"id":1,"rpc":[%b]}'])
def test_no_depth_of_nesting_raises(template: bytes) -> None:
    outcomes = {
        type(decode_command(template % (b"[" * depth + b"]" * depth))) for depth in [*range(800, 1010), 10_000, 100_000]
    }
    assert Close in outcomes
    assert len(outcomes) == 2


COMMANDS = st.builds(
    command,
    st.integers(-1, 3),
    st.sampled_from([*METHODS, "fly"]),
    VALUES
    | st.fixed_dictionaries(
        {}, optional={"channel": TEXT | VALUES, "data": VALUES, "token": VALUES, "since": VALUES, "subs": VALUES}
    ),
)


@settings(max_examples=500)
@given(JUNK | COMMANDS | damaged(COMMANDS))
@example(b'{"id":1,"publish":{"channel":1,"\xff":1}}')
def test_no_line_raises_and_every_line_has_an_outcome(line: bytes) -> None:
    decoded = decode_command(line)
    match decoded:
        case Close():
            assert decoded.code == CloseCode.BAD_REQUEST
            assert decoded.reason
        case Undecodable():
            assert 0 < decoded.id <= MAX_ID
            assert decoded.error.detail
            assert json.loads(line.decode(errors="replace"))["id"] == decoded.id
        case Command():
            assert 0 <= decoded.id <= MAX_ID
            assert decoded is PONG or decoded.request() is not None


@given(damaged(COMMANDS))
def test_a_line_that_is_decoded_is_json(line: bytes) -> None:
    if isinstance(decode_command(line), Command):
        assert isinstance(json.loads(line.decode(errors="replace")), dict)
