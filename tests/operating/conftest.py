from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that nodes run on."""
    return "asyncio", {"use_uvloop": True}
