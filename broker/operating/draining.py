"""Draining a node by hand, whichever node is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from broker.node import Node


class Drainable(Protocol):
    """What closes the connections of a node."""

    @property
    def connections(self) -> int:
        """How many there are."""

    def begin(self) -> None:
        """Take nobody new, and let those go who are there."""

    def cancel(self) -> bool:
        """Take it back; False where that can't be."""


class Drain(msgspec.Struct):
    node: str = ""
    """The name or uid of the one that is meant; all answer."""
    cancel: bool = False


class DrainAnswer(msgspec.Struct):
    uid: str
    node: str
    """Its name."""
    meant: bool
    """The answer is that of the node to drain; the others only say that they are there."""
    draining: bool = False
    connections: int = 0
    """How many are left."""
    final: bool = False
    """It can't be taken back: the node has been told to end."""


class DrainHere:
    """The drain of one node."""

    def __init__(self, node: Node, drain: Drainable) -> None:
        self._node = node
        self._drain = drain
        node.operations.offer("drain", Drain, self._do)

    async def _do(self, operation: Drain) -> DrainAnswer:
        node = self._node
        if operation.node not in (node.uid, node.name):
            return DrainAnswer(node.uid, node.name, meant=False)
        refused = False
        if operation.cancel:
            refused = not self._drain.cancel()
        else:
            self._drain.begin()
        return DrainAnswer(
            node.uid,
            node.name,
            meant=True,
            draining=node.draining,
            connections=self._drain.connections,
            final=refused,
        )
