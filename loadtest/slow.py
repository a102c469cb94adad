"""What slow subscribers cost the others: most read, some don't at all.

`python -m loadtest.slow --url URL --key KEY --topic-prefix PREFIX --pid PID` for a topic of the policy in question;
with `--slow 0` it is the run to compare with. Before it begins, the slow ones get so much by a topic of their own that
the kernel takes no more for them. It ends with 1 when those who read have lost anything.

With `--half-rate-seconds 30` there is one subscriber, which reads at half the rate for that long and then as fast as it
can. It ends with 1 unless all came, in order and none twice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from urllib.request import urlopen

import uvloop

from loadtest.resume import call, metric
from loadtest.sockets import SMALL, Publisher, Subscriber, data_of, percentile, rss_mib, subscribe, waited

AT_ONCE = 100
"""Subscribers that connect together."""
SETTLE_SECONDS = 15.0
FILL_BYTES = 30_000
FILL_ROUNDS = 1000


class Reporter:
    """What the node says of itself, and its memory, before and after."""

    def __init__(self, url: str, pid: int) -> None:
        self._url = url
        self._pid = pid
        self._before = self._series()
        self.rss_before = self.rss_peak = rss_mib(pid)
        self.highest: Counter[str] = Counter()

    async def watch(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await asyncio.sleep(1)
            self.rss_peak = max(self.rss_peak, rss_mib(self._pid))
            series = await asyncio.to_thread(self._series)
            for name in ("broker_queued_bytes", "broker_slow_connections", "broker_catching_up"):
                self.highest[name] = int(max(self.highest[name], series.get(name, 0)))

    def report(self) -> dict[str, object]:
        after = self._series()
        rises = {name: value - self._before.get(name, 0) for name, value in after.items()}
        counted = ("broker_closes_total", "broker_dropped_total", "broker_relay_reads_total", "broker_relay_gaps_total")
        return {
            "rss_mib": {"before": self.rss_before, "peak": self.rss_peak, "after": rss_mib(self._pid)},
            "highest": dict(self.highest),
            "counted": {name: value for name, value in rises.items() if value and name.startswith(counted)},
        }

    def _series(self) -> dict[str, float]:
        with urlopen(f"{self._url}/metrics") as response:  # noqa: S310 - the user's own
            lines = response.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


def fill(options: argparse.Namespace, topic: str) -> None:
    """Publish until nobody of the slow takes more."""
    for _ in range(FILL_ROUNDS):
        if metric(options.url, "broker_slow_connections") >= options.slow:
            return
        call(options.url, options.key, "publish", {"channel": topic, "data": "x" * FILL_BYTES})
    raise RuntimeError("the slow subscribers take everything")


async def many(options: argparse.Namespace) -> int:
    topic = f"{options.topic_prefix}.{random.randrange(10**9)}"  # noqa: S311 - a fresh topic
    count = int(options.rate * options.seconds)
    arrivals: list[tuple[int, float]] = []

    def note(number: int) -> None:
        arrivals.append((number, time.monotonic()))

    async def come(at: int) -> Subscriber:
        if at < options.slow:
            return await subscribe(options.url, topic, f"{topic}.fill", receive_bytes=SMALL)
        # to look at each number of each subscriber would be more than this process can do
        timed = at < options.slow + options.probes
        return await subscribe(options.url, topic, on_number=note if timed else None)

    subscribers: list[Subscriber] = []
    for at in range(0, options.subscribers, AT_ONCE):
        some = range(at, min(at + AT_ONCE, options.subscribers))
        subscribers += await asyncio.gather(*(come(number) for number in some))
    slow, fast = subscribers[: options.slow], subscribers[options.slow :]
    for one in slow:
        one.transport.pause_reading()
    await asyncio.to_thread(fill, options, f"{topic}.fill")
    publisher = Publisher(options.url, options.key)
    await publisher.open()
    reporter = Reporter(options.url, options.pid)
    watching = asyncio.create_task(reporter.watch())
    begun = await publisher.run(
        options.rate, count, lambda number: {"channel": topic, "data": data_of(number, options.size)}
    )
    taken = publisher.answers["200"]
    await waited(lambda: all(one.count >= taken for one in fast), SETTLE_SECONDS)
    await asyncio.sleep(1)  # whatever would come twice
    watching.cancel()
    times = sorted(arrived - begun - number / options.rate for number, arrived in arrivals)
    lost = [taken - one.count for one in fast]
    report = {
        "topic": topic,
        "answers": dict(publisher.answers),
        "p50_ms": percentile(times, 0.5),
        "p99_ms": percentile(times, 0.99),
        "lost_by_the_fast": sum(lost),
        "fast_closed": sum(one.closed for one in fast),
        **reporter.report(),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if not any(lost) and taken == count else 1


async def half_rate(options: argparse.Namespace) -> int:
    topic = f"{options.topic_prefix}.{random.randrange(10**9)}"  # noqa: S311 - a fresh topic
    count = int(options.rate * options.half_rate_seconds)
    numbers: list[int] = []
    reader = await subscribe(options.url, topic, receive_bytes=SMALL, on_number=numbers.append)
    transport = reader.transport
    publisher = Publisher(options.url, options.key, connections=1)  # so that they are stored in order
    await publisher.open()
    reporter = Reporter(options.url, options.pid)
    watching = asyncio.create_task(reporter.watch())

    async def hold_back() -> None:
        begun = time.monotonic()
        while (elapsed := time.monotonic() - begun) < options.half_rate_seconds:
            if len(numbers) > elapsed * options.rate / 2:
                transport.pause_reading()
            else:
                transport.resume_reading()
            await asyncio.sleep(0.005)
        transport.resume_reading()

    await asyncio.gather(
        hold_back(),
        publisher.run(options.rate, count, lambda number: {"channel": topic, "data": data_of(number, options.size)}),
    )
    at_half, slow_until = len(numbers), time.monotonic()
    taken = publisher.answers["200"]
    await waited(lambda: len(numbers) >= taken or reader.closed, 4 * SETTLE_SECONDS)
    caught_up = time.monotonic() - slow_until
    await asyncio.sleep(1)
    watching.cancel()
    report = {
        "topic": topic,
        "answers": dict(publisher.answers),
        "came_while_slow": at_half,
        "came": len(numbers),
        "different": len(set(numbers)),
        "backwards": sum(two <= one for one, two in itertools.pairwise(numbers)),
        "seconds_to_catch_up": round(caught_up, 2),
        "closed": reader.closed,
        **reporter.report(),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if len(numbers) == len(set(numbers)) == taken == count else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.slow", description=__doc__)
    parser.add_argument("--url", required=True, help="URL of the node")
    parser.add_argument("--key", required=True, help="an API key")
    parser.add_argument("--topic-prefix", required=True, help="the topic's first tokens, which make its policy")
    parser.add_argument("--pid", type=int, required=True, help="the node's process, for its memory")
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=50, help="how many of them don't read")
    parser.add_argument("--probes", type=int, default=100, help="how many of the others are timed; all are counted")
    parser.add_argument("--rate", type=float, default=500, help="publications per second")
    parser.add_argument("--size", type=int, default=128, help="bytes of a push")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--half-rate-seconds", type=float, help="the other test: one subscriber that is slow so long")
    options = parser.parse_args()
    return uvloop.run(many(options) if options.half_rate_seconds is None else half_rate(options))


if __name__ == "__main__":
    raise SystemExit(main())
