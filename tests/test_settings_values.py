"""What each kind of value takes."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from broker.settings.values import (
    ApiSecret,
    Directory,
    Host,
    HttpUrl,
    KeyName,
    KeyOrHash,
    NatsUrl,
    Origin,
    PersonalTopic,
    PolicyName,
    Prefix,
    PublicKey,
    ReadableFile,
    Replicas,
    mask_urls,
)

PUBLIC_PEM = "-----BEGIN PUBLIC KEY-----\nMCo=\n-----END PUBLIC KEY-----\n"
JWK = {"kty": "OKP", "crv": "Ed25519", "x": "AA"}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Host, "::1"),
        (Host, "broker.example"),
        (NatsUrl, "embedded"),
        (NatsUrl, "nats://a,tls://user:p%40ss@b:4222"),
        (NatsUrl, "nats://[::1],tls://a:443/"),
        (Origin, "https://*.example.com"),
        (Origin, "chrome-extension://abcdef"),
        (Origin, "http://localhost:3000"),
        (PublicKey, PUBLIC_PEM),
        (PublicKey, json.dumps(JWK)),
        (PublicKey, json.dumps({"keys": [JWK]})),
        (PublicKey, __file__),
        (ReadableFile, __file__),
        (HttpUrl, "https://issuer.example/jwks.json"),
        (KeyOrHash, f"sha256:{'0a' * 32}"),
        (KeyOrHash, "sha1:short"),
        (Prefix, "team-a.broker_2"),
        (PolicyName, "a-b_3"),
        (KeyName, "A.b-c_1"),
        (PersonalTopic, ""),
        (PersonalTopic, "users.{sub}.inbox"),
        (Directory, "not/there/yet"),
    ],
)
def test_this_is_taken(kind: Any, value: str) -> None:
    assert TypeAdapter(kind).validate_python(value) is not None


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        (Host, "http://a", "is not a host"),
        (NatsUrl, "", "here, there is no scheme that NATS knows"),
        (NatsUrl, "localhost:4222", "here, there is no scheme that NATS knows"),
        (NatsUrl, "nats://a,nats://b:x", "at entry 2 of 2, host or port is malformed"),
        (NatsUrl, "nats://a:0", "host or port is malformed"),
        (NatsUrl, "nats://", "host or port is malformed"),
        (NatsUrl, "nats://[a", "host or port is malformed"),
        (NatsUrl, "nats://a b", "host or port is malformed"),
        (NatsUrl, "nats://a/path", "something follows the port"),
        (NatsUrl, "nats://a,", "at entry 2 of 2, there is no scheme that NATS knows"),
        (NatsUrl, "embedded,nats://a", "embedded stands beside others"),
        (NatsUrl, "nats://a,ws://b", "at entry 2 of 2, there is no scheme that NATS knows"),
        (Origin, "app.example.com", "is not an origin"),
        (Origin, "https://app.example.com/", "is not an origin"),
        (Origin, "https://a.*.com", "is not an origin"),
        (PublicKey, PUBLIC_PEM.replace("PUBLIC", "RSA PRIVATE"), "is a private key, which no broker should have"),
        (PublicKey, "{", "begins like a JWK but is not JSON"),
        (PublicKey, '{"a": ' * 100_000, "begins like a JWK but is not JSON"),
        (PublicKey, "{}", "it has no kty"),
        (PublicKey, '{"keys": [7]}', "it has no kty"),
        (PublicKey, json.dumps({"keys": [JWK, {**JWK, "d": "AA"}]}), "holds a private or symmetric key"),
        (PublicKey, "/no/such/file", "cannot be read as a file: No such file or directory"),
        (ReadableFile, "a\0b", "is not the name of a file"),
        (ReadableFile, str(Path(__file__).parent), "cannot be read as a file: Is a directory"),
        (Directory, 7, "is not the path of a directory"),
        (HttpUrl, "ftp://a", "is not a URL"),
        (HttpUrl, "http://[a", "is not a URL"),
        (HttpUrl, "http://a b", "is not a URL"),
        (ApiSecret, "two words", "cannot be sent in a header"),
        (KeyOrHash, f"sha256:{'0A' * 32}", "is not a key's hash"),
        (KeyOrHash, f"sha256:{sha256().hexdigest()}", "is the hash of an empty key"),
        (Replicas, 2, "is no number of replicas; give 1, 3 or 5"),
        (Prefix, "a..b", "cannot begin a NATS subject"),
        (Prefix, "a" * 65, "cannot begin a NATS subject"),
        (PolicyName, "News", "is not a policy's name"),
        (PolicyName, "news\n", "is not a policy's name"),
        (KeyName, "a b", "is not a key's name"),
        (PersonalTopic, "{sub}.>", "is not a topic: wildcards"),
    ],
)
def test_this_is_refused_with_the_reason(kind: Any, value: Any, complaint: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(value)

    (detail,) = refused.value.errors()
    assert complaint in detail["msg"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("nats://a:4222", "nats://a:4222"),
        ("nats://user:pass@a", "nats://user:********@a"),
        ("nats://token@a,tls://u:p:q@b", "nats://********@a,tls://u:********@b"),
        ("https://u:p/w@a/x", "https://u:********@a/x"),
        ("mail me@a.example", "mail me@a.example"),
    ],
)
def test_passwords_in_urls_are_masked(text: str, masked: str) -> None:
    assert mask_urls(text) == masked
