"""The composition root: the only place that knows every part. Settings in, a node with its HTTP applications out."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from broker.api import openapi
from broker.api.call import Backend
from broker.api.direct import Application
from broker.api.endpoint import Api, ApiEndpoint
from broker.api.health import Answer, health, metrics
from broker.api.methods import METHODS
from broker.api.pages import root, upgrade_required
from broker.api.problems import Problems
from broker.auth.api_keys import ApiKey, ApiKeys
from broker.auth.keys import BadKeyError, load_keys
from broker.auth.ring import KeyRing
from broker.auth.tokens import TokenVerifier
from broker.client.client import Client
from broker.core.bucket import TokenBucket
from broker.core.overload import OverloadLimits
from broker.core.pace import Rates
from broker.core.policy import PolicyTable
from broker.core.queue import QueueRules
from broker.core.ring import RingLimits
from broker.core.topic import parse_pattern
from broker.durability import DurableOptions
from broker.edge.addresses import parse_networks
from broker.edge.client_socket import JSON_SUBPROTOCOL, PROTOBUF_SUBPROTOCOL
from broker.edge.drain import Drain
from broker.edge.edge import Edge
from broker.edge.entrance import EntranceLimits, Unavailable
from broker.edge.handshake import Origins
from broker.edge.pressure import Pressure
from broker.fan_out import LINES
from broker.metrics import Metrics
from broker.node import Node, NodeOptions
from broker.operating.connections import ConnectionsHere
from broker.operating.draining import DrainHere
from broker.operating.slow import SlowHere, SlowSource
from broker.relay.options import NatsOptions
from broker.settings import Limits, Settings, make_policies
from broker.settings.mistakes import Finding
from broker.settings.shape import Path

RECOVERY_BYTES = 4 * 1024 * 1024
"""As much at least a client that comes back is given of what it missed, and in any case more than what waited for it
when it was closed for being slow, and was lost with its connection."""
PIECE_MESSAGES = 512
PIECE_BYTES = 131_072
"""As much a connection that catches up is given at a time, where so much may wait for one."""
WEBSOCKET_PATH = "/connection/websocket"


@dataclass(frozen=True, slots=True)
class App:
    """A node and the ways in."""

    node: Node
    edge: Edge
    drain: Drain
    public: Starlette
    internal: Starlette | None
    """API, health and metrics, where they have a port of their own."""


def create_app(settings: Settings, *, nats_url: str, name: str) -> App:
    """Put a node together; nothing runs yet.

    Args:
        settings: all of them, looked at by `check`.
        nats_url: where NATS is, in place of the setting (which may say `embedded`).
        name: what the node is called.
    """
    node = _make_node(settings, nats_url, name)
    edge = _make_edge(settings, node)
    node.observers.append(edge.pressure.observe)
    drain = _make_drain(settings, node, edge)
    ConnectionsHere(node)
    DrainHere(node, drain)
    SlowHere(node, SlowSource(edge.pressure.slow_connections, edge.pressure.slow_topics))
    node.overload.queued_bytes = lambda: edge.pressure.queued_bytes
    internal = _operations_routes(settings, node)
    public: list[BaseRoute] = [Route("/", root(node)), Route(WEBSOCKET_PATH, upgrade_required)]
    if settings.http.internal_port is None:
        return App(node, edge, drain, _application([*internal, *public], edge), None)
    return App(node, edge, drain, _application(public, edge), _application([*internal, Route("/", root(node))], edge))


def check(settings: Settings) -> list[Finding]:
    """What only shows when the settings are put to use: keys that no token can be verified with."""
    auth = settings.auth
    findings = []

    def try_key(path: Path, secret: str | None, public_keys: Sequence[str]) -> None:
        try:
            load_keys(secret, public_keys, auth.algorithms, minimum_secret_bytes=auth.minimum_secret_bytes)
        except BadKeyError as error:
            # the place comes from the path; what is left of the key's own name says where in a JWK set
            text = str(error).removeprefix("hmac_secret").removeprefix("public_keys[0]")
            findings.append(Finding(path, text=text.removeprefix(": ").removeprefix(".")))

    if auth.hmac_secret is not None:
        try_key(("auth", "hmac_secret"), auth.hmac_secret.get_secret_value(), ())
    for at, entry in enumerate(auth.public_keys):
        try_key(("auth", "public_keys", at), None, (entry,))
    return findings


def _keys(settings: Settings) -> KeyRing:
    auth = settings.auth
    return load_keys(
        auth.hmac_secret.get_secret_value() if auth.hmac_secret is not None else None,
        auth.public_keys,
        auth.algorithms,
        minimum_secret_bytes=auth.minimum_secret_bytes,
    )


def _make_node(settings: Settings, nats_url: str, name: str) -> Node:
    auth, limits, ping = settings.auth, settings.limits, settings.ping
    tokens = TokenVerifier(
        _keys(settings),
        audience=auth.audience,
        issuer=auth.issuer,
        leeway_seconds=auth.leeway_seconds,
        user_claim=auth.user_claim,
        require_exp=auth.require_exp,
    )
    nats = settings.nats
    return Node(
        NodeOptions(
            name=name,
            prefix=nats.prefix,
            anonymous=auth.anonymous,
            personal_topic=auth.personal_topic,
            expiry_leeway_seconds=auth.leeway_seconds,
            connect_seconds=limits.connect_seconds,
            topics_per_connection=limits.topics_per_connection,
            queue_bytes=limits.queue_bytes,
            ping_interval_seconds=ping.interval_seconds,
            pong_timeout_seconds=ping.pong_timeout_seconds,
            presence_members=limits.presence_members,
            pending_bytes=limits.pending_bytes,
            rates=_rates(limits),
            publishes_in_flight=limits.publishes_in_flight,
            max_connection_age_seconds=settings.drain.max_connection_age_seconds,
            closes_per_second=settings.drain.rate_per_second,
            connections_waiting=limits.connections_waiting,
            connections_per_user=limits.connections_per_user,
            overload=OverloadLimits(limits.overload_lag_seconds, limits.node_queue_bytes, limits.overload_seconds),
        ),
        policies=PolicyTable(make_policies(settings)),
        tokens=tokens,
        nats=NatsOptions(
            servers=[server.strip() for server in nats_url.split(",")],
            name=f"broker {name}",
            user=nats.user,
            password=nats.password.get_secret_value() if nats.password is not None else None,
            token=nats.token.get_secret_value() if nats.token is not None else None,
            credentials_file=_path(nats.credentials_file),
            nkey_file=_path(nats.nkey_file),
            tls_ca=_path(nats.tls_ca),
            tls_cert=_path(nats.tls_cert),
            tls_key=_path(nats.tls_key),
        ),
        durable=DurableOptions(
            replicas=nats.replicas,
            ring=RingLimits(limits.ring_messages, limits.ring_bytes),
            rings_bytes=limits.node_ring_bytes,
            recovery_bytes=max(RECOVERY_BYTES, 4 * limits.queue_bytes),
            history_bytes=limits.queue_bytes,
            piece_messages=max(1, min(PIECE_MESSAGES, limits.queue_messages // 2)),
            piece_bytes=min(PIECE_BYTES, limits.queue_bytes // 2),
            history_messages=limits.history_messages,
        ),
        metrics=Metrics(),
    )


def _rates(limits: Limits) -> Rates | None:
    rates = Rates(limits.command_rate, limits.publish_rate)
    return None if rates == Rates() else rates


def _path(value: object | None) -> str | None:
    return None if value is None else str(value)


def _make_edge(settings: Settings, node: Node) -> Edge:
    limits = settings.limits
    return Edge(
        wheel=node.wheel,
        clock=node.clock,
        metrics=node.metrics,
        paths=frozenset({WEBSOCKET_PATH.encode()}),
        origins=Origins(settings.http.allowed_origins),
        subprotocols=(JSON_SUBPROTOCOL, PROTOBUF_SUBPROTOCOL),
        message_bytes=limits.message_bytes,
        header_bytes=limits.header_bytes,
        handshake_seconds=limits.handshake_seconds,
        queue_rules=QueueRules(
            limits.queue_bytes,
            limits.queue_messages,
            limits.queue_age_seconds,
            limits.stall_seconds,
            LINES,
        ),
        pressure=Pressure(node.metrics, node.clock, limits.node_queue_bytes),
        catch_up=node.durability.catch_up.want,
        max_connections=limits.max_connections,
        make_client=lambda outlet: Client(node, outlet),
        unavailable=lambda: _unavailable(node),
        entrance_limits=EntranceLimits(
            per_second=limits.connections_per_second,
            burst=limits.connections_burst,
            waiting=limits.connections_waiting,
            per_address=limits.connections_per_address,
            trusted_proxies=parse_networks(settings.http.trusted_proxies),
        ),
    )


def _make_drain(settings: Settings, node: Node, edge: Edge) -> Drain:
    return Drain(
        edge,
        delay_seconds=settings.drain.delay_seconds,
        rate_per_second=settings.drain.rate_per_second,
        timeout_seconds=settings.drain.timeout_seconds,
        changed=lambda draining: node.drains(draining=draining),
    )


def _unavailable(node: Node) -> Unavailable | None:
    """Why a node lets nobody new in."""
    if node.draining:
        return Unavailable("draining", "this node is draining")
    if node.overload.active:
        detail = "this node has more to do than it can (limits.overload_lag_seconds, limits.node_queue_bytes)"
        return Unavailable("overload", detail, node.overload.seconds)
    if node.lobby.full:
        detail = "as many clients wait to connect as may (limits.connections_waiting)"
        return Unavailable("waiting_room", detail, passing=True)
    return None


def _operations_routes(settings: Settings, node: Node) -> list[BaseRoute]:
    """The API, health and metrics."""
    keys = _api_keys(settings)
    api = Api(
        Backend(node, node.operations, _publish_limits(keys, node.clock())),
        ApiKeys(keys),
        body_bytes=settings.limits.http_body_bytes,
        count=_counting(node.metrics.http_requests),
    )
    return [
        *(  # publish is the first
            Route(f"/api/{name}", ApiEndpoint(api, name), methods=["POST", "GET"] if method.reads else ["POST"])
            for name, method in METHODS.items()
        ),
        Route("/api", ApiEndpoint(api), methods=["POST"]),
        Route("/openapi.json", _json(openapi.document())),
        Route("/health/live", health(node, "live", lambda: ())),
        Route("/health/ready", health(node, "ready", node.reasons_against_readiness)),
        Route("/health/startup", health(node, "started", node.reasons_against_startup, node.durability.streams.states)),
        Route("/metrics", metrics(node)),
    ]


def _counting(requests: Counter) -> Callable[[str, int], None]:
    """Counts by method and status; a metric's child is looked up once."""

    @cache
    def child(method: str, status: int) -> Callable[[], None]:
        return requests.labels(method, str(status)).inc

    return lambda method, status: child(method, status)()


