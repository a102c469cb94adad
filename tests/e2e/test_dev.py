"""`broker dev`: what somebody does first."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.commands import broker, children, gone, shell
from tests.harness.client import connected
from tests.harness.process import Process
from tests.harness.recorder import sdk_client, subscribed
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.harness.web import request

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture
def temporary(site: Site) -> Path:
    """Where the node makes its directories."""
    directory = site.directory / "temporary"
    directory.mkdir()
    return directory


@pytest.fixture
def dev(site: Site, temporary: Path) -> Process:
    return broker(site, "dev", "--port", "0", environment={"TMPDIR": str(temporary)})


async def welcome(dev: Process) -> str:
    """What it prints when it is ready."""

    def printed() -> bool:
        assert dev.running, dev.log()
        return "curl" in dev.output()

    await eventually(printed)
    return dev.output()


def websocket_url(text: str) -> str:
    (url,) = re.findall(r"ws://\S+", text)
    return str(url)


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def test_everything_it_prints_works_as_pasted(dev: Process, program: Callable[[str], str]) -> None:
    program("curl")
    text = await welcome(dev)
    (token,) = re.findall(r"^\s*(\S+\.\S+\.\S+)$", text, re.MULTILINE)
    (curl,) = re.findall(r"^\s*(curl .*)$", text, re.MULTILINE)
    (page,) = re.findall(r"This node\s+(http\S+)", text)
    async with connected(websocket_url(text), token, topics=("news",)) as client:
        assert re.fullmatch(r'\{"result":\{"offset":1,"epoch":"[0-9a-f]{12}"\}\}', await shell(curl))
        assert await client.publication("news") == {"text": "hello"}
    assert b"WebSocket pub/sub broker" in (await request("GET", page)).body


async def test_everybody_may_do_everything(dev: Process) -> None:
    async with sdk_client(websocket_url(await welcome(dev))) as client:
        news = await subscribed(client, "news")
        await client.publish("news", 1)
        assert news.data == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_and_nothing_is_left(dev: Process, temporary: Path, number: signal.Signals) -> None:
    text = await welcome(dev)
    servers = children(dev.pid)
    assert len(servers) == 1
    assert len(left_in(temporary)) == 1
    async with connected(websocket_url(text)) as client:
        dev.signal(number)
        assert (await client.closed())[0] == 3001
    assert await dev.ended() == 0
    await gone(*servers)

    assert left_in(temporary) == []
    assert "Traceback" not in dev.log()


async def test_its_nats_server_dies_with_it(dev: Process) -> None:
    await welcome(dev)
    servers = children(dev.pid)
    dev.kill()

    await gone(*servers)


async def test_it_ends_when_its_nats_server_does(dev: Process, temporary: Path) -> None:
    await welcome(dev)
    (server,) = children(dev.pid)
    await shell(f"kill -9 {server}")

    assert await dev.ended() == 1
    assert "the embedded NATS server ended by itself" in dev.log()
    assert left_in(temporary) == []


async def test_a_second_signal_ends_it_at_once(dev: Process) -> None:
    url = websocket_url(await welcome(dev))
    health = url.replace("ws:", "http:").replace("connection/websocket", "health/ready")
    # a client that does not answer the close frame keeps the drain waiting
    async with connected(url) as client:
        client.websocket.transport.pause_reading()
        dev.signal(signal.SIGINT)

        async def drains() -> bool:
            return (await request("GET", health)).status == 503

        await eventually(drains)
        dev.signal(signal.SIGINT)
        assert await dev.ended() == -signal.SIGINT


async def test_a_port_in_use_is_one_clear_line(site: Site, dev: Process) -> None:
    port = websocket_url(await welcome(dev)).split(":")[2].partition("/")[0]
    second = broker(site, "dev", "--port", port, name="second")

    assert await second.ended() == 1
    assert second.log() == f"http.port: can't listen on 127.0.0.1:{port}: Address already in use\n"
