"""What was published, what was acknowledged, what each subscriber received, and whether the books balance.

The promise: a publication that was answered with a receipt reaches every subscriber exactly once and in the stream's
order, or the subscriber is told that something is missing. An `Accounting` keeps the books of one topic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from tests.harness.waiting import eventually

SHOWN = 5
"""How many ids a finding names before it says how many more there are."""


@dataclass(frozen=True)
class Receipt:
    """Where a publication stands in its topic's history."""

    offset: int
    epoch: str


@dataclass(frozen=True)
class Arrival:
    """A publication, as a subscriber got it."""

    ident: str
    offset: int
    epoch: str
    recovered: bool
    """It came with a subscribe reply."""


@dataclass(frozen=True)
class Gap:
    """A subscriber was told that it misses something between two offsets: those after `after`, up to `upto`."""

    why: str
    epoch: str
    after: float
    upto: float

    def covers(self, receipt: Receipt) -> bool:
        return receipt.epoch == self.epoch and self.after < receipt.offset <= self.upto


@dataclass(frozen=True)
class Finding:
    """Something that should not be."""

    kind: str
    """`lost`, `twice`, `disordered`, `misplaced`, `unheard-of`, `refused` or `stored twice`."""
    subscriber: str
    """Empty where it concerns the publisher."""
    idents: tuple[str, ...]
    where: str

    def __str__(self) -> str:
        shown = ", ".join(self.idents[:SHOWN])
        if len(self.idents) > SHOWN:
            shown += f" … {self.idents[-1]} ({len(self.idents)} in all)"
        who = f"{self.subscriber}: " if self.subscriber else ""
        return f"{who}{self.kind}: {shown} {self.where}"


@dataclass
class SubscriberLog:
    """What one subscriber was sent, in order. Fed by the subscriber."""

    name: str
    epoch: str = ""
    """Empty until it is subscribed for the first time."""
    last: int = 0
    """The offset it would recover from."""
    arrivals: list[Arrival] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    recoveries: list[bool] = field(default_factory=list)
    """Whether it `recovered`, for each time that it came back and asked for it."""
    failure: BaseException | None = None
    """What its subscriber has ended with."""
    _told: str = ""
    """Why it was told that it may miss something; what it misses is clear when it is subscribed again."""

    @property
    def started(self) -> bool:
        return self.epoch != ""

    @property
    def waits(self) -> bool:
        """It was told that something is missing, and is not subscribed again yet."""
        return self._told != ""

    @property
    def idents(self) -> list[str]:
        return [arrival.ident for arrival in self.arrivals]

    def subscribed(self, offset: int, epoch: str) -> None:
        """It is subscribed, and has not asked for what it missed: it is owed what comes after this position."""
        if not self.started:
            self.gaps.append(Gap("not there yet", epoch, 0, offset))
        else:
            # whoever forgets where they were was not told anything; only a gap that was declared excuses
            self._missed(offset, epoch, self._told or None)
        self.epoch, self.last, self._told = epoch, offset, ""

    def recovered(self, epoch: str) -> None:
        """It is subscribed again, and gets all it missed: nothing is excused, whatever the epoch is."""
        self.recoveries.append(True)
        self.epoch, self._told = epoch, ""

    def not_recovered(self, offset: int, epoch: str) -> None:
        """It is subscribed again, and was told that it misses something up to this position."""
        self.recoveries.append(False)
        self._missed(offset, epoch, "recovered: false")
        self.epoch, self.last, self._told = epoch, offset, ""

    def told(self, why: str) -> None:
        """It was told that something is missing from here on, until it subscribes again."""
        self._told = self._told or why

    def got(self, ident: str, offset: int, *, recovered: bool = False, dropped: bool = False) -> None:
        """A publication.

        Args:
            ident: of the publication.
            offset: as it came with it.
            recovered: whether it came in a subscribe reply.
            dropped: whether it says that some before it were dropped.
        """
        if dropped:
            self.gaps.append(Gap("broker.dropped", self.epoch, self.last, offset - 1))
        self.arrivals.append(Arrival(ident, offset, self.epoch, recovered))
        self.last = max(self.last, offset)

    def _missed(self, offset: int, epoch: str, why: str | None) -> None:
        if why is None:
            return
        if epoch == self.epoch:
            self.gaps.append(Gap(why, epoch, self.last, offset))
        else:
            self.gaps.append(Gap(why, self.epoch, self.last, inf))
            self.gaps.append(Gap(why, epoch, 0, offset))

    def declared(self) -> Iterator[Gap]:
        """All that it was told, the gap that is still open included."""
        yield from self.gaps
        if self._told:
            yield Gap(self._told, self.epoch, self.last, inf)

    def excused(self, receipt: Receipt) -> Gap | None:
        return next((gap for gap in self.declared() if gap.covers(receipt)), None)