def _api_keys(settings: Settings) -> Sequence[tuple[str, ApiKey]]:
    entries = [
        (
            entry.key.get_secret_value(),
            ApiKey(
                entry.name,
                frozenset(entry.methods),
                tuple(parse_pattern(text) for text in entry.topics),
                entry.publish_rate,
            ),
        )
        for entry in settings.api.keys
    ]
    if settings.api.key is not None:
        entries.insert(0, (settings.api.key.get_secret_value(), ApiKey("api.key")))
    return entries


def _publish_limits(keys: Sequence[tuple[str, ApiKey]], now: float) -> Mapping[str, TokenBucket]:
    return {
        key.name: TokenBucket(key.publish_rate, key.publish_rate, now)
        for _, key in keys
        if key.publish_rate is not None
    }


def _json(content: object) -> Answer:
    body = json.dumps(content)

    async def answer(request: Request) -> Response:
        del request
        return Response(body, media_type="application/json")

    return answer


def _application(routes: Sequence[BaseRoute], edge: Edge) -> Application:
    problems = Problems(_counting(edge.metrics.http_requests))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Edge]]:
        yield {"edge": edge}  # uvicorn hands it to the protocol objects that it makes

    return Application(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: problems.on_http_exception, Exception: problems.on_error},
    )


def default_name(port: int) -> str:
    """What a node is called unless it is told otherwise: its host and its port."""
    return f"{socket.gethostname()}_{port}"
