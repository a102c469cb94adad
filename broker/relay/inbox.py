"""Where NATS answers this node: one subscription for all requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Protocol

from broker.relay.connection import Confirmation, NatsConnection
from broker.relay.errors import RelayError, RelayLostError, RelayRefusedError, RelayTimeoutError, RelayUnavailableError
from broker.relay.subjects import Subjects

MAX_WAITING = 65_536
"""Requests that wait for their answer; beyond that NATS does not keep up."""


class Waiter(Protocol):
    """Who waits for the answers to one request."""

    def answer(self, payload: bytes, block: bytes | None) -> bool:
        """Take an answer: its payload and header block. Returns whether it was the last one."""

    def fail(self, error: RelayError) -> None:
        """There will be no more answers."""


class Inbox:
    """Sends requests and hands their answers to whoever waits.

    Args:
        connection: to NATS.
        subjects: how subjects are named.
        uid: this node's.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, connection: NatsConnection, subjects: Subjects, uid: str, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._base = subjects.replies(uid)
        self._at = len(self._base) + 1
        self._clock = clock
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[float, Waiter, str]] = {}
        """Until when, who, and for the answer to what subject."""
        self._round: Confirmation | None = None
        self._sent: list[int] = []
        """The requests that share the round."""

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._connection.subscribe(f"{self._base}.*", self._on_answer)  # made with the connection, whenever that comes

    def ask(self, subject: str, payload: bytes, headers: dict[str, str] | None, waiter: Waiter, seconds: float) -> None:
        """Send a request. The waiter gets its answers, or one error within about `seconds`.

        Raises:
            RelayUnavailableError, RelayTooLargeError: nothing was sent; the waiter hears nothing.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise RelayUnavailableError("NATS does not keep up")
        number = next(self._numbers)
        accepted = self._connection.publish(subject, payload, headers, f"{self._base}.{number}")
        self._waiting[number] = (self._clock() + seconds, waiter, subject)
        if accepted is not self._round:
            self._round, self._sent = accepted, []
            accepted.add_done_callback(partial(self._round_done, self._sent))
        self._sent.append(number)

    def sweep(self) -> None:
        """Give up what has waited too long. Call it a few times a second."""
        now = self._clock()
        overdue = [number for number, (until, _, _) in self._waiting.items() if until <= now]
        for number in overdue:
            self._fail(number, RelayTimeoutError("NATS has not answered in time"))

    def lost(self) -> None:
        """The connection is gone, and what was on its way with it."""
        for number in tuple(self._waiting):
            self._fail(number, RelayLostError("the connection to NATS was lost before it answered"))

    def _round_done(self, numbers: list[int], accepted: Confirmation) -> None:
        problem = accepted.exception()
        if not isinstance(problem, RelayError):
            return
        text = str(problem)
        for number in numbers:
            waiting = self._waiting.get(number)
            # what is not permitted concerns the subject that it names; the others of the round get their answers
            if waiting is not None and (
                not isinstance(problem, RelayRefusedError) or f'"{waiting[2].lower()}"' in text
            ):
                self._fail(number, problem)

    def _fail(self, number: int, error: RelayError) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting[1].fail(error)

    def _on_answer(self, subject: bytes, payload: bytes, block: bytes | None) -> None:
        text = subject[self._at :]
        number = int(text) if text.isdigit() else 0  # whatever somebody else has sent here
        waiting = self._waiting.get(number)
        if waiting is not None and waiting[1].answer(payload, block):
            self._waiting.pop(number, None)
