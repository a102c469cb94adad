"""A durable topic (or wildcard subscription) on its way through this node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

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

NEWEST_BYTES = 8 * 1024 * 1024
"""The most bytes of them together."""

Ready = Callable[[RelayError | None], None]


class Held(NamedTuple):
    """A live message that waits for those before it.

    Args:
        message: the message.
        previous: the offset of the one before it in its topic; 0 when there was none any more.
    """

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
        "behind",
        "busy",
        "checked_at",
        "fetched_at",
        "head",
        "held",
        "held_bytes",
        "life",
        "memo",
        "name",
        "newest",
        "newest_bytes",
        "policy",
        "reached",
        "reading",
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
        self.started = False
        """Its position is known; messages flow."""
        self.life = 0
        """Rises when it ends or begins anew: what was asked before means nothing then."""
        self.top = 0
        """The offset of the message that was delivered last, or where the stream stood when this began."""
        self.sure = 0
        """Nothing up to this offset is missing. Not below `top`; above it where the stream was looked at and had no
        message of this flow in between."""
        self.ring = Ring(limits, 0)
        self.newest: dict[str, Entry] | None = None
        """The newest publication of each topic, where the policy's recovery is `latest`; None where it isn't, or where
        there are too many."""
        self.newest_bytes = 0
        self.busy = False
        """A gap is being fetched."""
        self.behind = 0
        """There are messages up to this offset."""
        self.fetched_at = 0.0
        """When something was fetched last, of a wildcard's (seconds)."""
        self.held: list[Held] = []
        self.held_bytes = 0
        self.waiting: deque[Ready] = deque()
        """Whom to tell when it has started, or can't."""
        self.reading = False
        """Older messages than the ring holds are being read."""
        self.seekers: list[Seeking] = []
        self.reached: list[tuple[int, int, float, Callable[[], None]]] = []
        """Whom to tell when an offset has been delivered, the lowest first (a heap), and until when they wait. The
        second number keeps their order."""
        self.checked_at = 0.0
        """When it was certain that nothing was missing (seconds)."""
        self.memo: tuple[int, int, bytes] | None = None
        """The publications that somebody was sent who came back: behind which offset, up to which, and their JSON."""

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
        self.top = self.sure = last if last and not self.wildcard else reached
        self.ring.clear(self.top, last if last <= self.top else 0)
        self.memo = None
        self.checked_at = now
        self.started = True

    def end(self) -> None:
        """It is no more, or begins anew."""
        self.started = self.busy = False
        self.life += 1
        self.held, self.held_bytes, self.behind = [], 0, 0

    def before(self, message: Stored, previous: int) -> int:
        """Up to where nothing may be missing for a message to be the next. What was before it in its own topic says
        nothing of the others that a wildcard stands for.
        """
        return message.offset - 1 if self.wildcard else previous

    def hold(self, message: Stored, previous: int) -> None:
        """Keep a live message until what comes before it is there."""
        self.behind = max(self.behind, message.offset)
        self.held_bytes += len(message.payload)
        if len(self.held) < HELD_MESSAGES and self.held_bytes <= HELD_BYTES:
            self.held.append(Held(message, previous))

    def in_order(self) -> list[Held]:
        """What is held, by offset."""
        return sorted(self.held, key=lambda one: one.message.offset)

    def take_held(self) -> list[Held]:
        """Take what is held, by offset."""
        held = self.in_order()
        self.held, self.held_bytes = [], 0
        return held
