"""What a client is told when its subscription has begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.admission import Position
from broker.client.joined import joined
from broker.core.hub import FRAME_BYTES
from broker.wire.replies import SubscribeResult, raw

if TYPE_CHECKING:
    from broker.client.client import Client


def subscribe_result(position: Position | None, *, was_recovering: bool = False) -> SubscribeResult:
    """Where a subscription begins; nothing of a live topic's."""
    if position is None:
        return SubscribeResult(was_recovering=was_recovering)
    return SubscribeResult(
        recoverable=True,
        positioned=True,
        epoch=position.epoch,
        offset=position.offset,
        recovered=position.recovered,
        publications=raw(position.publications),
        was_recovering=was_recovering,
    )


def send_rest(client: Client, position: Position | None) -> None:
    """Send what has no place in the reply, some in each message."""
    if position is None:
        return
    for message in joined(position.rest, FRAME_BYTES):
        client.send(message)
