"""Fixtures for tests with real processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.harness.cluster import NatsCluster
from tests.harness.nats import NatsServer
from tests.harness.site import Site


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of a program. Without it the test is skipped, or fails where nothing may be skipped (`CI` is set)."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            reason = f"{name} is not installed"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        return found

    return find


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Servers and nodes for one test."""
    yield from _site(tmp_path_factory)


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Servers and nodes for all tests of a module."""
    yield from _site(tmp_path_factory)


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A NATS server for all tests that don't disturb it; sites have subjects of their own."""
    for site in _site(tmp_path_factory):
        yield site.start_nats({"jetstream": {"store_dir": str(site.directory / "store")}})


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three NATS servers for all tests; ask for `cluster`."""
    for site in _site(tmp_path_factory):
        yield site.start_cluster()


@pytest.fixture
async def cluster(session_cluster: NatsCluster) -> AsyncIterator[NatsCluster]:
    """Three NATS servers with JetStream, which a test may kill and pause: all are there again for the next one.

    Sites have subjects of their own, and so streams. They go with the test.
    """
    await session_cluster.healed()
    yield session_cluster
    await session_cluster.healed()
    async with session_cluster.streams() as streams:
        for name in (await streams.call("STREAM.NAMES")).get("streams") or []:
            await streams.delete(name)


def _site(factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(factory.mktemp("site"))
    try:
        yield site
    finally:
        site.close()
