"""Three NATS servers that keep streams together, and every way of losing some of them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.harness.nats import NatsServer
from tests.harness.streams import Streams, streams_at
from tests.harness.waiting import at_last, eventually, free_port
from tests.harness.web import fetch

SIZE = 3
ELECTION_SECONDS = 40.0
"""Enough for a leader to be missed, which takes JetStream 4 to 9 seconds, and for an election or two."""
MONITOR_SECONDS = 2.0


class ClusterServer(NatsServer):
    """One of the servers. Its ports and its store stay the same over restarts.

    Args:
        directory: for its configuration, its store and its output.
        port: for clients.
        name: what it is called within the cluster.
        cluster: its section `cluster`.
        options: more of its configuration.
    """

    def __init__(
        self, directory: Path, port: int, name: str, cluster: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.monitor_port = free_port()
        self.paused = False
        own = {
            "server_name": name,
            "http": f"127.0.0.1:{self.monitor_port}",
            "cluster": dict(cluster),
            "jetstream": {"store_dir": str(directory / f"store-{name}")},
        }
        super().__init__(directory, port, {**own, **options})

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def available(self) -> bool:
        """Runs, and is not paused."""
        return self.running and not self.paused

    def pause(self) -> None:
        super().pause()
        self.paused = True

    def resume(self) -> None:
        super().resume()
        self.paused = False

    def kill(self) -> None:
        super().kill()
        self.paused = False

    def monitor(self, path: str) -> Any:
        """What its monitoring says; https://docs.nats.io/running-a-nats-service/nats_admin/monitoring.

        Raises:
            AssertionError: that all is not well.
            OSError: it does not answer.
        """
        try:
            answer = fetch("GET", f"http://127.0.0.1:{self.monitor_port}/{path}", seconds=MONITOR_SECONDS)
        except HTTPException as error:
            raise ConnectionError(f"{self.name}: {error!r}") from error  # it died while it answered
        assert answer.status == 200, f"{self.name}: {answer.body!r}"
        return json.loads(answer.body)

    def has_client(self, name: str) -> bool:
        """Whether a client with this name is connected to it."""
        return any(client.get("name") == name for client in self.monitor("connz")["connections"])

    def slow_consumers(self) -> int:
        """How many clients it has thrown out because they did not read."""
        return int(self.monitor("varz")["slow_consumers"])


@dataclass(frozen=True)
class Replica:
    """What one server says of a stream that it keeps."""

    leader: str
    """As it sees it; empty while it sees none."""
    followers_current: bool
    """Only the leader knows."""
    last_sequence: int


class NatsCluster:
    """Servers `n1`, `n2` and `n3`. Use `Site.start_cluster`.

    Args:
        directory: for their files.
        options: more of the configuration of each.
    """

    def __init__(self, directory: Path, options: Mapping[str, Any] | None = None) -> None:
        routes = [free_port() for _ in range(SIZE)]
        self.servers = [
            ClusterServer(
                directory,
                free_port(),
                f"n{number}",
                {
                    "name": "tests",
                    "listen": f"127.0.0.1:{port}",
                    "routes": [f"nats://127.0.0.1:{other}" for other in routes if other != port],
                },
                options or {},
            )
            for number, port in enumerate(routes, 1)
        ]

    @property
    def url(self) -> str:
        """Of all servers, as nodes take it."""
        return ",".join(server.url for server in self.servers)

    def available(self) -> list[ClusterServer]:
        return [server for server in self.servers if server.available]

    def others(self, *servers: ClusterServer) -> list[ClusterServer]:
        return [server for server in self.servers if server not in servers]

    def wait_ready(self, seconds: float = ELECTION_SECONDS) -> None:
        """Wait until JetStream has a leader and all servers are current, blocking the event loop if there is one."""
        at_last(self._is_ready, seconds)

    async def ready(self, seconds: float = ELECTION_SECONDS) -> None:
        """Wait until JetStream has a leader and all servers are current."""
        await asyncio.to_thread(self.wait_ready, seconds)

    def _is_ready(self) -> bool:
        for server in self.servers:
            assert server.running, server.log()
        groups = {server.name: server.monitor("jsz").get("meta_cluster", {}) for server in self.servers}
        for server in self.servers:
            server.monitor("healthz")
        leaders = {group.get("leader") for group in groups.values()}
        assert len(leaders) == 1, f"leaders: {leaders}"
        (leader,) = leaders
        assert leader in groups, "no leader"
        replicas = groups[leader].get("replicas", [])
        assert len(replicas) == SIZE - 1, replicas
        assert all(replica["current"] and not replica.get("offline") for replica in replicas), replicas
        return True

    async def healed(self) -> None:
        """Let everybody run again, whatever was done to them, and wait until they are ready."""
        for server in self.servers:
            if not server.running:
                server.start()
            elif server.paused:
                server.resume()
        await self.ready()

    async def _replicas_of(self, stream: str) -> dict[str, Replica]:
        """What each available server says of a stream."""

        async def ask(server: ClusterServer) -> tuple[str, Replica | None]:
            try:
                found = await asyncio.to_thread(server.monitor, "jsz?accounts=true&streams=true")
            except OSError:
                return server.name, None  # killed or paused meanwhile, or not up yet
            accounts = found.get("account_details") or []
            details = itertools.chain.from_iterable(account.get("stream_detail") or [] for account in accounts)
            for detail in details:
                if detail["name"] == stream:
                    group = detail.get("cluster") or {}
                    others = group.get("replicas") or []
                    current = all(other["current"] and not other.get("offline") for other in others)
                    return server.name, Replica(group.get("leader", ""), current, detail["state"]["last_seq"])
            return server.name, None

        answers = await asyncio.gather(*(ask(server) for server in self.available()))
        return {name: replica for name, replica in answers if replica is not None}

    async def leader_of(self, stream: str, seconds: float = ELECTION_SECONDS) -> ClusterServer:
        """The server that leads a stream, once all that run agree who does."""

        async def agreed() -> ClusterServer | None:
            replicas = await self._replicas_of(stream)
            leaders = {replica.leader for replica in replicas.values()}
            assert len(leaders) == 1, f"leaders of {stream}: {leaders}"
            return next((server for server in self.available() if server.name in leaders), None)

        found: ClusterServer = await eventually(agreed, seconds)
        return found

    async def followers_of(self, stream: str) -> list[ClusterServer]:
        return self.others(await self.leader_of(stream))

    async def current(self, stream: str, seconds: float = ELECTION_SECONDS) -> None:
        """Wait until every server has all that was stored in a stream when this was asked, and follows its leader."""
        leader = await self.leader_of(stream, seconds)
        top = (await self._replicas_of(stream))[leader.name].last_sequence

        async def all_have_it() -> bool:
            replicas = await self._replicas_of(stream)
            assert len(replicas) == SIZE, f"{stream} is at {sorted(replicas)}"
            leaders = {replica.leader for replica in replicas.values()}
            assert len(leaders) == 1, f"leaders of {stream}: {leaders}"
            (name,) = leaders
            assert name in replicas, f"{stream} has no leader"
            assert replicas[name].followers_current, f"{stream}: followers of {name} lag"
            return all(replica.last_sequence >= top for replica in replicas.values())

        await eventually(all_have_it, seconds)

    async def server_of(self, client: str, seconds: float = ELECTION_SECONDS) -> ClusterServer:
        """The server that a client with this name is connected to."""

        async def found() -> ClusterServer | None:
            for server in self.available():
                with suppress(OSError):  # one that is not up yet has nobody
                    if await asyncio.to_thread(server.has_client, client):
                        return server
            return None

        server: ClusterServer = await eventually(found, seconds)
        return server

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[Streams]:
        """For the administration of streams, through servers that are available now."""
        async with streams_at(",".join(server.url for server in self.available())) as streams:
            yield streams
