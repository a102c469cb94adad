"""API keys of back ends: who a request comes from and what its key may do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from broker.core.topic import Pattern

_HASHED = "sha256:"
_DIGEST = re.compile("[0-9a-f]{64}")
_SCHEME = b"apikey "
_EMPTY = sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A back end's rights. The key itself is not kept."""

    name: str
    methods: frozenset[str] = frozenset()
    """The API methods it may call; empty: all."""
    topics: tuple[Pattern, ...] = ()
    """The topics it may name, and the wildcards that one of these covers; empty: all."""
    publish_rate: float | None = None
    """The most publications per second with it, on one node; None for no limit."""

    def may(self, method: str) -> bool:
        return not self.methods or method in self.methods

    def may_touch(self, name: str) -> bool:
        """Whether it may name this topic, or this wildcard, which has to be sound."""
        return not self.topics or any(pattern.admits(name) for pattern in self.topics)


class ApiKeys:
    """Finds the key that a request presents. Only digests of the keys are kept."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[tuple[str, ApiKey]]) -> None:
        """Each entry is a key, or `sha256:` and the hex digest of its UTF-8 form, and what it may do.

        Raises:
            ValueError: an empty key, a malformed digest, or a key that is listed twice; the message has its name only.
        """
        known: dict[bytes, ApiKey] = {}
        for secret, key in entries:
            digest = _digest_of(secret, key.name)
            if digest == _EMPTY:
                raise ValueError(f"API key {key.name!r}: must not be empty")
            if digest in known:
                raise ValueError(f"API key {key.name!r}: the same key as {known[digest].name!r}")
            known[digest] = key
        self._entries = tuple(known.items())

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey | None:
        """The key in a request's `X-API-Key`, or else in `Authorization: apikey <key>`; None if there is no good one.

        Header names are lower-case, as ASGI has them. A wrong `X-API-Key` is not saved by a right `Authorization`,
        and a header that comes twice is none: who relays it might have read the other one.
        """
        own: bytes | None = None
        authorization: bytes | None = None
        for name, value in headers:
            if name == b"x-api-key":
                if own is not None:
                    return None
                own = value
            elif name == b"authorization":
                # an empty value is no credential, and so stands for "twice" too
                authorization = value if authorization is None else b""
        if own is None:
            if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
                return None
            own = authorization[len(_SCHEME) :].strip(b" ")
        return self._find(own)

    def _find(self, presented: bytes) -> ApiKey | None:
        digest = sha256(presented).digest()
        found = None
        # all of them, so that the time says nothing about which one it was or how near a guess came
        for known, key in self._entries:
            if compare_digest(known, digest):
                found = key
        return found


def _digest_of(secret: str, name: str) -> bytes:
    if secret.startswith(_HASHED):
        text = secret[len(_HASHED) :].lower()
        if _DIGEST.fullmatch(text) is None:
            raise ValueError(f"API key {name!r}: sha256: must be followed by 64 hexadecimal digits")
        return bytes.fromhex(text)
    return sha256(secret.encode()).digest()
