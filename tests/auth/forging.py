"""Making tokens by hand, good ones and those that no library would make."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from broker.auth.keys import KeyRing, load_keys
from broker.auth.tokens import ConnectionClaims, Rejected, SubscriptionClaims, TokenProblem, TokenVerifier

SECRET = "a secret that is long enough for every HMAC algorithm, SHA-512 too"
OTHER_SECRET = "another secret that is long enough for every algorithm, SHA-512 too"
NOW = 1_700_000_000.0
LEEWAY = 30.0

GOOD: dict[str, Any] = {"sub": "alice", "iat": int(NOW), "exp": int(NOW) + 600}


def verifier(
    keys: KeyRing | None = None,
    *,
    audience: str | None = None,
    issuer: str | None = None,
    user_claim: str = "sub",
    require_exp: bool = True,
    now: Callable[[], float] = lambda: NOW,
) -> TokenVerifier:
    return TokenVerifier(
        keys or load_keys(SECRET, [], []),
        audience=audience,
        issuer=issuer,
        leeway_seconds=LEEWAY,
        user_claim=user_claim,
        require_exp=require_exp,
        clock=now,
    )


def encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def hs256(secret: str | bytes = SECRET) -> Callable[[bytes], bytes]:
    key = secret.encode() if isinstance(secret, str) else secret
    return lambda message: hmac.digest(key, message, hashlib.sha256)


def forge(
    payload: Mapping[str, Any] | bytes | None = None,
    header: Mapping[str, Any] | bytes | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> str:
    """A token with this payload and header as they stand, signed as told."""
    header = {"alg": "HS256", "typ": "JWT"} if header is None else header
    payload = GOOD if payload is None else payload
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = b".".join(encode(part) for part in parts)
    return (signed + b"." + encode((sign or hs256())(signed))).decode()


def claims(**changes: Any) -> dict[str, Any]:
    """The good claims with these changed; `...` takes one away."""
    return {name: value for name, value in (GOOD | changes).items() if value is not ...}


def pem(private_key: Any) -> str:
    form: bytes = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return form.decode()


def private_pem(private_key: Any) -> str:
    form: bytes = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return form.decode()


def connection(**changes: Any) -> ConnectionClaims | Rejected:
    return verifier().connection(forge(claims(**changes)))


def subscription(**changes: Any) -> SubscriptionClaims | Rejected:
    return verifier().subscription(forge(claims(**({"channel": "news"} | changes))))


def connected(**changes: Any) -> ConnectionClaims:
    outcome = connection(**changes)
    assert isinstance(outcome, ConnectionClaims), outcome
    return outcome


def subscribed(**changes: Any) -> SubscriptionClaims:
    outcome = subscription(**changes)
    assert isinstance(outcome, SubscriptionClaims), outcome
    return outcome


def invalid(reason: str) -> Rejected:
    return Rejected(TokenProblem.INVALID, reason)
