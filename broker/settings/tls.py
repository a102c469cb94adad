"""Whether TLS can be spoken with the files that the settings name."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_NO_CERTIFICATE = "holds no certificate that can be read; give a PEM file"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a certificate and its key, and which of the two is to blame."""

    name: Literal["tls_cert", "tls_key"]
    text: str


def certificate_problem(certificate: Path, key: Path) -> Problem | None:
    """Why no side of a TLS connection can show this certificate; None if it can."""
    if authority_problem(certificate) is not None:
        return Problem("tls_cert", _NO_CERTIFICATE)
    try:
        # with a password given, OpenSSL does not ask the terminal for the one of an encrypted key
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            return Problem(
                "tls_key", "is not the key of the certificate in tls_cert; give the two that belong together"
            )
        if error.reason is not None:  # such as EE_KEY_TOO_SMALL
            return Problem("tls_cert", f"is a certificate that OpenSSL refuses ({error.reason})")
        return Problem("tls_key", "holds no private key that can be read without a password; give a PEM file")
    except OSError as error:
        return Problem("tls_cert", f"or tls_key cannot be read as a file: {error.strerror}")
    return None


def authority_problem(authorities: Path) -> str | None:
    """Why the certificates of a file cannot vouch for others; None if they can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(authorities)
    except OSError:  # SSLError is one
        return _NO_CERTIFICATE
    return None
