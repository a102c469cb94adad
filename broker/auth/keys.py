"""Loading the keys that the settings name: a secret, PEM, JWK, JWK sets, or files that hold one of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from broker.auth.jwk import load_jwk_text
from broker.auth.ring import (
    SUPPORTED,
    BadKeyError,
    KeyRing,
    VerificationKey,
    bind_public_key,
    bind_secret,
    private_key_error,
)

__all__ = ["MINIMUM_SECRET_BYTES", "BadKeyError", "KeyRing", "VerificationKey", "load_keys"]

MINIMUM_SECRET_BYTES = 32

_MAX_FILE_BYTES = 1_048_576


def load_keys(
    hmac_secret: str | None,
    public_keys: Sequence[str],
    algorithms: Sequence[str],
    *,
    minimum_secret_bytes: int = MINIMUM_SECRET_BYTES,
) -> KeyRing:
    """The keys of the settings `auth.hmac_secret` and `auth.public_keys`.

    An entry of `public_keys` is PEM text (a public key or a certificate, whose dates are not looked at), a JWK or a
    JWK set as JSON text, or the path of a file that holds one of those. `algorithms`, when not empty, narrows what
    the keys may be used with. An RSA key serves RS* and PS*, unless that or its JWK's `alg` narrows it.

    A secret serves all HMAC algorithms once it has `minimum_secret_bytes`. The 32 of the default are what RFC 7518,
    section 3.2, asks for HS256; for HS384 and HS512 it wants 48 and 64, which the setting can ask for.

    Raises:
        BadKeyError: a private, unknown, weak or unsupported key, or one that no algorithm is left for.
    """
    for name in algorithms:
        if name not in SUPPORTED:
            raise BadKeyError(f"algorithms: one entry is none of {', '.join(sorted(SUPPORTED))}")
    allowed = frozenset(algorithms) or SUPPORTED
    keys = []
    if hmac_secret:
        keys.append(bind_secret("hmac_secret", hmac_secret.encode(), allowed, None, minimum_secret_bytes))
    for index, entry in enumerate(public_keys):
        keys.extend(_load_entry(f"public_keys[{index}]", entry, allowed, minimum_secret_bytes))
    return KeyRing(keys)


def _load_entry(
    where: str, entry: str, allowed: frozenset[str], minimum_secret_bytes: int
) -> tuple[VerificationKey, ...]:
    text = entry.strip()
    if not text.startswith(("-----BEGIN", "{")):
        text = _read_file(where, text).strip()
    if text.startswith("-----BEGIN"):
        return (_load_pem(where, text, allowed),)
    if text.startswith("{"):
        return load_jwk_text(where, text, allowed, minimum_secret_bytes)
    raise BadKeyError(f"{where}: the file holds neither PEM nor a JWK or JWK set")


def _read_file(where: str, path: str) -> str:
    # whatever is no key is taken for a path, so a mangled key would come here: the message must not repeat it
    expected = f"{where}: neither PEM text, nor a JWK or JWK set, nor the path of a readable file"
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode()
    except OSError as error:
        raise BadKeyError(f"{expected} ({error.strerror or 'cannot be opened'})") from None
    except ValueError:  # a NUL in the path, or a file that is not text
        raise BadKeyError(f"{expected} (not text)") from None


def _load_pem(where: str, text: str, allowed: frozenset[str]) -> VerificationKey:
    if "\n" not in text:
        text = text.replace("\\n", "\n")  # as environment variables and JSON pasted into TOML have it
    if "PRIVATE KEY-----" in text:
        raise private_key_error(where)
    blocks = text.count("-----BEGIN")
    if blocks != 1:
        # taking all of them would make a certificate chain's authorities signers of tokens
        raise BadKeyError(f"{where}: {blocks} PEM blocks, exactly one is expected; give each key an entry of its own")
    try:
        if text.startswith("-----BEGIN CERTIFICATE-----"):
            key: object = x509.load_pem_x509_certificate(text.encode()).public_key()
        else:
            key = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadKeyError(f"{where}: PEM text that holds no public key or certificate that can be read") from None
    return bind_public_key(where, key, allowed, None)
