"""Who is a member of which topic on this node: the clients whose subscription has been answered and has not ended.

Kept only for topics whose policy asks for it (`TopicPolicy.keeps_members`), and in memory only: whoever wants to know
of all nodes asks all nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

_DIGEST_BYTES = 8
"""Of a user's name. Among a million users the odds that two share one are 1 to 37 million."""


class _Members:
    """The members of one topic."""

    __slots__ = ("entries", "size_bytes", "users")

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, bytes]] = {}
        """By client: its user's digest, and its entry."""
        self.users: dict[bytes, int] = {}
        """How many of them each user has, by digest."""
        self.size_bytes = 0
        """Of all entries."""


class Members:
    """The members of all topics of one node. No topic without members leaves a trace."""

    __slots__ = ("_topics", "total")

    def __init__(self) -> None:
        self.total = 0
        """Of all topics; a client counts in each of its topics."""
        self._topics: dict[str, _Members] = {}

    def enter(self, topic: str, client: str, user: str, entry: bytes) -> None:
        """A client has become a member. Who is one already is one anew.

        Args:
            topic: of which.
            client: its id, which no two clients share.
            user: whose it is; the anonymous are one user, with an empty name.
            entry: what stands for it in a listing; opaque here.
        """
        self.leave(topic, client)
        members = self._topics.get(topic)
        if members is None:
            members = self._topics[topic] = _Members()
        digest = blake2b(user.encode(), digest_size=_DIGEST_BYTES).digest()
        members.entries[client] = digest, entry
        members.users[digest] = members.users.get(digest, 0) + 1
        members.size_bytes += len(entry)
        self.total += 1

    def leave(self, topic: str, client: str) -> bool:
        """A client is no member any more; whether it was one."""
        members = self._topics.get(topic)
        if members is None or (found := members.entries.pop(client, None)) is None:
            return False
        digest, entry = found
        if members.users[digest] == 1:
            del members.users[digest]
        else:
            members.users[digest] -= 1
        members.size_bytes -= len(entry)
        self.total -= 1
        if not members.entries:
            del self._topics[topic]
        return True

    def __contains__(self, topic: object) -> bool:
        """Whether a topic has members."""
        return topic in self._topics

    def __len__(self) -> int:
        """How many topics have members."""
        return len(self._topics)

    def entries(self, topic: str) -> list[bytes]:
        """The entries of all members of a topic."""
        members = self._topics.get(topic)
        return [entry for _, entry in members.entries.values()] if members else []

    def size_bytes(self, topic: str) -> int:
        """Of all these entries."""
        members = self._topics.get(topic)
        return members.size_bytes if members else 0

    def clients(self, topic: str) -> int:
        members = self._topics.get(topic)
        return len(members.entries) if members else 0

    def users(self, topic: str) -> int:
        """How many different users the members of a topic are."""
        members = self._topics.get(topic)
        return len(members.users) if members else 0

    def packed_users(self, topic: str) -> bytes:
        """The same users as `count_users` takes them: 8 bytes for each."""
        members = self._topics.get(topic)
        return b"".join(members.users) if members else b""


def count_users(packed: Iterable[bytes]) -> int:
    """How many different users several nodes have together; see `Members.packed_users`."""
    users: set[int] = set()
    for one in packed:
        users.update(memoryview(one).cast("Q"))
    return len(users)
