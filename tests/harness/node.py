"""Real nodes, as processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.accounting import Receipt
from tests.harness.process import Process
from tests.harness.tokens import API_KEY, SECRET, SECRETS
from tests.harness.waiting import at_last
from tests.harness.web import Answer, fetch, request

Settings = Mapping[str, Any]

EVERYTHING = [{"name": "default", "match": [">"], "subscribe": "anyone", "publish": "anyone"}]
"""Topic policies under which everybody may do everything."""

DEFAULTS: dict[str, Any] = {
    "http": {"host": "127.0.0.1"},
    "auth": {"hmac_secret": SECRET, "anonymous": True, "leeway_seconds": 1},
    "api": {"key": API_KEY},
    "drain": {"rate_per_second": 1000, "timeout_seconds": 5},
    "topics": EVERYTHING,
}


def settings_with(changes: Settings) -> dict[str, Any]:
    """The defaults of tests, with some settings changed: sections are merged, lists replaced."""
    return _merged(DEFAULTS, changes)


def _merged(settings: Settings, changes: Settings) -> dict[str, Any]:
    merged = dict(settings)
    for section, content in changes.items():
        merged[section] = {**merged.get(section, {}), **content} if isinstance(content, dict) else content
    return merged


class BrokerNode(Process):
    """`broker serve` on a port of its own, which stays the same over restarts.

    Args:
        directory: for its settings and output.
        port: to listen on.
        settings: the whole tree, but for the port.
        arguments: more of them.
        environment: more of it.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        settings: Settings,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.settings = {**settings, "http": {**settings.get("http", {}), "port": port}}
        self._file = file = directory / f"node-{port}.json"
        file.write_text(json.dumps(self.settings))
        package = Path(__file__).parents[2]
        super().__init__(
            [sys.executable, "-m", "broker", "serve", "--config", str(file), *arguments],
            directory,
            f"node-{port}",
            {
                "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
                **(environment or {}),
            },
        )

    def reconfigure(self, changes: Settings) -> None:
        """Change some settings for its next start: sections are merged, lists replaced."""
        self.settings = _merged(self.settings, changes)
        self._file.write_text(json.dumps(self.settings))

    @property
    def tls(self) -> bool:
        return "tls_cert" in self.settings["http"]

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def operations_url(self) -> str:
        """Where API, metrics and health are."""
        port = self.settings["http"].get("internal_port", self.port)
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{port}"

    @property
    def websocket_url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/connection/websocket"

    @property
    def name(self) -> str:
        """What the node calls itself."""
        return str(fetch("GET", f"{self.operations_url}/health/ready").json()["node"])

    def wait_ready(self) -> None:
        """Wait until it is ready, blocking the event loop if there is one."""

        def is_ready() -> bool:
            assert self.running, self.log()
            return fetch("GET", f"{self.operations_url}/health/ready").status == 200

        at_last(is_ready)

    async def ready(self) -> None:
        """Wait until it is ready."""
        await asyncio.to_thread(self.wait_ready)

    async def health(self, which: str = "ready") -> Answer:
        return await request("GET", f"{self.operations_url}/health/{which}")

    async def api(self, method: str, body: Any, key: str | None = API_KEY, **headers: str) -> Answer:
        """Call the HTTP API; `_` in names of headers stands for `-`."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["X-API-Key"] = key
        return await request("POST", f"{self.operations_url}/api/{method}", json.dumps(body).encode(), sent)

    async def publish(self, topic: str, data: Any) -> None:
        """Publish over HTTP; it must succeed."""
        answer = await self.api("publish", {"channel": topic, "data": data})
        assert (answer.status, answer.body) == (200, b'{"result":{}}')

    async def store(self, topic: str, data: Any, **more: Any) -> Receipt:
        """Publish over HTTP to a durable topic; it must succeed. `more` goes into the request's body."""
        answer = await self.api("publish", {"channel": topic, "data": data, **more})
        result = answer.json().get("result", {})
        assert (answer.status, sorted(result)) == (200, ["epoch", "offset"]), answer
        return Receipt(result["offset"], result["epoch"])

    async def metric(self, name: str) -> float:
        """A metric's value, summed over its labels. `name` may end with some: `broker_closes_total{code="3001"`."""
        return _sum_of(name, (await request("GET", f"{self.operations_url}/metrics")).body.decode())

    def check_log(self) -> None:
        """No node may ever log a traceback, a key or a token."""
        said = self.log() + self.output()
        assert "Traceback" not in said, said
        for secret in SECRETS:
            assert secret not in said, said


def _sum_of(name: str, page: str) -> float:
    lines = [line for line in page.splitlines() if line.startswith(name) and line[len(name)] in "{ ,}"]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
