"""Real NATS servers."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broker.relay.embedded import find_server
from tests.harness.process import Process
from tests.harness.waiting import at_last


class NatsServer(Process):
    """A `nats-server` on a port of its own, which stays the same over restarts.

    Args:
        directory: for its configuration and output.
        port: to listen on.
        options: of its configuration, beside the port; see https://docs.nats.io/running-a-nats-service/configuration
    """

    def __init__(self, directory: Path, port: int, options: Mapping[str, Any] | None = None) -> None:
        self.port = port
        self._file = directory / f"nats-{port}.conf"
        super().__init__([find_server(), "-c", str(self._file)], directory, f"nats-{port}")
        self.configure(options or {})

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def configure(self, options: Mapping[str, Any]) -> None:
        """Write its configuration anew; a running server reads it at SIGHUP (`reload`)."""
        # JSON is NATS's configuration language, too
        self._file.write_text(json.dumps({"listen": f"127.0.0.1:{self.port}", **options}))

    def reload(self) -> None:
        self.signal(signal.SIGHUP)

    def wait_ready(self) -> None:
        """Wait until it takes connections."""

        def listens() -> bool:
            assert self.running, self.log()
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                return connection.recv(4) == b"INFO"

        at_last(listens)
