"""The hub against a model of what each subscriber has to get, under any order of events and any size of slices."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core.batch import Batch
from broker.core.hub import FRAME_BYTES, Hub, Topic
from broker.core.policy import TopicPolicy
from broker.core.topic import parse_pattern

POLICY = TopicPolicy("default", (parse_pattern(">"),))
NAMES = st.sampled_from(["a", "b", "c"])
PEOPLE = st.integers(0, 7)
BIRTHS = st.integers(0, 4)
"""Topics that existed once, by the order in which they were made."""


class Life:
    """What the model knows of a topic, from its first subscriber to its last frame."""

    def __init__(self, topic: Topic, birth: int) -> None:
        self.topic = topic
        self.birth = birth
        self.subscribers: set[int] = set()
        self.pending: list[bytes] = []
        self.frame: bytes | None = None
        """Of the fan-out that is under way."""
        self.messages = 0
        self.members: set[int] = set()
        """Who was there when it began."""
        self.faithful: set[int] = set()
        """Who of them has stayed since."""
        self.served: set[int] = set()
        self.written = 0
        self.pushed = 0
        self.publications: list[int] = []
        """Which of what was pushed counts."""
        self.finished = 0
        self.waiting: dict[int, int] = {}
        """Those that want to be told, and after which message."""

    @property
    def busy(self) -> bool:
        return bool(self.pending) or self.frame is not None


class Person:
    def __init__(self, number: int, got: Callable[[int, bytes], None], queued: Callable[[int, bytes], None]) -> None:
        self.number = number
        self.ready = True
        self.failure: Exception | None = None
        self.write: Callable[[bytes], object] = self._write
        self._got = got
        self._queued = queued

    def __hash__(self) -> int:
        return self.number  # the same order in the hub's sets at every run

    def __eq__(self, other: object) -> bool:
        return self is other

    def _write(self, frame: bytes) -> None:
        assert self.ready
        self._got(self.number, frame)
        if self.failure is not None:
            raise self.failure

    def deliver(self, topic: Topic, batch: Batch) -> None:
        assert not self.ready
        told = batch.frame.split(b"\n")
        assert [line.text for line in batch.lines()] == told
        assert [line.publication for line in batch.lines()] == [line.split(b":")[3] != b"notice" for line in told]
        assert batch.messages == sum(line.publication for line in batch.lines())
        assert batch.frame.startswith(topic.name.encode())
        self._queued(self.number, batch.frame)


class HubModel(RuleBasedStateMachine):
    @initialize(slice_writes=st.integers(1, 10))
    def begin(self, slice_writes: int) -> None:
        self.slice_writes = slice_writes
        self.hub = Hub(str.encode, self.framed, slice_writes=slice_writes, on_delivered=self.delivered)
        self.lives: list[Life] = []
        self.alive: dict[str, Life] = {}
        self.people = [Person(number, self.got, self.queued) for number in range(8)]
        self.served_now = 0
        self.callbacks = 0

    @rule(name=NAMES, number=PEOPLE)
    def add(self, name: str, number: int) -> None:
        topic = self.hub.add(name, POLICY, self.people[number])
        if name not in self.alive:
            self.alive[name] = Life(topic, len(self.lives))
            self.lives.append(self.alive[name])
        assert topic is self.alive[name].topic
        self.alive[name].subscribers.add(number)

    @rule(name=NAMES, number=PEOPLE)
    def remove(self, name: str, number: int) -> None:
        gone = self.hub.remove(name, self.people[number])
        life = self.alive.get(name)
        if life is None:
            assert not gone
            return
        life.subscribers.discard(number)
        life.faithful.discard(number)
        assert gone is (not life.subscribers)
        if gone:
            del self.alive[name]

    @rule(name=NAMES, padding=st.sampled_from([0, 0, 0, 20_000, 40_000, FRAME_BYTES]), notice=st.booleans())
    def push(self, name: str, padding: int, notice: bool) -> None:  # noqa: FBT001 - drawn
        life = self.alive.get(name)
        if life is None:
            return
        at_rest = not any(one.busy for one in self.lives)
        life.pushed += 1
        kind = b"notice" if notice else b"publication"
        message = b"%b:%d:%d:%b:" % (name.encode(), life.birth, life.pushed, kind) + b"x" * padding
        life.pending.append(message)
        if not notice:
            life.publications.append(life.pushed)
        arrived = None if notice else float(life.pushed)
        assert self.hub.push(life.topic, message, arrived, 0 if notice else life.pushed) is at_rest

    @rule(birth=BIRTHS)
    def when_flushed(self, birth: int) -> None:
        if birth >= len(self.lives):
            return
        life = self.lives[-1 - birth]
        self.callbacks += 1
        number = self.callbacks
        life.waiting[number] = life.pushed
        at_rest = not life.busy

        def told() -> None:
            after = life.waiting.pop(number)
            assert after <= life.finished
            assert life.frame is None
            assert at_rest or after > life.finished - life.messages

        life.topic.when_flushed(told)
        assert (number in life.waiting) is not at_rest

    @rule(number=PEOPLE, ready=st.booleans(), failure=st.sampled_from([None, None, OSError(), RuntimeError()]))
    def change(self, number: int, ready: bool, failure: Exception | None) -> None:  # noqa: FBT001 - drawn
        self.people[number].ready = ready
        self.people[number].failure = failure

    @rule()
    def run_once(self) -> None:
        self.served_now = 0
        more = self.hub.run()
        assert self.served_now <= self.slice_writes
        assert more is any(life.busy for life in self.lives)

    @invariant()
    def who_wants_to_be_told_was_told_in_time(self) -> None:
        for life in getattr(self, "lives", []):
            assert all(after > life.finished for after in life.waiting.values())

    @invariant()
    def what_is_pending_is_known_by_its_offsets(self) -> None:
        # what has no place of its own has that of the publication before it
        for life in getattr(self, "lives", []):
            begun = life.pushed - len(life.pending)
            places = [
                max((one for one in life.publications if one <= push), default=0) for push in range(life.pushed + 1)
            ]
            assert life.topic.begun == places[begun]
            assert life.topic.offsets == places[begun + 1 :]

    def teardown(self) -> None:
        if not hasattr(self, "hub"):
            return
        for _ in range(10_000):
            if not self.hub.run():
                break
        assert not any(life.busy or life.waiting for life in self.lives)
        assert self.hub.topics == {name: life.topic for name, life in self.alive.items()}

    # what the hub calls

    def framed(self, payload: bytes) -> bytes:
        """A fan-out begins."""
        messages = payload.split(b"\n")
        [life] = [one for one in self.lives if one.pending[: len(messages)] == messages and one.frame is None]
        assert len(payload) < FRAME_BYTES or len(messages) == 1
        del life.pending[: len(messages)]
        life.frame, life.messages = payload, len(messages)
        life.members, life.faithful, life.served, life.written = set(life.subscribers), set(life.subscribers), set(), 0
        return payload

    def queued(self, number: int, frame: bytes) -> None:
        """A subscriber is served, one way or the other."""
        self.served_now += 1
        [life] = [one for one in self.lives if one.frame is frame]
        assert number in life.members
        assert number in life.faithful  # who has come back meanwhile has come too late
        assert number not in life.served
        life.served.add(number)

    def got(self, number: int, frame: bytes) -> None:
        self.queued(number, frame)
        if self.people[number].failure is None:
            [life] = [one for one in self.lives if one.frame is frame]
            life.written += 1

    def delivered(self, topic: Topic, subscribers: int, arrivals: list[float]) -> None:
        """A fan-out is finished."""
        [life] = [one for one in self.lives if one.topic is topic]
        assert life.faithful <= life.served
        assert subscribers == life.written
        begin, life.finished = life.finished, life.finished + life.messages
        assert arrivals == [float(number) for number in life.publications if begin < number <= life.finished]
        life.frame = None


TestHubModel = HubModel.TestCase
TestHubModel.settings = settings(max_examples=150, stateful_step_count=40)
