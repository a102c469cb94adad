"""The sections that say who may do what: tokens, API keys, and the policies of topics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, model_validator

from broker.core.permissions import Access, Readers
from broker.core.policy import Overflow, Recovery
from broker.settings.mistakes import Finding, Findings
from broker.settings.sections import Section
from broker.settings.values import (
    Between,
    Bytes,
    Count,
    HttpUrl,
    JsonPointer,
    KeyName,
    KeyOrHash,
    LongSeconds,
    PatternText,
    PersonalTopic,
    PolicyName,
    PublicKey,
    Rate,
    Secret,
    Switch,
    Text,
    Whole,
)

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
ApiMethod = Literal[
    "publish",
    "broadcast",
    "subscribe",
    "unsubscribe",
    "disconnect",
    "refresh",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "connections",
    "kick",
    "throttle",
    "slow",
    "drain",
    "batch",
]


class Auth(Section):
    """Whose tokens are believed. Tokens are JWTs; see the contract for their claims."""

    hmac_secret: Secret | None = None
    """The secret that HS256, HS384 and HS512 tokens are signed with."""
    public_keys: tuple[PublicKey, ...] = ()
    """The keys that other tokens are verified with: each a PEM text, a JWK or JWK set as JSON, or the path of a file
    that holds one of them."""
    jwks_url: HttpUrl | None = None
    """Where to fetch a JWK set from, again and again."""
    algorithms: tuple[Algorithm, ...] = ()
    """The algorithms that tokens may use; with none, all that fit the keys."""
    audience: Text | None = None
    """What a token's `aud` must name; without it, tokens with an `aud` are not checked for it."""
    issuer: Text | None = None
    """What a token's `iss` must be."""
    leeway_seconds: Annotated[float, Between(300, "a leeway in seconds")] = 30.0
    """How far the clocks of token makers may be off, in seconds."""
    anonymous: Switch = False
    """Whether clients may connect without a token."""
    user_claim: Text = "sub"
    """The claim that names the user."""
    require_exp: Switch = True
    """Whether tokens that never expire are refused."""
    minimum_secret_bytes: Annotated[int, Whole(1, 1024, "a number of bytes")] = 32
    """The fewest bytes (of UTF-8) `hmac_secret` may have. RFC 7518 asks for 32 with HS256; less can be guessed."""
    personal_topic: PersonalTopic = ""
    """Each user's own topic, which the server subscribes for them, with `{sub}` for the user: `#{sub}`. Empty: none."""

    @model_validator(mode="after")
    def _names_fit(self) -> Auth:
        findings = []
        if self.hmac_secret is not None:
            size = len(self.hmac_secret.get_secret_value().encode())
            if size < self.minimum_secret_bytes:
                text = f"has {size} bytes, which can be guessed; give at least {self.minimum_secret_bytes}"
                findings.append(Finding(("hmac_secret",), ("minimum_secret_bytes",), text=text))
        return Findings.none_in(findings, self)


class KeyEntry(Section):
    """A key for the HTTP API with some of the rights."""

    key: Annotated[KeyOrHash, Field(examples=["sha256:" + 64 * "0"])]
    """The key itself, or `sha256:` and the 64 hexadecimal digits of its SHA-256."""
    name: Annotated[KeyName, Field(examples=["billing"])]
    """What logs and metrics call the key."""
    methods: tuple[ApiMethod, ...] = ()
    """The methods the key may call; with none, all."""
    topics: tuple[PatternText, ...] = ()
    """Patterns of the topics the key may name; with none, all."""
    publish_rate: Rate | None = None
    """The most publications per second with this key."""

    def digest(self) -> str:
        """The key's SHA-256 in lower-case hexadecimal digits, in whichever form it was given."""
        return _digest(self.key)


def _digest(key: SecretStr) -> str:
    text = key.get_secret_value()
    return text.removeprefix("sha256:") if text.startswith("sha256:") else hashlib.sha256(text.encode()).hexdigest()


class Api(Section):
    """Who may use the HTTP API. Without any key, nobody."""

    key: KeyOrHash | None = None
    """A key with all rights: the key itself, or `sha256:` and the 64 hexadecimal digits of its SHA-256."""
    keys: tuple[KeyEntry, ...] = ()
    """Keys with some of the rights."""

    @model_validator(mode="after")
    def _names_fit(self) -> Api:
        names = unique([entry.name for entry in self.keys], ("keys",), "name", "{!r} already names another key")
        found = [entry.digest() for entry in self.keys]
        digests = unique(found, ("keys",), "key", "is also another entry's key")
        if self.key is not None and (own := _digest(self.key)) in found:
            # one key can't have all rights and some of them
            path = ("keys", found.index(own), "key")
            digests.append(Finding(path, ("key",), text="is also api.key; give each its own"))
        return Findings.none_in(names + digests, self)


_OF_DURABLE = (
    "history_messages",
    "history_seconds",
    "history_bytes",
    "recovery",
    "idempotency_seconds",
)
HISTORY_MESSAGES = 1000
HISTORY_SECONDS = 86_400.0
IDEMPOTENCY_SECONDS = 120.0


