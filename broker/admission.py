"""How a client gets into a durable topic: with what it has missed, and then with what comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from broker.core.hub import Hub, Subscriber
from broker.metrics import Metrics
from broker.relay.durable import DurableRelay
from broker.relay.flow import Flow
from broker.relay.seeking import Gone, Missed, Seeker
from broker.wire.replies import publications_of

REPLY_BYTES = 512 * 1024
"""Recovered publications beyond this follow the reply as pushes: some clients take no larger frame than a mebibyte."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client that subscribes says of where it stands.

    Args:
        recover: whether it wants what it has missed.
        offset: the last publication that it has seen.
        epoch: of that offset; empty for any.
        strict: whether it would rather have an error than begin anew.
        server_side: whether the server subscribes it. SDKs pass over a first publication in the reply then.
        sharing: how many subscriptions share the reply; what has no room in it follows as pushes.
    """

    recover: bool = False
    offset: int = 0
    epoch: str = ""
    strict: bool = False
    server_side: bool = False
    sharing: int = 1

    @property
    def reply_bytes(self) -> int:
        """The most that its publications may have in the reply."""
        return REPLY_BYTES // self.sharing


@dataclass(frozen=True, slots=True)
class Position:
    """Where a subscription to a durable topic begins.

    Args:
        offset: what is behind it will be delivered, `publications` and `rest` first.
        epoch: of the stream.
        recovered: whether nothing was missed.
        publications: the list of them for the reply, encoded; None for none.
        rest: pushes that follow the reply.
        behind: what else was missed is read from there, as fast as the connection takes it; None where that is all.
        owed: how many publications that are.
    """

    offset: int
    epoch: str
    recovered: bool
    publications: bytes | None
    rest: Sequence[bytes]
    behind: int | None = None
    owed: int = 0


class Admission:
    """Lets subscribers into flows.

    Args:
        relay: whose flows they are.
        seeker: finds what was missed.
        hub: who is subscribed here.
        metrics: what is counted.
    """

    def __init__(self, relay: DurableRelay, seeker: Seeker, hub: Hub, metrics: Metrics) -> None:
        self._relay = relay
        self._seeker = seeker
        self._hub = hub
        self._metrics = metrics

    def prepare(self, flow: Flow, wish: Wish, done: Callable[[Missed | Gone | Exception | None], None]) -> None:
        """Get ready what a subscription begins with.

        Args:
            flow: it is to.
            wish: where the client stands.
            done: called, perhaps at once, with what was missed, None where nothing is to be recovered, or what stands
                in the way. It calls `admit` at once.
        """

        def started(error: Exception | None) -> None:
            if error is not None or not wish.recover:
                done(error)
            elif wish.epoch not in ("", flow.stream.epoch):
                done(Gone())
            else:
                self._seeker.seek(flow, wish.offset, found)

        def found(answer: Missed | Gone | Exception) -> None:
            here = self._hub.topics.get(flow.name)
            if wish.epoch not in ("", flow.stream.epoch):
                done(Gone())  # it was made anew meanwhile
            elif here is not None and here.pending and wish.offset > here.begun and isinstance(answer, Missed):
                # it has seen what is only about to go out here
                here.when_flushed(lambda: started(None))
            else:
                done(answer)

        self._relay.when_started(flow, started)

    def admit(self, flow: Flow, wish: Wish, answer: Missed | Gone | None, subscriber: Subscriber) -> Position:
        """Subscribe to a flow that has started: from now on the subscriber gets what is behind the position."""
        here = self._hub.topics.get(flow.name)
        top = here.begun if here is not None and here.pending else flow.top
        there = self._hub.add(flow.name, flow.policy, subscriber)
        if here is None:
            there.begun = flow.top
        epoch = flow.stream.epoch
        if wish.recover:
            recovered = flow.newest is not None if flow.latest_only else isinstance(answer, Missed)
            self._metrics.recoveries.labels("recovered" if recovered else "not_recovered").inc()
        else:
            recovered = False
        if flow.latest_only:
            after = wish.offset if wish.recover and wish.epoch in ("", epoch) else 0
            newest = [] if flow.newest is None else flow.newest.values()
            lines = [line for offset, line in newest if after < offset <= top]
            if wish.server_side and not recovered:
                return Position(top, epoch, recovered=False, publications=None, rest=lines)
            return self._position(flow, wish, top, lines, recovered=recovered)
        if not isinstance(answer, Missed):
            return Position(top, epoch, recovered=False, publications=None, rest=())
        return self._recovered(flow, answer, wish, top)

    def _recovered(self, flow: Flow, missed: Missed, wish: Wish, top: int) -> Position:
        after = wish.offset
        if flow.memo is not None and flow.memo[:2] == (after, top) and len(flow.memo[2]) <= wish.reply_bytes:
            # most who come back at the same time have missed the same
            return Position(after, flow.stream.epoch, recovered=True, publications=flow.memo[2] or None, rest=())
        floor = flow.ring.floor
        entries = [entry for entry in missed.entries if after < entry[0] <= floor]
        entries += flow.ring.entries_between(max(after, floor), top)
        count = _fitting([line for _, line in entries], wish.reply_bytes)
        publications = publications_of(flow.head, [line for _, line in entries[:count]]) if count else None
        behind = None
        if count < len(entries):
            behind = entries[count - 1][0] if count else after
        else:
            flow.memo = (after, top, publications or b"")
        return Position(
            after,
            flow.stream.epoch,
            recovered=True,
            publications=publications,
            rest=(),
            behind=behind,
            owed=len(entries) - count,
        )

    @staticmethod
    def _position(flow: Flow, wish: Wish, offset: int, lines: Sequence[bytes], *, recovered: bool) -> Position:
        count = _fitting(lines, wish.reply_bytes)
        publications = publications_of(flow.head, lines[:count]) if count else None
        return Position(offset, flow.stream.epoch, recovered=recovered, publications=publications, rest=lines[count:])


def _fitting(lines: Iterable[bytes], reply_bytes: int) -> int:
    """How many of the first lines fit into a reply."""
    size = count = 0
    for line in lines:
        size += len(line)
        if size > reply_bytes:
            break
        count += 1
    return count
