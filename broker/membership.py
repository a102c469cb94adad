"""Who is a member of the topics with members here: kept, told to the other nodes, and told to the subscribers.

A node tells the others who comes to it and who goes, and tells its subscribers what it hears, of itself as of the
others. So joins and leaves keep their order with the publications of the topic, and are the same on all nodes.

What was said while a connection was broken is lost. Whoever has been away lists its members, and asks the others for
theirs: what has changed meanwhile comes out as joins and leaves. Who does not answer has no members any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from broker.core.members import Members
from broker.core.policy import TopicPolicy
from broker.core.roster import Roster
from broker.core.session import Session
from broker.relay.connection import Confirmation, NatsConnection
from broker.relay.control import Peer
from broker.relay.errors import RelayLostError, RelayTooLargeError, RelayUnavailableError
from broker.relay.members import (
    HEAD_BYTES,
    PART_BYTES,
    Event,
    Joined,
    Left,
    Listing,
    decode_event,
    decode_members,
    encode,
    entry,
    list_members,
)
from broker.relay.subjects import Subjects
from broker.wire.replies import info_json, join_push, leave_push

logger = logging.getLogger(__name__)

BUNCH_SECONDS = 0.2
"""Reasons to ask the others for their members come in bunches; they are waited for."""
ANSWER_SECONDS = 3.0
"""Who has not listed its members so long after it was asked has none."""
SLICE_TOPICS = 64
"""Topics that are asked for in one turn of the event loop."""
SLICE_LEAVES = 128
"""Leaves that are told in one turn of it."""


class Membership:
    """The members of this node, and what it knows of those of the others.

    Args:
        connection: to NATS.
        subjects: how subjects are named.
        uid: this node's.
        tell: takes a topic and a line for all its subscribers here.
    """

    def __init__(
        self, connection: NatsConnection, subjects: Subjects, uid: str, tell: Callable[[str, bytes], None]
    ) -> None:
        self.members = Members()
        """Of this node."""
        self._connection = connection
        self._subjects = subjects
        self._uid = uid
        self._tell = tell
        self._rosters: dict[str, Roster] = {}
        """Of the topics that tell joins and leaves and have members here: of all nodes."""
        self._unsaid: set[str] = set()
        """Of those that have no members here any more: where the others may not have heard so."""
        self._reconciling: asyncio.Task[None] | None = None
        self._reason = False
        """There is one to reconcile that no question has been sent for yet."""
        self._burying: dict[str, asyncio.Task[None]] = {}
        """The nodes whose members are leaving for them."""

    def start(self) -> None:
        self._connection.subscribe(self._subjects.listings(self._uid), self._on_listing)

    async def stop(self) -> None:
        tasks = [*self._burying.values(), *filter(None, (self._reconciling,))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # this node's own members

    def entered(self, session: Session, topic: str, policy: TopicPolicy) -> None:
        """A client's subscription has been answered. Where the policy tells it, NATS has the interest in the topic."""
        if not policy.keeps_members:
            return
        client = session.client
        info = info_json(session.client_info(topic))
        self.members.enter(topic, client, session.user, entry(client, info))
        if not policy.join_leave:
            return
        if topic in self._rosters:
            self._send(self._subjects.members(topic), encode(Joined(self._uid, client, msgspec.Raw(info))))
        else:
            self._rosters[topic] = Roster()
            self._list(topic, quiet=True)  # which says that it has come, too

    def left(self, session: Session, topic: str, policy: TopicPolicy) -> None:
        """A client's subscription has ended; perhaps before it was answered."""
        if not policy.keeps_members or not self.members.leave(topic, session.client):
            return
        if not policy.join_leave:
            return
        said = self._send(self._subjects.members(topic), encode(Left(self._uid, session.client)))
        if topic not in self.members:
            del self._rosters[topic]
            self._remember(topic, said)

    # what nodes say

    def heard(self, topic: str, _subject: bytes, payload: bytes, _block: bytes | None) -> None:
        """A node has said something on a topic's subject."""
        event = decode_event(payload)
        if isinstance(event, Listing) and event.asks and event.uid != self._uid:
            self._answer(topic, event)
        self._note(topic, event)

    def _on_listing(self, _subject: bytes, payload: bytes, _block: bytes | None) -> None:
        event = decode_event(payload)
        assert isinstance(event, Listing)  # noqa: S101 - nodes answer with nothing else
        self._note(event.topic, event)

    def _note(self, topic: str, event: Event) -> None:
        roster = self._rosters.get(topic)
        if roster is None:
            return  # the last member here has left, the interest lingers
        if isinstance(event, Joined):
            info = bytes(event.info)
            if roster.joined(event.uid, event.client, info):
                self._tell(topic, join_push(topic, info))
        elif isinstance(event, Left):
            known = roster.left(event.uid, event.client)
            if known is not None:
                self._tell(topic, leave_push(topic, known))
        else:
            members = {client: bytes(info) for client, info in decode_members(event.members).items()}
            changes = roster.listed(event.uid, members, first=event.first, last=event.last)
            if event.asks or not event.quiet:
                for info in changes.came:
                    self._tell(topic, join_push(topic, info))
            for info in changes.went:
                self._tell(topic, leave_push(topic, info))

    def _answer(self, topic: str, question: Listing) -> None:
        if question.quiet and topic not in self.members:
            return  # it knows nothing of us that would have to be corrected
        self._send_listing(self._subjects.listings(question.uid), topic, asks=False, quiet=question.quiet)

    def _list(self, topic: str, *, quiet: bool) -> None:
        self._send_listing(self._subjects.members(topic), topic, asks=True, quiet=quiet)

    def _send_listing(self, subject: str, topic: str, *, asks: bool, quiet: bool) -> None:
        part_bytes = min(PART_BYTES, self._connection.max_payload - HEAD_BYTES)
        entries = self.members.entries(topic)
        for part in list_members(self._uid, topic, entries, asks=asks, quiet=quiet, part_bytes=part_bytes):
            self._send(subject, part)

    def _send(self, subject: str, payload: bytes) -> Confirmation | None:
        try:
            return self._connection.publish(subject, payload)
        except RelayUnavailableError:
            # without a connection there is nothing to do: the next one is a reason by itself
            if self._connection.connected:
                self.reconcile()
        except RelayTooLargeError as error:
            logger.warning("the other nodes can't be told of a member: %s", error)
        return None

    def _remember(self, topic: str, said: Confirmation | None) -> None:
        """A topic's last member here has left. It will not be listed any more, so if this connection ends before NATS
        has been told, the next one has to say so.
        """

        def confirmed(outcome: Confirmation) -> None:
            if isinstance(outcome.exception(), RelayLostError):
                self._unsaid.add(topic)

        if said is not None:
            said.add_done_callback(confirmed)
        else:
            self._unsaid.add(topic)
            if self._connection.connected:
                self.reconcile()

    # nodes come back, and don't

    def reconcile(self) -> None:
        """Something may have been missed, by this node or of it: list the members here, ask the others for theirs."""
        if not self._rosters and not self._unsaid:
            return
        self._reason = True
        if self._reconciling is None:
            self._reconciling = asyncio.create_task(self._reconcile())

    async def _reconcile(self) -> None:
        try:
            while self._reason:
                await asyncio.sleep(BUNCH_SECONDS)
                self._reason = False
                if not self._connection.connected:
                    return
                await self._ask_all()
                await asyncio.sleep(ANSWER_SECONDS)
                if not self._reason and self._connection.connected:
                    await self._drop_silent()
        finally:
            self._reconciling = None

    async def _ask_all(self) -> None:
        unsaid, self._unsaid = self._unsaid, set()
        for number, topic in enumerate(unsaid):
            if topic not in self._rosters:
                (nobody,) = list_members(self._uid, topic, (), asks=False, quiet=False)
                self._remember(topic, self._send(self._subjects.members(topic), nobody))
            if number % SLICE_TOPICS == SLICE_TOPICS - 1:
                await asyncio.sleep(0)
        for number, (topic, roster) in enumerate(tuple(self._rosters.items())):
            if self._rosters.get(topic) is roster:
                roster.doubt()
                self._list(topic, quiet=False)
            if number % SLICE_TOPICS == SLICE_TOPICS - 1:
                await asyncio.sleep(0)

    async def _drop_silent(self) -> None:
        for number, (topic, roster) in enumerate(tuple(self._rosters.items())):
            doubtful = roster.doubtful()
            if doubtful and not roster.is_sure_of(self._uid):
                self._reason = True  # it has not even heard itself
                continue
            for node in doubtful:
                await self._drop(topic, roster, node)
            if number % SLICE_TOPICS == SLICE_TOPICS - 1:
                await asyncio.sleep(0)

    async def _drop(self, topic: str, roster: Roster, node: str) -> None:
        """Let the members of a node leave, as far as it is in doubt whether there are any."""
        while self._rosters.get(topic) is roster and (infos := roster.drop(node, SLICE_LEAVES)):
            for info in infos:
                self._tell(topic, leave_push(topic, info))
            await asyncio.sleep(0)

    def gone(self, peer: Peer) -> None:
        """A node has ended: its members have left, all that have not been seen to leave."""
        if peer.uid not in self._burying:
            task = self._burying[peer.uid] = asyncio.create_task(self._bury(peer.uid))
            task.add_done_callback(lambda _: self._burying.pop(peer.uid))

    async def _bury(self, node: str) -> None:
        for number, (topic, roster) in enumerate(tuple(self._rosters.items())):
            roster.doubt(node)
            await self._drop(topic, roster, node)
            if number % SLICE_TOPICS == SLICE_TOPICS - 1:
                await asyncio.sleep(0)

    def back(self, peer: Peer) -> None:
        """A node that was taken for dead is alive."""
        if peer.uid in self._burying:
            self._burying[peer.uid].cancel()
        self.reconcile()
