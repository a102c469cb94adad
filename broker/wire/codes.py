"""Error, close and unsubscribe codes of the Centrifuge protocol, version 2.

Source: https://centrifugal.dev/docs/server/codes and the official SDKs, which decide by these numbers whether to retry.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

REASON_BYTES = 123
"""The most a close frame's reason may have (RFC 6455, section 5.5)."""


class ErrorCode(IntEnum):
    """Why a command failed."""

    INTERNAL = 100
    UNAUTHORIZED = 101
    UNKNOWN_TOPIC = 102
    PERMISSION_DENIED = 103
    METHOD_NOT_FOUND = 104
    ALREADY_SUBSCRIBED = 105
    LIMIT_EXCEEDED = 106
    BAD_REQUEST = 107
    NOT_AVAILABLE = 108
    TOKEN_EXPIRED = 109
    EXPIRED = 110
    TOO_MANY_REQUESTS = 111
    UNRECOVERABLE_POSITION = 112
    CONCURRENT_PAGINATION = 113

    @property
    def temporary(self) -> bool:
        """The same command may succeed later."""
        return self in _TEMPORARY

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEMPORARY = frozenset(
    {ErrorCode.INTERNAL, ErrorCode.TOO_MANY_REQUESTS, ErrorCode.CONCURRENT_PAGINATION},
)
_TEXTS = {
    ErrorCode.INTERNAL: "internal server error",
    ErrorCode.UNAUTHORIZED: "unauthorized",
    ErrorCode.UNKNOWN_TOPIC: "unknown channel",
    ErrorCode.PERMISSION_DENIED: "permission denied",
    ErrorCode.METHOD_NOT_FOUND: "method not found",
    ErrorCode.ALREADY_SUBSCRIBED: "already subscribed",
    ErrorCode.LIMIT_EXCEEDED: "limit exceeded",
    ErrorCode.BAD_REQUEST: "bad request",
    ErrorCode.NOT_AVAILABLE: "not available",
    ErrorCode.TOKEN_EXPIRED: "token expired",
    ErrorCode.EXPIRED: "expired",
    ErrorCode.TOO_MANY_REQUESTS: "too many requests",
    ErrorCode.UNRECOVERABLE_POSITION: "unrecoverable position",
    ErrorCode.CONCURRENT_PAGINATION: "concurrent pagination",
}


@dataclass(frozen=True, slots=True)
class CommandError:
    """A command's failure, as the one who sent it is told.

    Args:
        code: the protocol's number.
        detail: what exactly is wrong, naming the field; appended to the code's own text.
        retry_after: seconds until there is room for it, where that is known; else 0.
    """

    code: ErrorCode
    detail: str = ""
    retry_after: float = 0.0

    @property
    def message(self) -> str:
        return f"{self.code.text}: {self.detail}" if self.detail else self.code.text


LONGEST_WAIT_SECONDS = 86_400.0
"""Nobody is told to come again later than that."""


def too_many(what: str, rate: float, where: str, wait: float) -> CommandError:
    """The error for what comes faster than it may.

    Args:
        what: comes too fast: commands, or publications.
        rate: how many of them are allowed in a second.
        where: that holds, as it reads behind it.
        wait: seconds until there is room for one.
    """
    wait = min(wait, LONGEST_WAIT_SECONDS)
    detail = f"at most {rate:g} {what} per second {where}; try again in {max(wait, 0.001):.3g} s"
    return CommandError(ErrorCode.TOO_MANY_REQUESTS, detail, wait)


class CloseCode(IntEnum):
    """Why a connection is closed. 3500 to 3999 tell the SDK not to come back."""

    NORMAL = 3000
    SHUTDOWN = 3001
    SERVER_ERROR = 3004
    EXPIRED = 3005
    SUBSCRIPTION_EXPIRED = 3006
    SLOW = 3008
    WRITE_ERROR = 3009
    INSUFFICIENT_STATE = 3010
    FORCE_RECONNECT = 3011
    NO_PONG = 3012
    TOO_MANY_REQUESTS = 3013
    INVALID_TOKEN = 3500
    BAD_REQUEST = 3501
    STALE = 3502
    FORCE_DISCONNECT = 3503
    CONNECTION_LIMIT = 3504
    TOPIC_LIMIT = 3505
    INAPPROPRIATE_PROTOCOL = 3506
    PERMISSION_DENIED = 3507
    NOT_AVAILABLE = 3508
    TOO_MANY_ERRORS = 3509

    @property
    def text(self) -> str:
        return _CLOSE_TEXTS[self]


_CLOSE_TEXTS = {
    CloseCode.NORMAL: "connection closed",
    CloseCode.SHUTDOWN: "shutdown",
    CloseCode.SERVER_ERROR: "internal server error",
    CloseCode.EXPIRED: "connection expired",
    CloseCode.SUBSCRIPTION_EXPIRED: "subscription expired",
    CloseCode.SLOW: "slow",
    CloseCode.WRITE_ERROR: "write error",
    CloseCode.INSUFFICIENT_STATE: "insufficient state",
    CloseCode.FORCE_RECONNECT: "force reconnect",
    CloseCode.NO_PONG: "no pong",
    CloseCode.TOO_MANY_REQUESTS: "too many requests",
    CloseCode.INVALID_TOKEN: "invalid token",
    CloseCode.BAD_REQUEST: "bad request",
    CloseCode.STALE: "stale",
    CloseCode.FORCE_DISCONNECT: "force disconnect",
    CloseCode.CONNECTION_LIMIT: "connection limit",
    CloseCode.TOPIC_LIMIT: "channel limit",
    CloseCode.INAPPROPRIATE_PROTOCOL: "inappropriate protocol",
    CloseCode.PERMISSION_DENIED: "permission denied",
    CloseCode.NOT_AVAILABLE: "not available",
    CloseCode.TOO_MANY_ERRORS: "too many errors",
}


@dataclass(frozen=True, slots=True)
class Close:
    """A connection's end, as its client is told: a code and a short plain reason, never empty (the JavaScript SDK
    honours a final code only with a reason).
    """

    code: int
    reason: str


def close(code: CloseCode, detail: str = "") -> Close:
    """A close with the code's usual reason, and what exactly was wrong behind it, cut to what a frame holds."""
    reason = f"{code.text}: {detail}" if detail else code.text
    return Close(code, reason.encode()[:REASON_BYTES].decode(errors="ignore"))


class UnsubscribeCode(IntEnum):
    """Why the server ended a subscription. From 2500 on the SDK subscribes again."""

    SERVER = 2000
    INSUFFICIENT_STATE = 2500
    EXPIRED = 2501
    STATE_INVALIDATED = 2502

    @property
    def text(self) -> str:
        return _UNSUBSCRIBE_TEXTS[self]


_UNSUBSCRIBE_TEXTS = {
    UnsubscribeCode.SERVER: "server unsubscribe",
    UnsubscribeCode.INSUFFICIENT_STATE: "insufficient state",
    UnsubscribeCode.EXPIRED: "subscription expired",
    UnsubscribeCode.STATE_INVALIDATED: "state invalidated",
}
