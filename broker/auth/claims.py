"""What tokens say, and the reading of it from a payload that has been verified.

Each claim is decoded strictly on its own, so that a mistake is reported by the claim's name and nothing is coerced:
JSON's `true` is no number and `"1"` is not one either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from broker.auth.jws import RefusedError
from broker.core.permissions import ACTIONS, Action, Capability, make_capability
from broker.core.topic import subscription_problem

MAX_USER_BYTES = 255
MAX_TIME = 2**53
"""Unix seconds, either way: up to here every whole number is one in JSON, a float too (RFC 8259, section 6)."""

Claims = dict[str, Raw]


@dataclass(frozen=True, slots=True)
class ServerSubscription:
    """What the server subscribes the connection to. `info` and `data` are JSON, without insignificant space."""

    topic: str
    """Or a wildcard."""
    info: bytes | None
    data: bytes | None


@dataclass(frozen=True, slots=True)
class ConnectionClaims:
    user: str
    """Empty: anonymous."""
    expires_at: float | None
    """Unix seconds; up to the leeway in the past for a token that is still accepted. None: never."""
    info: bytes | None
    """JSON, without insignificant space."""
    subscriptions: tuple[ServerSubscription, ...]
    capabilities: tuple[Capability, ...]
    token_id: str | None
    issued_at: float | None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class SubscriptionClaims:
    user: str
    """Empty: anonymous."""
    topic: str
    """Or a wildcard."""
    client: str | None
    """The one connection it is for; None: any of the user's."""
    expires_at: float | None
    """As in `ConnectionClaims`."""
    info: bytes | None
    """JSON, without insignificant space."""
    actions: frozenset[Action]
    token_id: str | None
    issued_at: float | None
    """Unix seconds."""


class _CapabilityClaim(msgspec.Struct, forbid_unknown_fields=True):
    # an unknown member could be a restriction, so it is refused instead of ignored
    channels: list[str]
    allow: list[str]


_PAYLOAD = Decoder(Claims)
_NUMBER = Decoder(int | float)
_STRING = Decoder(str)
_STRINGS = Decoder(list[str])
_STRING_OR_STRINGS = Decoder(str | list[str])
_SUBSCRIPTIONS = Decoder(dict[str, Claims])
_CAPABILITIES = Decoder(list[_CapabilityClaim])

_SUBSCRIBE_ONLY = frozenset({Action.SUBSCRIBE})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def read_payload(text: str) -> Claims:
    try:
        return _PAYLOAD.decode(text)
    except (ValueError, RecursionError):
        raise RefusedError("payload: not a JSON object") from None


def read_time(claims: Claims, name: str) -> float | None:
    """A NumericDate in Unix seconds (RFC 7519, section 2), or None where there is none."""
    if name not in claims:
        return None
    try:
        seconds = _NUMBER.decode(claims[name])
    except ValueError:
        raise RefusedError(f"{name}: must be a number of seconds") from None
    if not -MAX_TIME <= seconds <= MAX_TIME:
        raise RefusedError(f"{name}: too far from now to be a time")
    return float(seconds)


def read_string(claims: Claims, name: str) -> str | None:
    if name not in claims:
        return None
    try:
        return _STRING.decode(claims[name])
    except ValueError:
        raise RefusedError(f"{name}: must be a string") from None


def read_audience(claims: Claims) -> list[str]:
    """Whom the token is for (RFC 7519, section 4.1.3); empty where it does not say."""
    if "aud" not in claims:
        return []
    try:
        audience = _STRING_OR_STRINGS.decode(claims["aud"])
    except (ValueError, RecursionError):
        raise RefusedError("aud: must be a string or a list of strings") from None
    return [audience] if isinstance(audience, str) else audience


def read_user(claims: Claims, name: str) -> str:
    user = read_string(claims, name) or ""
    # a character has at most 4 bytes, so most names need no counting
    if len(user) > MAX_USER_BYTES // 4 and len(user.encode()) > MAX_USER_BYTES:
        raise RefusedError(f"{name}: more than {MAX_USER_BYTES} bytes")
    if not user.isprintable() and _CONTROL.search(user):
        raise RefusedError(f"{name}: must not hold control characters")
    return user


