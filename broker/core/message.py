"""What travels: publications, and who made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """Who a client is, as others see it (presence, join and leave, publications)."""

    user: str
    client: str
    conn_info: bytes | None = None
    """Raw JSON from the connection token's `info`."""
    chan_info: bytes | None = None
    """Raw JSON from the subscription token's `info`."""


@dataclass(frozen=True, slots=True)
class Publication:
    """One message of a topic, as it came from the relay."""

    data: bytes
    """Raw JSON on one line; never decoded on its way through a node."""
    info: ClientInfo | None = None
    tags: Mapping[str, str] | None = None
