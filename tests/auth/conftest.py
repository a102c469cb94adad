from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519


@pytest.fixture(scope="session")
def signers() -> dict[str, Any]:
    """Private keys of every kind, by name."""
    return {
        "RSA": rsa.generate_private_key(65537, 2048),
        "other RSA": rsa.generate_private_key(65537, 2048),
        "short RSA": rsa.generate_private_key(65537, 1024),  # noqa: S505 - to be refused
        "P-256": ec.generate_private_key(ec.SECP256R1()),
        "other P-256": ec.generate_private_key(ec.SECP256R1()),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "other P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
        "other P-521": ec.generate_private_key(ec.SECP521R1()),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "Ed448": ed448.Ed448PrivateKey.generate(),
        "X25519": x25519.X25519PrivateKey.generate(),
        "DSA": dsa.generate_private_key(2048),
    }
