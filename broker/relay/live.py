"""Live topics: at most once, through core NATS.

A node holds one NATS subscription for each topic with subscribers here, however many they are, and one for each
wildcard, which stands in the subject as a topic does and is called one here; and where the policy tells who comes and
goes a second one for that. The first subscriber makes them, the last one's leaving ends them some seconds later, so
that a reloaded page does not churn interest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from broker.relay.connection import Confirmation, NatsConnection
from broker.relay.parser import Sink
from broker.relay.subjects import Subjects

LINGER_SECONDS = 5.0


class _Interest:
    __slots__ = ("confirmed", "subjects")

    def __init__(self, subjects: tuple[str, ...], confirmed: Confirmation) -> None:
        self.subjects = subjects
        self.confirmed = confirmed


class LiveRelay:
    """Carries live topics between this node and NATS.

    Args:
        connection: to NATS.
        subjects: how subjects are named.
        deliver: takes a topic's name, and the subject, payload and header block of each message of it that NATS brings.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        connection: NatsConnection,
        subjects: Subjects,
        deliver: Callable[[str, bytes, bytes, bytes | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._subjects = subjects
        self._deliver = deliver
        self._clock = clock
        self._interests: dict[str, _Interest] = {}
        self._leaving: dict[str, float] = {}

    def publish(self, policy: str, topic: str, data: bytes, headers: Mapping[str, str] | None) -> Confirmation:
        """Hand a message to NATS; see `NatsConnection.publish`."""
        return self._connection.publish(self._subjects.live(policy, topic), data, headers)

    def want(self, policy: str, topic: str, *, members: Sink | None = None) -> Confirmation | None:
        """A subscriber wants a topic's messages from now on.

        Args:
            policy: the topic's.
            topic: its name.
            members: takes what nodes tell each other about its members; not wanted without.

        Returns:
            None when NATS has the interest already; else done when it has, so that nothing published after that is
            missed. Everybody who comes meanwhile waits for the same future.
        """
        self._leaving.pop(topic, None)
        interest = self._interests.get(topic)
        if interest is None:
            sinks: dict[str, Sink] = {self._subjects.live(policy, topic): partial(self._deliver, topic)}
            if members is not None:
                sinks[self._subjects.members(topic)] = members
            for subject, sink in sinks.items():
                confirmed = self._connection.subscribe(subject, sink)  # of one turn, so that they share it
            confirmed.add_done_callback(partial(self._confirmed, topic))
            interest = self._interests[topic] = _Interest(tuple(sinks), confirmed)
        if not _succeeded(interest.confirmed):
            return interest.confirmed
        # made in an earlier life perhaps: then this one's server has it when it has all subscriptions
        return None if _succeeded(self._connection.restored) else self._connection.restored

    def _confirmed(self, topic: str, confirmed: Confirmation) -> None:
        interest = self._interests.get(topic)
        if interest is not None and interest.confirmed is confirmed and not _succeeded(confirmed):
            # whoever waited is told and may ask again; then it is made anew
            self._leaving.pop(topic, None)
            self._end(topic)

    def release(self, topic: str) -> None:
        """Nobody here wants a topic any more."""
        if topic in self._interests:
            self._leaving[topic] = self._clock() + LINGER_SECONDS

    def sweep(self) -> None:
        """Drop the interests that have lingered long enough. Call it about every second."""
        now = self._clock()
        while self._leaving:
            topic, when = next(iter(self._leaving.items()))  # in the order of release, so the first is the earliest
            if when > now:
                return
            del self._leaving[topic]
            self._end(topic)

    def _end(self, topic: str) -> None:
        for subject in self._interests.pop(topic).subjects:
            self._connection.unsubscribe(subject)


def _succeeded(future: Confirmation) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
