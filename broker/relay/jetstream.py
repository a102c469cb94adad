"""What we use of JetStream's API: publish with an ack, streams' states, and reads without a consumer.

nats-py has no helper for direct gets of several messages, and its own for a single one and for publishing cost a task
and a timer each.

Source: https://docs.nats.io/reference/reference-protocols/nats_api_reference; for the reads of several messages
https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker.relay.errors import JetStreamError, NoStreamError, RelayError, RelayTimeoutError
from broker.relay.headers import read_block, read_status
from broker.relay.inbox import Inbox

ACK_SECONDS = 5.0
API_SECONDS = 5.0
READ_SECONDS = 3.0
"""How long JetStream may take for an ack, an answer of its API, and a batch of messages."""
LAST_SUBJECTS = 512
"""Subjects whose last messages are asked for in one request; JetStream takes 1,024."""
EMPTY_RANGE = 404
END_OF_BATCH = 204
NOBODY_LISTENS = 503

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Ack:
    """Where a message was stored; `duplicate` when that was before, by an earlier one with the same `Nats-Msg-Id`."""

    offset: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream.

    Args:
        offset: its sequence in the stream.
        subject: it was published to.
        payload: its bytes.
        headers: all of them.
    """

    offset: int
    subject: str
    payload: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read has brought.

    Args:
        messages: in order.
        remaining: how many more there are behind them.
        up_to: the sequence that the replica had reached, where it says so (0 where not).
    """

    messages: list[Stored]
    remaining: int
    up_to: int = 0


class StreamState(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0


class Replica(msgspec.Struct):
    name: str = ""
    current: bool = False
    offline: bool = False
    lag: int = 0


class StreamCluster(msgspec.Struct):
    name: str = ""
    leader: str = ""
    replicas: list[Replica] = []


class StreamInfo(msgspec.Struct):
    """A stream as its leader describes it."""

    config: dict[str, Any]
    created: str
    state: StreamState = msgspec.field(default_factory=StreamState)
    cluster: StreamCluster = msgspec.field(default_factory=StreamCluster)


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class _Answer(msgspec.Struct):
    error: _Error | None = None


class _Message(msgspec.Struct):
    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""


class _LastMessage(msgspec.Struct):
    message: _Message


_decode_ack = msgspec.json.Decoder(_Ack).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_info = msgspec.json.Decoder(StreamInfo).decode
_decode_last = msgspec.json.Decoder(_LastMessage).decode


class _AckWaiter:
    __slots__ = ("acked", "stream")

    def __init__(self, stream: str, acked: asyncio.Future[Ack]) -> None:
        self.stream = stream
        self.acked = acked

    def answer(self, payload: bytes, block: bytes | None) -> bool:
        if block is not None and read_status(block):
            self.fail(NoStreamError(f"there is no stream {self.stream}; nothing was stored"))
            return True
        try:
            ack = _decode_ack(payload)
        except msgspec.DecodeError:
            ack = _Ack()
        if ack.error is not None and ack.error.err_code == _IN_PROCESS:
            self.fail(RelayTimeoutError("an earlier one with the same key is still being stored"))
        elif ack.error is not None:
            self.fail(JetStreamError(ack.error.code, ack.error.err_code, ack.error.description))
        elif not ack.seq:  # somebody else listens there, too, and was quicker
            self.fail(RelayTimeoutError("NATS has answered with what is no ack"))
        elif not self.acked.done():
            self.acked.set_result(Ack(ack.seq, ack.duplicate))
        return True

    def fail(self, error: RelayError) -> None:
        if not self.acked.done():
            self.acked.set_exception(error)
            self.acked.exception()  # looked at: that nobody waits for it is no mistake


class _AnswerWaiter:
    __slots__ = ("answered",)

    def __init__(self, answered: asyncio.Future[bytes]) -> None:
        self.answered = answered

    def answer(self, payload: bytes, block: bytes | None) -> bool:
        if block is not None and read_status(block):
            self.fail(NoStreamError("JetStream does not answer; is it enabled?"))
        elif not self.answered.done():
            self.answered.set_result(payload)
        return True

    def fail(self, error: RelayError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


@dataclass(slots=True)
class _BatchWaiter:
    read: asyncio.Future[Batch]
    messages: list[Stored] = field(default_factory=list)

    def answer(self, payload: bytes, block: bytes | None) -> bool:
        status = 0 if block is None else read_status(block)
        if block is None:
            self.fail(RelayTimeoutError("JetStream has answered with what is no message"))
            return True
        headers = read_block(block)
        if status in (0, END_OF_BATCH) and not self._follows(headers):
            self.fail(RelayTimeoutError("some of what JetStream has answered was lost on the way"))
            return True
        if not status:
            self.messages.append(_stored(payload, headers))
            return False
        if status == END_OF_BATCH:
            self._end(int(headers.get("Nats-Num-Pending", "0")), int(headers.get("Nats-UpTo-Sequence", "0")))
        elif status == EMPTY_RANGE:
            self._end(0, 0)
        elif status == NOBODY_LISTENS:
            self.fail(NoStreamError("there is no stream to read from"))
        else:
            text = block[: block.find(b"\r\n")].decode(errors="replace")
            self.fail(JetStreamError(status, 0, text.partition(" ")[2]))
        return True

    def _follows(self, headers: Mapping[str, str]) -> bool:
        """Whether this comes right behind what has come: each message names the one before it in the answer."""
        return int(headers.get("Nats-Last-Sequence", "0")) == (self.messages[-1].offset if self.messages else 0)

    def _end(self, remaining: int, up_to: int) -> None:
        if not self.read.done():
            self.read.set_result(Batch(self.messages, remaining, up_to))

    def fail(self, error: RelayError) -> None:
        if not self.read.done():
            self.read.set_exception(error)


def _stored(payload: bytes, headers: Mapping[str, str]) -> Stored:
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], payload, headers)


class JetStream:
    """JetStream's API.

    Args:
        inbox: for the answers.
        count_read: told of each read of messages.
    """

    def __init__(self, inbox: Inbox, count_read: Callable[[], None] = lambda: None) -> None:
        self._inbox = inbox
        self._count_read = count_read
        self._loop = asyncio.get_running_loop()

    def publish(self, stream: str, subject: str, payload: bytes, headers: dict[str, str] | None) -> asyncio.Future[Ack]:
        """Store a message.

        Returns:
            Done when it is stored. Fails with RelayLostError or RelayTimeoutError where that can't be known, with
            NoStreamError, JetStreamError or RelayRefusedError where it was not.

        Raises:
            RelayUnavailableError, RelayTooLargeError: nothing was sent.
        """
        acked: asyncio.Future[Ack] = self._loop.create_future()
        self._inbox.ask(subject, payload, headers, _AckWaiter(stream, acked), ACK_SECONDS)
        return acked

    async def call(self, method: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Call the API, which the stream's leader (or the cluster's) answers; the answer's JSON.

        Raises:
            RelayError: no answer, or JetStreamError for one that says no.
        """
        answered: asyncio.Future[bytes] = self._loop.create_future()
        payload = b"" if body is None else _encode(body)
        self._inbox.ask(f"$JS.API.{method}", payload, None, _AnswerWaiter(answered), API_SECONDS)
        answer = await answered
        error = _decode_answer(answer).error
        if error is not None:
            raise JetStreamError(error.code, error.err_code, error.description)
        return answer

    async def info(self, stream: str) -> StreamInfo:
        """Raises:
        RelayError: see `call`.
        """
        return _decode_info(await self.call(f"STREAM.INFO.{stream}"))

    async def last(self, stream: str, subject: str) -> Stored | None:
        """A subject's last message, as the stream's leader knows it; None without one. The subject may be a pattern.

        Raises:
            RelayError: see `call`.
        """
        self._count_read()
        try:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except JetStreamError as error:
            if error.code == EMPTY_RANGE and error.number == _NO_MESSAGE:
                return None
            raise
        message = _decode_last(answer).message
        headers = read_block(base64.b64decode(message.hdrs)) if message.hdrs else {}
        return Stored(message.seq, message.subject, base64.b64decode(message.data), headers)

    async def read(self, stream: str, subject: str, *, start: int, messages: int, size: int) -> Batch:
        """Messages of a subject (or pattern) from a sequence on, as the replica knows them that happens to answer.

        Args:
            stream: to read from.
            subject: of the messages.
            start: the first sequence that counts.
            messages: at most so many.
            size: about so many bytes at most, but one message in any case.

        Raises:
            RelayError: no answer, or a refusal.
        """
        request = {"seq": max(1, start), "next_by_subj": subject, "batch": messages, "max_bytes": size}
        return await self._direct(stream, request)

    async def read_on(self, stream: str, subject: str, *, last: int, messages: int, size: int) -> Batch:
        """What follows a message that was read before, and has to be there still: else something may have gone from the
        stream between the two reads. The arguments are those of `read`, but for `last`, that message's sequence.

        Raises:
            RelayError: as `read`, or the message has gone.
        """
        batch = await self.read(stream, subject, start=last, messages=messages + 1, size=size)
        if not batch.messages or batch.messages[0].offset != last:
            raise RelayTimeoutError("the stream has lost messages while it was read")
        if len(batch.messages) == 1 and batch.remaining:  # it is as large as all that may come at a time
            return await self.read(stream, subject, start=last + 1, messages=messages, size=size)
        return Batch(batch.messages[1:], batch.remaining)

    async def lasts(self, stream: str, subjects: Sequence[str], size: int) -> Batch:
        """The last message of each subject that has one, as the replica knows them that happens to answer.

        Args:
            stream: to read from.
            subjects: LAST_SUBJECTS at most; or one pattern, for all the subjects that match it.
            size: about so many bytes are read at a time; of a pattern's, no more are read.

        Raises:
            RelayError: no answer; JetStreamError with code 413 when more than 1,024 subjects have one.
        """
        found: list[Stored] = []
        left = list(subjects)
        while True:
            batch = await self._direct(stream, {"multi_last": left, "batch": 1024, "max_bytes": size})
            found += batch.messages
            answered = {message.subject for message in batch.messages}
            rest = [subject for subject in left if subject not in answered]
            if not batch.remaining or len(rest) == len(left):
                return Batch(found, batch.remaining, batch.up_to)
            left = rest

    async def _direct(self, stream: str, request: Mapping[str, Any]) -> Batch:
        self._count_read()
        read: asyncio.Future[Batch] = self._loop.create_future()
        self._inbox.ask(f"$JS.API.DIRECT.GET.{stream}", _encode(request), None, _BatchWaiter(read), READ_SECONDS)
        return await read


_NO_MESSAGE = 10037
_IN_PROCESS = 10158
