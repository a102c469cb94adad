"""What a token lets its holder do, and what a topic's policy lets anybody do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from broker.core.topic import Pattern, escape_token, parse_pattern


class Access(StrEnum):
    """Who may do a thing with a topic, as its policy says."""

    NOBODY = "nobody"
    """Only back ends, with an API key or a server-side subscription."""
    GRANTED = "granted"
    """Only those whose token allows it."""
    AUTHENTICATED = "authenticated"
    """Everybody with a user."""
    ANYONE = "anyone"


class Readers(StrEnum):
    """Who may ask for a topic's presence and history, as its policy says."""

    SUBSCRIBERS = "subscribers"
    """Those who are subscribed to it."""
    NOBODY = "nobody"
    GRANTED = "granted"
    AUTHENTICATED = "authenticated"
    ANYONE = "anyone"


class Action(StrEnum):
    """What a token can allow; the values are the wire's (`caps`, `allow`)."""

    SUBSCRIBE = "sub"
    PUBLISH = "pub"
    PRESENCE = "prs"
    HISTORY = "hst"


ACTIONS = frozenset(Action)


@dataclass(frozen=True, slots=True)
class Capability:
    """One entry of a token's `caps`: these actions, on the topics that one of these patterns matches and on the
    wildcards that one of them covers.
    """

    patterns: tuple[Pattern, ...]
    actions: frozenset[Action]

    def allows(self, action: Action, name: str) -> bool:
        """Whether it allows this with a topic, or with a wildcard, which has to be sound."""
        return action in self.actions and any(pattern.admits(name) for pattern in self.patterns)


def make_capability(patterns: Iterable[str], actions: Iterable[str], user: str) -> Capability:
    """A capability for `user`, whose escaped name stands in for `{sub}`.

    A pattern that names `{sub}` grants the anonymous user nothing.

    Raises:
        ValueError: a pattern or an action that does not exist; the message says which.
    """
    compiled = []
    for text in patterns:
        if "{sub}" in text:
            # the pattern itself must be sound, whoever the user is
            parse_pattern(text.replace("{sub}", "user"))
            if not user:
                continue
            try:
                compiled.append(parse_pattern(text.replace("{sub}", escape_token(user))))
            except ValueError:
                continue  # a name too long to be a token can own no topic
        else:
            compiled.append(parse_pattern(text))
    chosen = frozenset(actions)
    if unknown := sorted(chosen - ACTIONS):
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(sorted(ACTIONS))}")
    return Capability(tuple(compiled), frozenset(Action(action) for action in chosen))


def permits(access: Access, *, user: str, granted: bool) -> bool:
    """Whether a policy's rule lets a user act, who has (or has not) been granted it by token."""
    if access is Access.ANYONE:
        return True
    if access is Access.NOBODY:
        return False
    return granted or (access is Access.AUTHENTICATED and user != "")


def permits_reading(readers: Readers, *, user: str, subscribed: bool, granted: bool) -> bool:
    """Whether a policy's rule lets a user read, who is (or is not) subscribed and has (or has not) been granted it."""
    if readers is Readers.SUBSCRIBERS:
        return subscribed or granted
    return permits(Access(readers.value), user=user, granted=granted)
