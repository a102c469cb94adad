"""`broker dev`: a node to try things on, with nothing to set up and nothing left behind."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from pathlib import Path

from broker.auth.mint import mint
from broker.serve import StartError, serve
from broker.settings import Settings, SettingsError, load

API_KEY = "dev"
_EVERYTHING = {
    "name": "default",
    "match": [">"],
    "subscribe": "anyone",
    "publish": "anyone",
    "read": "anyone",
    "durable": True,
    "presence": True,
}
_TOKEN_SECONDS = 7 * 24 * 3600

_WELCOME = """\
broker is running; Ctrl-C ends it, and what it has stored goes with it.

  WebSocket   ws://127.0.0.1:{port}/connection/websocket
  HTTP API    http://127.0.0.1:{port}/api/publish   (X-API-Key: {key})
  This node   http://127.0.0.1:{port}/

Everybody may connect, subscribe and publish. A token for the user "dev", if you want one (valid for a week):

  {token}

Publish something:

  curl -H 'X-API-Key: {key}' -d '{{"channel": "news", "data": {{"text": "hello"}}}}' http://127.0.0.1:{port}/api/publish
"""


async def dev(port: int) -> int:
    """Run a node on loopback with a NATS server of its own, everything permitted.

    Args:
        port: to listen on; 0 for any that is free.

    Returns:
        The exit code.

    Raises:
        StartError: it could not start.
    """
    secret = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(prefix="broker-dev-", ignore_cleanup_errors=True) as directory:
        settings = _settings(port, secret, directory)
        (token,) = mint(
            user="dev", topic=[], ttl_seconds=_TOKEN_SECONDS, secret=secret, audience=None, issuer=None, now=time.time()
        )

        def welcome(actual_port: int) -> None:
            sys.stdout.write(_WELCOME.format(port=actual_port, key=API_KEY, token=token))
            sys.stdout.flush()

        return await serve(settings, on_ready=welcome)


def _settings(port: int, secret: str, directory: str) -> Settings:
    # not from the environment: what is meant for production nodes doesn't belong here
    try:
        return load(
            None,
            {},
            {
                "http": {"host": "127.0.0.1", "port": port, "allowed_origins": ["*"]},
                "nats": {"url": "embedded", "data_dir": str(Path(directory))},
                "auth": {"anonymous": True, "hmac_secret": secret},
                "api": {"key": API_KEY},
                "drain": {"rate_per_second": 1000, "timeout_seconds": 5},
                "topics": [_EVERYTHING],
                "log": {"level": "warning"},
            },
        )
    except SettingsError as error:
        raise StartError("; ".join(error.mistakes)) from error
