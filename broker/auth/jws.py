"""The envelope of a token: the compact serialization of a signed JWT (RFC 7515, section 7.1).

Signatures are PyJWT's business, but for HMAC. The envelope is opened here because its `decode` looks at each character
in Python (a 16 KiB token from a stranger costs it a millisecond), prepares the key at every call, and takes forms
that a second spelling of the same token could use, such as padded base64.
"""

from __future__ import annotations

import binascii
import re
from hmac import compare_digest, digest

import msgspec

from broker.auth.ring import ALGORITHMS, HASHES, KeyRing, VerificationKey

MAX_TOKEN_BYTES = 16_384

_FORM = re.compile(rb"([\w-]+)\.([\w-]+)\.([\w-]+)", re.ASCII)
_STANDARD = bytes.maketrans(b"-_", b"+/")


class RefusedError(Exception):
    """A token that is not accepted. The message names what is wrong and repeats nothing of the token."""


class _Header(msgspec.Struct, frozen=True, gc=False):
    """What is read of the JOSE header. `jku`, `jwk`, `x5u` and `x5c`, by which a token could bring its own key, are
    not (RFC 8725, section 3.10).
    """

    alg: str
    kid: str | msgspec.UnsetType = msgspec.UNSET
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    b64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_HEADER = msgspec.json.Decoder(_Header)


def open_token(token: str, keys: KeyRing) -> str:
    """The payload of a token that one of the keys has signed.

    Raises:
        RefusedError: malformed, too long, of an algorithm without a key, or not signed by any of the keys.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise RefusedError(f"token: more than {MAX_TOKEN_BYTES} bytes")
    try:
        raw = token.encode("ascii")
    except UnicodeEncodeError:
        raise RefusedError("token: not a JWT in compact form") from None
    form = _FORM.fullmatch(raw)
    if form is None:
        raise RefusedError("token: not a JWT in compact form")
    header = _read_header(form[1])
    candidates = keys.candidates(header.alg, None if header.kid is msgspec.UNSET else header.kid)
    if not candidates:
        raise RefusedError("alg: no key for this algorithm and key id")
    signed, signature = raw[: form.end(2)], _decode_base64(form[3])
    # the ring has bound every candidate to this algorithm: no key is ever tried as something it is not
    if not any(_verify(header.alg, key, signed, signature) for key in candidates):
        raise RefusedError("signature: does not verify")
    try:
        return _decode_base64(form[2]).decode()
    except UnicodeDecodeError:
        raise RefusedError("payload: not UTF-8") from None


def _verify(algorithm: str, key: VerificationKey, signed: bytes, signature: bytes) -> bool:
    name = HASHES.get(algorithm)
    if name is not None:
        # in one call of OpenSSL: a third of what PyJWT's way of building an HMAC object takes
        return compare_digest(digest(key.key, signed, name), signature)
    return ALGORITHMS[algorithm].verify(signed, key.key, signature)


def _read_header(segment: bytes) -> _Header:
    try:
        header = _HEADER.decode(_decode_base64(segment))
    except (ValueError, RecursionError):
        raise RefusedError("header: not a JOSE header with an alg") from None
    # no extension is understood, so whatever is critical cannot be (RFC 7515, section 4.1.11)
    if header.crit is not msgspec.UNSET:
        raise RefusedError("crit: no critical extension is supported")
    # true is the default; anything else would make the payload something else than was verified (RFC 7797)
    if header.b64 is not msgspec.UNSET and bytes(header.b64) != b"true":
        raise RefusedError("b64: only encoded payloads are supported")
    return header


def _decode_base64(segment: bytes) -> bytes:
    """Base64url without padding, in its only canonical form (RFC 7515, section 2; RFC 4648, section 3.5)."""
    standard = segment.translate(_STANDARD)
    try:
        decoded = binascii.a2b_base64(standard + b"=" * (-len(standard) % 4), strict_mode=True)
    except binascii.Error:
        raise RefusedError("token: not base64url") from None
    tail = len(decoded) % 3
    # the last character has bits that decoding drops: were they free, one signature would have many spellings
    if tail and not binascii.b2a_base64(decoded[-tail:], newline=False).startswith(standard[-tail - 1 :]):
        raise RefusedError("token: not canonical base64url")
    return decoded
