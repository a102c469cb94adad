"""One client's conversation: commands in, replies and pushes out. It knows no sockets, only an outlet.

Commands run in the order in which they came. One that has to wait for NATS does not hold up the others, but for those
that concern the same topic: they, and all behind them, wait in line while nothing more is read from the client.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from broker.admission import Position, Wish
from broker.client.attaching import Attached, attach_durable, attach_live
from broker.client.commands import HANDLERS
from broker.client.joined import joined
from broker.client.joining import Joining
from broker.client.outlet import Outlet
from broker.client.pacing import refuses
from broker.client.subscribing import subscribe_by_server
from broker.core.heartbeat import Beat, Heartbeat
from broker.core.hub import FRAME_BYTES, Topic
from broker.core.pace import Pace, Rates
from broker.core.session import Session, Subscription
from broker.node import Node
from broker.wire import replies
from broker.wire.codes import Close, CloseCode, CommandError, ErrorCode, UnsubscribeCode, close
from broker.wire.commands import PONG, Command, Connect, Send, Undecodable, Unsubscribe, decode_command
from broker.wire.replies import Result

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 256
"""Publishes and presence commands of one client that wait for NATS; more are not read."""


class Client:
    """The conversation with one client, from the opened transport to its end."""

    __slots__ = (
        "_advancing",
        "_connect_by",
        "_early",
        "_entries",
        "_heartbeat",
        "_in_flight",
        "_line",
        "_out",
        "_settling",
        "closed",
        "id",
        "node",
        "outlet",
        "pace",
        "rates",
        "session",
    )

    def __init__(self, node: Node, outlet: Outlet) -> None:
        self.node = node
        self.outlet = outlet
        self.id = str(uuid.uuid4())
        self.session: Session | None = None
        self.closed = False
        self.rates = node.options.rates
        """What it is held to; None for nothing."""
        self.pace: Pace | None = None
        """How it keeps to that, as soon as that has to be known."""
        self._connect_by = node.clock() + node.options.connect_seconds
        self._advancing = False
        self._early: list[bytes] | None = None
        """While the answer to connect waits: what is to be sent after it."""
        self._entries: Sequence[Callable[[], None]] = ()
        """Subscriptions whose publications wait for it, too."""
        self._heartbeat: Heartbeat | None = None
        self._in_flight = 0
        self._line: deque[Command] | None = None
        """Commands that wait for one before them."""
        self._out: list[bytes] | None = None
        """Replies of the frame that is being worked on; they leave together."""
        self._settling: set[str] | None = None
        """Topics whose subscription is on its way."""
        outlet.wake_by(self._connect_by)

    # what the transport calls

    def received(self, payload: bytes) -> None:
        """Work on one frame: JSON objects separated by line feeds, with at most one at the end."""
        self._out = []
        try:
            for line in payload.removesuffix(b"\n").split(b"\n"):
                command = decode_command(line)
                if isinstance(command, Close):
                    self.close(command)
                elif self.rates is not None and refuses(self, command):
                    pass
                elif isinstance(command, Undecodable):
                    self._answer_undecodable(command)
                elif self._line is not None:
                    self._line.append(command)
                else:
                    self._take(command)
                if self.closed:
                    return
        finally:
            self._flush()

    def lost(self) -> None:
        """The transport has ended, by whatever."""
        logger.debug("gone", extra={"client": self.id})
        self.closed = True
        self._line = None
        if self.session is None:
            self.node.lobby.leave(self)
        else:
            self.node.unregister(self)
            for topic in tuple(self.session.subscriptions):
                self.drop(topic)
        self._enter_all()  # which now only lets the stand-ins go

    def wake(self, now: float) -> float:
        """Do what is due; return when there is something to do again."""
        session, heartbeat = self.session, self._heartbeat
        if session is None:
            if now >= self._connect_by and self in self.node.lobby:
                # the node's fault, and so no reason to stay away
                self.close(close(CloseCode.TOO_MANY_REQUESTS, "this node did not get round to the connect command"))
            elif now >= self._connect_by:
                self.close(close(CloseCode.STALE, "no connect command in time"))
            return self._connect_by
        if heartbeat is None:  # the answer to connect waits for NATS, and the relay bounds that
            return session.ends_at
        beat = heartbeat.due(now, excused=self.outlet.blocked or self._line is not None)
        moves_at = inf
        if beat is Beat.LATE:
            self.close(close(CloseCode.NO_PONG))
        elif now >= session.ends_at:
            self.close(close(CloseCode.EXPIRED))
        else:
            if beat is Beat.PING:
                self.outlet.send(replies.PING)
            for topic in session.ended(now):
                self.unsubscribed(topic, UnsubscribeCode.EXPIRED, UnsubscribeCode.EXPIRED.text)
            moves_at = self._move(now)
        return min(heartbeat.next(), session.ends_at, session.next_end, moves_at)

    def _move(self, now: float) -> float:
        """Have the client reconnect, to another node perhaps, where it has been here for long enough; return when to
        look again.
        """
        aging = self.node.aging
        if aging is None or self.node.draining:  # where it drains, everybody goes anyway
            return inf
        due_at = aging.due_at(self.id, self.since)
        if now < due_at:
            return due_at
        again = aging.turn(self.id, now)
        if again:
            return again
        self.close(close(CloseCode.FORCE_RECONNECT))
        return inf

    def outlet_goes_on(self) -> None:
        """What was sent last, a ping perhaps, had to wait and is on its way only now."""
        if self._heartbeat is not None:
            self._heartbeat.postpone(self.node.clock())

    # what command handlers and the API call

    @property
    def since(self) -> float:
        """When the connection was opened, on the node's clock."""
        return self._connect_by - self.node.options.connect_seconds

    def the_session(self) -> Session:
        """The session, for those who run only within one."""
        assert self.session is not None  # noqa: S101 - all commands but connect do
        return self.session

    def reply(self, ident: int, method: str, result: Result) -> None:
        self.send(replies.reply(ident, method, result))

    def fail(self, ident: int, error: CommandError) -> None:
        self.node.metrics.errors.labels("websocket", str(int(error.code))).inc()
        self.send(replies.error_reply(ident, error))

    def send(self, line: bytes) -> None:
        """Send one reply or push, behind all that was sent before."""
        if self.closed:
            return
        if self._early is not None:
            self._early.append(line)
        elif self._out is not None:
            self._out.append(line)
        else:
            self.outlet.send(line)

    def throttle(self, command_rate: float | None, publish_rate: float | None) -> None:
        """Hold this connection to other rates from now on, as long as it lasts; both are above 0.

        Args:
            command_rate: the most commands per second, in place of `limits.command_rate`; None for what that says.
            publish_rate: the most publications per second, in place of `limits.publish_rate`; None likewise.
        """
        usual = self.node.options.rates or Rates()
        rates = Rates(
            usual.commands if command_rate is None else command_rate,
            usual.publications if publish_rate is None else publish_rate,
        )
        self.rates = None if rates == Rates() else rates
        self.pace = None

    def close(self, reason: Close) -> None:
        """End the connection; what was answered before goes out first, as far as the connection takes it."""
        if self.closed:
            return
        self._flush()
        self.closed = True
        if self.session is None:
            self.node.lobby.leave(self)
        self.outlet.close(reason)

    def admitted(self) -> None:
        """The connect command has had its turn in the lobby: go on with what came behind it."""
        if self._line is not None:
            self._advance()
        elif not self.closed:
            self.outlet.resume_reading()

    def begin(self, session: Session) -> None:
        """The connect command has been accepted; its answer may still have to wait."""
        self.session = session
        self.node.register(self)
        if session.ends_at < inf:
            self.outlet.wake_by(session.ends_at)

    def answered(self, *, ping_seconds: float, pong_seconds: float) -> None:
        """The connect command has been answered."""
        logger.debug("connected", extra={"client": self.id})
        now = self.node.clock()
        first = now + random.uniform(0, ping_seconds)  # noqa: S311 - spread, not secrecy
        self._heartbeat = Heartbeat(ping_seconds, pong_seconds, first)
        aging = self.node.aging
        self.outlet.wake_by(first if aging is None else min(first, aging.due_at(self.id, self.since)))

    def expires_by(self, unix_seconds: float | None) -> float:
        """When what a token grants ends here, on the node's clock: some leeway after the token itself, so that the
        SDK, which asks for a new one at that very moment, has time to bring it.
        """
        if unix_seconds is None:
            return inf
        return self.node.clock() + unix_seconds - time.time() + self.node.options.expiry_leeway_seconds

    def attach(self, topic: str, subscription: Subscription, wish: Wish, done: Attached) -> None:
        """Subscribe to a topic that the session doesn't have yet.

        Args:
            topic: with a policy, as `Node.locate_subscription` finds it.
            subscription: what it is to be.
            wish: what the client says of where it stands; of durable topics only.
            done: called as soon as nothing that is published from then on will be missed, with where a durable topic
                is joined and None for a live one, or with an error if that can't be had now. It sends the answer, and
                then calls the function it is given besides: not before that is anything sent of the topic.
        """
        self.the_session().add(topic, subscription)
        if subscription.ends_at < inf:
            self.outlet.wake_by(subscription.ends_at)
        if subscription.policy.durable:
            attach_durable(self, topic, subscription, wish, done)
        else:
            attach_live(self, topic, subscription, done)

    def subscribe_by_server(
        self, topic: str, subscription: Subscription, data: bytes | None, finished: Callable[[], None]
    ) -> None:
        """See `subscribing.subscribe_by_server`."""
        subscribe_by_server(self, topic, subscription, data, finished)

    @property
    def holding_back(self) -> bool:
        """The answer to connect waits, and with it all that is sent."""
        return self._early is not None

    def settling(self, topic: str) -> None:
        """A subscription is on its way: other commands for its topic wait."""
        self._settling = self._settling or set()
        self._settling.add(topic)

    def settled(self, topic: str) -> None:
        if self._settling is not None:
            self._settling.discard(topic)
            self._settling = self._settling or None
        self._advance()

    def verdict(self, topic: str, subscription: Subscription) -> CommandError | None:
        """Why a subscription that was on its way must not be, after all."""
        if self.closed:
            return CommandError(ErrorCode.INTERNAL, "the connection has ended")
        if self.the_session().subscriptions.get(topic) is not subscription:
            return CommandError(ErrorCode.PERMISSION_DENIED, "unsubscribed by the server meanwhile")
        return None

    def forget(self, topic: str, subscription: Subscription) -> None:
        """A subscription that was on its way has failed."""
        subscriptions = self.the_session().subscriptions
        if subscriptions.get(topic) is subscription:
            del subscriptions[topic]

    def enter_flushed(
        self, topic: str, subscription: Subscription, joining: Joining, joined: Topic, position: Position | None
    ) -> None:
        """Enter as soon as the stand-in has all that has come: within a fan-out the change would lose its message."""
        enter = partial(joined.when_flushed, partial(self._enter, topic, subscription, joining, joined, position))
        if self._early is None:
            enter()
        else:
            self._entries = [*self._entries, enter]

    def _enter(
        self,
        topic: str,
        subscription: Subscription,
        joining: Joining,
        joined: Topic,
        position: Position | None,
    ) -> None:
        """Take the place of the stand-in, and send what it has held. What is read on behind the answer comes first, and
        what was held is among it.
        """
        if self.verdict(topic, subscription) is not None:
            self.node.leave(topic, joining)
            return
        # before the stand-in goes, so that the topic is never without a subscriber
        self.node.hub.add(topic, subscription.policy, self.outlet)
        self.node.leave(topic, joining)
        self.node.membership.entered(self.the_session(), topic, subscription.policy)
        if joining.overflowed:
            self.unsubscribed(topic, UnsubscribeCode.INSUFFICIENT_STATE, UnsubscribeCode.INSUFFICIENT_STATE.text)
        elif position is not None and position.behind is not None:
            held = sum(batch.messages for batch in joining.held)
            self.outlet.begin_behind(topic, subscription.policy, position.behind, position.owed + held)
        for batch in joining.held:
            self.outlet.send_batch(joined, batch)

    def detach(self, topic: str) -> bool:
        """End a subscription whose next publications can't be had; the client is yet to be told. Whether there was
        one, and not just on its way.
        """
        session = self.session
        if session is None or topic not in session.subscriptions or (self._settling and topic in self._settling):
            return False
        return self.drop(topic)

    def unsubscribed(self, topic: str, code: int, reason: str) -> None:
        """End a subscription from the server's side and tell the client."""
        if self.drop(topic):
            self.send(replies.unsubscribe_push(topic, code, reason))

    def drop(self, topic: str) -> bool:
        """End a subscription in silence; whether there was one."""
        session = self.the_session()
        subscription = session.subscriptions.pop(topic, None)
        if subscription is None:
            return False
        self.node.leave(topic, self.outlet)
        self.outlet.forget(topic)  # replies go past what waits, so nothing of the topic must come behind them
        self.node.membership.left(session, topic, subscription.policy)
        return True

    def publishing(self) -> None:
        """A command of this client waits for NATS."""
        self._in_flight += 1

    def published(self) -> None:
        """It does no more."""
        self._in_flight -= 1
        self._advance()

    def hold_back(self) -> None:
        """The answer to connect has to wait for NATS: so does everything else, commands and pushes."""
        self._early = []

    def let_go(self, answer: Callable[[], None]) -> None:
        """Send the answer to connect, and then what had to wait for it: pushes, publications, commands."""
        early, self._early = self._early, None
        answer()
        for line in early or ():
            self.send(line)
        self._enter_all()
        self._advance()

    def _enter_all(self) -> None:
        entries, self._entries = self._entries, ()
        for enter in entries:
            enter()

    # the line

    def _take(self, command: Command) -> None:
        """Run a command, or begin a line behind it."""
        if self._must_wait(command):
            self._line = deque((command,))
            self.outlet.pause_reading()
        else:
            self._run(command)

    def _must_wait(self, command: Command) -> bool:
        if self._early is not None or self._in_flight >= MAX_IN_FLIGHT:
            return True
        if self.session is None:
            return self in self.node.lobby
        request = command.request()
        if self._in_flight and isinstance(request, Unsubscribe):
            return True  # what this client published before comes to it first
        return bool(self._settling) and getattr(request, "channel", None) in self._settling  # type: ignore[operator]

    def _advance(self) -> None:
        """Run what can run of the line. What ends at once calls this from within: whoever runs the line goes on."""
        line = self._line
        if line is None or self._advancing:
            return
        self._advancing = True
        try:
            while line and not self.closed:
                if self._must_wait(line[0]):
                    return
                self._run(line.popleft())
        finally:
            self._advancing = False
        if self._line is line:
            self._line = None
            if not self.closed:
                self.outlet.resume_reading()

    def _run(self, command: Command) -> None:
        request = command.request()
        if self.session is None:
            if isinstance(request, Connect) and command.id:
                HANDLERS[Connect](self, command.id, request)
            else:
                self.close(close(CloseCode.BAD_REQUEST, "the first command must be connect"))
        elif request is None or command is PONG:
            if self._heartbeat is not None and not self._heartbeat.pong():
                self.close(close(CloseCode.BAD_REQUEST, "a pong that nobody asked for"))
        elif command.id == 0 and not isinstance(request, Send):
            self.close(close(CloseCode.BAD_REQUEST, "command without id"))
        else:
            HANDLERS[type(request)](self, command.id, request)

    def _answer_undecodable(self, command: Undecodable) -> None:
        if self.session is None:
            self.close(close(CloseCode.BAD_REQUEST, command.error.detail))
        else:
            self.fail(command.id, command.error)

    def _flush(self) -> None:
        out, self._out = self._out, None
        if out and not self.closed:
            for message in joined(out, FRAME_BYTES):
                self.outlet.send(message)
