"""Lines that leave together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def joined(lines: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Messages of as many lines as fit below a size; a larger line is a message by itself."""
    some: list[bytes] = []
    size = 0
    for line in lines:
        if some and size + len(line) > size_bytes:
            yield b"\n".join(some)
            some, size = [], 0
        some.append(line)
        size += len(line) + 1
    if some:
        yield b"\n".join(some)
