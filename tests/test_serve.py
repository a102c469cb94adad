"""What a node's listener gives to its connections."""

from __future__ import annotations

import socket

from broker.serve import UNSENT_BYTES, _listen


def test_connections_have_the_kernel_take_little_beyond_what_is_on_its_way() -> None:
    with _listen("127.0.0.1", 0, None, "http.port") as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
