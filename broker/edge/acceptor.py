"""Takes new connections a few at a time.

An event loop that accepts all there are has thousands of them to read from in its next turn, when all clients come back
at once, and whoever is connected already waits for that. What waits in the kernel meanwhile costs nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

logger = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 4
"""In one turn of the event loop. A publisher's answer takes several turns, so each has to be short."""
RETRY_SECONDS = 1.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Stands where asyncio's `Server` does.

    Args:
        listener: listens, and does not block. Whoever made it closes it.
        make_protocol: called for each connection.
        tls: its settings where the connections are encrypted.
        tls_seconds: how long a TLS handshake may take.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        *,
        tls: ssl.SSLContext | None,
        tls_seconds: float | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make_protocol = make_protocol
        self._tls = tls
        self._tls_seconds = tls_seconds if tls is not None else None
        self._opening: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Accept no more. Connections that are open stay."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Wait until nothing is on its way between the kernel and a protocol."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # that client has gone already
                logger.error("no connection can be accepted: %s; trying again", error.strerror)  # noqa: TRY400 - no mistake of ours
                self._loop.remove_reader(self._listener)
                self._retry = self._loop.call_later(RETRY_SECONDS, self._listen)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol, connection, ssl=self._tls, ssl_handshake_timeout=self._tls_seconds
            )
        except (OSError, TimeoutError) as error:
            # a handshake that failed; SSL's errors are OSErrors
            logger.debug("a connection did not come about: %s", error)
            connection.close()
