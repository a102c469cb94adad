from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from broker.auth.keys import load_keys
from broker.auth.tokens import ConnectionClaims, Rejected, ServerSubscription, SubscriptionClaims, TokenProblem
from broker.core.permissions import Action
from tests.auth.forging import (
    LEEWAY,
    NOW,
    OTHER_SECRET,
    SECRET,
    claims,
    connected,
    connection,
    forge,
    hs256,
    invalid,
    pem,
    subscribed,
    subscription,
    verifier,
)

EXPIRED, INVALID = TokenProblem.EXPIRED, TokenProblem.INVALID


def test_a_connection_token_says_who_it_is_and_until_when() -> None:
    assert connected() == ConnectionClaims("alice", NOW + 600, None, (), (), None, NOW)


def test_a_connection_token_may_say_much_more() -> None:
    granted = connected(
        jti="token-1",
        info={"name": "Älice", "n": 1.0},
        channels=["news", "chat.1"],
        subs={"chat.1": {"data": [1, 2], "override": {"presence": {"value": True}}}, "chat.2": {"info": {"a": 1}}},
        caps=[{"channels": ["room.*", "#{sub}"], "allow": ["sub", "pub"]}, {"channels": ["log.>"], "allow": ["hst"]}],
    )
    assert granted.token_id == "token-1"
    assert json.loads(granted.info or b"") == {"name": "Älice", "n": 1.0}
    assert granted.subscriptions == (
        ServerSubscription("news", None, None),
        ServerSubscription("chat.1", None, b"[1,2]"),
        ServerSubscription("chat.2", b'{"a":1}', None),
    )
    rooms, logs = granted.capabilities
    assert rooms.allows(Action.PUBLISH, "room.1")
    assert rooms.allows(Action.SUBSCRIBE, "#alice")
    assert not rooms.allows(Action.SUBSCRIBE, "#bob")
    assert logs.allows(Action.HISTORY, "log.a.b")
    assert not logs.allows(Action.SUBSCRIBE, "log.a.b")


def test_a_subscription_token_is_for_one_topic_and_lets_subscribe() -> None:
    assert subscribed() == SubscriptionClaims(
        "alice", "news", None, NOW + 600, None, frozenset({Action.SUBSCRIBE}), None, NOW
    )


def test_a_subscription_token_may_say_more() -> None:
    granted = subscribed(client="c1", allow=["pub", "sub", "sub"], info=[None], jti="t")
    assert granted.client == "c1"
    assert granted.actions == {Action.SUBSCRIBE, Action.PUBLISH}
    assert granted.info == b"[null]"
    assert granted.token_id == "t"


def test_an_empty_allow_allows_nothing() -> None:
    assert subscribed(allow=[]).actions == frozenset()


def test_no_sub_and_an_empty_one_are_the_anonymous() -> None:
    for sub in (..., ""):
        assert connected(sub=sub).user == ""
        assert subscribed(sub=sub).user == ""


def test_the_anonymous_are_granted_nothing_by_a_pattern_of_their_name() -> None:
    (capability,) = connected(sub=..., caps=[{"channels": ["#{sub}"], "allow": ["sub"]}]).capabilities
    assert not capability.allows(Action.SUBSCRIBE, "#")


def test_a_users_name_cannot_widen_a_pattern() -> None:
    (capability,) = connected(sub="*.>", caps=[{"channels": ["home.{sub}"], "allow": ["sub"]}]).capabilities
    assert not capability.allows(Action.SUBSCRIBE, "home.alice")
    assert capability.allows(Action.SUBSCRIBE, "home.%2A%2E%3E")


def test_another_claim_may_name_the_user() -> None:
    check = verifier(user_claim="uid")
    assert check.connection(forge(claims(uid="bob"))).user == "bob"  # type: ignore[union-attr]
    assert check.connection(forge(claims())).user == ""  # type: ignore[union-attr]
    assert check.connection(forge(claims(uid=7))) == invalid("uid: must be a string")


def test_a_subscription_token_opens_no_connection() -> None:
    for channel in ("news", "", None, 1):
        assert connection(channel=channel) == invalid("channel: this is a subscription token")


def test_a_connection_token_subscribes_to_nothing() -> None:
    missing = invalid("channel: missing, so this is no subscription token")
    assert subscription(channel=...) == missing
    assert subscription(channel=..., channels=["news"], subs={"news": {}}) == missing


