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


def describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
