"""The ring of a topic's newest publications against a plain list, and the budget that all rings share."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.core.ring import ENTRY_OVERHEAD_BYTES, Entry, Ring, RingBudget, RingLimits

ROOMY = RingLimits(messages=1000, size_bytes=1_000_000)


def size_of(entries: list[Entry]) -> int:
    return sum(len(line) + ENTRY_OVERHEAD_BYTES for _, line in entries)


def filled(limits: RingLimits, *offsets: int, floor: int = 0, line: bytes = b"") -> Ring:
    ring = Ring(limits, floor)
    for offset in offsets:
        ring.append(offset, line or b"%d" % offset)
    return ring


def test_a_ring_holds_all_behind_its_floor() -> None:
    ring = filled(ROOMY, 5, 9, 10, floor=3)
    assert (ring.floor, ring.newest(), len(ring)) == (3, 10, 3)
    assert ring.between(3, 10) == [b"5", b"9", b"10"]
    assert ring.between(5, 9) == [b"9"]
    assert ring.between(10, 10) == []
    assert ring.between(6, 7) == []


def test_an_empty_rings_newest_is_its_floor() -> None:
    ring = Ring(ROOMY, 7)
    assert (ring.newest(), ring.between(7, 100)) == (7, [])


def test_the_oldest_gives_way_and_becomes_the_floor() -> None:
    ring = filled(RingLimits(messages=2, size_bytes=1_000_000), 5, 9, 10)
    assert (ring.floor, ring.between(5, 10)) == (5, [b"9", b"10"])


def test_bytes_are_bounded_with_what_an_entry_costs_besides() -> None:
    limits = RingLimits(messages=1000, size_bytes=3 * (ENTRY_OVERHEAD_BYTES + 10))
    ring = filled(limits, 1, 2, 3, line=b"x" * 10)
    assert (ring.floor, len(ring)) == (0, 3)
    ring.append(4, b"y" * 11)
    assert (ring.floor, len(ring)) == (2, 2)


def test_one_that_is_larger_than_the_ring_leaves_it_empty_but_with_a_place() -> None:
    ring = filled(RingLimits(messages=5, size_bytes=200), 1, 2)
    ring.append(8, b"x" * 200)
    assert (ring.floor, ring.newest(), len(ring), ring.size_bytes) == (8, 8, 0, 0)


def test_a_pinned_ring_keeps_everything_until_it_is_trimmed() -> None:
    ring = Ring(RingLimits(messages=2, size_bytes=1_000_000), 0)
    ring.pinned = True
    for offset in range(1, 6):
        ring.append(offset, b"%d" % offset)
    assert (ring.floor, len(ring)) == (0, 5)
    ring.pinned = False
    ring.trim()
    assert (ring.floor, ring.between(3, 5)) == (3, [b"4", b"5"])


def test_older_ones_fit_in_front_as_far_as_there_is_room() -> None:
    ring = filled(RingLimits(messages=4, size_bytes=1_000_000), 10, 12, floor=8)
    ring.prepend([(8, b"8"), (5, b"5"), (3, b"3")], 1, 0)
    assert (ring.floor, ring.floor_message) == (3, 3)
    assert (ring.floor, ring.between(3, 12)) == (3, [b"5", b"8", b"10", b"12"])


def test_nothing_found_between_the_floors_lowers_the_floor() -> None:
    ring = filled(ROOMY, 10, floor=8)
    ring.prepend([], 4, 2)
    assert ring.floor_message == 2
    assert (ring.floor, ring.between(4, 10)) == (4, [b"10"])


class RingModel(RuleBasedStateMachine):
    """The model knows all that ever came, in order, and where the ring said that it began."""

    @initialize(messages=st.integers(1, 6), size=st.integers(100, 1500), floor=st.integers(20, 30))
    def begin(self, messages: int, size: int, floor: int) -> None:
        self.limits = RingLimits(messages, size)
        self.ring = Ring(self.limits, floor)
        self.all: list[Entry] = []
        self.top = floor
        self.size_bytes = 0

    @rule(step=st.integers(1, 3), size=st.integers(0, 300))
    def append(self, step: int, size: int) -> None:
        self.top += step
        line = b"%d:" % self.top + b"x" * size
        floor = self.ring.floor
        self.all.append((self.top, line))
        self.ring.append(self.top, line)
        assert self.ring.floor == floor or not self.ring.pinned

    @rule(offsets=st.sets(st.integers(-8, 0)), below=st.integers(0, 3), size=st.integers(0, 200))
    def prepend(self, offsets: set[int], below: int, size: int) -> None:
        old = self.ring.floor
        entries = [(old + one, b"%d:" % (old + one) + b"x" * size) for one in sorted(offsets) if old + one > 0]
        floor = max(0, (entries[0][0] if entries else old) - 1 - below)
        self.all = entries + [entry for entry in self.all if entry[0] > old]
        self.ring.prepend(reversed(entries), floor, 0)
        assert floor <= self.ring.floor <= old
        if self.ring.floor != floor:  # then because the next one did not fit
            refused = next(entry for entry in entries if entry[0] == self.ring.floor)
            held = [entry for entry in self.all if entry[0] > self.ring.floor]
            assert len(held) >= self.limits.messages or size_of([refused, *held]) > self.limits.size_bytes

    @rule(pinned=st.booleans())
    def pin(self, pinned: bool) -> None:  # noqa: FBT001 - drawn
        self.ring.pinned = pinned
        if not pinned:
            self.ring.trim()

    @precondition(lambda self: self.top > self.ring.newest())
    @rule()
    def clear(self) -> None:
        generation = self.ring.generation
        self.ring.clear(self.top, self.top)
        assert self.ring.generation > generation
        assert (len(self.ring), self.ring.size_bytes, self.ring.floor) == (0, 0, self.top)

    @rule(above=st.integers(0, 12), until=st.integers(0, 60))
    def between(self, above: int, until: int) -> None:
        after = self.ring.floor + above
        assert self.ring.between(after, until) == [line for offset, line in self.all if after < offset <= until]

    @rule(beyond=st.integers(0, 2))
    def silence(self, beyond: int) -> None:
        """Something came that is no publication."""
        self.top += beyond

    @invariant()
    def it_holds_all_behind_its_floor_within_its_limits(self) -> None:
        if not hasattr(self, "ring"):
            return
        held = [entry for entry in self.all if entry[0] > self.ring.floor]
        assert self.ring.between(self.ring.floor, self.top) == [line for _, line in held]
        assert len(self.ring) == len(held)
        assert self.ring.size_bytes == size_of(held)
        assert self.ring.newest() == (held[-1][0] if held else self.ring.floor)
        if not self.ring.pinned:
            assert len(held) <= self.limits.messages
            assert self.ring.size_bytes <= self.limits.size_bytes


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(max_examples=200, stateful_step_count=30)


def test_the_ring_that_was_silent_longest_gives_way() -> None:
    entry = ENTRY_OVERHEAD_BYTES + 10
    budget = RingBudget(5 * entry)
    rings = [Ring(ROOMY, 0) for _ in range(3)]
    for ring in (rings[0], rings[1], rings[1], rings[2], rings[0]):
        ring.append(ring.newest() + 1, b"x" * 10)
        budget.changed(ring)
    assert budget.size_bytes == 5 * entry
    rings[2].append(2, b"x" * 10)
    budget.changed(rings[2])
    assert [len(ring) for ring in rings] == [2, 0, 2]
    assert (rings[1].floor, budget.size_bytes) == (2, 4 * entry)
    rings[1].append(3, b"x" * 10)  # it goes on from there
    budget.changed(rings[1])
    assert rings[1].between(2, 3) == [b"x" * 10]


def test_a_ring_that_is_no_more_counts_no_more() -> None:
    budget = RingBudget(1000)
    one, other = Ring(ROOMY, 0), Ring(ROOMY, 0)
    for ring in (one, other):
        ring.append(1, b"x" * 300)
        budget.changed(ring)
    budget.gone(one)
    budget.gone(one)
    assert budget.size_bytes == other.size_bytes
    other.append(2, b"x" * 300)
    budget.changed(other)
    assert len(other) == 2


def test_a_ring_alone_beyond_the_budget_gives_way_itself() -> None:
    budget = RingBudget(500)
    ring = Ring(ROOMY, 0)
    for offset in (1, 2, 3):
        ring.append(offset, b"x" * 100)
        budget.changed(ring)
    assert (len(ring), ring.floor, budget.size_bytes) == (0, 3, 0)


def test_a_pinned_ring_is_left_whole() -> None:
    budget = RingBudget(500)
    pinned, other = Ring(ROOMY, 0), Ring(ROOMY, 0)
    pinned.pinned = True
    for ring in (pinned, other):
        for offset in (1, 2, 3):
            ring.append(offset, b"x" * 100)
            budget.changed(ring)
    assert len(pinned) == 3
    pinned.pinned = False
    budget.changed(pinned)
    assert budget.size_bytes <= 500


class BudgetModel(RuleBasedStateMachine):
    @initialize(limit=st.integers(200, 2000))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.budget = RingBudget(limit)
        self.rings = [Ring(RingLimits(8, 1500), 0) for _ in range(4)]
        self.counted: set[int] = set()

    @rule(number=st.integers(0, 3), size=st.integers(0, 400))
    def append(self, number: int, size: int) -> None:
        ring = self.rings[number]
        before = {other: len(self.rings[other]) for other in range(4) if other != number}
        ring.append(ring.newest() + 1, b"x" * size)
        self.counted.add(number)
        whole = sum(self.rings[other].size_bytes for other in self.counted)
        self.budget.changed(ring)
        if whole <= self.limit:  # then nobody loses anything
            assert before == {other: len(self.rings[other]) for other in before}

    @rule(number=st.integers(0, 3))
    def go(self, number: int) -> None:
        self.budget.gone(self.rings[number])
        self.counted.discard(number)
        self.rings[number] = Ring(RingLimits(8, 1500), 0)

    @invariant()
    def all_together_are_within_the_budget(self) -> None:
        if hasattr(self, "budget"):
            assert self.budget.size_bytes == sum(self.rings[number].size_bytes for number in self.counted)
            assert self.budget.size_bytes <= self.limit


TestBudgetModel = BudgetModel.TestCase
TestBudgetModel.settings = settings(max_examples=100, stateful_step_count=30)
