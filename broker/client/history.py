"""The history command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.permissions import Action
from broker.core.policy import TopicPolicy
from broker.wire import commands as wire
from broker.wire.codes import CommandError, ErrorCode
from broker.wire.replies import HistoryResult

if TYPE_CHECKING:
    from broker.client.client import Client


def history(client: Client, ident: int, request: wire.History) -> None:
    topic = request.channel
    policy = client.node.locate_subscription(topic, "history.channel")
    if isinstance(policy, CommandError):
        client.fail(ident, policy)
        return
    if not policy.durable:
        client.fail(ident, CommandError(ErrorCode.NOT_AVAILABLE, "history.channel: its policy keeps no history"))
        return
    if not client.the_session().may_read(Action.HISTORY, topic, policy.read):
        client.fail(ident, CommandError(ErrorCode.PERMISSION_DENIED))
        return
    client.publishing()
    client.node.durability.run(_answer(client, ident, policy, request))


async def _answer(client: Client, ident: int, policy: TopicPolicy, request: wire.History) -> None:
    since = None if request.since is None else (request.since.offset, request.since.epoch)
    outcome: HistoryResult | CommandError = CommandError(ErrorCode.INTERNAL)
    try:
        outcome = await client.node.durability.history(
            policy, request.channel, limit=request.limit, since=since, reverse=request.reverse, field="history"
        )
    finally:
        if isinstance(outcome, HistoryResult):
            client.reply(ident, "history", outcome)
        else:
            client.fail(ident, outcome)
        client.published()
