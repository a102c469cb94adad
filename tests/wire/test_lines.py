"""Encoded publications, looked at once more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.message import ClientInfo
from broker.wire.lines import declare, key_of, missing_before
from broker.wire.replies import join_push, publication_head, publication_push

HEAD = publication_head("prices.eu")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def line_of(data: Any, **more: Any) -> bytes:
    return publication_push(HEAD, json.dumps(data).encode(), more.pop("info", None), more.pop("tags", None), **more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"offset": 7},
        {"tags": {"a": "b"}},
        {"info": ClientInfo("u", "c", b'{"x":1}', None), "tags": {"a": "}}}"}, "offset": 3, "topic": "prices.eu"},
        {"info": ClientInfo("u", "c"), "topic": "prices.eu"},
    ],
)
def test_a_declaration_adds_a_tag_and_changes_nothing_else(more: dict[str, Any]) -> None:
    line = line_of({"tags": {"not": "these"}, "x": [1, 2.50]}, **more)
    before, after = json.loads(line), json.loads(declare(line, 12))
    tags = after["push"]["pub"].pop("tags")
    assert tags == {**before["push"]["pub"].pop("tags", {}), "broker.dropped": "12"}
    assert after == before
    assert b"\n" not in declare(line, 12)


def test_data_is_copied_as_it_came() -> None:
    line = publication_push(HEAD, b'{"n": 1.0e2,  "n":"\\u00e9"}', None, {"a": "b"})
    assert b'{"n": 1.0e2,  "n":"\\u00e9"}' in declare(line, 1)


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        (("symbol",), True),
        (("deep", "a", "0"), True),
        (("deep", "a", "00"), False),
        (("deep", "a", "7"), False),
        (("symbol", "x"), False),
        (("none",), False),
        (("",), True),
        (("nothing",), True),
    ],
)
def test_a_key_is_what_the_pointer_leads_to(pointer: tuple[str, ...], *, found: bool) -> None:
    data = {"symbol": "AAPL", "deep": {"a": [{"x": 1}]}, "": 0, "nothing": None}
    assert (key_of(line_of(data), pointer) is not None) is found


def test_without_a_pointer_all_publications_of_a_topic_have_the_same_key() -> None:
    assert key_of(line_of(1), ()) == key_of(line_of({"a": 2}), ())
    assert key_of(line_of(1, topic="a"), ()) != key_of(line_of(1, topic="b"), ())
    assert key_of(line_of({"k": 1}, topic="a"), ("k",)) != key_of(line_of({"k": 1}, topic="b"), ("k",))


def test_what_is_no_publication_has_no_key() -> None:
    assert key_of(join_push("prices.eu", b'{"user":"u","client":"c"}'), ()) is None


@given(VALUES, VALUES)
def test_keys_are_equal_where_the_json_is(one: Any, other: Any) -> None:
    keys = [key_of(line_of({"k": value}), ("k",)) for value in (one, other)]
    assert (keys[0] == keys[1]) is (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))
    assert hash(keys[0]) is not None


def test_a_key_is_compared_by_its_value_and_not_by_its_spelling() -> None:
    lines = [publication_push(HEAD, data, None, None) for data in (b'{"k":"A"}', b'{ "k" : "\\u0041" }')]
    assert key_of(lines[0], ("k",)) == key_of(lines[1], ("k",))


def test_declarations_add_up_and_can_be_read() -> None:
    line = line_of({"broker.dropped": "data says nothing"})
    assert missing_before(line) == 0
    assert missing_before(line_of(1, tags={"not.broker.dropped": "3"})) == 0
    once = declare(line, 3)
    assert missing_before(once) == 3
    assert missing_before(declare(once, 4)) == 7
