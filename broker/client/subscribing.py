"""The commands that begin, keep and end a subscription."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from broker.admission import Position, Wish
from broker.auth.tokens import Rejected, TokenProblem
from broker.client.answers import send_rest, subscribe_result
from broker.core.permissions import Access, Action
from broker.core.policy import TopicPolicy
from broker.core.session import Subscription
from broker.wire import commands as wire
from broker.wire.codes import Close, CloseCode, CommandError, ErrorCode, close
from broker.wire.replies import EMPTY, SubRefreshResult, raw, subscribe_push

if TYPE_CHECKING:
    from broker.client.client import Client


REJECT_UNRECOVERED = 2
"""The flag by which a client asks for error 112 where recovery is not possible."""


def subscribe(client: Client, ident: int, request: wire.Subscribe) -> None:
    session = client.the_session()
    topic = request.channel
    policy = client.node.locate_subscription(topic, "subscribe.channel")
    if isinstance(policy, CommandError):
        client.fail(ident, policy)
        return
    if topic in session.subscriptions:
        client.fail(ident, CommandError(ErrorCode.ALREADY_SUBSCRIBED))
        return
    limit = client.node.options.topics_per_connection
    if len(session.subscriptions) >= limit:
        client.fail(ident, CommandError(ErrorCode.LIMIT_EXCEEDED, f"{limit} topics are subscribed already"))
        return
    expires_at: float | None = None
    subscription = Subscription(policy)
    if request.token:
        outcome = _subscription_token(client, topic, request.token, policy)
        if isinstance(outcome, Close):
            client.close(outcome)
            return
        if isinstance(outcome, CommandError):
            client.fail(ident, outcome)
            return
        subscription, expires_at = outcome
    granted = Action.SUBSCRIBE in subscription.actions
    if not session.may(Action.SUBSCRIBE, topic, policy.subscribe, granted=granted):
        client.fail(ident, CommandError(ErrorCode.PERMISSION_DENIED))
        return

    wish = Wish(request.recover, request.offset, request.epoch, strict=bool(request.flag & REJECT_UNRECOVERED))
    client.attach(topic, subscription, wish, partial(_answer, client, ident, request, expires_at))


def _answer(
    client: Client,
    ident: int,
    request: wire.Subscribe,
    expires_at: float | None,
    outcome: Position | CommandError | None,
    enter: Callable[[], None],
) -> None:
    if isinstance(outcome, CommandError):
        client.fail(ident, outcome)
        return
    result = subscribe_result(outcome, was_recovering=request.recover)
    result.expires = expires_at is not None
    result.ttl = client.node.ttl(expires_at)
    client.reply(ident, "subscribe", result)
    send_rest(client, outcome)
    enter()


def subscribe_by_server(
    client: Client, topic: str, subscription: Subscription, data: bytes | None, finished: Callable[[], None]
) -> None:
    """Subscribe a client that has not asked for it, and tell it so.

    Args:
        client: who is subscribed.
        topic: one that it is not subscribed to.
        subscription: what it is to be.
        data: JSON that the client is told besides.
        finished: called when it is done, or can't be.
    """

    def done(outcome: Position | CommandError | None, enter: Callable[[], None]) -> None:
        if not isinstance(outcome, CommandError):
            result = subscribe_result(outcome)
            result.data = raw(data)
            client.send(subscribe_push(topic, result))
            send_rest(client, outcome)
            enter()
        elif outcome.code is ErrorCode.INTERNAL:
            # it can't be had now; a client that comes back is better than one that waits for nothing
            client.close(close(CloseCode.INSUFFICIENT_STATE, outcome.message))
        finished()

    client.attach(topic, subscription, Wish(server_side=True), done)


def unsubscribe(client: Client, ident: int, request: wire.Unsubscribe) -> None:
    client.drop(request.channel)
    client.reply(ident, "unsubscribe", EMPTY)


def sub_refresh(client: Client, ident: int, request: wire.SubRefresh) -> None:
    session = client.the_session()
    topic = request.channel
    current = session.subscriptions.get(topic)
    if current is None:
        client.fail(ident, CommandError(ErrorCode.PERMISSION_DENIED, "sub_refresh.channel: not subscribed"))
        return
    if not request.token:
        client.fail(ident, CommandError(ErrorCode.BAD_REQUEST, "sub_refresh.token: missing"))
        return
    outcome = _subscription_token(client, topic, request.token, current.policy)
    if isinstance(outcome, Close):
        client.close(outcome)
        return
    if isinstance(outcome, CommandError):
        client.fail(ident, outcome)
        return
    renewed, expires_at = outcome
    if current.policy.subscribe is Access.NOBODY or Action.SUBSCRIBE not in renewed.actions:
        client.fail(ident, CommandError(ErrorCode.PERMISSION_DENIED))
        return
    current.actions, current.info = renewed.actions, renewed.info
    session.extend(topic, renewed.ends_at)
    if renewed.ends_at < inf:
        client.outlet.wake_by(renewed.ends_at)
    client.reply(
        ident,
        "sub_refresh",
        SubRefreshResult(expires=expires_at is not None, ttl=client.node.ttl(expires_at)),
    )


def _subscription_token(
    client: Client, topic: str, token: str, policy: TopicPolicy
) -> tuple[Subscription, float | None] | CommandError | Close:
    """What a subscription token grants, with when it expires (Unix seconds)."""
    claims = client.node.tokens.subscription(token)
    if isinstance(claims, Rejected):
        if claims.problem is TokenProblem.EXPIRED:
            return CommandError(ErrorCode.TOKEN_EXPIRED)
        return CommandError(ErrorCode.PERMISSION_DENIED, claims.reason)
    if claims.topic != topic:
        return close(CloseCode.INVALID_TOKEN, "channel: the token is for another one")
    if claims.user != client.the_session().user:
        return close(CloseCode.INVALID_TOKEN, "sub: the token is for another user")
    if claims.client not in (None, client.id):
        return close(CloseCode.INVALID_TOKEN, "client: the token is for another one")
    subscription = Subscription(
        policy,
        info=claims.info,
        ends_at=client.expires_by(claims.expires_at),
        actions=claims.actions,
    )
    return subscription, claims.expires_at
