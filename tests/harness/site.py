"""Where a test's servers and nodes run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.harness.cluster import NatsCluster
from tests.harness.haproxy import HAProxy
from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode, Settings, settings_with
from tests.harness.process import Process
from tests.harness.waiting import free_port


class Site:
    """Starts programs, and ends all of them with the test.

    Args:
        directory: for their files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prefix = f"t{secrets.token_hex(4)}"
        """Of this site's NATS subjects: sites can share a server."""
        self.nodes: list[BrokerNode] = []
        self._stack = ExitStack()

    def start_nats(self, options: Mapping[str, Any] | None = None, *, port: int | None = None) -> NatsServer:
        """A NATS server that takes connections."""
        server = NatsServer(self.directory, port or free_port(), options)
        self.start(server)
        server.wait_ready()
        return server

    def start_cluster(self, options: Mapping[str, Any] | None = None) -> NatsCluster:
        """Three NATS servers with JetStream that are ready."""
        cluster = NatsCluster(self.directory, options)
        for server in cluster.servers:
            self.start(server)
        cluster.wait_ready()
        return cluster

    def add_node(
        self,
        nats: NatsServer | str,
        settings: Settings | None = None,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> BrokerNode:
        """A node that does not run yet.

        Args:
            nats: the server to use, or its URL.
            settings: what is different from the defaults of tests (`tests.harness.node.DEFAULTS`).
            arguments: more for `broker serve`.
            environment: more of it.
        """
        url = nats if isinstance(nats, str) else nats.url
        tree = settings_with(settings or {})
        tree["nats"] = {"url": url, "prefix": self.prefix, **tree.get("nats", {})}
        node = BrokerNode(self.directory, free_port(), tree, arguments, environment)
        self._stack.callback(node.clear_away)
        self.nodes.append(node)
        return node

    def start_node(
        self,
        nats: NatsServer | str,
        settings: Settings | None = None,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> BrokerNode:
        """A node that is ready."""
        node = self.add_node(nats, settings, arguments=arguments, environment=environment)
        node.start()
        node.wait_ready()
        return node

    def start_nodes(self, count: int, nats: NatsServer | str, settings: Settings | None = None) -> list[BrokerNode]:
        """Several nodes that are ready, sooner than one after another."""
        nodes = [self.add_node(nats, settings) for _ in range(count)]
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_ready()
        return nodes

    def start_haproxy(self, nodes: Sequence[BrokerNode], *, patient: bool = False) -> HAProxy:
        """See there."""
        proxy = HAProxy(self.directory, free_port(), nodes, patient=patient)
        self.start(proxy)
        proxy.wait_ready()
        return proxy

    def start(self, process: Process) -> None:
        """Start any other program."""
        self._stack.callback(process.clear_away)
        process.start()

    def close(self) -> None:
        """End everything; then look into the nodes' logs."""
        self._stack.close()
        for node in self.nodes:
            if node.err.exists():
                node.check_log()
