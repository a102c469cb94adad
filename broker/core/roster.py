"""The members of one topic on all nodes, as one node has heard of them: by events, and by listings that correct them.

A node hears itself like any other, so that what it tells its subscribers is the same everywhere, in the same order.
What a node says arrives in order, but not always: when either end loses its connection, all in between is lost. Then
everybody's members are in doubt until they have listed them again; who doesn't any more has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice


@dataclass(frozen=True, slots=True)
class Changes:
    """What a listing has shown: the infos of those who have come, and of those who have gone."""

    came: list[bytes] = field(default_factory=list)
    went: list[bytes] = field(default_factory=list)


class _Node:
    """One node's members."""

    __slots__ = ("doubtful", "listed", "members")

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}
        """Infos, by client."""
        self.listed: set[str] | None = None
        """While a listing is under way: who has been named in it so far."""
        self.doubtful = False


class Roster:
    """The members of one topic, by node. An info is what others see of a client; opaque here."""

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def joined(self, node: str, client: str, info: bytes) -> bool:
        """A node says that a client has come; whether that is news."""
        members = self._known(node).members
        is_news = client not in members
        members[client] = info
        return is_news

    def left(self, node: str, client: str) -> bytes | None:
        """A node says that a client has gone; its info, or None where nobody had heard of it."""
        known = self._nodes.get(node)
        if known is None:
            return None
        info = known.members.pop(client, None)
        self._forget_empty(node, known)
        return info

    def listed(self, node: str, members: Mapping[str, bytes], *, first: bool, last: bool) -> Changes:
        """A node lists all its members, in one part or several, with no event between them.

        Args:
            node: which.
            members: of this part; infos, by client.
            first: a listing begins; one that was under way will not go on.
            last: it ends: who was not in it has gone.
        """
        if first:
            self._known(node).listed = set()
        known = self._nodes.get(node)
        if known is None or known.listed is None:
            return Changes()  # its beginning was missed
        changes = Changes(came=[info for client, info in members.items() if client not in known.members])
        known.members.update(members)
        known.listed.update(members)
        if last:
            vanished = [client for client in known.members if client not in known.listed]
            changes.went.extend(known.members.pop(client) for client in vanished)
            known.listed = None
            known.doubtful = False
            self._forget_empty(node, known)
        return changes

    def doubt(self, node: str | None = None) -> None:
        """From now on a node's members (all nodes', without one) are in doubt, until it has listed them."""
        for known in self._nodes.values() if node is None else filter(None, (self._nodes.get(node),)):
            known.doubtful = True
            known.listed = None

    def doubtful(self) -> list[str]:
        """The nodes whose members are in doubt."""
        return [node for node, known in self._nodes.items() if known.doubtful]

    def is_sure_of(self, node: str) -> bool:
        """Whether a node has members here that are not in doubt."""
        known = self._nodes.get(node)
        return known is not None and not known.doubtful

    def drop(self, node: str, at_most: int) -> list[bytes]:
        """Give up members of a node that are in doubt, so many at a time; their infos, none when all are gone."""
        known = self._nodes.get(node)
        if known is None or not known.doubtful:
            return []
        infos = [known.members.pop(client) for client in list(islice(known.members, at_most))]
        self._forget_empty(node, known)
        return infos

    def _known(self, node: str) -> _Node:
        known = self._nodes.get(node)
        if known is None:
            known = self._nodes[node] = _Node()
        return known

    def _forget_empty(self, node: str, known: _Node) -> None:
        if not known.members and known.listed is None:
            del self._nodes[node]
