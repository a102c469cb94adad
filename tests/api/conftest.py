from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.nats import NatsServer
from tests.harness.node import BrokerNode
from tests.harness.site import Site

KEYS = [
    {"name": "news", "key": "a-key-for-news-only", "methods": ["publish", "broadcast", "batch"], "topics": ["news.>"]},
    {"name": "past", "key": "a-key-for-some-pasts", "methods": ["history"], "topics": ["kept.mine.>"]},
    {"name": "rooms", "key": "a-key-for-rooms-only", "topics": ["room:*"]},
]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that nodes run on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory, nats: NatsServer) -> Iterator[BrokerNode]:
    """A node for all tests of the API."""
    site = Site(tmp_path_factory.mktemp("api"))
    topics = [
        {"name": "small", "match": ["small"], "subscribe": "anyone", "publish": "anyone", "message_bytes": 10},
        {"name": "seen", "match": ["room:seen.*"], "subscribe": "anyone", "presence": True, "read": "nobody"},
        {
            "name": "kept",
            "match": ["kept.>"],
            "durable": True,
            "history_messages": 10,
            "subscribe": "anyone",
            "publish": "anyone",
        },
        {"name": "some", "match": ["news.>", "room:*"], "subscribe": "anyone", "publish": "anyone"},
    ]
    settings = {"topics": topics, "api": {"keys": KEYS}, "limits": {"http_body_bytes": 100_000, "handshake_seconds": 1}}
    try:
        yield site.start_node(nats, settings)
    finally:
        site.close()