@pytest.mark.parametrize("kind", ["connection", "subscription"])
class TestTimes:
    """All of them with 30 seconds of leeway."""

    def outcome(self, kind: str, require_exp: bool = True, **changes: Any) -> Any:  # noqa: FBT001, FBT002
        if kind == "connection":
            return verifier(require_exp=require_exp).connection(forge(claims(**changes)))
        return verifier(require_exp=require_exp).subscription(forge(claims(channel="news", **changes)))

    @pytest.mark.parametrize("exp", [NOW + 1, NOW, NOW - LEEWAY + 0.001, int(NOW - LEEWAY) + 1])
    def test_a_token_is_good_until_its_leeway_ends(self, kind: str, exp: float) -> None:
        assert self.outcome(kind, exp=exp).expires_at == exp

    @pytest.mark.parametrize("exp", [NOW - LEEWAY, NOW - LEEWAY - 0.001, 0, -1, -1.5, -(2**53)])
    def test_then_it_has_expired(self, kind: str, exp: float) -> None:
        assert self.outcome(kind, exp=exp) == Rejected(EXPIRED, "exp: the token has expired")

    def test_a_token_without_exp_is_refused_where_one_is_required(self, kind: str) -> None:
        assert self.outcome(kind, exp=...) == invalid("exp: missing")
        assert self.outcome(kind, require_exp=False, exp=...).expires_at is None

    def test_an_exp_is_looked_at_even_where_none_is_required(self, kind: str) -> None:
        assert self.outcome(kind, require_exp=False, exp=1) == Rejected(EXPIRED, "exp: the token has expired")

    @pytest.mark.parametrize("name", ["iat", "nbf"])
    def test_a_token_from_the_future_is_refused_beyond_the_leeway(self, kind: str, name: str) -> None:
        reason = {"iat": "iat: in the future", "nbf": "nbf: not valid yet"}[name]
        assert not isinstance(self.outcome(kind, True, **{name: NOW + LEEWAY}), Rejected)
        for late in (NOW + LEEWAY + 0.001, NOW + 1e9, 2**53):
            assert self.outcome(kind, True, **{name: late}) == invalid(reason)

    def test_a_token_without_iat_and_nbf_is_good(self, kind: str) -> None:
        assert self.outcome(kind, iat=..., nbf=...).issued_at is None

    @pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
    @pytest.mark.parametrize(
        "value", ["true", "false", "null", '"9999999999"', "[]", "{}", "1e999", "-1e999", "9" * 5_000]
    )
    def test_a_time_must_be_a_number(self, kind: str, name: str, value: str) -> None:
        text = json.dumps(claims(channel="news") if kind == "subscription" else claims())
        payload = f'{text[:-1]},"{name}":{value}}}'.encode()
        outcome = getattr(verifier(), kind)(forge(payload))
        assert outcome == invalid(f"{name}: must be a number of seconds")

    @pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
    @pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 1e20, -1e300, 10**400])
    def test_a_time_that_no_clock_reaches_is_none(self, kind: str, name: str, value: float) -> None:
        assert self.outcome(kind, require_exp=False, **{name: value}) == invalid(
            f"{name}: too far from now to be a time"
        )

    def test_the_last_time_there_is_can_be_named(self, kind: str) -> None:
        assert self.outcome(kind, exp=2**53).expires_at == 2**53

    @pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"01", b"1.", b"0x10"])
    def test_what_is_no_json_is_no_token(self, kind: str, value: bytes) -> None:
        payload = b'{"sub":"alice","channel":"news","exp":' + value + b"}"
        assert getattr(verifier(), kind)(forge(payload)) == invalid("payload: not a JSON object")

    def test_an_expired_token_with_another_fault_is_invalid(self, kind: str) -> None:
        for fault in ({"jti": 1}, {"sub": 1}, {"iat": NOW + 100}, {"nbf": NOW + 100}, {"aud": 1}, {"iss": 1}):
            outcome = self.outcome(kind, exp=1, **fault)
            assert isinstance(outcome, Rejected)
            assert outcome.problem is INVALID

    def test_an_expired_token_with_a_bad_signature_is_invalid(self, kind: str) -> None:
        token = forge(claims(exp=1, channel="news"), sign=hs256(OTHER_SECRET))
        assert getattr(verifier(), kind)(token) == invalid("signature: does not verify")


def test_time_passes() -> None:
    now = NOW
    check = verifier(now=lambda: now)
    token = forge(claims(exp=NOW + 60))
    assert isinstance(check.connection(token), ConnectionClaims)
    now += 89
    assert isinstance(check.connection(token), ConnectionClaims)
    now += 1
    assert check.connection(token) == Rejected(EXPIRED, "exp: the token has expired")


NOT_FOR_US = invalid("aud: not for this service")