class Accounting:
    """The books of one topic.

    Args:
        topic: that all is about.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.published: list[str] = []
        """All ids, in the order in which they were first sent."""
        self.receipts: dict[str, Receipt] = {}
        self.refused: dict[str, str] = {}
        """Those that were not taken, and why."""
        self.logs: list[SubscriberLog] = []
        self._conflicts: list[Finding] = []

    def log(self, name: str) -> SubscriberLog:
        """A new subscriber's."""
        log = SubscriberLog(name)
        self.logs.append(log)
        return log

    def sends(self, ident: str) -> None:
        """A publication is about to be sent: from here on its outcome is unknown."""
        self.published.append(ident)

    def acks(self, ident: str, offset: int, epoch: str) -> None:
        """A publication was answered with a receipt; repeated ones must get the same."""
        receipt = Receipt(offset, epoch)
        known = self.receipts.setdefault(ident, receipt)
        if known != receipt:
            self._conflicts.append(Finding("stored twice", "", (ident,), f"at {known} and {receipt}"))

    def refuses(self, ident: str, why: str) -> None:
        """A publication was not taken, and certainly not stored."""
        self.refused[ident] = why

    @property
    def in_doubt(self) -> list[str]:
        """Ids whose outcome nobody knows."""
        return [ident for ident in self.published if ident not in self.receipts and ident not in self.refused]

    def findings(self) -> list[Finding]:
        """All that is wrong."""
        found = [*self._conflicts, *self._shared_places()]
        for log in self.logs:
            found += self._surplus(log)
            found += self._losses(log)
        return found

    def check(self) -> None:
        """Assert that the books balance."""
        found = self.findings()
        assert not found, f"{len(found)} findings in {self.topic}:\n" + "\n".join(f"  {one}" for one in found)

    def check_that_nothing_was_excused(self) -> None:
        """Assert that they balance although nobody was told of a gap that held anything."""
        self.check()
        for log in self.logs:
            missed = [*self._excused(log)]
            assert not missed, f"{log.name} was told that it misses {missed[:SHOWN]}: {[*log.declared()]}"

    def raise_failures(self) -> None:
        """End a test at once whose subscribers can't go on.

        Raises:
            RuntimeError: no assertion, so that nobody waits any longer.
        """
        for log in self.logs:
            if log.failure is not None:
                raise RuntimeError(f"{log.name} has failed: {log.failure!r}") from log.failure

    async def settled(self, seconds: float = 40.0) -> None:
        """Wait until all that was acknowledged has arrived or is excused; then check."""

        def nothing_is_missing() -> bool:
            self.raise_failures()
            waiting = [log.name for log in self.logs if log.waits or not log.started]
            assert not waiting, f"not subscribed: {waiting}"
            return not any(finding for log in self.logs for finding in self._losses(log))

        try:
            await eventually(nothing_is_missing, seconds)
        except AssertionError:
            self.check()  # says more
            raise
        self.check()

    def delivered(self, idents: Sequence[str]) -> bool:
        """Whether all of these were acknowledged and have arrived everywhere, or are excused there."""
        for log in self.logs:
            missing = set(idents).difference(log.idents)
            if any(ident not in self.receipts or not log.excused(self.receipts[ident]) for ident in missing):
                return False
        return all(ident in self.receipts for ident in idents)

    def _shared_places(self) -> Iterator[Finding]:
        places: dict[Receipt, str] = {}
        for ident, receipt in self.receipts.items():
            other = places.setdefault(receipt, ident)
            if other != ident:
                yield Finding("misplaced", "", (other, ident), f"both have the receipt {receipt}")

    def _surplus(self, log: SubscriberLog) -> Iterator[Finding]:
        """What arrived and should not have, or not there."""
        known = set(self.published)
        seen: set[str] = set()
        highest: dict[str, Arrival] = {}
        for arrival in log.arrivals:
            before = highest.get(arrival.epoch)
            receipt = self.receipts.get(arrival.ident)
            if arrival.ident in seen:
                yield Finding("twice", log.name, (arrival.ident,), _place(arrival, before))
            elif arrival.ident not in known:
                yield Finding("unheard-of", log.name, (arrival.ident,), _place(arrival, before))
            elif arrival.ident in self.refused:
                why = self.refused[arrival.ident]
                yield Finding("refused", log.name, (arrival.ident,), f"{_place(arrival, before)}: {why}")
            elif receipt is not None and receipt != Receipt(arrival.offset, arrival.epoch):
                yield Finding("misplaced", log.name, (arrival.ident,), f"{_place(arrival, before)}, not as {receipt}")
            elif before is not None and arrival.offset <= before.offset:
                yield Finding("disordered", log.name, (arrival.ident,), _place(arrival, before))
            seen.add(arrival.ident)
            if before is None or arrival.offset > before.offset:
                highest[arrival.epoch] = arrival

    def _owed(self) -> list[tuple[str, Receipt]]:
        """All that was acknowledged, in the stream's order within each epoch."""
        return sorted(self.receipts.items(), key=lambda item: (item[1].epoch, item[1].offset))

    def _excused(self, log: SubscriberLog) -> Iterator[str]:
        seen = set(log.idents)
        for ident, receipt in self._owed():
            gap = log.excused(receipt)
            if ident not in seen and gap is not None and gap.why != "not there yet":
                yield ident

    def _losses(self, log: SubscriberLog) -> Iterator[Finding]:
        """Runs of what was acknowledged, did not arrive, and is not excused; each between two that did arrive."""
        seen = set(log.idents)
        run: list[tuple[str, Receipt]] = []
        before: Receipt | None = None
        for ident, receipt in self._owed():
            if run and (ident in seen or receipt.epoch != run[0][1].epoch):
                yield _lost(log, run, before, receipt if ident in seen else None)
                run = []
            if ident in seen:
                before = receipt
            elif log.excused(receipt) is None:
                run.append((ident, receipt))
        if run:
            yield _lost(log, run, before, None)


def _place(arrival: Arrival, before: Arrival | None) -> str:
    behind = "first of all" if before is None else f"behind offset {before.offset}"
    return f"at offset {arrival.offset}, {behind}" + (", recovered" if arrival.recovered else "")


def _lost(
    log: SubscriberLog, run: Sequence[tuple[str, Receipt]], before: Receipt | None, behind: Receipt | None
) -> Finding:
    epoch = run[0][1].epoch
    begin = before.offset if before is not None and before.epoch == epoch else "the beginning"
    end = behind.offset if behind is not None and behind.epoch == epoch else "the end"
    first, last = run[0][1].offset, run[-1][1].offset
    offsets = f"offset {first}" if first == last else f"offsets {first} to {last}"
    where = f"({offsets}) between {begin} and {end}; told: {[*log.declared()]}, epoch {epoch}"
    return Finding("lost", log.name, tuple(ident for ident, _ in run), where)
