"""Every series the broker exposes, declared once.

No label takes values that users can grow: no topic, user, client or address.
With several workers on one port, prometheus_client's multiprocess mode adds their series up: the supervisor sets
PROMETHEUS_MULTIPROC_DIR, and whichever worker is scraped reads the files of all.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each first, which nobody asks for

_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_AGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The series of one process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.connections = Gauge(
            "broker_connections", "Client connections open now.", registry=registry, multiprocess_mode="livesum"
        )
        self.waiting = Gauge(
            "broker_connections_waiting",
            "Clients that wait to be let in (door), or for their connect command to be looked at (lobby).",
            ("room",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.connects = Counter(
            "broker_connects", "Connection attempts by how they ended.", ("result",), registry=registry
        )
        self.closes = Counter(
            "broker_closes", "Connections closed, by the close code sent or received.", ("code",), registry=registry
        )
        self.subscriptions = Gauge(
            "broker_subscriptions", "Subscriptions of all clients.", registry=registry, multiprocess_mode="livesum"
        )
        self.members = Gauge(
            "broker_members",
            "Subscriptions to topics that keep their members (presence, join_leave).",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.topics = Gauge(
            "broker_topics", "Topics with subscribers here.", registry=registry, multiprocess_mode="livesum"
        )
        self.published = Counter(
            "broker_published",
            "Publications asked of this node, by where they came from and how they ended.",
            ("policy", "source", "result"),
            registry=registry,
        )
        self.publishes_in_flight = Gauge(
            "broker_publishes_in_flight",
            "Publications that wait for NATS.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.delivered = Counter(
            "broker_delivered", "Publications written to subscribers' sockets.", ("policy",), registry=registry
        )
        self.dropped = Counter(
            "broker_dropped", "Publications not delivered to a subscriber.", ("policy", "reason"), registry=registry
        )
        self.queued_bytes = Gauge(
            "broker_queued_bytes",
            "Bytes that wait for connections that cannot take more.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.slow_connections = Gauge(
            "broker_slow_connections",
            "Connections with something waiting.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.pending_bytes = Gauge(
            "broker_pending_bytes",
            "Bytes of publications that NATS has brought and that wait to be written.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.pending_messages = Gauge(
            "broker_pending_messages",
            "Publications that NATS has brought and that wait to be written.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.catching_up = Gauge(
            "broker_catching_up",
            "Subscriptions of connections that read on from the stream, since they could not keep up.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_age = Histogram(
            "broker_queue_age_seconds",
            "How long the oldest publication of a late write has waited for its connection.",
            registry=registry,
            buckets=_AGE_BUCKETS,
        )
        self.publish_to_write = Histogram(
            "broker_publish_to_write_seconds",
            "From a publication's arrival at this node to the write to its last subscriber here.",
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self.loop_lag = Histogram(
            "broker_loop_lag_seconds",
            "How late the event loop is for its own timer.",
            registry=registry,
            buckets=_LAG_BUCKETS,
        )
        self.relay_connected = Gauge(
            "broker_relay_connected",
            "1 while NATS is connected (the least of all workers).",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.relay_gaps = Counter(
            "broker_relay_gaps",
            "Gaps in durable topics, by what became of them: repaired from the stream, or lost and told.",
            ("outcome",),
            registry=registry,
        )
        self.relay_reads = Counter(
            "broker_relay_reads",
            "Reads of messages from streams: for positions, gaps, recoveries and histories.",
            registry=registry,
        )
        self.recoveries = Counter(
            "broker_recoveries",
            "Clients that came back to a durable topic, by whether all that they missed was there.",
            ("result",),
            registry=registry,
        )
        self.catch_ups = Counter(
            "broker_catch_ups",
            "Subscriptions that read on from the stream, by whether they got back to what is published now.",
            ("outcome",),
            registry=registry,
        )
        self.errors = Counter(
            "broker_errors",
            "Commands and API calls answered with an error of the protocol, by its code.",
            ("source", "code"),
            registry=registry,
        )
        self.http_requests = Counter(
            "broker_http_requests", "HTTP requests answered.", ("method", "status"), registry=registry
        )
        self.draining = Gauge(
            "broker_draining", "1 while this node drains.", registry=registry, multiprocess_mode="livemax"
        )
        self.overloaded = Gauge(
            "broker_overloaded",
            "1 while this node has more to do than it can, and lets nobody new in.",
            registry=registry,
            multiprocess_mode="livemax",
        )

        self._delivered: dict[str, int] = {}
        self._published: dict[tuple[str, str, str], int] = {}

    def count_delivered(self, policy: str, count: int) -> None:
        """Count deliveries, on the hot path: they are added up here and reach the series with `fold`."""
        self._delivered[policy] = self._delivered.get(policy, 0) + count

    def count_published(self, policy: str, source: str, result: str, count: int) -> None:
        key = (policy, source, result)
        self._published[key] = self._published.get(key, 0) + count

    def fold(self) -> None:
        """Bring the series up to date with what was counted on the hot path; about every second, and when asked."""
        delivered, self._delivered = self._delivered, {}
        for policy, count in delivered.items():
            self.delivered.labels(policy).inc(count)
        published, self._published = self._published, {}
        for labels, count in published.items():
            self.published.labels(*labels).inc(count)

    def exposition(self) -> tuple[bytes, str]:
        """The metrics page and its content type."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
