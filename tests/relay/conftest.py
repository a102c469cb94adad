from __future__ import annotations

import pytest

from tests.harness.nats import NatsServer
from tests.harness.site import Site


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that nodes run on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
def server(module_site: Site) -> NatsServer:
    """For the tests of a module that leave it alone."""
    return module_site.start_nats({"max_payload": 4096})


@pytest.fixture
def own_server(site: Site) -> NatsServer:
    """For a test that stops it, or worse."""
    return site.start_nats()
