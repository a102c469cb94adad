"""Verifying the tokens of clients: signed JWTs (RFC 7519), checked as RFC 8725 asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from broker.auth.claims import (
    Claims,
    ConnectionClaims,
    ServerSubscription,
    SubscriptionClaims,
    read_actions,
    read_audience,
    read_capabilities,
    read_client,
    read_json,
    read_payload,
    read_string,
    read_subscriptions,
    read_time,
    read_topic,
    read_user,
    refuse_base64,
    refuse_channel,
)
from broker.auth.jws import MAX_TOKEN_BYTES, RefusedError, open_token
from broker.auth.ring import KeyRing

__all__ = [
    "MAX_TOKEN_BYTES",
    "ConnectionClaims",
    "Rejected",
    "ServerSubscription",
    "SubscriptionClaims",
    "TokenProblem",
    "TokenVerifier",
]

_Granted = TypeVar("_Granted", ConnectionClaims, SubscriptionClaims)


class TokenProblem(Enum):
    EXPIRED = "expired"
    """Sound in every other way: the client may fetch a new one and try again."""
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Rejected:
    problem: TokenProblem
    reason: str
    """Plain text for the log and the developer, below 100 bytes; it names a claim and repeats nothing of the token."""


class _ExpiredError(Exception):
    pass


_EXPIRED = Rejected(TokenProblem.EXPIRED, "exp: the token has expired")


class TokenVerifier:
    """Turns tokens into what they grant. An outcome is a value, whatever a stranger sends; nothing is raised."""

    __slots__ = ("_audience", "_clock", "_issuer", "_keys", "_leeway_seconds", "_require_exp", "_user_claim")

    def __init__(
        self,
        keys: KeyRing,
        *,
        audience: str | None,
        issuer: str | None,
        leeway_seconds: float,
        user_claim: str,
        require_exp: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        keys: all that may have signed a token.
        audience: what a token's `aud` must name (one of, if it is a list); None or empty: not looked at.
        issuer: what a token's `iss` must be; None or empty: not looked at.
        leeway_seconds: by how much clocks may differ.
        user_claim: which claim names the user, usually `sub`.
        require_exp: whether tokens that never expire are refused.
        clock: Unix seconds.
        """
        self._keys = keys
        self._audience = audience or None
        self._issuer = issuer or None
        self._leeway_seconds = leeway_seconds
        self._user_claim = user_claim
        self._require_exp = require_exp
        self._clock = clock

    def connection(self, token: str) -> ConnectionClaims | Rejected:
        """What the token of a connect or refresh command grants.

        Whether the anonymous may come in is the caller's to decide.
        """
        return self._outcome(token, self._read_connection)

    def subscription(self, token: str) -> SubscriptionClaims | Rejected:
        """What the token of a subscribe or sub_refresh command grants.

        The caller compares its topic, user and client with those of the connection.
        """
        return self._outcome(token, self._read_subscription)

    def _outcome(self, token: str, read: Callable[[Claims], _Granted]) -> _Granted | Rejected:
        try:
            return read(read_payload(open_token(token, self._keys)))
        except RefusedError as error:
            return Rejected(TokenProblem.INVALID, str(error)[:99])
        except _ExpiredError:
            return _EXPIRED

    def _read_connection(self, claims: Claims) -> ConnectionClaims:
        refuse_channel(claims)
        refuse_base64(claims, "info")
        self._check_addressees(claims)
        user = read_user(claims, self._user_claim)
        result = ConnectionClaims(
            user=user,
            expires_at=read_time(claims, "exp"),
            info=read_json(claims, "info"),
            subscriptions=read_subscriptions(claims),
            capabilities=read_capabilities(claims, user),
            token_id=read_string(claims, "jti"),
            issued_at=read_time(claims, "iat"),
        )
        self._check_times(claims, result.expires_at, result.issued_at)
        return result

    def _read_subscription(self, claims: Claims) -> SubscriptionClaims:
        topic = read_topic(claims)
        refuse_base64(claims, "info")
        self._check_addressees(claims)
        result = SubscriptionClaims(
            user=read_user(claims, self._user_claim),
            topic=topic,
            client=read_client(claims),
            expires_at=read_time(claims, "exp"),
            info=read_json(claims, "info"),
            actions=read_actions(claims),
            token_id=read_string(claims, "jti"),
            issued_at=read_time(claims, "iat"),
        )
        self._check_times(claims, result.expires_at, result.issued_at)
        return result

    def _check_addressees(self, claims: Claims) -> None:
        """RFC 7519, sections 4.1.1 and 4.1.3; RFC 8725, sections 3.8 and 3.9."""
        audience = read_audience(claims)
        if self._audience is not None and self._audience not in audience:
            raise RefusedError("aud: not for this service" if "aud" in claims else "aud: missing")
        issuer = read_string(claims, "iss")
        if self._issuer is not None and self._issuer != issuer:
            raise RefusedError("iss: not the issuer trusted here" if "iss" in claims else "iss: missing")

    def _check_times(self, claims: Claims, expires_at: float | None, issued_at: float | None) -> None:
        """RFC 7519, sections 4.1.4 to 4.1.6. Last of all, so that only a token without any other fault is expired."""
        now = self._clock()
        if expires_at is None and self._require_exp:
            raise RefusedError("exp: missing")
        if issued_at is not None and issued_at > now + self._leeway_seconds:
            raise RefusedError("iat: in the future")
        not_before = read_time(claims, "nbf")
        if not_before is not None and not_before > now + self._leeway_seconds:
            raise RefusedError("nbf: not valid yet")
        if expires_at is not None and now >= expires_at + self._leeway_seconds:
            raise _ExpiredError
