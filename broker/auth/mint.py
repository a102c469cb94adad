"""Signing tokens with the configured secret, for the command `broker token`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import jwt
from jwt.warnings import InsecureKeyLengthWarning

_DURATION = re.compile(r"([0-9]{1,12})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def mint(
    *,
    user: str,
    topic: Sequence[str],
    ttl_seconds: int | None,
    secret: str,
    audience: str | None,
    issuer: str | None,
    now: float,
    algorithm: str = "HS256",
    user_claim: str = "sub",
) -> list[str]:
    """A connection token; or, where topics are given, one subscription token for each of them.

    `user` may be empty (anonymous) and stands in the claim `user_claim`, `now` is in Unix seconds, and without
    `ttl_seconds` the tokens never expire.
    Whether the user and the topics are sound is for who takes the token to say.

    Raises:
        ValueError: not an HMAC algorithm, which are all that a secret can sign with.
    """
    if algorithm not in {"HS256", "HS384", "HS512"}:
        raise ValueError("algorithm: HS256, HS384 or HS512 is expected; a secret can sign with nothing else")
    claims: dict[str, str | int] = {user_claim: user, "iat": int(now)}
    if ttl_seconds is not None:
        claims["exp"] = int(now) + ttl_seconds
    if audience:
        claims["aud"] = audience
    if issuer:
        claims["iss"] = issuer
    payloads = [claims | {"channel": name} for name in topic] or [claims]
    with warnings.catch_warnings():
        # how long a secret must be is for `auth.minimum_secret_bytes` to say
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        return [jwt.encode(payload, secret, algorithm) for payload in payloads]


def parse_duration(text: str) -> int:
    """Seconds of `90`, `90s`, `15m`, `1h` or `7d`.

    Raises:
        ValueError: anything else, zero included; the message says what would be right.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if seconds == 0:
        raise ValueError(f"{text!r}: a duration such as 90, 90s, 15m, 1h or 7d is expected")
    return seconds
