"""NATS in operator mode: an operator, an account and a user, each with a JWT signed by the one above.

Source: https://docs.nats.io/running-a-nats-service/nats_admin/security/jwt
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SEED = 18 << 3
_KINDS = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
"""What makes their first letters S, O, A and U; see https://github.com/nats-io/nkeys/blob/main/strkey.go"""


@dataclass(frozen=True)
class Nkey:
    """An Ed25519 key in the form that NATS uses."""

    seed: str
    public: str
    private: Ed25519PrivateKey

    @classmethod
    def make(cls, kind: str) -> Nkey:
        private = Ed25519PrivateKey.generate()
        prefix = _KINDS[kind]
        # a seed has two prefixes of five bits: that it is one, and of what
        seed = bytes([_SEED | prefix >> 5, (prefix & 31) << 3]) + private.private_bytes_raw()
        public = bytes([prefix]) + private.public_key().public_bytes_raw()
        return cls(_checked(seed), _checked(public), private)

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


def _checked(raw: bytes) -> str:
    """With a CRC-16 behind it, in base32."""
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


class Operator:
    """An operator with one account and one user."""

    def __init__(self) -> None:
        self._operator, self._account, self._user = (Nkey.make(kind) for kind in _KINDS)

    def options(self) -> dict[str, Any]:
        """For the server's configuration."""
        account = _jwt(self._operator, self._account, "account", {"limits": _UNLIMITED})
        return {
            "operator": _jwt(self._operator, self._operator, "operator", {}),
            "resolver": "MEMORY",
            "resolver_preload": {self._account.public: account},
        }

    def write_credentials(self, file: Path) -> None:
        """The user's `.creds` file."""
        user = _jwt(self._account, self._user, "user", {"subs": -1, "data": -1, "payload": -1})
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self._user.seed}\n------END USER NKEY SEED------\n"
        )


_UNLIMITED = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}


def _jwt(issuer: Nkey, subject: Nkey, kind: str, claims: dict[str, Any]) -> str:
    payload = {
        "jti": base64.b32encode(os.urandom(20)).decode(),
        "iat": int(time.time()),
        "iss": issuer.public,
        "sub": subject.public,
        "name": kind,
        "nats": {"type": kind, "version": 2, **claims},
    }
    text = f"{_encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encoded(payload)}"
    return f"{text}.{_base64(issuer.sign(text.encode()))}"


def _encoded(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
