"""The other commands, their output and their exit codes."""

from __future__ import annotations

import json
import signal
import socket

import jwt
import pytest

from tests.e2e.commands import broker, children, gone, is_alive, run
from tests.harness.client import connected
from tests.harness.nats import NatsServer
from tests.harness.process import Process
from tests.harness.site import Site
from tests.harness.tokens import SECRET, SECRETS
from tests.harness.waiting import eventually, free_port
from tests.harness.web import request

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SIGNING = {"BROKER_AUTH__HMAC_SECRET": SECRET}


async def test_tokens_made_here_are_taken_by_a_node(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"auth": {"anonymous": False}, "topics": [{"name": "closed", "match": [">"]}]})
    connection = await run(site, "token", "ann", "--ttl", "5m", environment=SIGNING)
    subscription = await run(site, "token", "ann", "--topic", "a", "--topic", "b", environment=SIGNING)
    assert (connection.code, subscription.code, connection.err) == (0, 0, "")
    SECRETS.update(lines := [connection.out.strip(), *subscription.out.splitlines()])
    async with connected(node.websocket_url, lines[0]) as client:
        for topic, token in zip("ab", lines[1:], strict=True):
            await client.call("subscribe", channel=topic, token=token)
        await node.publish("b", 1)
        assert await client.publication("b") == 1
    assert jwt.decode(lines[0], SECRET, algorithms=["HS256"])["sub"] == "ann"


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (("token", "ann"), {}, 2, "auth.hmac_secret: is not set, so nothing can be signed\n"),
        (("config",), {}, 0, ""),
        (("config", "--check"), {"BROKER_HTTP__PORT": "70000"}, 2, "BROKER_HTTP__PORT: 70000 is not a port"),
        (("serve",), {"BROKER_HTPP__PORT": "1"}, 2, "BROKER_HTPP__PORT"),
        (("serve", "--port", "eight"), {}, 2, "--port"),
        (("serve",), {"BROKER_AUTH__HMAC_SECRET": "short"}, 2, "BROKER_AUTH__HMAC_SECRET: has 5 bytes"),
        (("serve", "--config", "/nowhere/broker.toml"), {}, 2, "/nowhere/broker.toml"),
        (("serve", "--workers", "0"), {}, 2, "'0' is not a number of processes"),
        (("unknown",), {}, 2, "unknown"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_mistakes_have_their_exit_code_and_their_line(
    site: Site, arguments: tuple[str, ...], environment: dict[str, str], code: int, says: str
) -> None:
    outcome = await run(site, *arguments, environment=environment)

    assert outcome.code == code
    assert says in outcome.err
    assert "Traceback" not in outcome.err


async def test_config_shows_what_is_in_force_without_secrets(site: Site) -> None:
    outcome = await run(site, "config", "--show", environment={**SIGNING, "BROKER_HTTP__PORT": "1234"})

    shown = json.loads(outcome.out)
    assert (outcome.code, shown["http"]["port"]) == (0, 1234)
    assert SECRET not in outcome.out
    schema = await run(site, "config", "--schema")
    assert (schema.code, "properties" in json.loads(schema.out)) == (0, True)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_in_use_is_one_clear_line(site: Site, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = await run(site, "serve", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers))

    assert outcome.code == 1
    assert outcome.err == f"http.port: can't listen on 127.0.0.1:{port}: Address already in use\n"


def embedded(site: Site, port: int, *arguments: str) -> Process:
    settings = {"BROKER_AUTH__ANONYMOUS": "true", "BROKER_NATS__DATA_DIR": str(site.directory / "data")}
    command = ("serve", "--host", "127.0.0.1", "--port", str(port), "--nats", "embedded", *arguments)
    return broker(site, *command, environment=settings)


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "with workers"])
async def test_a_node_with_an_embedded_nats_leaves_no_process(site: Site, arguments: tuple[str, ...]) -> None:
    port = free_port()
    node = embedded(site, port, *arguments)

    async def ready() -> bool:
        return (await request("GET", f"http://127.0.0.1:{port}/health/ready")).status == 200

    await eventually(ready)
    started = children(node.pid)
    assert await node.stopped() == 0
    assert not any(is_alive(pid) for pid in started)
    node.start()
    await eventually(ready)
    started = children(node.pid)
    node.kill()
    await gone(*started)


async def test_a_second_signal_does_not_wait_for_the_drain(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"drain": {"delay_seconds": 600}})
    async with connected(node.websocket_url) as client:
        node.terminate()
        await eventually(lambda: "SIGTERM: draining" in node.log())
        assert client.is_open
        node.terminate()

        assert await node.ended() == -signal.SIGTERM
        assert (await client.closed())[0] == 1006