class PolicyEntry(Section):
    """A policy: what is true of the topics that match it. A topic belongs to the first policy that matches."""

    name: Annotated[PolicyName, Field(examples=["chat"])]
    """The policy's name, which is part of the NATS subjects."""
    match: Annotated[tuple[PatternText, ...], Field(min_length=1, examples=[["chat.>", "room:*"]])]
    """Patterns of the topics it is for: `*` is one token, `>` the rest; `name:*` is all that begins with `name:`."""
    durable: Switch = False
    """Whether publications are stored before they are acknowledged."""
    history_messages: Count | None = None
    """The most publications kept per topic; 1000 without it, where the policy is durable."""
    history_seconds: LongSeconds | None = None
    """How long publications are kept, in seconds; a day without it, where the policy is durable."""
    history_bytes: Bytes | None = None
    """The most bytes kept for all topics of the policy together; without it, what NATS has room for."""
    recovery: Recovery | None = None
    """What a client that comes back gets: all it missed (`stream`, the default), or only the newest (`latest`, which
    new subscribers get, too)."""
    presence: Switch = False
    """Whether it can be asked who is subscribed."""
    join_leave: Switch = False
    """Whether subscribers are told who comes and goes."""
    subscribe: Access = Access.GRANTED
    """Who may subscribe: `nobody`, `granted` (by token only), `authenticated` (any user) or `anyone`."""
    publish: Access = Access.GRANTED
    """Who may publish from a client; the same four."""
    read: Readers = Readers.SUBSCRIBERS
    """Who may ask for presence and history: `subscribers`, or one of the four."""
    overflow: Overflow = Overflow.DISCONNECT
    """What happens to a connection that reads too slowly: it is closed (`disconnect`), what does not fit is left out
    and its number told (`drop_oldest`, `drop_newest`), only the newest is kept by a key (`conflate`), or it is read
    from the stream later (`catch_up`)."""
    conflate_key: JsonPointer | None = None
    """With `overflow = "conflate"`: where in the data the key is by which a newer publication replaces a waiting one,
    as a JSON pointer (`/symbol`). Without it, a newer one replaces any of its topic."""
    message_bytes: Annotated[int, Whole(1, 67_108_864, "a number of bytes")] | None = None
    """The most bytes of a publication's data, at most `limits.message_bytes`, which holds without it."""
    publish_rate: Rate | None = None
    """The most publications per second that one node takes for all topics of the policy together."""
    idempotency_seconds: LongSeconds | None = None
    """For how many seconds a second publication with the same idempotency key is dropped; 120 without it, or
    `history_seconds` if that is less."""

    @model_validator(mode="after")
    def _names_fit(self) -> PolicyEntry:
        findings = self._overflow_problems()
        if not self.durable:
            for name in _OF_DURABLE:
                if getattr(self, name) is not None:
                    text = "means nothing without durable = true; leave it out, or make the policy durable"
                    findings.append(Finding((name,), ("durable",), text=text))
        elif self.idempotency_seconds is not None and self.idempotency_seconds > self.keeps_seconds:
            text = (
                f"{self.idempotency_seconds:g} is more than history_seconds ({self.keeps_seconds:g}); a repeated "
                "publication can't be recognised for longer than publications are kept"
            )
            findings.append(Finding(("idempotency_seconds",), ("history_seconds",), text=text))
        return Findings.none_in(findings, self)

    def _overflow_problems(self) -> list[Finding]:
        findings = []
        latest = self.recovery is Recovery.LATEST
        if self.overflow is Overflow.CATCH_UP and not self.durable:
            text = "catch_up reads from the stream, and there is none; make the policy durable, or choose another"
            findings.append(Finding(("overflow",), ("durable",), text=text))
        if self.overflow is Overflow.CATCH_UP and latest:
            text = "catch_up brings every publication, and recovery = latest the newest only; give conflate instead"
            findings.append(Finding(("overflow",), ("recovery",), text=text))
        if self.conflate_key is not None and self.overflow is not Overflow.CONFLATE:
            text = "means nothing without overflow = conflate; leave it out, or conflate"
            findings.append(Finding(("conflate_key",), ("overflow",), text=text))
        if self.overflow is Overflow.CONFLATE and self.conflate_key is None and self.durable and not latest:
            text = (
                "conflate needs a conflate_key here: the history has every publication of a topic, so the newest does "
                "not stand for the others; give one, or recovery = latest"
            )
            findings.append(Finding(("overflow",), ("conflate_key",), text=text))
        return findings

    @property
    def keeps_seconds(self) -> float:
        """How long publications of a durable policy are kept."""
        return HISTORY_SECONDS if self.history_seconds is None else self.history_seconds

    def durability(self) -> dict[str, Any]:
        """What the policy says of how its publications are kept, with the defaults filled in, as the core's
        `TopicPolicy` names it.
        """
        if not self.durable:
            return {}
        idempotency_seconds = self.idempotency_seconds
        return {
            "durable": True,
            "history_messages": HISTORY_MESSAGES if self.history_messages is None else self.history_messages,
            "history_seconds": self.keeps_seconds,
            "history_bytes": self.history_bytes,
            "idempotency_seconds": min(IDEMPOTENCY_SECONDS, self.keeps_seconds)
            if idempotency_seconds is None
            else idempotency_seconds,
            "recovery": self.recovery or Recovery.STREAM,
        }


def unique(values: Sequence[str], path: tuple[str, ...], member: str, text: str) -> list[Finding]:
    """Complains about every entry of a list whose `member` an earlier entry has already."""
    return [
        Finding(
            (*path, at, member), (*path, values.index(value), member), text=f"{text.format(value)}; give each its own"
        )
        for at, value in enumerate(values)
        if values.index(value) < at
    ]
