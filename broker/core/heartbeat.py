"""Pings to a client and the pongs it owes."""

from __future__ import annotations

from enum import Enum
from math import inf


class Beat(Enum):
    NOTHING = "nothing"
    PING = "ping"
    """Send one now."""
    LATE = "late"
    """The client has not answered the last one in time."""


class Heartbeat:
    """When to ping, and when a pong is overdue.

    Args:
        interval_seconds: between two pings.
        timeout_seconds: how long a pong may take; shorter than the interval.
        first: when the first ping is due; a random part of the interval from now, so that clients spread out.
    """

    __slots__ = ("_interval", "_next_ping", "_pong_by", "_timeout")

    def __init__(self, interval_seconds: float, timeout_seconds: float, first: float) -> None:
        self._interval = interval_seconds
        self._timeout = timeout_seconds
        self._next_ping = first
        self._pong_by = inf

    def due(self, now: float, *, excused: bool) -> Beat:
        """What to do now.

        Args:
            now: seconds.
            excused: the client can't have seen the ping yet, because what is sent to it is stuck before it.
        """
        if now >= self._pong_by:
            if not excused:
                return Beat.LATE
            self._pong_by = now + self._timeout
        if now >= self._next_ping:
            self._next_ping = now + self._interval
            if self._pong_by == inf:
                self._pong_by = now + self._timeout
                return Beat.PING
        return Beat.NOTHING

    def postpone(self, now: float) -> None:
        """What was sent last is on its way only now, a ping perhaps."""
        if self._pong_by != inf:
            self._pong_by = now + self._timeout

    def pong(self) -> bool:
        """The client has answered. False when nobody asked."""
        asked = self._pong_by != inf
        self._pong_by = inf
        return asked

    def next(self) -> float:
        """When there is something to do again."""
        return min(self._next_ping, self._pong_by)
