"""A durable topic (or wildcard subscription) on its way through this node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from broker.core.continuity import Kept
from broker.core.policy import Recovery, TopicPolicy
from broker.core.ring import Entry, Ring, RingLimits
from broker.relay.errors import RelayError
from broker.relay.jetstream import Stored
from broker.relay.streams import Stream

HELD_MESSAGES = 1024
HELD_BYTES = 1024 * 1024
"""What is kept of live messages that come while a gap before them is being fetched; what is beyond is fetched, too."""
NEWEST_TOPICS = 1024
"""Topics of a wildcard subscription whose newest message is kept, where that is all its subscribers want."""

Ready = Callable[[RelayError | None], None]


class Held(NamedTuple):
    """A live message that waits for those before it."""

    message: Stored
    previous: int


class Seeking(NamedTuple):
    """Somebody who waits for older messages than the ring holds.

    Args:
        after: they came behind this offset.
        life: the flow's, when it was asked.
        found: told what there is.
    """

    after: int
    life: int
    found: Callable[[Any], None]


class Flow:
    """What a node knows of a topic while it has subscribers here, and a little longer.

    Args:
        policy: of the topic, or of all the topics that the wildcard stands for.
        stream: the policy's.
        name: the topic's, or the wildcard.
        subject: of its messages in the stream.
        wildcard: whether it is one.
        head: what each of its publications begins with on the wire.
        limits: of its ring.
    """

    __slots__ = (
        "_begun_at",
        "_last_before",
        "behind",
        "busy",
        "checked_at",
        "head",
        "held",
        "held_bytes",
        "kept",
        "life",
        "memo",
        "name",
        "newest",
        "policy",
        "reached",
        "reading",
        "repaired",
        "ring",
        "seekers",
        "started",
        "stream",
        "subject",
        "sure",
        "top",
        "waiting",
        "wildcard",
    )

    def __init__(
        self,
        policy: TopicPolicy,
        stream: Stream,
        name: str,
        subject: str,
        *,
        wildcard: bool,
        head: bytes,
        limits: RingLimits,
    ) -> None:
        self.policy = policy
        self.stream = stream
        self.name = name
        self.subject = subject
        self.wildcard = wildcard
        self.head = head
        self.kept = Kept(policy.history_messages, single=not wildcard)
        self.started = False
        """Its position is known; messages flow."""
        self.life = 0
        """Rises when it ends or begins again: what was read before means nothing then."""
        self._begun_at = 0
        self._last_before = 0
        self.top = 0
        """Nothing up to this offset is missing: it was delivered, or was there before."""
        self.sure = 0
        """When the stream had got to this offset, nothing was missing: what it has forgotten up to there was seen."""
        self.ring = Ring(limits, 0)
        self.newest: dict[str, Entry] | None = None
        """The newest publication of each topic, where the policy's recovery is `latest`; None where it isn't, or where
        there are too many."""
        self.busy = False
        """A gap is being fetched."""
        self.repaired = False
        """Something was fetched that had not come by itself."""
        self.behind = 0
        """There are messages up to this offset."""
        self.held: list[Held] = []
        self.held_bytes = 0
        self.waiting: deque[tuple[float, Ready]] = deque()
        """Whom to tell when it has started, and until when they wait."""
        self.reading = False
        """Older messages than the ring holds are being read."""
        self.seekers: list[Seeking] = []
        self.reached: list[tuple[int, Callable[[], None]]] = []
        """Whom to tell when an offset has been delivered."""
        self.checked_at = 0.0
        """When it was certain that nothing was missing (seconds)."""
        self.memo: tuple[int, int, bytes] | None = None
        """The publications that somebody was sent who came back: behind which offset, up to which, and their JSON."""

    @property
    def floor_message(self) -> int:
        """A message that is known to be there, or to have been: the newest up to the ring's floor, or one behind it. 0
        when there is none.
        """
        floor = self.ring.floor
        return min(floor, self._last_before) if floor <= self._begun_at else floor

    @property
    def latest_only(self) -> bool:
        return self.policy.recovery is Recovery.LATEST

    def begin(self, reached: int, last: int, now: float) -> None:
        """Its position is known.

        Args:
            reached: the stream had got to this offset; no message of the flow up to there is to come.
            last: the offset of its last message; 0 for none.
            now: the clock's value.
        """
        top = last if last and not self.wildcard else reached
        self.top = top
        self.sure = reached
        self._begun_at, self._last_before = top, last if last <= top else 0
        self.ring.clear(top)
        self.memo = None
        self.checked_at = now
        self.started = True

    def end(self) -> None:
        """It is no more, or begins anew."""
        self.started = self.busy = self.repaired = False
        self.life += 1
        self.held, self.held_bytes, self.behind = [], 0, 0

    def is_fresh(self, now: float) -> bool:
        """Whether it was certain so lately that nothing was missing that all messages since are still kept."""
        return self.policy.history_bytes is None and now - self.checked_at < self.policy.history_seconds

    def forgotten(self, first: int) -> bool:
        """Whether something may have gone unseen from a stream that begins at this offset."""
        return first > max(self.top, self.sure) + 1

    def hold(self, message: Stored, previous: int) -> None:
        """Keep a live message until what comes before it is there."""
        self.behind = max(self.behind, message.offset)
        self.held_bytes += len(message.payload)
        if len(self.held) < HELD_MESSAGES and self.held_bytes <= HELD_BYTES:
            self.held.append(Held(message, previous))

    def take_held(self) -> list[Held]:
        """What was held, in order."""
        held, self.held, self.held_bytes = self.held, [], 0
        held.sort(key=lambda one: one.message.offset)
        return held
