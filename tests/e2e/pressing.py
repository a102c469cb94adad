"""Nodes whose bounds are soon crossed, and what tests of that ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.harness.node import BrokerNode
from tests.harness.reader import Reader
from tests.harness.waiting import eventually

QUEUE_BYTES = 262_144
PADDING = 8000
"""Bytes of ballast in a publication."""
FLOOD = 4 * QUEUE_BYTES // PADDING
"""Publications of this size that a queue can't hold, by far."""
SYMBOLS = ("a", "b", "c", "d", "e")


def policy(name: str, overflow: str, **more: Any) -> dict[str, Any]:
    """A policy for the topics `<name>.…`, with which everybody may do everything."""
    return {
        "name": name,
        "match": [f"{name}.>"],
        "subscribe": "anyone",
        "publish": "anyone",
        "overflow": overflow,
        **more,
    }


LIVE = [
    policy("cut", "disconnect"),
    policy("oldest", "drop_oldest"),
    policy("newest", "drop_newest"),
    policy("prices", "conflate", conflate_key="/k"),
    policy("state", "conflate"),
]


def kept(name: str, overflow: str = "catch_up", **more: Any) -> dict[str, Any]:
    """A policy for durable topics, of which nothing is lost for its age or number unless that is asked for."""
    return policy(name, overflow, **{"durable": True, "history_messages": 20_000, **more})


async def calm(node: BrokerNode) -> None:
    """Nothing waits any more."""

    async def nothing() -> bool:
        return (await node.metric("broker_queued_bytes"), await node.metric("broker_slow_connections")) == (0, 0)

    await eventually(nothing, 30)


async def dropped(node: BrokerNode, policy: str, reason: str) -> float:
    return await node.metric(f'broker_dropped_total{{policy="{policy}",reason="{reason}"')


async def closed(reader: Reader, seconds: float = 15) -> tuple[int, str]:
    """Code and reason of a connection's end, when it comes."""
    await eventually(lambda: reader.end is not None, seconds)
    assert reader.end is not None
    return reader.end


def rss_bytes(pid: int) -> int:
    """A process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")
