"""Holds a client to its rates: what is too fast is refused, and who goes on regardless is sent away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.bucket import TokenBucket
from broker.core.pace import Pace
from broker.wire.codes import CloseCode, close, too_many
from broker.wire.commands import Command, Undecodable

if TYPE_CHECKING:
    from broker.client.client import Client

OFFENCES_OF_AN_ADDRESS = 10


def refuses(client: Client, command: Command | Undecodable) -> bool:
    """Whether a command comes too fast; then it is answered, and not to be run. Neither pongs nor connect count."""
    rates = client.rates
    if rates is None or rates.commands is None or not command.id:
        return False
    now = client.node.clock()
    if isinstance(command, Undecodable):
        wait = _pace(client).command(now)
    elif command.connect is not None:
        return False
    elif command.subscribe is not None:
        wait = _pace(client).subscribe(now)
    else:
        wait = _pace(client).command(now)
    if not wait:
        return False
    client.fail(command.id, too_many("commands", rates.commands, "on this connection", wait))
    end_if_exhausted(client)
    return True


def publish_limit(client: Client) -> TokenBucket | None:
    """What this client's publications are taken from, where they have a limit."""
    if client.rates is None or client.rates.publications is None:
        return None
    return _pace(client).publications(client.node.clock())


def end_if_exhausted(client: Client) -> None:
    """Close the connection of who was refused too much in a row; for good, where that is not the first time."""
    if client.pace is None or not client.pace.exhausted or client.closed:
        return
    if _known_for_it(client):
        client.close(close(CloseCode.TOO_MANY_ERRORS, "sent away for too many requests before"))
    else:
        client.close(close(CloseCode.TOO_MANY_REQUESTS, "refused, and went on"))


def _known_for_it(client: Client) -> bool:
    """Whether who is sent away now has been so before, too often. Users are known by their names, the anonymous by
    their address, which many may share: so that takes more.
    """
    user = "" if client.session is None else client.session.user
    now = client.node.clock()
    if user:
        return client.node.offenders.note(("user", user), now)
    address = client.outlet.address
    return bool(address) and client.node.offenders.note(("address", address), now, OFFENCES_OF_AN_ADDRESS)


def _pace(client: Client) -> Pace:
    if client.pace is None:
        assert client.rates is not None  # noqa: S101 - asked for only where there are some
        client.pace = Pace(client.rates, client.node.options.topics_per_connection)
    return client.pace
