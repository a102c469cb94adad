"""The compact form itself: one spelling of a token, and nothing that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.auth.jws import MAX_TOKEN_BYTES, RefusedError, open_token
from broker.auth.keys import KeyRing, load_keys
from tests.auth.forging import GOOD, OTHER_SECRET, SECRET, forge, hs256

RING = load_keys(SECRET, [], [])


def refusal(token: str, ring: KeyRing = RING) -> str:
    with pytest.raises(RefusedError) as caught:
        open_token(token, ring)
    return str(caught.value)


def opened(token: str, ring: KeyRing = RING) -> Any:
    return json.loads(open_token(token, ring))


GOOD_TOKEN = forge()
HEAD, BODY, TAIL = GOOD_TOKEN.split(".")


@pytest.mark.parametrize(
    "token",
    [
        "",
        " ",
        ".",
        "..",
        "...",
        "junk",
        "a.b",
        "null",
        f" {GOOD_TOKEN}",
        f"{GOOD_TOKEN}\n",
        f"{GOOD_TOKEN}\0",
        f"{HEAD}\n.{BODY}.{TAIL}",
        f"Bearer {GOOD_TOKEN}",
        f"{HEAD}.{BODY}.",
        f"{HEAD}..{TAIL}",
        f".{BODY}.{TAIL}",
        f"{HEAD}.{BODY}",
        f"{GOOD_TOKEN}.{TAIL}",
        f"{HEAD}.{BODY}.{TAIL}=",
        f"{HEAD}.{BODY}==.{TAIL}",
        f"{HEAD}.{BODY}.{TAIL[:-1]}!",
        f"{HEAD}.{BODY}.{TAIL[:-1]}+",
        f"{HEAD}.{BODY}.{TAIL[:-1]}/",
        f"{HEAD}.{BODY}.{TAIL}é",
        f"{HEAD}.{BODY}.{TAIL[:-1]}\u0660",  # a digit, but not of this alphabet
        "\ud800",
        "п.п.п",
    ],
)
def test_what_is_not_in_compact_form_is_refused(token: str) -> None:
    assert refusal(token) == "token: not a JWT in compact form"


def test_a_signature_has_one_spelling_only() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    position = alphabet.index(TAIL[-1])
    for low_bits in range(1, 4):
        other = alphabet[position ^ low_bits]
        assert refusal(f"{HEAD}.{BODY}.{TAIL[:-1]}{other}") == "token: not canonical base64url"
    assert refusal(f"{HEAD}.{BODY}.{TAIL}AA") == "token: not base64url"


def test_json_serialization_is_refused() -> None:
    token = json.dumps({"payload": BODY, "protected": HEAD, "signature": TAIL})
    assert refusal(token) == "token: not a JWT in compact form"


def test_an_encrypted_token_is_refused() -> None:
    assert refusal(".".join(["eyJhbGciOiJkaXIifQ"] * 5)) == "token: not a JWT in compact form"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"1",
        b'"HS256"',
        b"{",
        b'{"alg":"HS256"',
        b'{"alg":"HS256"} x',
        b'{"alg":"HS256","x":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"alg":"\xff"}',
        b'{"alg":NaN}',
        b"\xff",
        b'\xef\xbb\xbf{"alg":"HS256"}',
    ],
)
def test_a_header_that_is_no_json_object_is_refused(header: bytes) -> None:
    expected = "header: not a JOSE header with an alg" if header else "token: not a JWT in compact form"
    assert refusal(forge(header=header)) == expected


def test_the_largest_token_is_opened_and_a_byte_more_is_refused() -> None:
    def padded(count: int) -> str:
        return forge(GOOD | {"pad": "x" * count})

    count = next(n for n in range(11_900, 12_300) if len(padded(n + 1)) > MAX_TOKEN_BYTES)
    assert MAX_TOKEN_BYTES - 2 <= len(padded(count)) <= MAX_TOKEN_BYTES
    assert opened(padded(count))["sub"] == "alice"
    assert refusal(padded(count + 1)) == "token: more than 16384 bytes"
    assert refusal("x" * 10_000_000) == "token: more than 16384 bytes"


def test_a_payload_that_is_not_utf8_is_refused() -> None:
    assert refusal(forge(b'{"info":"\xff"}')) == "payload: not UTF-8"


def test_the_payload_of_a_token_with_a_bad_signature_is_never_looked_at() -> None:
    assert refusal(forge(b"\xff not json", sign=hs256(OTHER_SECRET))) == "signature: does not verify"
