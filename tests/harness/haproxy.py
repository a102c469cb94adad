"""HAProxy in front of nodes, as it would stand in production."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.harness.node import BrokerNode
from tests.harness.process import Process
from tests.harness.waiting import at_last

_CONFIGURATION = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
frontend broker
    bind 127.0.0.1:{port}
    default_backend nodes
backend nodes
    balance leastconn
    option httpchk GET /health/ready
    option redispatch
    retries 3
    default-server check inter 200ms fall 1 rise 1{dead}
"""
_DEAD = " on-marked-down shutdown-sessions"


class HAProxy(Process):
    """Balances to the node with the fewest connections, and looks whether they are ready.

    Args:
        directory: for its settings and output.
        port: to listen on.
        nodes: to balance to.
        patient: leaves a node that is not ready any more the connections that it has, as a drain needs it. Else they
            are cut, as for a node that is dead.
    """

    def __init__(self, directory: Path, port: int, nodes: Sequence[BrokerNode], *, patient: bool = False) -> None:
        self.port = port
        file = directory / f"haproxy-{port}.cfg"
        servers = [f"    server node{number} 127.0.0.1:{node.port}\n" for number, node in enumerate(nodes)]
        file.write_text(_CONFIGURATION.format(port=port, dead="" if patient else _DEAD) + "".join(servers))
        program = shutil.which("haproxy")
        assert program is not None, "ask for the fixture program first"
        super().__init__([program, "-db", "-f", str(file)], directory, f"haproxy-{port}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def operations_url(self) -> str:
        return self.url

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    def wait_ready(self) -> None:
        def listens() -> bool:
            assert self.running, self.log()
            with socket.create_connection(("127.0.0.1", self.port), timeout=2):
                return True

        at_last(listens)
