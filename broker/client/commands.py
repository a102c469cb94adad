"""What each command of a client does."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

from broker import __version__
from broker.auth.tokens import ConnectionClaims, Rejected, ServerSubscription, TokenProblem
from broker.core.permissions import Access, Action
from broker.core.policy import TopicPolicy
from broker.core.session import Session, Subscription
from broker.relay.connection import Confirmation
from broker.wire import commands as wire
from broker.wire.codes import Close, CloseCode, CommandError, ErrorCode, close
from broker.wire.payload import one_line
from broker.wire.replies import (
    EMPTY,
    ConnectResult,
    RefreshResult,
    SubRefreshResult,
    SubscribeResult,
    raw,
)

if TYPE_CHECKING:
    from broker.client.client import Client


def connect(client: Client, ident: int, request: wire.Connect) -> None:
    if client.session is not None:
        client.close(close(CloseCode.BAD_REQUEST, "connected already"))
        return
    claims = _identify(client, request.token)
    if isinstance(claims, CommandError):
        client.node.metrics.connects.labels("expired").inc()
        client.fail(ident, claims)
        return
    if isinstance(claims, Close):
        client.node.metrics.connects.labels("refused").inc()
        client.close(claims)
        return
    options = client.node.options
    session = Session(
        client.id,
        claims.user,
        info=claims.info,
        ends_at=client.expires_by(claims.expires_at),
        capabilities=claims.capabilities,
    )
    wanted = _server_side(client, claims)
    if isinstance(wanted, CommandError):
        client.node.metrics.connects.labels("refused").inc()
        client.fail(ident, wanted)
        return
    client.begin(session, ping_seconds=options.ping_interval_seconds, pong_seconds=options.pong_timeout_seconds)

    def answer() -> None:
        client.node.metrics.connects.labels("ok").inc()
        client.reply(
            ident,
            "connect",
            ConnectResult(
                client=client.id,
                version=__version__,
                expires=claims.expires_at is not None,
                ttl=client.node.ttl(claims.expires_at),
                subs={one.topic: SubscribeResult(data=raw(one.data)) for one, _ in wanted},
                ping=options.ping_seconds,
                pong=True,
                node=client.node.name,
            ),
        )

    _attach_all(client, wanted, answer)


def _identify(client: Client, token: str) -> ConnectionClaims | CommandError | Close:
    if not token:
        if client.node.options.anonymous:
            return _ANONYMOUS
        return close(CloseCode.BAD_REQUEST, "connect.token: missing")
    claims = client.node.tokens.connection(token)
    if isinstance(claims, Rejected):
        if claims.problem is TokenProblem.EXPIRED:
            return CommandError(ErrorCode.TOKEN_EXPIRED)
        return close(CloseCode.INVALID_TOKEN, claims.reason)
    if not claims.user and not client.node.options.anonymous:
        return close(CloseCode.INVALID_TOKEN, "sub: missing, and the anonymous are not let in")
    return claims


_ANONYMOUS = ConnectionClaims(
    user="",
    expires_at=None,
    info=None,
    subscriptions=(),
    capabilities=(),
    token_id=None,
    issued_at=None,
)

_Wanted = list[tuple[ServerSubscription, TopicPolicy]]


def _server_side(client: Client, claims: ConnectionClaims) -> _Wanted | CommandError:
    """What the server subscribes the client to: as its token says, and its personal topic."""
    subscriptions = {one.topic: one for one in claims.subscriptions}
    personal = client.node.personal_topic(claims.user)
    if personal is not None and personal not in subscriptions:
        subscriptions[personal] = ServerSubscription(personal, None, None)
    limit = client.node.options.topics_per_connection
    if len(subscriptions) > limit:
        return CommandError(ErrorCode.LIMIT_EXCEEDED, f"the token names more than {limit} topics")
    wanted: _Wanted = []
    for topic, subscription in subscriptions.items():
        policy = client.node.locate(topic)
        if isinstance(policy, CommandError):
            return policy
        wanted.append((subscription, policy))
    return wanted


def _attach_all(client: Client, wanted: _Wanted, answer: Callable[[], None]) -> None:
    """Subscribe to all, then answer; when one of them can't be had now, the client has to come again."""
    remaining = {one.topic for one, _ in wanted}
    if not remaining:
        answer()
        return
    client.connecting(waiting=True)

    def joined(topic: str, error: CommandError | None) -> None:
        remaining.discard(topic)
        if error is not None:
            client.close(close(CloseCode.INSUFFICIENT_STATE, error.message))
        elif not remaining:
            answer()
            client.connecting(waiting=False)

    for one, policy in wanted:
        subscription = Subscription(policy, info=one.info, server_side=True)
        client.attach(one.topic, subscription, lambda error, topic=one.topic: joined(topic, error))  # type: ignore[misc]


