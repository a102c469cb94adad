"""The commands by which a client comes in and stays in: connect and refresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from broker import __version__
from broker.admission import Position, Wish
from broker.auth.tokens import MAX_TOKEN_BYTES, ConnectionClaims, Rejected, ServerSubscription, TokenProblem
from broker.client.answers import send_rest, subscribe_result
from broker.core.policy import TopicPolicy
from broker.core.session import Session, Subscription
from broker.wire import commands as wire
from broker.wire.codes import Close, CloseCode, CommandError, ErrorCode, close
from broker.wire.replies import ConnectResult, RefreshResult, SubscribeResult, raw

if TYPE_CHECKING:
    from broker.client.client import Client


def connect(client: Client, ident: int, request: wire.Connect) -> None:
    if client.session is not None:
        client.close(close(CloseCode.BAD_REQUEST, "connected already"))
        return
    refusal = _obvious(client, request.token)
    if refusal is not None:
        client.node.metrics.connects.labels("refused").inc()
        client.close(refusal)
        return
    if not client.node.lobby.enter(client, partial(_admit, client, ident, request)):
        client.node.metrics.connects.labels("waiting_room").inc()
        client.close(close(CloseCode.TOO_MANY_REQUESTS, "this node's waiting room is full"))


def _admit(client: Client, ident: int, request: wire.Connect) -> None:
    """Its turn has come: look at the token, and let it in."""
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
    limit = options.connections_per_user
    if limit is not None and claims.user and client.node.connections_of(claims.user) >= limit:
        client.node.metrics.connects.labels("user").inc()
        detail = f"limits.connections_per_user: this node takes {limit} of one user"
        client.close(close(CloseCode.CONNECTION_LIMIT, detail))
        return
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
    client.begin(session)

    def answer(positions: Mapping[str, Position | None]) -> None:
        client.node.metrics.connects.labels("ok").inc()
        client.reply(
            ident,
            "connect",
            ConnectResult(
                client=client.id,
                version=__version__,
                expires=claims.expires_at is not None,
                ttl=client.node.ttl(claims.expires_at),
                subs={one.topic: _result(one, positions[one.topic], request) for one, _ in wanted},
                ping=options.ping_seconds,
                pong=True,
                node=client.node.name,
            ),
        )
        for position in positions.values():
            send_rest(client, position)
        client.answered(ping_seconds=options.ping_interval_seconds, pong_seconds=options.pong_timeout_seconds)

    _attach_all(client, wanted, request.subs, answer)


def _result(one: ServerSubscription, position: Position | None, request: wire.Connect) -> SubscribeResult:
    recover = request.subs.get(one.topic)
    result = subscribe_result(position, was_recovering=recover is not None and recover.recover)
    result.data = raw(one.data)
    return result


def refresh(client: Client, ident: int, request: wire.Refresh) -> None:
    session = client.the_session()
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


def _obvious(client: Client, token: str) -> Close | None:
    """What is wrong with a token at first sight."""
    if not token and not client.node.options.anonymous:
        return close(CloseCode.BAD_REQUEST, "connect.token: missing")
    if len(token) > MAX_TOKEN_BYTES:
        return close(CloseCode.INVALID_TOKEN, f"token: more than {MAX_TOKEN_BYTES} bytes")
    return None


def _identify(client: Client, token: str) -> ConnectionClaims | CommandError | Close:
    if not token:
        return _ANONYMOUS
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
        policy = client.node.locate_subscription(topic)
        if isinstance(policy, CommandError):
            return policy
        wanted.append((subscription, policy))
    return wanted


def _attach_all(
    client: Client,
    wanted: _Wanted,
    positions: Mapping[str, wire.Recover],
    answer: Callable[[Mapping[str, Position | None]], None],
) -> None:
    """Subscribe to all, then answer; when one of them can't be had now, the client has to come again."""
    joined: dict[str, Position | None] = {}
    if not wanted:
        answer(joined)
        return
    client.hold_back()

    def attached(topic: str, outcome: Position | CommandError | None, enter: Callable[[], None]) -> None:
        enter()  # when the answer is sent
        if isinstance(outcome, CommandError):
            client.close(close(CloseCode.INSUFFICIENT_STATE, outcome.message))
            return
        joined[topic] = outcome
        if len(joined) == len(wanted):
            client.let_go(partial(answer, joined))

    for one, policy in wanted:
        before = positions.get(one.topic, _NOWHERE)
        wish = Wish(before.recover, before.offset, before.epoch, server_side=True, sharing=len(wanted))
        subscription = Subscription(policy, info=one.info, server_side=True)
        client.attach(one.topic, subscription, wish, partial(attached, one.topic))


_NOWHERE = wire.Recover()
