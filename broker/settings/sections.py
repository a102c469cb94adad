"""The sections of the settings. Every name's text here is also its description in the JSON Schema.

What two names of one section say together is checked once each of them is sound by itself; see `Findings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from broker.settings.mistakes import Finding, Findings
from broker.settings.tls import authority_problem, certificate_problem
from broker.settings.values import (
    EMBEDDED,
    Between,
    Bytes,
    Count,
    Delay,
    Directory,
    Host,
    HttpUrl,
    LongSeconds,
    NatsUrl,
    NetworkText,
    Origin,
    Port,
    Prefix,
    Rate,
    ReadableFile,
    Replicas,
    Seconds,
    Secret,
    Text,
    Whole,
)


class Section(BaseModel):
    # validation errors of settings made by hand must not quote secrets either
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, validate_default=True
    )


def pair(section: Section, one: str, other: str) -> list[Finding]:
    """Complains when only one of two names is given that mean nothing alone."""
    given = [name for name in (one, other) if getattr(section, name) is not None]
    if len(given) != 1:
        return []
    (absent,) = {one, other} - set(given)
    return [Finding((given[0],), (absent,), text=f"is given without {absent}; give both or neither")]


def certificate(section: Section) -> list[Finding]:
    """Complains about a `tls_cert` and a `tls_key` that no TLS connection can be made with."""
    cert, key = getattr(section, "tls_cert", None), getattr(section, "tls_key", None)
    if cert is None or key is None:
        return []
    problem = certificate_problem(cert, key)
    if problem is None:
        return []
    other = "tls_key" if problem.name == "tls_cert" else "tls_cert"
    return [Finding((problem.name,), (other,), text=problem.text)]


class Http(Section):
    """Where the node listens, and whom it answers."""

    host: Host = "0.0.0.0"  # noqa: S104 - in a container, whatever is reachable is decided outside it
    """The address or name to listen on."""
    port: Port = 8000
    """The port to listen on; 0 takes any that is free."""
    internal_port: Port | None = None
    """When given, `/api`, `/metrics`, `/health` and the console are served on this port and no longer on `port`."""
    allowed_origins: tuple[Origin, ...] = ()
    """The Origins whose pages may connect: `https://app.example.com`, `https://*.example.com`, or `*` for all. With
    none, only requests without an Origin and those whose Origin is the request's own host."""
    tls_cert: ReadableFile | None = None
    """A PEM file with the certificate and its chain; with `tls_key` the node speaks TLS itself."""
    tls_key: ReadableFile | None = None
    """A PEM file with the private key of `tls_cert`."""
    trusted_proxies: tuple[NetworkText, ...] = ()
    """The proxies, as addresses or networks, whose `X-Forwarded-For` is believed."""

    @model_validator(mode="after")
    def _names_fit(self) -> Http:
        findings = pair(self, "tls_cert", "tls_key") + certificate(self)
        if self.internal_port and self.internal_port == self.port:
            findings.append(Finding(("internal_port",), ("port",), text="is the same as port; give another one"))
        return Findings.none_in(findings, self)


class Nats(Section):
    """How the nodes reach each other."""

    url: NatsUrl = "nats://127.0.0.1:4222"
    """The NATS servers: URLs with `nats://` or `tls://`, commas between them; or `embedded`, which starts a server as
    a child of this node, for a single node."""
    prefix: Prefix = "broker"
    """What the subjects and streams begin with; brokers that share a NATS must differ in it."""
    credentials_file: ReadableFile | None = None
    """A `.creds` file (JWT and nkey) to sign in with."""
    nkey_file: ReadableFile | None = None
    """A file with the nkey seed to sign in with."""
    user: Text | None = None
    """The user to sign in as, together with `password`."""
    password: Secret | None = None
    """The password of `user`."""
    token: Secret | None = None
    """The token to sign in with."""
    tls_ca: ReadableFile | None = None
    """A PEM file with the authorities that may vouch for the servers; without it, the system's."""
    tls_cert: ReadableFile | None = None
    """A PEM file with the certificate to show to the servers."""
    tls_key: ReadableFile | None = None
    """A PEM file with the private key of `tls_cert`."""
    replicas: Replicas = 1
    """How many servers keep each stream; 1, 3 or 5."""
    data_dir: Directory = Path("broker-data")
    """Where the embedded server stores its streams; made when it is absent."""

    @property
    def embedded(self) -> bool:
        return self.url == EMBEDDED

    @property
    def servers(self) -> tuple[str, ...]:
        """The URLs, one by one; none when the server is embedded."""
        return () if self.embedded else tuple(self.url.split(","))

    @model_validator(mode="after")
    def _names_fit(self) -> Nats:
        findings = pair(self, "tls_cert", "tls_key") + certificate(self) + pair(self, "user", "password")
        if self.tls_ca is not None and (text := authority_problem(self.tls_ca)) is not None:
            findings.append(Finding(("tls_ca",), text=text))
        ways = [name for name in ("credentials_file", "nkey_file", "token", "user") if getattr(self, name) is not None]
        if len(ways) > 1:
            paths = [(name,) for name in ways]
            findings.append(Finding(*paths, text=f"{', '.join(ways)} are all given; sign in to NATS one way only"))
        if self.embedded and self.replicas > 1:
            text = f"{self.replicas} needs as many servers; the embedded one is alone, so leave it out"
            findings.append(Finding(("replicas",), ("url",), text=text))
        return Findings.none_in(findings, self)


