"""The other commands, their output and their exit codes."""

from __future__ import annotations

import json
import signal
import socket
import sys

import jwt
import pytest

from tests.e2e.commands import PACKAGE, broker, children, gone, is_alive, run
from tests.harness.client import connected
from tests.harness.nats import NatsServer
from tests.harness.process import Process
from tests.harness.site import Site
from tests.harness.tls import Authority
from tests.harness.tokens import SECRET, SECRETS
from tests.harness.waiting import eventually, free_port
from tests.harness.web import request

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

SIGNING = {"BROKER_AUTH__HMAC_SECRET": SECRET}


async def test_tokens_made_here_are_taken_by_a_node(site: Site, nats: NatsServer) -> None:
    node = site.start_node(nats, {"auth": {"anonymous": False}, "topics": [{"name": "closed", "match": [">"]}]})
    connection = await run(site, "token", "ann", "--ttl", "5m", environment=SIGNING)
    subscription = await run(site, "token", "ann", "--topic", "a", "--topic", "b.*", environment=SIGNING)
    assert (connection.code, subscription.code, connection.err) == (0, 0, "")
    SECRETS.update(lines := [connection.out.strip(), *subscription.out.splitlines()])
    async with connected(node.websocket_url, lines[0]) as client:
        for topic, token in zip(("a", "b.*"), lines[1:], strict=True):
            await client.call("subscribe", channel=topic, token=token)
        await node.publish("b.c", 1)
        assert await client.publication("b.*") == 1
    assert jwt.decode(lines[0], SECRET, algorithms=["HS256"])["sub"] == "ann"


async def test_tokens_are_such_as_the_settings_ask_for(site: Site, nats: NatsServer) -> None:
    auth = {"anonymous": False, "user_claim": "uid", "algorithms": ["ES256", "HS512", "HS256"], "audience": "chat"}
    node = site.start_node(nats, {"auth": {**auth, "issuer": "us"}})
    environment = {
        **SIGNING,
        "BROKER_AUTH__USER_CLAIM": "uid",
        "BROKER_AUTH__ALGORITHMS": json.dumps(auth["algorithms"]),
        "BROKER_AUTH__AUDIENCE": "chat",
        "BROKER_AUTH__ISSUER": "us",
    }
    made = await run(site, "token", "ann", environment=environment)
    assert (made.code, made.err) == (0, "")
    SECRETS.add(token := made.out.strip())

    assert jwt.get_unverified_header(token)["alg"] == "HS512"
    async with connected(node.websocket_url, token):
        info = await node.api("disconnect", {"user": "ann"})
        assert info.json() == {"result": {}}


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (("ann",), {"ALGORITHMS": '["ES256"]'}, "BROKER_AUTH__HMAC_SECRET: it can verify HS256, HS384, HS512, none of"),
        (("ann", "--topic", "a", "--topic", "b c"), {}, "--topic: 'b c' holds whitespace"),
        (("ann", "--topic", "b*"), {}, "--topic: 'b*' mixes a wildcard with text in one token"),
        (("ann", "--topic", ""), {}, "--topic: '' must not be empty"),
        (("a" * 256,), {}, "would refuse this token: sub: more than 255 bytes"),
        (("ann", "--ttl", "999999999999d"), {}, "would refuse this token: exp: too far from now to be a time"),
        (("ann",), {"USER_CLAIM": "exp"}, "would refuse this token: exp: must be a string"),
        (("",), {}, "auth.anonymous: is false, so a node would refuse the token of the anonymous"),
    ],
)
async def test_a_token_that_its_own_node_would_refuse_is_not_made(
    site: Site, arguments: tuple[str, ...], settings: dict[str, str], says: str
) -> None:
    environment = {**SIGNING, **{f"BROKER_AUTH__{name}": value for name, value in settings.items()}}
    outcome = await run(site, "token", *arguments, environment=environment)

    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [("config", "--check"), ("serve",), ("serve", "--workers", "2")], ids=" ".join)
async def test_what_a_node_cannot_work_with_is_named_line_by_line(site: Site, arguments: tuple[str, ...]) -> None:
    authority = Authority(site.directory)
    one, two = authority.issue("one"), authority.issue("two")
    garbage = site.directory / "garbage.pem"
    garbage.write_text("no key at all")
    environment = {
        "BROKER_AUTH__PUBLIC_KEYS": json.dumps([str(garbage)]),
        "BROKER_API__KEY": "one key",
        "BROKER_HTTP__TLS_CERT": str(one.certificate),
        "BROKER_HTTP__TLS_KEY": str(two.key),
        "BROKER_NATS__TLS_CA": str(garbage),
    }
    outcome = await run(site, *arguments, environment=environment)

    assert outcome.code == 2
    assert [line.partition(" ")[0] for line in outcome.err.splitlines()] == [
        "BROKER_HTTP__TLS_KEY:",
        "BROKER_NATS__TLS_CA:",
        "BROKER_API__KEY:",
        "BROKER_AUTH__PUBLIC_KEYS:",
    ]


BROKEN_RELAY = """
import asyncio, sys
from broker.cli import main
from broker.relay.connection import NatsConnection

async def run(self):
    await asyncio.sleep(0)
    raise ZeroDivisionError("a bug in the relay")

NatsConnection.run = run
sys.exit(main(sys.argv[1:]))
"""


async def test_a_node_whose_relay_has_a_bug_says_so_and_ends_without_a_drain(site: Site) -> None:
    command = [sys.executable, "-c", BROKEN_RELAY, "serve", "--host", "127.0.0.1", "--port", "0"]
    environment = {"PYTHONPATH": str(PACKAGE), "BROKER_DRAIN__DELAY_SECONDS": "600"}
    node = Process(command, site.directory, "broken", environment)
    site.start(node)

    assert await node.ended() == 1
    assert "Traceback" in node.log()
    assert "ZeroDivisionError: a bug in the relay" in node.log()


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
