"""One client's identity, rights and subscriptions, and the times at which they end."""

from __future__ import annotations

from math import inf

from broker.core.message import ClientInfo
from broker.core.permissions import Access, Action, Capability, Readers, permits, permits_reading
from broker.core.policy import TopicPolicy


class Subscription:
    """A client's subscription to a topic."""

    __slots__ = ("actions", "ends_at", "info", "policy", "server_side")

    def __init__(
        self,
        policy: TopicPolicy,
        *,
        info: bytes | None = None,
        ends_at: float = inf,
        actions: frozenset[Action] = frozenset(),
        server_side: bool = False,
    ) -> None:
        self.policy = policy
        self.info = info
        """Raw JSON that others see beside the client's own."""
        self.ends_at = ends_at
        """When its token has expired for good, on the session's clock; infinity for never."""
        self.actions = actions
        """What its token allows with this topic."""
        self.server_side = server_side


class Session:
    """What a connected client is and may do.

    All times are seconds on one monotonic clock.
    """

    __slots__ = ("capabilities", "client", "ends_at", "info", "next_end", "subscriptions", "user")

    def __init__(
        self,
        client: str,
        user: str,
        *,
        info: bytes | None = None,
        ends_at: float = inf,
        capabilities: tuple[Capability, ...] = (),
    ) -> None:
        self.client = client
        self.user = user
        self.info = info
        self.ends_at = ends_at
        self.capabilities = capabilities
        self.subscriptions: dict[str, Subscription] = {}
        self.next_end = inf
        """No subscription ends before."""

    def may(self, action: Action, topic: str, access: Access, *, granted: bool = False) -> bool:
        """Whether a policy's rule lets this client act on a topic.

        Args:
            action: what it wants to do.
            topic: with which topic, or which wildcard.
            access: the rule of the topic's policy for it.
            granted: a subscription token allows it already.
        """
        return permits(access, user=self.user, granted=granted or self._granted(action, topic))

    def may_read(self, action: Action, topic: str, readers: Readers) -> bool:
        """Whether a policy's rule lets this client read a topic's presence or history.

        Args:
            action: which of the two.
            topic: of which topic.
            readers: the rule of the topic's policy for both.
        """
        subscription = self.subscriptions.get(topic)
        granted = subscription is not None and action in subscription.actions
        return permits_reading(
            readers,
            user=self.user,
            subscribed=subscription is not None,
            granted=granted or self._granted(action, topic),
        )

    def _granted(self, action: Action, topic: str) -> bool:
        """Whether the connection's token allows it."""
        return any(capability.allows(action, topic) for capability in self.capabilities)

    def client_info(self, topic: str) -> ClientInfo:
        """Who this client is, as others see it in a topic."""
        subscription = self.subscriptions.get(topic)
        return ClientInfo(self.user, self.client, self.info, subscription.info if subscription else None)

    def add(self, topic: str, subscription: Subscription) -> None:
        self.subscriptions[topic] = subscription
        self.next_end = min(self.next_end, subscription.ends_at)

    def extend(self, topic: str, ends_at: float) -> None:
        """A subscription's token was refreshed."""
        self.subscriptions[topic].ends_at = ends_at
        self.next_end = min(self.next_end, ends_at)

    def ended(self, now: float) -> list[str]:
        """The topics whose subscription has expired."""
        if now < self.next_end:
            return []
        ended = [topic for topic, one in self.subscriptions.items() if one.ends_at <= now]
        self.next_end = min((one.ends_at for one in self.subscriptions.values() if one.ends_at > now), default=inf)
        return ended
