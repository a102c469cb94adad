from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings

from broker.wire.payload import is_json, one_line
from tests.wire.json_values import JUNK, spellings


def reference_is_json(payload: bytes) -> bool:
    """The standard library's view, without what it takes beyond RFC 8259: NaN and the infinities, and without escapes
    of lone surrogates, which have no UTF-8 form.
    """
    try:
        value = json.loads(
            payload.decode(),
            parse_constant=_refuse,
            parse_int=str,
            object_pairs_hook=lambda pairs: pairs,
        )
    except (ValueError, RecursionError):
        return False
    return _has_utf_8_form(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _has_utf_8_form(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return not isinstance(value, Sequence) or all(map(_has_utf_8_form, value))


@pytest.mark.parametrize(
    "payload",
    [
        b"null",
        b"0",
        b"-0",
        b"1e400",
        b"1" * 5000,
        b'""',
        b'"\x7f"',
        b'"\xc3\xa9"',
        rb'"\ud83d\ude00"',
        rb'"\u0000\/\b"',
        b'{"a":1,"a":2}',
        b" \t\r\n[1 , 2] \n",
        b"[" * 100 + b"]" * 100,
    ],
)
def test_this_is_json(payload: bytes) -> None:
    assert is_json(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"nul",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"1e",
        b"0x1",
        b"1 2",
        b"{}{}",
        b"[1,]",
        b'{"a":1,}',
        b"{1:2}",
        b"{'a':1}",
        b'{"a"}',
        b'"',
        b'"\n"',
        b'"\x00"',
        b'"\\x41"',
        b'"\\u12"',
        b'"\xff"',
        b'{"\xff":1}',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf1",
        b"\xa0 1",
        b"\x0b1",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        "1".encode("utf-16"),
    ],
)
def test_this_is_not_json(payload: bytes) -> None:
    assert not is_json(payload)


@pytest.mark.parametrize(
    "payload", [b"NaN", b"Infinity", b"[-Infinity]", rb'"\ud800"', rb'{"\udc00x":1}', rb'"\ud800\u0041"']
)
def test_what_pythons_json_takes_beyond_the_rfc_is_not_json_here(payload: bytes) -> None:
    json.loads(payload)
    assert not is_json(payload)


@settings(max_examples=500)
@given(JUNK)
@example(b'["\xed\xa0\x80", 1]')
def test_the_standard_library_agrees_on_what_is_json(payload: bytes) -> None:
    assert is_json(payload) is reference_is_json(payload)


@given(spellings())
def test_every_spelling_of_a_value_is_json(payload: bytes) -> None:
    assert is_json(payload)


@given(spellings())
def test_one_line_holds_no_line_break_and_keeps_the_value(payload: bytes) -> None:
    line = one_line(payload)
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line) == json.loads(payload)
    assert is_json(line)


def test_a_value_on_one_line_passes_as_it_is() -> None:
    payload = b' {"a" :  1.0e0, "b":"\\n \xc3\xa9 \\u00e9"} '
    assert one_line(payload) is payload


def test_a_value_over_several_lines_keeps_all_but_the_breaks() -> None:
    assert one_line(b'{\r\n  "a": "\\n",\n  "b": 1.0e0\n}\r') == b'{  "a": "\\n",  "b": 1.0e0}'


def test_a_carriage_return_alone_is_a_line_break_too() -> None:
    assert one_line(b'{\r"a":1}') == b'{"a":1}'


@pytest.mark.parametrize("depth", [100, 990, 100_000])
def test_one_line_takes_any_depth(depth: int) -> None:
    assert one_line(b"[" * depth + b"\n" + b"]" * depth) == b"[" * depth + b"]" * depth
