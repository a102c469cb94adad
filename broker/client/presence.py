"""The commands that ask who is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from broker.core.permissions import Action
from broker.presence import Counted, Listed
from broker.relay.errors import RelayError
from broker.wire import commands as wire
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.replies import PresenceStatsResult, Result, presence_result

if TYPE_CHECKING:
    from broker.client.client import Client

logger = logging.getLogger(__name__)

T = TypeVar("T")


def presence(client: Client, ident: int, request: wire.Presence) -> None:
    if _may_see(client, ident, request.channel, "presence.channel"):
        asked = client.node.presence.members(request.channel)
        _reply_when_told(client, ident, "presence", asked, _listed)


def presence_stats(client: Client, ident: int, request: wire.PresenceStats) -> None:
    if _may_see(client, ident, request.channel, "presence_stats.channel"):
        asked = client.node.presence.numbers(request.channel)
        _reply_when_told(client, ident, "presence_stats", asked, _counted)


def _may_see(client: Client, ident: int, topic: str, field: str) -> bool:
    """Whether a client may see who is in a topic; it is told, if not."""
    policy = client.node.locate(topic, field)
    if isinstance(policy, CommandError):
        client.fail(ident, policy)
    elif not policy.presence:
        client.fail(ident, CommandError(ErrorCode.NOT_AVAILABLE, f"{field}: its policy has no presence"))
    elif not client.the_session().may_read(Action.PRESENCE, topic, policy.read):
        client.fail(ident, CommandError(ErrorCode.PERMISSION_DENIED))
    else:
        return True
    return False


def _listed(listed: Listed) -> Result:
    """A client is told what is known: it could do nothing about a node that has not answered."""
    return presence_result(listed.members)


def _counted(counted: Counted) -> Result:
    return PresenceStatsResult(counted.clients, counted.users)


def _reply_when_told(
    client: Client, ident: int, method: str, asked: asyncio.Task[T | CommandError], result: Callable[[T], Result]
) -> None:
    client.publishing()

    def told(task: asyncio.Task[T | CommandError]) -> None:
        if task.cancelled():
            return  # the node ends
        problem = task.exception()
        if isinstance(problem, RelayError):
            client.fail(ident, CommandError(ErrorCode.INTERNAL, f"the other nodes can't be asked: {problem}"))
        elif problem is not None:
            logger.error("%s failed", method, exc_info=problem)
            client.fail(ident, CommandError(ErrorCode.INTERNAL))
        elif isinstance(outcome := task.result(), CommandError):
            client.fail(ident, outcome)
        else:
            client.reply(ident, method, result(outcome))
        client.published()

    asked.add_done_callback(told)
