from __future__ import annotations

import hashlib

import pytest

from broker.auth.api_keys import ApiKey, ApiKeys
from broker.core.topic import parse_pattern

ALL = ApiKey("all")
CHAT = ApiKey("chat", frozenset({"publish", "presence"}), (parse_pattern("chat.>"), parse_pattern("news")))
KEYS = ApiKeys([("first-secret", ALL), (f"sha256:{hashlib.sha256(b'second-secret').hexdigest()}", CHAT)])

Headers = list[tuple[bytes, bytes]]
OTHERS: Headers = [(b"host", b"broker"), (b"content-type", b"application/json")]


def api_key(value: bytes) -> tuple[bytes, bytes]:
    return (b"x-api-key", value)


def authorization(value: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", value)


@pytest.mark.parametrize(
    "header",
    [
        api_key(b"first-secret"),
        authorization(b"apikey first-secret"),
        authorization(b"ApiKey first-secret"),
        authorization(b"APIKEY   first-secret "),
    ],
)
def test_a_key_is_known_by_either_header(header: tuple[bytes, bytes]) -> None:
    assert KEYS.identify([*OTHERS, header]) is ALL


def test_a_key_given_as_a_hash_is_known_by_the_key_alone() -> None:
    assert KEYS.identify([api_key(b"second-secret")]) is CHAT
    digest = hashlib.sha256(b"second-secret").hexdigest().encode()
    assert KEYS.identify([api_key(digest)]) is None
    assert KEYS.identify([api_key(b"sha256:" + digest)]) is None


def test_a_hash_may_be_in_capitals() -> None:
    digest = hashlib.sha256(b"k").hexdigest().upper()
    assert ApiKeys([(f"sha256:{digest}", ALL)]).identify([api_key(b"k")]) is ALL


def test_a_key_may_be_any_text() -> None:
    assert ApiKeys([("schlüssel: a b", ALL)]).identify([api_key("schlüssel: a b".encode())]) is ALL


@pytest.mark.parametrize(
    "headers",
    [
        [],
        OTHERS,
        [api_key(b"")],
        [api_key(b"wrong")],
        [api_key(b"first-secre")],
        [api_key(b"first-secret2")],
        [api_key(b"First-secret")],
        [api_key(b"apikey first-secret")],
        [authorization(b"first-secret")],
        [authorization(b"apikey")],
        [authorization(b"apikey ")],
        [authorization(b"apikeyfirst-secret")],
        [authorization(b"Bearer first-secret")],
        [authorization(b"")],
        [(b"x-api-keys", b"first-secret")],
    ],
)
def test_without_a_good_key_nobody_is_known(headers: Headers) -> None:
    assert KEYS.identify(headers) is None


@pytest.mark.parametrize("wrong", [b"wrong", b""])
def test_a_wrong_x_api_key_is_not_saved_by_a_right_authorization(wrong: bytes) -> None:
    right = authorization(b"apikey first-secret")
    assert KEYS.identify([api_key(wrong), right]) is None
    assert KEYS.identify([right, api_key(wrong)]) is None


def test_a_right_x_api_key_needs_no_authorization() -> None:
    assert KEYS.identify([authorization(b"Bearer x"), api_key(b"first-secret")]) is ALL
    assert KEYS.identify([authorization(b"a"), authorization(b"b"), api_key(b"first-secret")]) is ALL


@pytest.mark.parametrize("second", [b"first-secret", b"wrong", b""])
def test_a_header_that_comes_twice_is_none(second: bytes) -> None:
    assert KEYS.identify([api_key(b"first-secret"), api_key(second)]) is None
    assert KEYS.identify([api_key(second), api_key(b"first-secret")]) is None
    assert KEYS.identify([authorization(b"apikey first-secret"), authorization(b"apikey " + second)]) is None
    assert KEYS.identify([authorization(b"apikey " + second), authorization(b"apikey first-secret")]) is None


def test_no_keys_know_nobody() -> None:
    assert ApiKeys([]).identify([api_key(b"")]) is None


def test_every_entry_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def count(known: bytes, presented: bytes) -> bool:
        nonlocal compared
        compared += 1
        return known == presented

    monkeypatch.setattr("broker.auth.api_keys.compare_digest", count)
    for value in (b"first-secret", b"second-secret", b"wrong"):
        compared = 0
        KEYS.identify([api_key(value)])
        assert compared == 2


def test_a_key_without_limits_may_do_everything() -> None:
    assert ALL.may("disconnect")
    assert ALL.may_touch("anything.at.all")


def test_a_limited_key_may_do_only_what_it_names() -> None:
    assert CHAT.may("publish")
    assert not CHAT.may("disconnect")
    assert CHAT.may_touch("chat.room.1")
    assert CHAT.may_touch("news")
    assert not CHAT.may_touch("chat")
    assert not CHAT.may_touch("news.sports")
    assert CHAT.may_touch("chat.room.*")
    assert not CHAT.may_touch("*.room.>")
    assert not CHAT.may_touch("*")


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ("", "API key 'k': must not be empty"),
        (f"sha256:{hashlib.sha256(b'').hexdigest()}", "API key 'k': must not be empty"),
        ("sha256:", "API key 'k': sha256: must be followed by 64 hexadecimal digits"),
        ("sha256:abc", "API key 'k': sha256: must be followed by 64 hexadecimal digits"),
        (f"sha256:{'g' * 64}", "API key 'k': sha256: must be followed by 64 hexadecimal digits"),
        (f"sha256:{'0' * 64} ", "API key 'k': sha256: must be followed by 64 hexadecimal digits"),
        ("twice", "API key 'k': the same key as 'other'"),
    ],
)
def test_a_malformed_entry_is_refused_by_its_name(secret: str, message: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        ApiKeys([("twice", ApiKey("other")), (secret, ApiKey("k"))])
    assert str(caught.value) == message


def test_keys_do_not_show_themselves() -> None:
    shown = repr(KEYS) + repr(ALL) + repr(CHAT)
    assert "secret" not in shown
    assert "secret" not in str(KEYS._entries)
