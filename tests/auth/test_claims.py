"""Each claim on its own: what it may be, and that whatever else it is makes the token invalid."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from msgspec import Raw

from broker.auth.claims import read_json
from broker.auth.jws import RefusedError
from broker.auth.tokens import ConnectionClaims, Rejected, ServerSubscription, SubscriptionClaims
from tests.auth.forging import (
    claims,
    connected,
    connection,
    forge,
    invalid,
    subscription,
    verifier,
)


@pytest.mark.parametrize("user", ["a" * 255, "ä" * 127, "👩‍👩‍👧", "a b", "name\u2028", " "])
def test_a_user_may_have_any_name_of_255_bytes(user: str) -> None:
    assert connected(sub=user).user == user


CONTROL = "sub: must not hold control characters"


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("a" * 256, "sub: more than 255 bytes"),
        ("ä" * 128, "sub: more than 255 bytes"),
        ("👩" * 64, "sub: more than 255 bytes"),
        ("a\n", CONTROL),
        ("\0", CONTROL),
        ("a\x7f", CONTROL),
        ("a\x85b", CONTROL),
        ("\x1b[31m", CONTROL),
        ("\ud800", "payload: not a JSON object"),  # JSON can write it, but no text can hold it
        ("a\udc00", "payload: not a JSON object"),
        (None, "sub: must be a string"),
        (0, "sub: must be a string"),
        (True, "sub: must be a string"),
        (["alice"], "sub: must be a string"),
        ({"id": "alice"}, "sub: must be a string"),
    ],
)
def test_a_user_with_an_unfit_name_is_refused(user: object, reason: str) -> None:
    assert connection(sub=user) == invalid(reason)
    assert subscription(sub=user) == invalid(reason)


@pytest.mark.parametrize("wrong", [None, 1, True, [], ["a"], {}])
def test_jti_and_client_must_be_strings(wrong: object) -> None:
    assert connection(jti=wrong) == invalid("jti: must be a string")
    assert subscription(jti=wrong) == invalid("jti: must be a string")
    assert subscription(client=wrong) == invalid("client: must be a string")


def test_an_empty_client_does_not_stand_for_any_client() -> None:
    assert subscription(client="") == invalid("client: must not be empty")


@pytest.mark.parametrize("info", [0, "text", [], {}, False, {"deep": [{"a": [1, "\n"]}]}])
def test_info_is_any_json_on_one_line(info: object) -> None:
    payload = json.dumps(claims(info=info), indent=2).encode()
    granted = verifier().connection(forge(payload))
    assert isinstance(granted, ConnectionClaims)
    assert granted.info == json.dumps(info, separators=(",", ":")).encode()


def test_numbers_in_info_stay_as_they_are_written() -> None:
    granted = verifier().connection(forge(b'{"exp":2000000000,"info":[1.0, 1e400, 12345678901234567890123]}'))
    assert isinstance(granted, ConnectionClaims)
    assert granted.info == b"[1.0,1e400,12345678901234567890123]"


def test_null_is_no_info() -> None:
    assert connected(info=None).info is None
    assert connected(subs={"news": {"info": None, "data": None}}).subscriptions == (
        ServerSubscription("news", None, None),
    )


BAD_TOPICS: dict[Any, str] = {
    "": "must not be empty",
    "a..b": "holds an empty token",
    ".a": "holds an empty token",
    "a b": "holds whitespace or a character that is not printable",
    "a\nb": "holds whitespace or a character that is not printable",
    "a*": "mixes a wildcard with text in one token",
    "room:*": "mixes a wildcard with text in one token",
    "a.>.b": "> may stand only at the end",
    "$SYS.a": "names that begin with $ or _INBOX are reserved",
    "_INBOX.a": "names that begin with $ or _INBOX are reserved",
    "a" * 256: "256 bytes, at most 255 are allowed",
}


@pytest.mark.parametrize("topic", BAD_TOPICS)
def test_an_unfit_topic_is_refused(topic: str) -> None:
    assert connection(channels=["good", topic]) == invalid(f"channels: {BAD_TOPICS[topic]}")
    assert connection(subs={"good": {}, topic: {}}) == invalid(f"subs: {BAD_TOPICS[topic]}")
    assert subscription(channel=topic) == invalid(f"channel: {BAD_TOPICS[topic]}")


@pytest.mark.parametrize("wildcard", ["*", ">", "a.*", "a.*.b.>"])
def test_wildcards_can_be_subscribed_to(wildcard: str) -> None:
    assert connected(channels=[wildcard]).subscriptions == (ServerSubscription(wildcard, None, None),)
    assert connected(subs={wildcard: {"data": 1}}).subscriptions == (ServerSubscription(wildcard, None, b"1"),)
    granted = subscription(channel=wildcard)
    assert isinstance(granted, SubscriptionClaims)
    assert granted.topic == wildcard


@pytest.mark.parametrize("wrong", [None, 1, True, ["news"], {"news": 1}])
def test_channel_must_be_a_string(wrong: object) -> None:
    assert subscription(channel=wrong) == invalid("channel: must be a string")


@pytest.mark.parametrize("wrong", [None, 1, "news", {"news": {}}, [1], [["news"]], ["news", None]])
def test_channels_must_be_a_list_of_strings(wrong: object) -> None:
    assert connection(channels=wrong) == invalid("channels: must be a list of strings")


@pytest.mark.parametrize("wrong", [None, 1, "news", ["news"], {"news": None}, {"news": 1}, {"news": []}])
def test_subs_must_be_an_object_of_objects(wrong: object) -> None:
    assert connection(subs=wrong) == invalid("subs: must be an object of objects")


def test_an_unknown_option_of_a_server_side_subscription_is_refused() -> None:
    reason = "subs: an option that is none of info, data"
    assert connection(subs={"news": {"recover": True}}) == invalid(reason)


def test_base64_is_refused_with_the_way_out() -> None:
    assert connection(subs={"news": {"b64info": "e30="}}) == invalid("b64info: not supported, info takes any JSON")
    assert connection(subs={"news": {"b64data": "e30="}}) == invalid("b64data: not supported, data takes any JSON")
    assert connection(b64info="e30=") == invalid("b64info: not supported, info takes any JSON")
    assert subscription(b64info="e30=") == invalid("b64info: not supported, info takes any JSON")


SHAPE = "caps: must be a list of objects with channels and allow"
PATTERN = "caps: a channel pattern that is not well-formed"
ACTION = "an action that is none of hst, prs, pub, sub"


@pytest.mark.parametrize(
    ("caps", "reason"),
    [
        (None, SHAPE),
        ({}, SHAPE),
        ("sub", SHAPE),
        ([1], SHAPE),
        ([[]], SHAPE),
        ([{}], SHAPE),
        ([{"channels": ["a"]}], SHAPE),
        ([{"allow": ["sub"]}], SHAPE),
        ([{"channels": "a", "allow": ["sub"]}], SHAPE),
        ([{"channels": ["a"], "allow": "sub"}], SHAPE),
        ([{"channels": ["a"], "allow": [1]}], SHAPE),
        ([{"channels": ["a"], "allow": ["sub"], "match": "regex"}], SHAPE),
        ([{"channels": ["a"], "allow": ["sub"]}, {"channels": ["b"], "allow": ["all"]}], f"caps: {ACTION}"),
        ([{"channels": ["a"], "allow": ["SUB"]}], f"caps: {ACTION}"),
        ([{"channels": ["a"], "allow": [""]}], f"caps: {ACTION}"),
        ([{"channels": [""], "allow": ["sub"]}], PATTERN),
        ([{"channels": ["a.>.b"], "allow": ["sub"]}], PATTERN),
        ([{"channels": ["pre*"], "allow": ["sub"]}], PATTERN),
        ([{"channels": ["$SYS.>"], "allow": ["sub"]}], PATTERN),
        ([{"channels": ["{sub}..a"], "allow": ["sub"]}], PATTERN),
    ],
)
def test_malformed_caps_are_refused(caps: object, reason: str) -> None:
    assert connection(caps=caps) == invalid(reason)


@pytest.mark.parametrize(
    ("allow", "reason"),
    [
        (None, "allow: must be a list of strings"),
        ("sub", "allow: must be a list of strings"),
        ({"sub": 1}, "allow: must be a list of strings"),
        ([1], "allow: must be a list of strings"),
        (["sub", "admin"], f"allow: {ACTION}"),
    ],
)
def test_a_malformed_allow_is_refused(allow: object, reason: str) -> None:
    assert subscription(allow=allow) == invalid(reason)


def test_unknown_claims_are_ignored() -> None:
    assert connected(meta={"a": 1}, expire_at=0, override={}, **{"https://example.com/role": "admin"}) == connected()


@pytest.mark.parametrize("payload", [b"[]", b"null", b"1", b'"x"', b"{", b"{} {}", b"{'a':1}", b'{"a":' * 1_500])
def test_a_payload_that_is_no_json_object_is_refused(payload: bytes) -> None:
    assert verifier().connection(forge(payload)) == invalid("payload: not a JSON object")
    assert verifier().subscription(forge(payload)) == invalid("payload: not a JSON object")


@pytest.mark.parametrize("name", ["sub", "exp", "aud", "info", "channels", "subs", "caps", "jti"])
def test_a_deeply_nested_claim_is_refused(name: str) -> None:
    payload = b'{"%s":%s}' % (name.encode(), b"[" * 5_000 + b"]" * 5_000)
    assert verifier().connection(forge(payload)) == invalid("payload: not a JSON object")


@pytest.mark.parametrize("name", ["info", "aud", "channels", "subs", "caps"])
def test_no_depth_of_nesting_raises(name: str) -> None:
    outcomes = set()
    for depth in range(1, sys.getrecursionlimit() + 50):
        payload = b'{"exp":2000000000,"%s":%s}' % (name.encode(), b"[" * depth + b"]" * depth)
        outcome = verifier().connection(forge(payload))
        outcomes.add(outcome.reason if isinstance(outcome, Rejected) else "")
    assert "payload: not a JSON object" in outcomes


def test_json_nested_too_deeply_to_be_compacted_is_refused() -> None:
    with pytest.raises(RefusedError, match="info: nested too deeply"):
        read_json({"info": Raw(b"[" * 5_000 + b"]" * 5_000)}, "info")