class Limits(Section):
    """What one node takes, and what one connection may do."""

    max_connections: Count | None = None
    """The most connections of this node; without it, no limit."""
    connections_per_second: Rate | None = None
    """The most new connections per second of this node; without it, no limit."""
    connections_burst: Count | None = None
    """How many may come at once before that counts; without it, a tenth of a second's worth."""
    connections_waiting: Count = 4096
    """The most new connections that wait for their turn when more come than `connections_per_second`, and the most
    that wait for their token to be looked at; others are told to come again."""
    connections_per_user: Count | None = None
    """The most connections of one user to this node; without it, no limit."""
    connections_per_address: Count | None = None
    """The most connections from one address to this node; without it, no limit."""
    topics_per_connection: Count = 128
    """The most topics one connection may be subscribed to at a time."""
    message_bytes: Annotated[int, Whole(64, 67_108_864, "a number of bytes")] = 65_536
    """The most bytes of a whole WebSocket message, and of a publication's data over HTTP."""
    command_rate: Rate | None = None
    """The most commands per second of one connection; without it, no limit."""
    queue_bytes: Bytes = 1_048_576
    """The most bytes that may wait for one connection that reads too slowly."""
    queue_messages: Count = 16_384
    """The most publications that may wait for it."""
    queue_age_seconds: Seconds = 30.0
    """How long, in seconds, a message may wait for one connection that reads too slowly."""
    stall_seconds: Seconds = 60.0
    """How long, in seconds, a connection may take nothing at all of what waits for it."""
    history_messages: Count = 1000
    """The most publications one history request is answered with."""
    ring_messages: Count = 128
    """The most publications of a durable topic a node keeps at hand for those who come back, for each topic with
    subscribers there."""
    ring_bytes: Bytes = 262_144
    """The most bytes of them for each topic."""
    node_ring_bytes: Bytes = 67_108_864
    """The most bytes of them for all topics of a node together."""
    presence_members: Count = 16_384
    """The most members of a topic that presence lists; of larger ones it gives the numbers only."""
    node_queue_bytes: Bytes = 268_435_456
    """The most bytes that may wait for all connections of this node together."""
    pending_bytes: Bytes = 67_108_864
    """The most bytes of publications that NATS has brought and that wait for their turn to be written."""
    publish_rate: Rate | None = None
    """The most publications per second of one connection; without it, no limit."""
    publishes_in_flight: Count = 4096
    """The most publications of clients and back ends that wait for NATS; more are refused for now."""
    overload_lag_seconds: Seconds = 0.5
    """The node is overloaded when its event loop is later than this, in seconds, or nine tenths of `node_queue_bytes`
    wait, for as long as `overload_seconds` says. Nobody new is let in then."""
    overload_seconds: Seconds = 3.0
    """For how long, in seconds, that has to be so, and has to be over, to count."""
    handshake_seconds: Seconds = 10.0
    """How long, in seconds, a client may take to complete the WebSocket handshake."""
    connect_seconds: Seconds = 10.0
    """How long, in seconds, a client may take from the handshake to its connect command."""
    header_bytes: Annotated[int, Whole(1024, 1_048_576, "a number of bytes")] = 16_384
    """The most bytes of a request's line and headers."""
    http_body_bytes: Annotated[int, Whole(1024, 1_073_741_824, "a number of bytes")] = 8_388_608
    """The most bytes of an API request's body, which may hold many publications (`batch`, `broadcast`)."""


class Drain(Section):
    """How a node that is told to end lets its connections go."""

    delay_seconds: Delay = 0.0
    """How long, in seconds, to wait between refusing new connections and closing the first, so that load balancers
    notice."""
    rate_per_second: Rate = 500.0
    """How many connections are closed per second."""
    timeout_seconds: Seconds = 30.0
    """After how many seconds the node ends even if connections are left."""
    max_connection_age_seconds: LongSeconds | None = None
    """After how many seconds, a quarter more or less, a connection is asked to reconnect; without it, never."""


class Ping(Section):
    """How dead connections are found, and idle ones kept open in between."""

    interval_seconds: Seconds = 25.0
    """How often, in seconds, a client is pinged. Proxies that close idle connections must be slower than this."""
    pong_timeout_seconds: Seconds = 8.0
    """How long, in seconds, a client may take to answer a ping; less than `interval_seconds`."""

    @model_validator(mode="after")
    def _names_fit(self) -> Ping:
        findings = []
        if self.pong_timeout_seconds >= self.interval_seconds:
            text = (
                f"pong_timeout_seconds ({self.pong_timeout_seconds:g}) must be less than "
                f"interval_seconds ({self.interval_seconds:g})"
            )
            findings.append(Finding(("pong_timeout_seconds",), ("interval_seconds",), text=text))
        return Findings.none_in(findings, self)


class Log(Section):
    """What the node says about itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is said."""
    format: Literal["text", "json"] = "text"
    """`text` for people, `json` (one object a line) for machines."""


class Telemetry(Section):
    """Traces."""

    otlp_endpoint: HttpUrl | None = None
    """Where to send traces to, with OTLP."""
    sample_ratio: Annotated[float, Between(1, "a ratio")] | None = None
    """Which part of the traces is sent, from 0 to 1."""
