"""Tokens as a customer's back end would make them."""

from __future__ import annotations

import time
from typing import Any

import jwt

SECRET = "an-hmac-secret-of-more-than-32-bytes!"
API_KEY = "an-api-key-that-no-log-may-show"

SECRETS: set[str] = {SECRET, API_KEY}
"""What no node may write down: keys, and every token made here. Nodes' logs are searched for them."""


def token(user: str = "", *, ttl_seconds: float | None = 3600, secret: str = SECRET, **claims: Any) -> str:
    """A connection token; with a claim `channel`, a subscription token. Without `ttl_seconds` it never expires."""
    payload: dict[str, Any] = {"sub": user, **claims} if user else dict(claims)
    if ttl_seconds is not None:
        payload["exp"] = int(time.time() + ttl_seconds)
    made = jwt.encode(payload, secret, algorithm="HS256")
    SECRETS.add(made)
    return made
