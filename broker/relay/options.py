"""Where NATS is and how to sign in."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import ParseResult, urlsplit

CONNECT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class NatsOptions:
    """Servers and credentials. Paths are of files, read at each connect."""

    servers: Sequence[str]
    name: str
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials_file: str | None = None
    nkey_file: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def arguments(self, server: str) -> dict[str, Any]:
        """What nats-py's `connect` takes for one life of a connection to one server.

        Raises:
            OSError: a file can't be read.
        """
        arguments: dict[str, Any] = {
            "servers": [server],
            "name": self.name,
            "allow_reconnect": False,
            "connect_timeout": CONNECT_SECONDS,
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials_file,
            "nkeys_seed": self.nkey_file,
            "skip_subject_validation": True,  # topics and prefixes were checked before they came here
        }
        if self.tls_ca or self.tls_cert or server.startswith("tls:"):
            context = ssl.create_default_context(cafile=self.tls_ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
            arguments["tls"] = context
        return arguments

    def with_discovered(self, discovered: Iterable[ParseResult]) -> list[str]:
        """All servers to try: those that are configured, and those that the cluster told of, in the same form."""
        first = urlsplit(self.servers[0])
        sign_in, at, _ = first.netloc.rpartition("@")
        others = (f"{first.scheme}://{sign_in}{at}{url.netloc.rpartition('@')[2]}" for url in discovered)
        return list(dict.fromkeys([*self.servers, *others]))


def without_secrets(server: str) -> str:
    """A server's URL without what may be a secret in it."""
    url = urlsplit(server)
    return f"{url.scheme}://{url.hostname}:{url.port or 4222}"
