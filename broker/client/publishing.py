"""The commands that carry data: publish, and rpc and send, which nothing handles yet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from broker.client.pacing import end_if_exhausted, publish_limit
from broker.core.hub import Topic
from broker.core.permissions import Action
from broker.publisher import Published, publish_error
from broker.wire import commands as wire
from broker.wire.codes import CloseCode, CommandError, ErrorCode, close
from broker.wire.payload import one_line
from broker.wire.replies import EMPTY

if TYPE_CHECKING:
    from broker.client.client import Client


def publish(client: Client, ident: int, request: wire.Publish) -> None:
    session = client.the_session()
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
    outcome = client.node.publisher.publish(
        policy,
        topic,
        one_line(data),
        info=session.client_info(topic),
        source="websocket",
        field="publish.data",
        limit=None if client.rates is None else publish_limit(client),
    )
    if isinstance(outcome, CommandError):
        client.fail(ident, outcome)
        end_if_exhausted(client)
        return
    client.publishing()

    def confirmed(future: Published) -> None:
        problem = future.exception()
        error = None if problem is None else publish_error(policy, problem)

        def answer() -> None:
            if error is None:
                client.reply(ident, "publish", EMPTY)
            else:
                client.fail(ident, error)
            client.published()

        if error is not None:
            answer()
        elif policy.durable:
            _when_seen(client, topic, partial(client.node.durability.when_delivered, future.result().offset), answer)
        else:
            _when_seen(client, topic, Topic.when_flushed, answer)

    outcome.add_done_callback(confirmed)


def _when_seen(
    client: Client, topic: str, when: Callable[[Topic, Callable[[], None]], None], answer: Callable[[], None]
) -> None:
    """Answer when a publication is with the subscribers of its topic, and with this client where it has subscribed to
    wildcards: whoever publishes where it is subscribed sees its own publication first.

    Args:
        client: who has published.
        topic: where.
        when: calls back when the publication is with a topic's (or wildcard's) subscribers here.
        answer: what to do then.
    """
    hub = client.node.hub
    if hub.wildcards:
        # a client's subscriptions are few, a node's wildcards may be many
        for name in client.the_session().subscriptions.keys() & hub.wildcards.keys():
            if hub.wildcards[name].matches(topic):
                answer = partial(when, hub.topics[name], answer)
    here = hub.topics.get(topic)
    if here is None:
        answer()
    else:
        when(here, answer)


def rpc(client: Client, ident: int, request: wire.Rpc) -> None:
    del request
    client.fail(ident, CommandError(ErrorCode.NOT_AVAILABLE, "rpc: nothing handles it here"))


def send(client: Client, ident: int, request: wire.Send) -> None:
    del ident, request
    client.close(close(CloseCode.NOT_AVAILABLE, "send: nothing handles it here"))
