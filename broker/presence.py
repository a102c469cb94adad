"""Who is subscribed to a topic, and how many, in the whole cluster: asked of all nodes when somebody wants to know.

Nodes that have not answered in time are named; the rest is told without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from broker.core.members import count_users
from broker.operations import MEMBER_BYTES, Operations, Presence, PresenceAnswer, PresenceStats, PresenceStatsAnswer
from broker.relay.control import Peer
from broker.rounds import Rounds
from broker.wire.codes import CommandError, ErrorCode

_decode_listing = msgspec.json.Decoder(PresenceAnswer).decode
_decode_numbers = msgspec.json.Decoder(PresenceStatsAnswer).decode


@dataclass(frozen=True, slots=True)
class Listed:
    """The members of a topic."""

    members: bytes
    """A JSON object: what others see of each, by client."""
    unanswered: Sequence[Peer]


@dataclass(frozen=True, slots=True)
class Counted:
    """How many members a topic has."""

    clients: int
    users: int
    """Different ones; the anonymous are one."""
    unanswered: Sequence[Peer]


class PresenceReader:
    """Asks all nodes for the members of topics. Whoever asks for the same at the same time shares the question.

    Args:
        operations: which asks them.
        members: the most that are listed.
    """

    def __init__(self, operations: Operations, members: int) -> None:
        self._operations = operations
        self._members = members
        self._listings = Rounds(self._list)
        self._counts = Rounds(self._count)

    def members(self, topic: str) -> asyncio.Task[Listed | CommandError]:
        """The members of a topic, or that they are too many. For others, too: see `Rounds.ask`.

        Raises:
            RelayError: the other nodes can't be asked now.
        """
        return self._listings.ask(topic)

    def numbers(self, topic: str) -> asyncio.Task[Counted]:
        """How many they are; otherwise as `members`."""
        return self._counts.ask(topic)

    async def _list(self, topic: str) -> Listed | CommandError:
        answers, unanswered = await self._operations.everywhere(Presence(topic))
        clients = size_bytes = 0
        objects: list[bytes] = []
        for answer in answers:
            listing = _decode_listing(answer)
            clients += listing.clients
            size_bytes += listing.size_bytes
            objects.append(bytes(listing.members))
            await asyncio.sleep(0)  # each takes a millisecond or two where there are many
        if clients > self._members:
            detail = f"channel: {clients} members, at most {self._members} are listed; presence_stats gives the numbers"
            return CommandError(ErrorCode.LIMIT_EXCEEDED, detail)
        if size_bytes > self._members * MEMBER_BYTES:
            detail = f"channel: {clients} members with {size_bytes} bytes; presence_stats gives the numbers"
            return CommandError(ErrorCode.LIMIT_EXCEEDED, detail)
        return Listed(b"{%b}" % b",".join(one[1:-1] for one in objects if one != b"{}"), unanswered)

    async def _count(self, topic: str) -> Counted:
        answers, unanswered = await self._operations.everywhere(PresenceStats(topic))
        found = [numbers for numbers in map(_decode_numbers, answers) if numbers.clients]
        users = found[0].users if len(found) == 1 else count_users(numbers.packed_users for numbers in found)
        return Counted(sum(numbers.clients for numbers in found), users, unanswered)