def read_topic(claims: Claims) -> str:
    topic = read_string(claims, "channel")
    if topic is None:
        raise RefusedError("channel: missing, so this is no subscription token")
    return _sound_topic("channel", topic)


def read_client(claims: Claims) -> str | None:
    client = read_string(claims, "client")
    if client == "":
        # taking it for no client would widen what an issuer's mistake grants
        raise RefusedError("client: must not be empty")
    return client


def read_json(claims: Claims, name: str) -> bytes | None:
    """Any JSON as it stands, without the line breaks that would split a frame; null is None."""
    if name not in claims:
        return None
    try:
        text: bytes = msgspec.json.format(bytes(claims[name]), indent=-1)
    except RecursionError:  # the payload was within bounds, but this is a few calls deeper
        raise RefusedError(f"{name}: nested too deeply") from None
    return None if text == b"null" else text


def refuse_channel(claims: Claims) -> None:
    """A subscription token grants less than a connection token, so it must never open a connection."""
    if "channel" in claims:
        raise RefusedError("channel: this is a subscription token")


def refuse_base64(claims: Claims, *names: str) -> None:
    """Centrifugo's way to carry bytes that are no JSON. Dropping them would lose in silence what the issuer says."""
    for name in names:
        if f"b64{name}" in claims:
            raise RefusedError(f"b64{name}: not supported, {name} takes any JSON")


def read_subscriptions(claims: Claims) -> tuple[ServerSubscription, ...]:
    """The topics of `channels` and `subs`, each once; what `subs` says about one counts."""
    if "channels" not in claims and "subs" not in claims:
        return ()
    found: dict[str, ServerSubscription] = {}
    for topic in _read_strings(claims, "channels"):
        found[topic] = ServerSubscription(_sound_topic("channels", topic), None, None)
    if "subs" in claims:
        try:
            subscriptions = _SUBSCRIPTIONS.decode(claims["subs"])
        except (ValueError, RecursionError):
            raise RefusedError("subs: must be an object of objects") from None
        for topic, options in subscriptions.items():
            found[topic] = _read_subscription(topic, options)
    return tuple(found.values())


def _read_subscription(topic: str, options: Claims) -> ServerSubscription:
    _sound_topic("subs", topic)
    refuse_base64(options, "info", "data")
    # override is Centrifugo's: here the topic's policy decides what it would
    if not options.keys() <= {"info", "data", "override"}:
        raise RefusedError("subs: an option that is none of info, data")
    return ServerSubscription(topic, read_json(options, "info"), read_json(options, "data"))


def read_capabilities(claims: Claims, user: str) -> tuple[Capability, ...]:
    """What `caps` grants, with the user's name in the place of `{sub}`."""
    if "caps" not in claims:
        return ()
    try:
        entries = _CAPABILITIES.decode(claims["caps"])
    except (ValueError, RecursionError):
        raise RefusedError("caps: must be a list of objects with channels and allow") from None
    capabilities = []
    for entry in entries:
        _known_actions("caps", entry.allow)
        try:
            capabilities.append(make_capability(entry.channels, entry.allow, user))
        except ValueError:  # its message quotes the pattern
            raise RefusedError("caps: a channel pattern that is not well-formed") from None
    return tuple(capabilities)


def read_actions(claims: Claims) -> frozenset[Action]:
    """What a subscription token's `allow` grants on its topic; subscribing, where it does not say."""
    if "allow" not in claims:
        return _SUBSCRIBE_ONLY
    return _known_actions("allow", _read_strings(claims, "allow"))


def _known_actions(name: str, actions: list[str]) -> frozenset[Action]:
    if not ACTIONS.issuperset(actions):
        raise RefusedError(f"{name}: an action that is none of {', '.join(sorted(ACTIONS))}")
    return frozenset(Action(action) for action in actions)


def _read_strings(claims: Claims, name: str) -> list[str]:
    if name not in claims:
        return []
    try:
        return _STRINGS.decode(claims[name])
    except (ValueError, RecursionError):
        raise RefusedError(f"{name}: must be a list of strings") from None


def _sound_topic(name: str, topic: str) -> str:
    problem = subscription_problem(topic)
    if problem is not None:
        raise RefusedError(f"{name}: {problem}")
    return topic
