"""The NATS subjects of a deployment: `<prefix>.<policy>.live.<topic>` for messages, `<prefix>.ctl.…` between nodes."""

from __future__ import annotations

from dataclasses import dataclass

_LITERAL = str.maketrans({"%": "%25", "*": "%2A", ">": "%3E"})


@dataclass(frozen=True, slots=True)
class Subjects:
    """Makes subjects. Two deployments with different prefixes share a NATS server without seeing each other."""

    prefix: str

    def live(self, policy: str, topic: str) -> str:
        """Where a policy's messages come out for the nodes."""
        return f"{self.prefix}.{policy}.live.{topic}"

    @property
    def hello(self) -> str:
        """Where nodes tell that they are there."""
        return f"{self.prefix}.ctl.hello"

    @property
    def requests(self) -> str:
        """Where what concerns every node is asked."""
        return f"{self.prefix}.ctl.all"

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
