"""The NATS client protocol as a client reads it (https://docs.nats.io/reference/reference-protocols/nats-protocol).

It takes the place of nats-py's parser, which tries six regular expressions on a PONG and awaits four coroutines for a
message. Messages go straight to their sink; everything else is left to nats-py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nats.errors import ProtocolError

if TYPE_CHECKING:
    from broker.relay.client import RelayClient

logger = logging.getLogger(__name__)

Sink = Callable[[bytes, bytes, bytes | None], None]
"""Takes a message's subject, payload and header block (see `headers.read_block`; None without one), at once and without
waiting. It is called while the socket is read."""

MAX_LINE_BYTES = 65_536
"""A line without an end beyond this is no NATS. INFO of a large cluster is the longest there is."""


class RelayParser:
    """Takes what the socket brings, however it is cut.

    Fields are split at the single spaces that the server writes, and nowhere else: it takes subjects with vertical tabs
    in them, behind which a publisher could put another subscription's number.

    Args:
        client: told of everything but messages.
        sinks: who takes a subscription's messages, by its number.
    """

    def __init__(self, client: RelayClient, sinks: Mapping[int, Sink]) -> None:
        self._client = client
        self._sinks = sinks
        self._rest = b""

    def reset(self) -> None:
        """Forget what came in part; nats-py calls it for a new connection."""
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        """Work on what came.

        Raises:
            ProtocolError: this is not NATS.
        """
        buffer = self._rest + data if self._rest else data
        at = 0
        while (line_end := buffer.find(b"\r\n", at)) >= 0:
            operation = buffer[at : at + 4]
            if operation == b"MSG ":
                after = self._message(buffer, at + 4, line_end)
            elif operation == b"HMSG":
                after = self._message_with_headers(buffer, at + 5, line_end)
            else:
                after = line_end + 2
                await self._other(operation, buffer[at:line_end])
            if after < 0:
                break
            at = after
        self._rest = buffer[at:]
        if line_end < 0 and len(self._rest) > MAX_LINE_BYTES:
            raise ProtocolError("a line that does not end")

    def _message(self, buffer: bytes, at: int, line_end: int) -> int:
        """`MSG <subject> <number> [reply] <size>`: where the next line begins, or -1 when not all of it is there."""
        try:
            subject, number_text, *_, size_text = buffer[at:line_end].split(b" ")
            number, size = int(number_text), int(size_text)
        except ValueError:
            raise ProtocolError("malformed MSG") from None
        begin = line_end + 2
        end = begin + size
        if end + 2 > len(buffer):
            return -1
        self._hand_over(number, subject, buffer[begin:end], None)
        return end + 2

    def _message_with_headers(self, buffer: bytes, at: int, line_end: int) -> int:
        """`HMSG <subject> <number> [reply] <size of the headers> <size of all>`."""
        try:
            subject, number_text, *_, headers_text, size_text = buffer[at:line_end].split(b" ")
            number, headers_size, size = int(number_text), int(headers_text), int(size_text)
        except ValueError:
            raise ProtocolError("malformed HMSG") from None
        begin = line_end + 2
        end = begin + size
        if end + 2 > len(buffer):
            return -1
        body = begin + headers_size
        self._hand_over(number, subject, buffer[body:end], buffer[begin:body])
        return end + 2

    def _hand_over(self, number: int, subject: bytes, payload: bytes, block: bytes | None) -> None:
        sink = self._sinks.get(number)
        if sink is None:
            return  # unsubscribed, but the server had sent it already
        try:
            sink(subject, payload, block)
        except Exception:
            # let through, it would end nats-py's read loop in silence
            logger.exception("a message from NATS could not be handled")

    async def _other(self, operation: bytes, line: bytes) -> None:
        client = self._client
        if operation == b"PONG":
            await client._process_pong()  # noqa: SLF001
        elif operation == b"PING":
            await client._process_ping()  # noqa: SLF001
        elif operation == b"INFO":
            try:
                info = json.loads(line[5:])
            except ValueError:
                raise ProtocolError("malformed INFO") from None
            await client._process_info(info)  # noqa: SLF001
        elif operation == b"-ERR":
            await client._process_err(line[5:].strip().decode(errors="replace").lower())  # noqa: SLF001
        elif not line.startswith(b"+OK"):
            raise ProtocolError("unknown operation")
