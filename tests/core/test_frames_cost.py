"""What reading costs, counted: a client must not be able to make it more than linear."""

from __future__ import annotations

import tracemalloc
from codecs import utf_8_decode
from itertools import pairwise
from typing import SupportsIndex, overload

import pytest
from typing_extensions import override
from websockets.utils import apply_mask

from broker.core import frames
from broker.core.frames import BINARY, TEXT, FrameReader
from tests.core.masked import header, masked

MIB = 1 << 20


class Counted(bytes):
    """A segment that counts the bytes copied out of it."""

    copied = 0

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    @override
    def __getitem__(self, key: SupportsIndex | slice) -> int | bytes:
        found = super().__getitem__(key)
        if isinstance(found, bytes):
            self.copied += len(found)
        return found


@pytest.mark.parametrize("first", [0x81, 0x89, 0x00])
def test_of_many_frames_in_a_segment_each_byte_is_copied_once(first: int) -> None:
    segment = Counted(masked(0x01) + masked(0x80) + masked(0x01) * (first == 0x00) + masked(first, b"Hello") * 10_000)
    reader = FrameReader(MIB)
    reader.feed(segment)
    assert segment.copied <= len(segment)


@pytest.mark.parametrize(("first", "character"), [(0x82, "xx"), (0x81, "xx"), (0x81, "é")])
def test_a_message_in_many_segments_is_judged_and_unmasked_once(
    first: int, character: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"unmasked": 0, "decoded": 0}

    def counting_unmask(data: bytes, mask: bytes) -> bytes:
        counts["unmasked"] += len(data)
        return apply_mask(data, mask)

    def counting_decode(data: bytes, errors: str, final: bool) -> tuple[str, int]:  # noqa: FBT001 - as the one it counts
        counts["decoded"] += len(data)
        return utf_8_decode(data, errors, final)

    monkeypatch.setattr(frames, "apply_mask", counting_unmask)
    monkeypatch.setattr(frames, "utf_8_decode", counting_decode)
    payload = character.encode() * 50_000
    stream = masked(first, payload)
    reader = FrameReader(len(payload))
    events = [event for i in range(0, len(stream), 7) for event in reader.feed(stream[i : i + 7])]
    assert events == [(first & 15, payload)]
    assert counts["unmasked"] == len(payload)
    assert counts["decoded"] <= len(payload) * 9 // 7  # a character that is not whole is looked at again


def test_32_mib_in_segments_of_128_bytes_are_put_together_once() -> None:
    # Copying what has come for each segment would move 4 TiB.
    piece = bytes(128)
    reader = FrameReader(32 * MIB)
    reader.feed(header(0x82, 32 * MIB, bytes(4)))
    events = [event for _ in range(32 * MIB // 128) for event in reader.feed(piece)]
    assert events == [(BINARY, bytes(32 * MIB))]


def test_200_000_empty_fragments_take_no_memory() -> None:
    reader = FrameReader(MIB)
    segment = masked(0x00) * 1000
    tracemalloc.start()
    try:
        reader.feed(masked(0x01, b"Hello"))
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            reader.feed(segment)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1024
    assert list(reader.feed(masked(0x80))) == [(TEXT, b"Hello")]


def test_a_message_in_tiny_fragments_takes_little_more_memory_than_its_bytes() -> None:
    reader = FrameReader(65536)
    segment = masked(0x00, b"12") * 1000
    tracemalloc.start()
    try:
        reader.feed(masked(0x02))
        for _ in range(32):
            reader.feed(segment)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.25 * 64_000 + 1024


def test_an_announced_message_takes_no_memory_before_it_comes() -> None:
    reader = FrameReader(1 << 40)
    tracemalloc.start()
    try:
        assert list(reader.feed(header(0x82, 1 << 40) + b"first bytes")) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4096


def test_an_idle_reader_holds_nothing_whatever_it_has_read() -> None:
    fragmented = masked(0x01, "é".encode() * 100) + masked(0x89, b"?") + masked(0x80, b"x" * 5000)
    tracemalloc.start()
    try:
        readers = [FrameReader(MIB) for _ in range(1000)]
        fresh, _ = tracemalloc.get_traced_memory()
        for reader in readers:
            for start, stop in pairwise([0, 3, 50, 220, 400, len(fragmented)]):
                reader.feed(fragmented[start:stop])
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fresh / 1000 < 120  # 64 for the object and its header, 8 for the list, some for the limit's number
    assert used - fresh < 1000


def test_a_reader_that_has_ended_holds_nothing() -> None:
    tracemalloc.start()
    try:
        reader = FrameReader(MIB)
        fresh, _ = tracemalloc.get_traced_memory()
        reader.feed(masked(0x02, bytes(100_000)))
        held, _ = tracemalloc.get_traced_memory()
        reader.feed(masked(0x88))
        ended, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held - fresh > 100_000
    assert ended - fresh < 1000
