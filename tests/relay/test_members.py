from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker.relay.members import (
    HEAD_BYTES,
    Joined,
    Left,
    Listing,
    decode_event,
    decode_members,
    encode,
    entry,
    list_members,
    object_of,
)

CLIENTS = st.lists(st.uuids().map(str), unique=True, max_size=30)


def parts_of(parts: list[bytes]) -> list[Listing]:
    events = [decode_event(part) for part in parts]
    return [event for event in events if isinstance(event, Listing)]


@given(CLIENTS, st.integers(1, 500), st.booleans(), st.booleans())
def test_a_listing_holds_everybody_once_whatever_its_parts(
    clients: list[str],
    part_bytes: int,
    asks: bool,  # noqa: FBT001 - drawn
    quiet: bool,  # noqa: FBT001 - drawn
) -> None:
    infos = {client: json.dumps({"x": "y" * number}).encode() for number, client in enumerate(clients)}
    entries = [entry(client, info) for client, info in infos.items()]
    parts = list(list_members("uid", "a.*", entries, asks=asks, quiet=quiet, part_bytes=part_bytes))
    listings = parts_of(parts)
    assert len(listings) == len(parts)
    found = [(client, bytes(info)) for one in listings for client, info in decode_members(one.members).items()]
    assert found == list(infos.items())
    assert [one.first for one in listings] == [number == 0 for number in range(len(parts))]
    assert [one.last for one in listings] == [number == len(parts) - 1 for number in range(len(parts))]
    # the question is asked once, when all is said; how it is meant shows in each part
    assert [one.asks for one in listings] == [asks and one.last for one in listings]
    assert {(one.uid, one.topic, one.quiet) for one in listings} == {("uid", "a.*", quiet)}


@given(CLIENTS, st.integers(1, 500))
def test_a_part_keeps_to_its_bound_unless_it_is_a_single_entry(clients: list[str], part_bytes: int) -> None:
    entries = [entry(client, b"{}") for client in clients]
    topic = "\\" * 255
    for part in list_members("u" * 36, topic, entries, asks=True, quiet=True, part_bytes=part_bytes):
        (listing,) = parts_of([part])
        assert len(part) <= max(part_bytes, max(map(len, entries), default=0)) + HEAD_BYTES
        assert len(bytes(listing.members)) - 2 <= part_bytes or len(decode_members(listing.members)) == 1 or not entries


def test_nobody_is_listed_in_one_empty_part() -> None:
    (part,) = list_members("uid", "t", [], asks=False, quiet=False)
    (listing,) = parts_of([part])
    assert (listing.first, listing.last, bytes(listing.members)) == (True, True, b"{}")


def test_an_info_passes_as_it_is() -> None:
    info = b'{"user":"ann", "conn_info": {"a": 1.50}}'
    joined = decode_event(encode(Joined("uid", "client", msgspec.Raw(info))))
    assert isinstance(joined, Joined)
    assert bytes(joined.info) == info
    assert decode_event(encode(Left("uid", "client"))) == Left("uid", "client")
    assert bytes(object_of([entry("a", info), entry("b", b"{}")])) == b'{"a":' + info + b',"b":{}}'
