"""What can go wrong with NATS."""

from __future__ import annotations


class RelayError(Exception):
    """NATS cannot do it now."""


class RelayUnavailableError(RelayError):
    """There is no connection to NATS, or too much waits for it: nothing was sent."""


class RelayTooLargeError(RelayError):
    """More than the NATS server takes in one message: nothing was sent."""


class RelayRefusedError(RelayError):
    """NATS does not permit something that was sent; which of all that was sent with it, it does not say."""


class RelayLostError(RelayError):
    """The connection ended before NATS confirmed: it may have happened or not."""


class RelayTimeoutError(RelayLostError):
    """NATS has not answered in time: it may have happened or not."""


class NoStreamError(RelayError):
    """No stream takes what was sent: nothing was stored."""


class JetStreamError(RelayError):
    """JetStream has refused; nothing was stored or changed.

    Args:
        code: like an HTTP status.
        number: JetStream's own; see https://github.com/nats-io/nats-server/blob/main/server/errors.json
        description: in words.
    """

    def __init__(self, code: int, number: int, description: str) -> None:
        super().__init__(f"JetStream: {description} ({number})")
        self.code = code
        self.number = number
        self.description = description


def describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
