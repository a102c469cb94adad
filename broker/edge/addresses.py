"""Where clients come from: through proxies that are trusted, and how many of them from one address."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from broker.edge.handshake import Headers

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_FORWARDED = b"x-forwarded-for"
_ENTRY = re.compile(
    r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)\])(?::(?P<port>[0-9]{1,5}))?"
    r"|(?P<bare>[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*)"
)
"""An address, perhaps with a port; with one, an IPv6 address stands in brackets."""


def parse_networks(entries: Sequence[str]) -> tuple[Network, ...]:
    """Addresses (networks of one) and networks.

    Raises:
        ValueError: one of them is neither.
    """
    return tuple(ip_network(entry) for entry in entries)


def plain(host: str) -> str:
    """A peer's address as the kernel names it, in its shortest form: an IPv4 address that came to an IPv6 socket as
    what it is, and without the name of a network interface.
    """
    if ":" not in host:
        return host
    parsed = _parsed(host.partition("%")[0])
    return host if parsed is None else str(parsed)


def client_address(peer: str, headers: Headers, trusted: Sequence[Network]) -> str:
    """The address of the client behind a peer.

    Each proxy adds whom it was asked by at the right of `X-Forwarded-For`; what stands left of the first that is not
    trusted is anybody's invention.

    Args:
        peer: the socket's other end, as `plain` has it.
        headers: of the request, in order.
        trusted: the proxies that are believed.

    Returns:
        The right-most entry that is not trusted itself. Where there is none, or an entry is malformed before it is
        found, the last trusted hop that is known.
    """
    hop = _parsed(peer)
    if hop is None or not _is_trusted(hop, trusted):
        return peer
    for name, value in reversed(headers):
        if name != _FORWARDED:
            continue
        for entry in reversed(value.decode("latin-1").split(",")):
            found = _entry(entry.strip(" \t"))
            if found is None:
                return str(hop)
            hop = found
            if not _is_trusted(hop, trusted):
                return str(hop)
    return str(hop)


def _entry(text: str) -> Address | None:
    form = _ENTRY.fullmatch(text)
    if form is None or int(form["port"] or 0) > 65_535:
        return None
    return _parsed(form["v4"] or form["v6"] or form["bare"])


def _parsed(text: str) -> Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def _is_trusted(address: Address, trusted: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in trusted)


class Addresses:
    """Counts connections by address, where that is asked for; else it holds nothing.

    Args:
        limit: the most connections from one address; None for no limit.
        trusted: the proxies that are believed.
    """

    __slots__ = ("_counts", "_known", "_limit", "_trusted")

    def __init__(self, limit: int | None, trusted: Sequence[Network]) -> None:
        self._limit = limit
        self._trusted = trusted
        self._known: dict[Hashable, str] = {}
        """The address of each connection; nothing unless a setting needs it."""
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        """How many connections are known."""
        return len(self._known)

    @property
    def kept(self) -> bool:
        """Whether addresses are needed at all."""
        return bool(self._trusted) or self._limit is not None

    def find(self, peer: str, headers: Headers) -> str:
        """See `client_address`; the peer itself where no proxy is trusted."""
        return client_address(peer, headers, self._trusted) if self._trusted else peer

    def full(self, address: str) -> bool:
        """Whether there are as many connections from there as there may be."""
        return self._limit is not None and self._counts.get(address, 0) >= self._limit

    def enter(self, connection: Hashable, address: str) -> None:
        """A connection begins; it is to `leave` however it ends."""
        if self.kept:
            self._known[connection] = address
        if self._limit is not None:
            self._counts[address] = self._counts.get(address, 0) + 1

    def leave(self, connection: Hashable) -> None:
        address = self._known.pop(connection, None)
        if address is None or self._limit is None:
            return
        if self._counts[address] == 1:
            del self._counts[address]
        else:
            self._counts[address] -= 1

    def of(self, connection: Hashable) -> str | None:
        """The address that a connection entered with, where that is kept."""
        return self._known.get(connection)
