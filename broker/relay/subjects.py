"""The NATS subjects of a deployment: `<prefix>.<policy>.live.<topic>` for messages, `<prefix>.ctl.…` between nodes."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.topic import topic_problem

_LITERAL = str.maketrans({"%": "%25", "*": "%2A", ">": "%3E"})


@dataclass(frozen=True, slots=True)
class Subjects:
    """Makes subjects. Two deployments with different prefixes share a NATS server without seeing each other."""

    prefix: str

    def live(self, policy: str, topic: str) -> str:
        """Where a policy's messages come out for the nodes."""
        return f"{self.prefix}.{policy}.live.{topic}"

    def stored(self, policy: str, topic: str) -> str:
        """Where publications of a durable policy go into its stream; the stream republishes them to `live`."""
        return f"{self.prefix}.{policy}.in.{topic}"

    def stream(self, policy: str) -> str:
        """A policy's stream. Stream names know neither dots nor, by custom, small letters."""
        return f"{self.prefix}_{policy}".replace(".", "_").upper()

    def topic(self, policy: str, live: bytes) -> str | None:
        """The topic of a message on a policy's live subject; None where the name is not sound. NATS takes names that
        topics can't have, and whoever publishes past our API can use them.
        """
        try:
            name = live[len(self.live(policy, "")) :].decode()
        except UnicodeDecodeError:
            return None
        return name if topic_problem(name) is None else None

    @property
    def hello(self) -> str:
        """Where nodes tell that they are there."""
        return f"{self.prefix}.ctl.hello"

    @property
    def requests(self) -> str:
        """Where what concerns every node is asked."""
        return f"{self.prefix}.ctl.all"

    def replies(self, uid: str) -> str:
        """What NATS answers a node with arrives below this."""
        return f"{self.prefix}.ctl.reply.{uid}"

    def members(self, topic: str) -> str:
        """Where nodes tell each other who comes to a topic and who goes. A wildcard subscription is a topic of its own
        here: what it matches is none of its business.
        """
        return f"{self.prefix}.ctl.member.{topic.translate(_LITERAL)}"

    def listings(self, uid: str) -> str:
        """Where a node that has asked for a topic's members is sent those of others."""
        return f"{self.prefix}.ctl.listing.{uid}"

    def answers(self, uid: str) -> str:
        """Where a node is answered."""
        return f"{self.prefix}.ctl.answer.{uid}"
