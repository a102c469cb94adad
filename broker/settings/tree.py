"""The tree of settings, and what its sections say together."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from broker.core.policy import TopicPolicy
from broker.core.topic import parse_pattern
from broker.settings.mistakes import Finding, Findings
from broker.settings.rights import Api, Auth, PolicyEntry
from broker.settings.sections import Drain, Http, Limits, Log, Nats, Ping, Telemetry

_DEFAULT_POLICIES = (PolicyEntry(name="default", match=(">",)),)


def _or_default(policies: tuple[PolicyEntry, ...]) -> tuple[PolicyEntry, ...]:
    return policies or _DEFAULT_POLICIES


class Settings(BaseSettings):
    """The settings of a broker node."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, case_sensitive=True
    )

    http: Http = Http()
    """Where the node listens, and whom it answers."""
    nats: Nats = Nats()
    """How the nodes reach each other."""
    auth: Auth = Auth()
    """Whose tokens are believed."""
    api: Api = Api()
    """Who may use the HTTP API."""
    limits: Limits = Limits()
    """What one node takes, and what one connection may do."""
    drain: Drain = Drain()
    """How a node that is told to end lets its connections go."""
    ping: Ping = Ping()
    """How dead connections are found."""
    topics: Annotated[tuple[PolicyEntry, ...], AfterValidator(_or_default)] = _DEFAULT_POLICIES
    """The policies, in order: a topic belongs to the first that matches it. Without any there is one, `default`, for
    all topics."""
    log: Log = Log()
    """What the node says about itself."""
    telemetry: Telemetry = Telemetry()
    """Traces."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        # settings made by hand, as in tests, do not depend on the environment, and `load` brings its own sources:
        # pydantic's pass over unknown variables and stop at the first mistake
        return (init_settings,)

    @model_validator(mode="after")
    def _sections_fit(self) -> Settings:
        names = [policy.name for policy in self.topics]
        findings = []
        for at, policy in enumerate(self.topics):
            if names.index(policy.name) < at:
                text = f"{policy.name!r} already names another policy; give each its own"
                findings.append(
                    Finding(("topics", at, "name"), ("topics", names.index(policy.name), "name"), text=text)
                )
            if policy.message_bytes is not None and policy.message_bytes > self.limits.message_bytes:
                text = f"{policy.message_bytes} is more than limits.message_bytes ({self.limits.message_bytes}) allows"
                findings.append(Finding(("topics", at, "message_bytes"), ("limits", "message_bytes"), text=text))
        limits = self.limits
        if limits.node_queue_bytes < limits.queue_bytes:
            text = f"{limits.node_queue_bytes} is less than limits.queue_bytes ({limits.queue_bytes}), which is for one"
            findings.append(Finding(("limits", "node_queue_bytes"), ("limits", "queue_bytes"), text=text))
        return Findings.none_in(findings, self)


def make_policies(settings: Settings) -> tuple[TopicPolicy, ...]:
    """The settings' policies as the core knows them, in order."""
    return tuple(
        TopicPolicy(
            name=policy.name,
            match=tuple(parse_pattern(text) for text in policy.match),
            subscribe=policy.subscribe,
            publish=policy.publish,
            message_bytes=settings.limits.message_bytes if policy.message_bytes is None else policy.message_bytes,
            read=policy.read,
            presence=policy.presence,
            join_leave=policy.join_leave,
            overflow=policy.overflow,
            conflate_key=_pointer_tokens(policy.conflate_key),
            publish_rate=policy.publish_rate,
            **policy.durability(),
        )
        for policy in settings.topics
    )


def _pointer_tokens(pointer: str | None) -> tuple[str, ...]:
    """Source: RFC 6901, section 4."""
    if pointer is None:
        return ()
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])