def subscribe(client: Client, ident: int, request: wire.Subscribe) -> None:
    session = _session(client)
    topic = request.channel
    policy = client.node.locate(topic, "subscribe.channel")
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

    def done(error: CommandError | None) -> None:
        if error is not None:
            client.fail(ident, error)
            return
        client.reply(
            ident,
            "subscribe",
            SubscribeResult(
                expires=expires_at is not None,
                ttl=client.node.ttl(expires_at),
                was_recovering=request.recover,
            ),
        )

    client.attach(topic, subscription, done)


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
    if claims.user != _session(client).user:
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


def unsubscribe(client: Client, ident: int, request: wire.Unsubscribe) -> None:
    client.drop(request.channel)
    client.reply(ident, "unsubscribe", EMPTY)


def publish(client: Client, ident: int, request: wire.Publish) -> None:
    session = _session(client)
    topic = request.channel
    policy = client.node.locate(topic, "publish.channel")
    if isinstance(policy, CommandError):
        client.fail(ident, policy)
        return
    data = bytes(request.data)
    if not data:
        client.fail(ident, CommandError(ErrorCode.BAD_REQUEST, "publish.data: missing"))
        return
    subscription = session.subscriptions.get(topic)
    granted = subscription is not None and Action.PUBLISH in subscription.actions
    if not session.may(Action.PUBLISH, topic, policy.publish, granted=granted):
        client.fail(ident, CommandError(ErrorCode.PERMISSION_DENIED))
        return
    outcome = client.node.publish(
        policy, topic, one_line(data), info=session.client_info(topic), source="websocket", field="publish.data"
    )
    if isinstance(outcome, CommandError):
        client.fail(ident, outcome)
        return
    client.publishing()

    def confirmed(future: Confirmation) -> None:
        error = client.node.publish_error(future)

        def answer() -> None:
            if error is None:
                client.reply(ident, "publish", EMPTY)
            else:
                client.fail(ident, error)
            client.published()

        # whoever publishes where it is subscribed sees its own publication first
        here = client.node.hub.topics.get(topic)
        if here is None:
            answer()
        else:
            here.when_flushed(answer)

    outcome.add_done_callback(confirmed)


def read(client: Client, ident: int, request: wire.Presence | wire.PresenceStats | wire.History) -> None:
    """Presence and history commands: no policy has either yet."""
    policy = client.node.locate(request.channel, "channel")
    client.fail(ident, policy if isinstance(policy, CommandError) else CommandError(ErrorCode.NOT_AVAILABLE))


def rpc(client: Client, ident: int, request: wire.Rpc) -> None:
    del request
    client.fail(ident, CommandError(ErrorCode.NOT_AVAILABLE, "rpc: nothing handles it here"))


def send(client: Client, ident: int, request: wire.Send) -> None:
    del ident, request
    client.close(close(CloseCode.NOT_AVAILABLE, "send: nothing handles it here"))


def refresh(client: Client, ident: int, request: wire.Refresh) -> None:
    session = _session(client)
    if not request.token:
        client.fail(ident, CommandError(ErrorCode.BAD_REQUEST, "refresh.token: missing"))
        return
    claims = client.node.tokens.connection(request.token)
    if isinstance(claims, Rejected):
        if claims.problem is TokenProblem.EXPIRED:
            client.fail(ident, CommandError(ErrorCode.TOKEN_EXPIRED))
        else:
            client.close(close(CloseCode.INVALID_TOKEN, claims.reason))
        return
    if claims.user != session.user:
        client.close(close(CloseCode.INVALID_TOKEN, "sub: the token is for another user"))
        return
    session.ends_at = client.expires_by(claims.expires_at)
    session.capabilities = claims.capabilities
    session.info = claims.info
    if session.ends_at < inf:
        client.outlet.wake_by(session.ends_at)
    client.reply(
        ident,
        "refresh",
        RefreshResult(
            client=client.id,
            version=__version__,
            expires=claims.expires_at is not None,
            ttl=client.node.ttl(claims.expires_at),
        ),
    )


def sub_refresh(client: Client, ident: int, request: wire.SubRefresh) -> None:
    session = _session(client)
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


def _session(client: Client) -> Session:
    session = client.session
    assert session is not None  # noqa: S101 - nothing but connect runs without one
    return session


HANDLERS: dict[type, Callable[[Client, int, Any], None]] = {
    wire.Connect: connect,
    wire.Subscribe: subscribe,
    wire.Unsubscribe: unsubscribe,
    wire.Publish: publish,
    wire.Presence: read,
    wire.PresenceStats: read,
    wire.History: read,
    wire.Rpc: rpc,
    wire.Refresh: refresh,
    wire.SubRefresh: sub_refresh,
    wire.Send: send,
}
