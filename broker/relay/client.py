"""The client of nats-py, with what a relay needs beside it: order, confirmation, and no task for each subject.

Four things of nats-py 2.16 stand in the way, and are gone round here:

- `flush` and `rtt` write their PING past the commands that still wait in the client, so a PONG does not prove that a
  subscription or a publication has reached the server. `confirm` writes what waits first.
- `flush` returns without a PONG when the client's own tasks have died.
- Each callback subscription has a queue (which drops what it can't hold) and a task: 5 KB, and two turns of the event
  loop for each message. Here the parser hands messages over itself; what the node cannot take in time stays in the
  socket, and NATS sees it.
- `connect` tries a server that refuses again and again, two seconds apart, until it is cancelled.

This reaches into the client's protected parts, so the version is pinned, and the relay's tests hold each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from nats.aio.client import Client
from nats.protocol import command
from nats.protocol.parser import PERMISSIONS_ERR

from broker.relay.errors import RelayRefusedError
from broker.relay.parser import RelayParser, Sink

_PING = b"PING\r\n"


class RelayClient(Client):
    """One connection to a NATS server. What is posted leaves with the next `confirm`, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._sinks: dict[int, Sink] = {}
        self._ps = RelayParser(self, self._sinks)  # type: ignore[assignment]

    def post(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, reply: str = "") -> None:
        """Publish, with where to answer. Header names and values must be free of line breaks."""
        if headers is None:
            self._post(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(payload), payload))
        else:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self._post(command.hpub_cmd(subject, reply, b"NATS/1.0\r\n%b\r\n" % lines.encode(), payload))

    def post_subscription(self, subject: str, sink: Sink) -> int:
        """Subscribe; the subscription's number."""
        self._sid += 1
        self._sinks[self._sid] = sink
        self._post(command.sub_cmd(subject, "", self._sid))
        return self._sid

    def post_unsubscription(self, number: int) -> None:
        self._sinks.pop(number, None)
        self._post(command.unsub_cmd(number, 0))

    def confirm(self, confirmed: asyncio.Future[bool]) -> None:
        """Write all that was posted, and finish the future when the server has processed it.

        The future must not be cancelled: nats-py's read loop would end by it.

        Raises:
            OSError, RuntimeError: the connection is gone.
        """
        transport = self._transport
        if transport is None:
            raise OSError("no transport")
        waiting, self._pending = self._pending, []
        self._pending_data_size = 0
        self._pongs.append(confirmed)
        waiting.append(_PING)
        transport.writelines(waiting)

    async def _process_err(self, err_msg: str) -> None:
        """Called for an -ERR. What it complains of was sent before the oldest PING that waits for its PONG."""
        if PERMISSIONS_ERR in err_msg and self._pongs:
            refused = self._pongs[0]
            self._pongs[0] = self._pongs[0].get_loop().create_future()  # for the PONG, which comes all the same
            if not refused.done():
                refused.set_exception(RelayRefusedError(f"NATS does not permit this: {err_msg}"))
                refused.exception()  # looked at: that nobody waits for it is no mistake
        await super()._process_err(err_msg)

    async def _select_next_server(self) -> None:
        """Called by `connect`: try the one server there is, once. Which one is next is the relay's business."""
        self._current_server = self._server_pool[0]
        await self._connect_to_server(self._current_server)

    def cut(self) -> None:
        """End the connection without a word, where `close` hangs."""
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]

    def _post(self, text: bytes) -> None:
        self._pending.append(text)
        self._pending_data_size += len(text)
