"""Properties: nothing near a good token is accepted, nothing raises, and PyJWT accepts whatever we accept."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth.keys import load_keys
from broker.auth.tokens import ConnectionClaims, Rejected, SubscriptionClaims, TokenVerifier
from tests.auth.forging import GOOD, SECRET, claims, encode, forge, pem, verifier

CHECK = verifier()
TOKEN = forge(claims(info={"a": 1}, channels=["news"], caps=[{"channels": ["a.*"], "allow": ["sub"]}]))
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\0é"

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
CLAIMS = "sub exp iat nbf aud iss jti info channels subs caps channel client allow b64info"
HEADERS = "alg kid crit b64 typ cty jku jwk x5c zip enc"
claim_names = st.sampled_from(CLAIMS.split(" "))
header_names = st.sampled_from(HEADERS.split(" "))


@pytest.fixture(scope="module")
def asymmetric(signers: dict[str, Any]) -> list[tuple[TokenVerifier, str]]:
    families = {"P-256": "ES256", "Ed25519": "EdDSA", "RSA": "RS256"}
    return [
        (verifier(load_keys(None, [pem(signers[kind])], [])), jwt.encode(GOOD, signers[kind], alg))
        for kind, alg in families.items()
    ]


def edited(position: int, removed: int, inserted: str) -> str:
    position %= len(TOKEN) + 1
    return TOKEN[:position] + inserted + TOKEN[position + removed :]


@settings(max_examples=1_000, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.text(ALPHABET, max_size=3))
def test_no_edit_of_a_good_token_is_accepted(position: int, removed: int, inserted: str) -> None:
    token = edited(position, removed, inserted)
    if token != TOKEN:
        assert isinstance(CHECK.connection(token), Rejected)
        assert isinstance(CHECK.subscription(token), Rejected)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5))
def test_no_flipped_bit_of_an_asymmetric_token_is_accepted(
    asymmetric: list[tuple[TokenVerifier, str]], position: int, bit: int
) -> None:
    for check, token in asymmetric:
        index = position % len(token)
        flipped = token[:index] + chr(ord(token[index]) ^ (1 << bit)) + token[index + 1 :]
        assert isinstance(check.connection(token), ConnectionClaims)
        assert isinstance(check.connection(flipped), Rejected)


@settings(deadline=None)
@given(st.text() | st.text(ALPHABET))
def test_text_is_no_token(text: str) -> None:
    assert isinstance(CHECK.connection(text), Rejected)
    assert isinstance(CHECK.subscription(text), Rejected)


@settings(deadline=None)
@given(st.binary(), st.binary(), st.binary())
def test_three_parts_of_any_bytes_are_no_token(header: bytes, payload: bytes, signature: bytes) -> None:
    token = b".".join(encode(part) for part in (header, payload, signature)).decode()
    assert isinstance(CHECK.connection(token), Rejected)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(header_names, anything))
def test_a_header_of_anything_never_raises(header: dict[str, Any]) -> None:
    for alg in ({}, {"alg": "HS256"}):
        assert isinstance(CHECK.connection(forge(header=header | alg)), Rejected | ConnectionClaims)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(claim_names, anything))
def test_signed_claims_of_anything_never_raise(changes: dict[str, Any]) -> None:
    token = forge(GOOD | changes)
    assert isinstance(CHECK.connection(token), Rejected | ConnectionClaims)
    assert isinstance(CHECK.subscription(token), Rejected | SubscriptionClaims)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_a_signed_payload_of_any_bytes_never_raises(payload: bytes) -> None:
    assert isinstance(CHECK.connection(forge(payload)), Rejected)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(claim_names, anything), st.dictionaries(st.sampled_from(["kid", "typ", "b64", "crit"]), anything)
)
def test_what_is_accepted_here_pyjwt_accepts_too(changes: dict[str, Any], header: dict[str, Any]) -> None:
    token = forge(GOOD | changes, {"alg": "HS256"} | header)
    if isinstance(CHECK.connection(token), ConnectionClaims):
        options: Any = {
            "verify_exp": False,
            "verify_aud": False,
            "verify_iat": False,
            "enforce_minimum_key_length": True,
        }
        decoded = jwt.decode(token, SECRET, ["HS256"], options=options)
        assert decoded == json.loads(json.dumps(GOOD | changes))


@pytest.mark.parametrize("edit", [(0, 0, ""), (5, 1, TOKEN[5])])
def test_the_token_itself_is_good(edit: tuple[int, int, str]) -> None:
    assert isinstance(CHECK.connection(edited(*edit)), ConnectionClaims)
