"""The NATS subjects of a deployment: `<prefix>.<policy>.live.<topic>` for messages, `<prefix>.ctl.…` between nodes."""

from __future__ import annotations

from dataclasses import dataclass


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

    def answers(self, uid: str) -> str:
        """Where a node is answered."""
        return f"{self.prefix}.ctl.answer.{uid}"
