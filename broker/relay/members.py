"""What nodes tell each other about the members of a topic: who comes, who goes, and all who are there.

A node says it all on the topic's own subject (see `Subjects.members`), which those nodes hear that have members of it
themselves. Only the answer to one who asked goes to that one alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

HEAD_BYTES = 1024
"""More than a listing's part has beside its entries and its topic's name."""
PART_BYTES = 65_536
"""A listing is cut into parts of about this size, so that none of them keeps a node busy for long."""


class Joined(msgspec.Struct, tag_field="event", tag="join"):
    """A client has become a member."""

    uid: str
    """The node it is on, here and below."""
    client: str
    info: msgspec.Raw
    """What others see of it, in JSON."""


class Left(msgspec.Struct, tag_field="event", tag="leave"):
    """A client is no member any more."""

    uid: str
    client: str


class Listing(msgspec.Struct, tag_field="event", tag="all", omit_defaults=True):
    """All members of a topic on a node, or a part of them. The parts follow each other, with no other event between."""

    uid: str
    topic: str
    members: msgspec.Raw
    """A JSON object: infos, by client."""
    first: bool = False
    last: bool = False
    asks: bool = False
    """The others are to send theirs."""
    quiet: bool = False
    """One whose first member has just come asks so, and is answered so: whom it finds there is no news."""


Event = Joined | Left | Listing

encode = msgspec.json.encode
decode_event = msgspec.json.Decoder(Event).decode
decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def entry(client: str, info: bytes) -> bytes:
    """What stands for a member in a JSON object of them.

    Args:
        client: its id, which needs no escapes in JSON.
        info: what others see of it, in JSON.
    """
    return b'"%b":%b' % (client.encode(), info)


def object_of(entries: Iterable[bytes]) -> msgspec.Raw:
    """The JSON object with these entries."""
    return msgspec.Raw(b"{%b}" % b",".join(entries))


def list_members(
    uid: str, topic: str, entries: Iterable[bytes], *, asks: bool, quiet: bool, part_bytes: int = PART_BYTES
) -> Iterator[bytes]:
    """Listings of these entries, to be sent one after another with nothing between.

    Args:
        uid: the node they are on.
        topic: whose members.
        entries: of `entry`.
        asks: see `Listing`.
        quiet: see `Listing`.
        part_bytes: what the entries of one part may take together, but for one that takes more by itself.
    """
    part: list[bytes] = []
    size = 0
    first = True
    for one in entries:
        if part and size + len(one) > part_bytes:
            yield encode(Listing(uid, topic, object_of(part), first=first, quiet=quiet))
            part, size, first = [], 0, False
        part.append(one)
        size += len(one) + 1
    yield encode(Listing(uid, topic, object_of(part), first=first, last=True, asks=asks, quiet=quiet))
