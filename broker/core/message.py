"""Who is behind a message."""

from __future__ import annotations

from dataclasses import dataclass

OWN_TAGS = "broker."
"""Tags whose names begin so are the broker's own: no publisher's."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """Who a client is, as others see it (presence, join and leave, publications)."""

    user: str
    client: str
    conn_info: bytes | None = None
    """Raw JSON from the connection token's `info`."""
    chan_info: bytes | None = None
    """Raw JSON from the subscription token's `info`."""
