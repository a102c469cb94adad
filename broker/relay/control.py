"""What nodes say to each other: that they are there, and what concerns the clients of all of them.

Membership is by heartbeat, so that a question to all nodes knows whom to wait for, and can name who did not answer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf

import msgspec

from broker.relay.connection import NatsConnection, confirmed
from broker.relay.errors import RelayError, RelayUnavailableError, describe
from broker.relay.subjects import Subjects

logger = logging.getLogger(__name__)

HELLO_SECONDS = 2.0
GONE_SECONDS = 7.0
"""A node unheard for so long is taken for dead: three heartbeats lost, and some slack."""
ANSWER_SECONDS = 2.0
ACQUAINTANCE_SECONDS = 0.3
"""How long after connecting a node waits for the others to say that they are there."""
HEAD_BYTES = 512

Handler = Callable[[str, bytes], Awaitable[bytes]]
"""Does an operation on this node: its name and its arguments in JSON; the result in JSON."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node."""

    uid: str
    name: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a question to all other nodes brought."""

    answers: list[bytes] = field(default_factory=list)
    unanswered: list[Peer] = field(default_factory=list)


class _Hello(msgspec.Struct):
    uid: str
    name: str
    ask: bool = False
    bye: bool = False


class _Request(msgspec.Struct):
    id: int
    uid: str
    operation: str
    arguments: msgspec.Raw


class _Answer(msgspec.Struct):
    """The head of an answer's part; the part itself follows behind a line feed. NATS bounds a message's size."""

    id: int
    uid: str
    part: int
    parts: int


class _Question:
    __slots__ = ("answers", "done", "missing", "parts")

    def __init__(self, missing: dict[str, Peer]) -> None:
        self.missing = missing
        self.answers: list[bytes] = []
        self.parts: dict[str, dict[int, bytes]] = {}
        """What has come of answers in several parts, by node."""
        self.done = asyncio.Event()


_encode = msgspec.json.encode
_decode_hello = msgspec.json.Decoder(_Hello).decode
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class ControlBus:
    """Joins this node to the others.

    Args:
        connection: to NATS.
        subjects: how subjects are named.
        me: this node.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        connection: NatsConnection,
        subjects: Subjects,
        me: Peer,
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._subjects = subjects
        self._me = me
        self.handle: Handler | None = None
        """Does what another node asks; to be set before `start`."""
        self.on_gone: Callable[[Peer], None] = _ignore
        """Told of a node that has ended, or is taken for dead."""
        self.on_back: Callable[[Peer], None] = _ignore
        """Told of one that was taken for dead and is not: for a while, neither side has heard the other."""
        self._clock = clock
        self._peers: dict[str, tuple[Peer, float]] = {}
        self._buried: set[str] = set()
        """Those taken for dead, as long as this node lives: nothing tells that one is not going to come back."""
        self._questions: dict[int, _Question] = {}
        self._ids = itertools.count(1)
        self._next_hello = 0.0
        self._acquainted_at = inf
        self._working: set[asyncio.Task[None]] = set()

    @property
    def peers(self) -> list[Peer]:
        """The other nodes that are alive, as far as this one has heard."""
        return [peer for peer, _ in self._peers.values()]

    def start(self) -> None:
        for subject, sink in (
            (self._subjects.hello, self._on_hello),
            (self._subjects.requests, self._on_request),
            (self._subjects.answers(self._me.uid), self._on_answer),
        ):
            self._connection.subscribe(subject, sink)  # made with the connection, whenever that comes

    def connected(self) -> None:
        """The connection to NATS is there (again): everybody may have changed meanwhile."""
        now = self._clock()
        self._peers = {uid: (peer, now) for uid, (peer, _) in self._peers.items()}
        self._acquainted_at = now + ACQUAINTANCE_SECONDS
        self._say_hello(ask=True)

    @property
    def acquainted(self) -> bool:
        """Whether the other nodes have had time to answer since this one connected."""
        return self._clock() >= self._acquainted_at

    def tick(self) -> None:
        """Heartbeat and funerals. Call it about every second."""
        if not self._connection.connected:
            return
        now = self._clock()
        if now >= self._next_hello:
            self._say_hello()
        for uid, (peer, heard) in tuple(self._peers.items()):
            if now - heard > GONE_SECONDS:
                del self._peers[uid]
                self._buried.add(uid)
                logger.warning("node %s (%s) is gone", peer.name, uid)
                self.on_gone(peer)

    def leave(self) -> None:
        """Tell the others that this node ends."""
        self._say_hello(bye=True)

    def _say_hello(self, *, ask: bool = False, bye: bool = False) -> None:
        self._next_hello = self._clock() + HELLO_SECONDS * random.uniform(0.75, 1)  # noqa: S311 - jitter
        self._connection.send(self._subjects.hello, _encode(_Hello(self._me.uid, self._me.name, ask, bye)))

    def _on_hello(self, _subject: bytes, payload: bytes, _block: bytes | None) -> None:
        hello = _decode_hello(payload)
        if hello.uid == self._me.uid:
            return
        peer = Peer(hello.uid, hello.name)
        if hello.bye:
            self._peers.pop(peer.uid, None)
            for question in self._questions.values():
                self._settle(question, peer.uid)
            self.on_gone(peer)
            return
        is_new = peer.uid not in self._peers
        self._peers[peer.uid] = (peer, self._clock())
        if hello.ask:
            self._say_hello()
        if is_new:
            logger.info("node %s (%s) is there", peer.name, peer.uid)
            if peer.uid in self._buried:
                self._buried.remove(peer.uid)
                self.on_back(peer)

    async def ask(self, operation: str, arguments: bytes) -> Gathered:
        """Ask all other nodes to do something, and wait for their answers, at most ANSWER_SECONDS.

        Raises:
            RelayError: the question could not be asked.
        """
        if not self._connection.connected:
            raise RelayUnavailableError("not connected to NATS")
        if not self.acquainted:  # whom it would not wait for, it could not name either
            await asyncio.sleep(min(ACQUAINTANCE_SECONDS, self._acquainted_at - self._clock()))
        ident = next(self._ids)
        question = _Question({peer.uid: peer for peer in self.peers})
        if not question.missing:
            return Gathered()
        self._questions[ident] = question
        try:
            request = _Request(ident, self._me.uid, operation, msgspec.Raw(arguments))
            await confirmed(self._connection.publish(self._subjects.requests, _encode(request)))
            async with asyncio.timeout(ANSWER_SECONDS):
                await question.done.wait()
        except TimeoutError:
            pass  # who is missing is part of the answer
        finally:
            del self._questions[ident]
        return Gathered(question.answers, list(question.missing.values()))

    def _on_request(self, _subject: bytes, payload: bytes, _block: bytes | None) -> None:
        request = _decode_request(payload)
        if request.uid != self._me.uid:
            task = asyncio.create_task(self._answer(request))
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    async def _answer(self, request: _Request) -> None:
        try:
            assert self.handle is not None  # noqa: S101 - set before anything is received
            result = await self.handle(request.operation, bytes(request.arguments))
            size = self._connection.max_payload - HEAD_BYTES
            parts = [result[begin : begin + size] for begin in range(0, len(result), size)]
            for number, part in enumerate(parts):
                head = _encode(_Answer(request.id, self._me.uid, number, len(parts)))
                await confirmed(self._connection.publish(self._subjects.answers(request.uid), head + b"\n" + part))
        except RelayError as error:
            logger.warning("%s for node %s: %s", request.operation, request.uid, describe(error))
        except Exception:
            # the one who asked names us as missing
            logger.exception("%s for node %s failed", request.operation, request.uid)

    def _on_answer(self, _subject: bytes, payload: bytes, _block: bytes | None) -> None:
        head, _, part = payload.partition(b"\n")
        answer = _decode_answer(head)
        question = self._questions.get(answer.id)
        if question is None:
            return
        parts = question.parts.setdefault(answer.uid, {})
        parts[answer.part] = part
        if len(parts) == answer.parts:
            question.answers.append(b"".join(parts[number] for number in range(answer.parts)))
            self._settle(question, answer.uid)

    @staticmethod
    def _settle(question: _Question, uid: str) -> None:
        question.missing.pop(uid, None)
        if not question.missing:
            question.done.set()


def _ignore(_: Peer) -> None:
    """Nobody wants to know."""
