"""JSON to test with: values, their spellings, and junk that is nearly JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
BREAKS = st.sampled_from([" ", "\n", "\r\n", "\t", " \n\r\t ", ""])


@st.composite
def spellings(draw: st.DrawFn) -> bytes:
    """A JSON value in one of its many spellings."""
    text = json.dumps(
        draw(VALUES),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.none() | BREAKS),
        separators=(draw(BREAKS) + "," + draw(BREAKS), draw(BREAKS) + ":" + draw(BREAKS)),
    )
    return (draw(BREAKS) + text + draw(BREAKS)).encode()


_FRAGMENTS = rb"""{ } [ ] , : " 0 1 - + . e E \ / \u \ud800 \udc00 \u0041 \n \x
"a" "id" "publish" "subscribe" "channel" "data"
true false null nul NaN Infinity -Infinity 1e5 01 -0 0x1 1. .5 [] {} {"a": ' // /**/""".split()
_BYTES = [b" ", b"\n", b"\t", b"\r", b"\x0b", b"\x0c", b"\x00", b"\x1f", b"\x7f", b"\xc2\xa0", b"\xef\xbb\xbf"]
_NO_UTF_8 = [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
_PIECES = st.sampled_from([*_FRAGMENTS, *_BYTES, *_NO_UTF_8])


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Something whole with a piece cut out and another put in."""
    data = draw(whole)
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(len(data), begin + 3)))
    return data[:begin] + draw(_PIECES | st.just(b"")) + data[end:]


JUNK = st.binary(max_size=20) | st.lists(_PIECES, max_size=10).map(b"".join) | damaged(spellings()) | spellings()
