from __future__ import annotations

import pytest

from broker.auth.mint import mint, parse_duration
from broker.auth.tokens import ConnectionClaims, Rejected, SubscriptionClaims
from tests.auth.forging import NOW, SECRET, verifier


def test_a_connection_token_is_taken_by_who_shares_the_secret() -> None:
    (token,) = mint(user="alice", topic=[], ttl_seconds=3_600, secret=SECRET, audience=None, issuer=None, now=NOW + 0.7)
    assert verifier().connection(token) == ConnectionClaims("alice", NOW + 3_600, None, (), (), None, NOW)
    assert isinstance(verifier().subscription(token), Rejected)


def test_each_topic_gets_a_subscription_token_of_its_own() -> None:
    tokens = mint(user="bob", topic=["a", "b"], ttl_seconds=60, secret=SECRET, audience=None, issuer=None, now=NOW)
    granted = [verifier().subscription(token) for token in tokens]
    assert [(g.user, g.topic) for g in granted if isinstance(g, SubscriptionClaims)] == [("bob", "a"), ("bob", "b")]
    assert all(isinstance(verifier().connection(token), Rejected) for token in tokens)


def test_audience_and_issuer_are_those_that_the_verifier_asks_for() -> None:
    check = verifier(audience="chat", issuer="me")
    (token,) = mint(user="", topic=[], ttl_seconds=60, secret=SECRET, audience="chat", issuer="me", now=NOW)
    assert isinstance(check.connection(token), ConnectionClaims)
    (token,) = mint(user="", topic=[], ttl_seconds=60, secret=SECRET, audience="", issuer=None, now=NOW)
    assert isinstance(check.connection(token), Rejected)


def test_without_a_ttl_a_token_never_expires() -> None:
    (token,) = mint(user="a", topic=[], ttl_seconds=None, secret=SECRET, audience=None, issuer=None, now=NOW)
    granted = verifier(require_exp=False, now=lambda: NOW + 1e9).connection(token)
    assert isinstance(granted, ConnectionClaims)
    assert granted.expires_at is None


def test_the_user_stands_in_the_claim_that_the_verifier_looks_at() -> None:
    (token,) = mint(
        user="ann", topic=[], ttl_seconds=9, secret=SECRET, audience=None, issuer=None, now=NOW, user_claim="uid"
    )
    granted = verifier(user_claim="uid").connection(token)
    assert isinstance(granted, ConnectionClaims)
    assert granted.user == "ann"


def test_how_short_a_secret_may_be_is_not_for_minting_to_say() -> None:
    # a warning would be an error here
    assert mint(
        user="a", topic=[], ttl_seconds=9, secret="short", audience=None, issuer=None, now=NOW, algorithm="HS512"
    )


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_every_hmac_algorithm_can_sign(algorithm: str) -> None:
    (token,) = mint(
        user="a", topic=[], ttl_seconds=9, secret=SECRET, audience=None, issuer=None, now=NOW, algorithm=algorithm
    )
    assert isinstance(verifier().connection(token), ConnectionClaims)


@pytest.mark.parametrize("algorithm", ["none", "RS256", "hs256", ""])
def test_nothing_else_can(algorithm: str) -> None:
    with pytest.raises(ValueError, match="HS256, HS384 or HS512 is expected"):
        mint(user="a", topic=[], ttl_seconds=9, secret=SECRET, audience=None, issuer=None, now=NOW, algorithm=algorithm)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3_600), ("7d", 604_800), (" 1h ", 3_600), ("01h", 3_600)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0h", "h", "1 h", "-1h", "+1", "1.5h", "1w", "1H", "1h30m", "\u0661h", "9" * 5_000]
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as 90, 90s, 15m, 1h or 7d is expected"):
        parse_duration(text)
