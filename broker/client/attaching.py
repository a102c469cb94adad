"""How a subscription begins: from the wish to the answer, with nothing lost in between.

A live topic's first subscriber waits for NATS, behind a stand-in that holds what comes meanwhile. A durable topic has a
position: whoever subscribes is told it, or given what was missed up to it, and gets what is behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from broker.admission import Position, Wish
from broker.client.joining import Joining
from broker.core.hub import Topic
from broker.core.session import Subscription
from broker.relay.flow import Flow
from broker.relay.seeking import Gone, Missed
from broker.wire.codes import CommandError, ErrorCode

if TYPE_CHECKING:
    from broker.client.client import Client

Attached = Callable[[Position | CommandError | None, Callable[[], None]], None]
"""Told how a subscription went: its position in a durable topic, None in a live one, or the error; and what to call
once that is answered."""


def attach_live(client: Client, topic: str, subscription: Subscription, done: Attached) -> None:
    """See `Client.attach`."""
    node = client.node
    waiting = node.want(subscription.policy, topic)
    if waiting is None and not client.holding_back:
        node.hub.add(topic, subscription.policy, client.outlet)
        done(None, _nothing)
        node.membership.entered(client.the_session(), topic, subscription.policy)
        return
    joining = Joining(node.options.queue_bytes)
    joined = node.hub.add(topic, subscription.policy, joining)
    if waiting is None:
        done(None, partial(client.enter_flushed, topic, subscription, joining, joined, None))
        return
    client.settling(topic)
    node.when_wanted(waiting, joined, partial(_settle, client, topic, subscription, joining, joined, done))


def _settle(
    client: Client,
    topic: str,
    subscription: Subscription,
    joining: Joining,
    joined: Topic,
    done: Attached,
    error: CommandError | None,
) -> None:
    """The interest is there, or can't be had."""
    if joining.overflowed:
        error = CommandError(ErrorCode.INTERNAL, "too much was published meanwhile; try again")
    error = client.verdict(topic, subscription) or error
    if error is not None:
        client.forget(topic, subscription)
        client.node.leave(topic, joining)
        done(error, _nothing)
    else:
        done(None, partial(client.enter_flushed, topic, subscription, joining, joined, None))
    client.settled(topic)


def attach_durable(client: Client, topic: str, subscription: Subscription, wish: Wish, done: Attached) -> None:
    """See `Client.attach`."""
    flow = client.node.follow(subscription.policy, topic)
    client.settling(topic)

    def prepared(answer: Missed | Gone | Exception | None) -> None:
        error = client.verdict(topic, subscription)
        if error is None and isinstance(answer, Exception):
            error = CommandError(ErrorCode.INTERNAL, f"{answer}; try again")
        elif error is None and not flow.started:
            error = CommandError(ErrorCode.INTERNAL, "the topic's history was made anew meanwhile; try again")
        elif error is None and isinstance(answer, Gone) and wish.strict:
            error = CommandError(ErrorCode.UNRECOVERABLE_POSITION)
        if error is not None or isinstance(answer, Exception):
            client.forget(topic, subscription)
            done(error, _nothing)
        else:
            _admit(client, flow, subscription, wish, answer, done)
        client.settled(topic)

    client.node.durability.admission.prepare(flow, wish, prepared)


def _admit(
    client: Client,
    flow: Flow,
    subscription: Subscription,
    wish: Wish,
    answer: Missed | Gone | None,
    done: Attached,
) -> None:
    admission = client.node.durability.admission
    if client.holding_back:
        joining = Joining(client.node.options.queue_bytes)
        position = admission.admit(flow, wish, answer, joining)
        joined = client.node.hub.topics[flow.name]
        done(position, partial(client.enter_flushed, flow.name, subscription, joining, joined, position))
    else:
        position = admission.admit(flow, wish, answer, client.outlet)
        begin = _nothing
        if position.behind is not None:
            begin = partial(client.outlet.begin_behind, flow.name, subscription.policy, position.behind, position.owed)
        done(position, begin)
        client.node.membership.entered(client.the_session(), flow.name, subscription.policy)


def _nothing() -> None:
    """There is nothing to do after the answer."""
