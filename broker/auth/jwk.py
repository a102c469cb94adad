"""JSON Web Keys and sets of them (RFC 7517)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from broker.auth.ring import (
    SUPPORTED,
    BadKeyError,
    ForeignKeyError,
    VerificationKey,
    bind_public_key,
    bind_secret,
    private_key_error,
)

_READERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
    "oct": HMACAlgorithm.from_jwk,
}
_CURVES = {"EC": ("P-256", "P-384", "P-521"), "OKP": ("Ed25519", "Ed448")}
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})


def load_jwk_text(
    where: str, text: str, allowed: frozenset[str], minimum_secret_bytes: int
) -> tuple[VerificationKey, ...]:
    """The keys of a JWK or a JWK set. A set's members that are for something else than verifying, of a kind that is
    not supported, or not allowed are passed over; one that is private, weak or malformed is not.

    Raises:
        BadKeyError: not a JWK, or such a key, or a set without a usable one.
    """
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise BadKeyError(f"{where}: not a JSON object; a JWK or a JWK set is expected") from None
    if "keys" not in document:
        return (_load_jwk(where, document, allowed, minimum_secret_bytes),)
    members = document["keys"]
    if not isinstance(members, list):
        raise BadKeyError(f"{where}.keys: a list of JWKs is expected")
    keys = []
    passed_over: BadKeyError | None = None
    for index, member in enumerate(members):
        try:
            keys.append(_load_jwk(f"{where}.keys[{index}]", member, allowed, minimum_secret_bytes))
        except ForeignKeyError as error:
            passed_over = error
    if not keys:
        raise passed_over or BadKeyError(f"{where}: the JWK set is empty")
    return tuple(keys)


def _load_jwk(where: str, jwk: object, allowed: frozenset[str], minimum_secret_bytes: int) -> VerificationKey:
    if not isinstance(jwk, dict):
        raise BadKeyError(f"{where}: a JWK is a JSON object")
    kind, kid = jwk.get("kty"), jwk.get("kid")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ForeignKeyError(f"{where}.kty: one of {', '.join(sorted(_READERS))} is expected")
    if kid is not None and not isinstance(kid, str):
        raise BadKeyError(f"{where}.kid: text is expected")
    if kind != "oct" and not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise private_key_error(where)
    if kind in _CURVES and jwk.get("crv") not in _CURVES[kind]:
        raise ForeignKeyError(f"{where}.crv: one of {', '.join(_CURVES[kind])} is expected")
    allowed = _permitted(where, jwk, allowed)
    try:
        key = _READERS[kind](jwk)
    except (PyJWTError, UnsupportedAlgorithm, KeyError, TypeError, ValueError):
        raise BadKeyError(f"{where}: a {kind} key whose members are missing, malformed or not supported") from None
    if isinstance(key, bytes):
        return bind_secret(where, key, allowed, kid, minimum_secret_bytes)
    return bind_public_key(where, key, allowed, kid)


def _permitted(where: str, jwk: dict[str, Any], allowed: frozenset[str]) -> frozenset[str]:
    """What of `allowed` the key's own `use`, `key_ops` and `alg` leave (RFC 7517, sections 4.2 to 4.4)."""
    if jwk.get("use", "sig") != "sig":
        raise ForeignKeyError(f"{where}.use: sig is expected")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ForeignKeyError(f"{where}.key_ops: verify is expected among them")
    if "alg" not in jwk:
        return allowed
    if jwk["alg"] not in list(SUPPORTED):  # a list, since what stands there may not be hashable
        raise ForeignKeyError(f"{where}.alg: one of {', '.join(sorted(SUPPORTED))} is expected")
    return allowed & {jwk["alg"]}