@pytest.mark.parametrize(
    ("aud", "outcome"),
    [
        ("chat", None),
        (["chat"], None),
        (["mail", "chat"], None),
        (..., invalid("aud: missing")),
        ("", NOT_FOR_US),
        ("mail", NOT_FOR_US),
        ("chatter", NOT_FOR_US),
        ("cha", NOT_FOR_US),
        ("Chat", NOT_FOR_US),
        ([], NOT_FOR_US),
        (["mail", "chatter"], NOT_FOR_US),
        (None, invalid("aud: must be a string or a list of strings")),
        (1, invalid("aud: must be a string or a list of strings")),
        (["chat", 1], invalid("aud: must be a string or a list of strings")),
        ({"chat": 1}, invalid("aud: must be a string or a list of strings")),
        ([["chat"]], invalid("aud: must be a string or a list of strings")),
    ],
)
def test_a_token_must_be_for_the_audience_set(aud: Any, outcome: Rejected | None) -> None:
    check = verifier(audience="chat")
    for got in (
        check.connection(forge(claims(aud=aud))),
        check.subscription(forge(claims(aud=aud, channel="news"))),
    ):
        assert (got if isinstance(got, Rejected) else None) == outcome


NOT_TRUSTED = invalid("iss: not the issuer trusted here")


@pytest.mark.parametrize(
    ("iss", "outcome"),
    [
        ("https://id.example", None),
        (..., invalid("iss: missing")),
        ("", NOT_TRUSTED),
        ("https://id.example/", NOT_TRUSTED),
        ("https://id", NOT_TRUSTED),
        (["https://id.example"], invalid("iss: must be a string")),
        (None, invalid("iss: must be a string")),
    ],
)
def test_a_token_must_be_of_the_issuer_set(iss: Any, outcome: Rejected | None) -> None:
    check = verifier(issuer="https://id.example")
    for got in (
        check.connection(forge(claims(iss=iss))),
        check.subscription(forge(claims(iss=iss, channel="news"))),
    ):
        assert (got if isinstance(got, Rejected) else None) == outcome


@pytest.mark.parametrize("unset", [None, ""])
def test_without_an_audience_or_issuer_set_any_will_do(unset: str | None) -> None:
    check = verifier(audience=unset, issuer=unset)
    assert isinstance(check.connection(forge(claims(aud="other", iss="other"))), ConnectionClaims)
    assert isinstance(check.connection(forge(claims())), ConnectionClaims)
    assert check.connection(forge(claims(aud=1))) == invalid("aud: must be a string or a list of strings")


def test_a_token_signed_with_a_public_key_pair_is_accepted(signers: dict[str, Any]) -> None:
    check = verifier(load_keys(None, [pem(signers["P-256"])], []))
    assert isinstance(check.connection(jwt.encode(claims(), signers["P-256"], "ES256")), ConnectionClaims)
    assert check.connection(forge()) == invalid("alg: no key for this algorithm and key id")


SECRETIVE: list[dict[str, Any]] = [
    {"sub": "top-secret\n"},
    {"exp": "top-secret"},
    {"aud": {"top-secret": 1}},
    {"iss": ["top-secret"]},
    {"channels": ["top-secret..x"]},
    {"subs": {"top-secret..x": {}}},
    {"subs": {"a": {"top-secret": 1}}},
    {"caps": [{"channels": ["top-secret*"], "allow": ["sub"]}]},
    {"caps": [{"channels": ["a"], "allow": ["top-secret"]}]},
    {"caps": [{"channels": ["a"], "allow": [], "top-secret": 1}]},
    {"channel": "top-secret..x"},
    {"channel": "a", "allow": ["top-secret"]},
    {"channel": "a", "client": ["top-secret"]},
]


@pytest.mark.parametrize("fault", SECRETIVE, ids=repr)
def test_reasons_are_short_and_repeat_nothing_of_the_token(fault: dict[str, Any]) -> None:
    check = verifier()
    token = forge(claims(**fault))
    outcome = check.subscription(token) if "channel" in fault else check.connection(token)
    assert isinstance(outcome, Rejected)
    assert "top-secret" not in repr(outcome)
    assert "alice" not in repr(outcome)
    assert len(outcome.reason.encode()) < 100
    assert SECRET not in repr(check)


def test_a_long_user_claim_does_not_make_a_long_reason() -> None:
    outcome = verifier(user_claim="x" * 500).connection(forge(claims(**{"x" * 500: 1})))
    assert isinstance(outcome, Rejected)
    assert len(outcome.reason) < 100
