"""The keys that tokens are verified with, and which of them may have signed a given token.

Every key is bound to one family of algorithms when it is loaded (RFC 8725, section 3.1), so that whatever a token's
header says can only choose among keys that were made for it: a public key is never a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.exceptions import InvalidKeyError

MINIMUM_RSA_BITS = 2048

HASHES = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
"""The hash of each HMAC algorithm, as `hmac` names it."""

_HMAC = frozenset(HASHES)
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_EDDSA = frozenset({"EdDSA"})

SUPPORTED = _HMAC | _RSA | frozenset(_CURVES.values()) | _EDDSA

ALGORITHMS: dict[str, Algorithm] = {n: a for n, a in get_default_algorithms().items() if n in SUPPORTED}
"""PyJWT's implementation of each algorithm that a key here may be bound to; `none` is not among them."""


class BadKeyError(ValueError):
    """A key that cannot be used. The message says which entry it is and what would be right, never what it holds."""


class ForeignKeyError(BadKeyError):
    """A key made for something else. Alone it is a mistake; in a set it is passed over (RFC 7517, section 5)."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    key: Any = field(repr=False)
    """What PyJWT's algorithm objects take: bytes for HMAC, else a public key of `cryptography`."""
    algorithms: frozenset[str]
    """Those it may be used with, all of one family; never empty."""
    kid: str | None = None


class KeyRing:
    """Finds the keys that may have signed a token."""

    __slots__ = ("_by_algorithm", "_kids", "keys")

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        self.keys = tuple(keys)
        self._kids = frozenset(key.kid for key in self.keys if key.kid is not None)
        by_algorithm: dict[str, dict[str | None, tuple[VerificationKey, ...]]] = {}
        for algorithm in SUPPORTED:
            fitting = [key for key in self.keys if algorithm in key.algorithms]
            if fitting:
                kids = {key.kid for key in fitting} | {None}
                by_algorithm[algorithm] = {kid: tuple(k for k in fitting if k.kid == kid) for kid in kids}
        self._by_algorithm = by_algorithm

    def candidates(self, alg: str, kid: str | None) -> tuple[VerificationKey, ...]:
        """The keys to try, from what a token's header says; none if no key was made for this algorithm.

        A known `kid` names its key, and names nothing under another key's algorithm. An unknown one leaves the keys
        that have no `kid`; without one, all keys of the family are tried.
        """
        by_kid = self._by_algorithm.get(alg)
        if by_kid is None:
            return ()
        if kid is None:
            if len(by_kid) == 1:
                return by_kid[None]
            return tuple(key for key in self.keys if alg in key.algorithms)
        if kid in self._kids:
            return by_kid.get(kid, ())
        return by_kid[None]


def bind_secret(
    where: str, secret: bytes, allowed: frozenset[str], kid: str | None, minimum_bytes: int
) -> VerificationKey:
    """A key of the HMAC family.

    Raises:
        BadKeyError: too short, or something that is public (PEM, DER, SSH, JWK) given as a secret.
    """
    if len(secret) < minimum_bytes:
        raise BadKeyError(f"{where}: {len(secret)} bytes, at least {minimum_bytes} are needed")
    try:
        # PyJWT knows what keys look like that must never be secrets (RFC 8725, section 2.1)
        ALGORITHMS["HS256"].prepare_key(secret)
    except InvalidKeyError:
        raise BadKeyError(f"{where}: a public key, certificate or JWK is no secret; list it in public_keys") from None
    return VerificationKey(secret, _narrow(where, _HMAC, allowed), kid)


def bind_public_key(where: str, key: object, allowed: frozenset[str], kid: str | None) -> VerificationKey:
    """Any other key, as `cryptography` loaded it.

    Raises:
        BadKeyError: not the public half of a key that a supported algorithm can verify with.
    """
    if isinstance(key, RSAPublicKey):
        if key.key_size < MINIMUM_RSA_BITS:
            raise BadKeyError(f"{where}: an RSA key of {key.key_size} bits, at least {MINIMUM_RSA_BITS} are needed")
        usable = _RSA
    elif isinstance(key, EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise ForeignKeyError(f"{where}: curve {key.curve.name} is not supported; P-256, P-384 and P-521 are")
        usable = frozenset({_CURVES[key.curve.name]})
    elif isinstance(key, (Ed25519PublicKey, Ed448PublicKey)):
        usable = _EDDSA
    else:
        raise ForeignKeyError(f"{where}: this kind of key is not supported; RSA, EC, Ed25519 and Ed448 are")
    return VerificationKey(key, _narrow(where, usable, allowed), kid)


def _narrow(where: str, usable: frozenset[str], allowed: frozenset[str]) -> frozenset[str]:
    left = usable & allowed
    if not left:
        raise ForeignKeyError(f"{where}: it can verify {', '.join(sorted(usable))}, none of which is allowed for it")
    return left


def private_key_error(where: str) -> BadKeyError:
    return BadKeyError(f"{where}: a private key, which does not belong here; give its public half")
