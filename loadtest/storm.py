"""A connect storm: many clients come at once, to a node that lets so many in a second.

`python -m loadtest.storm --url URL --key KEY --clients 10000 --rate-limit 1000` lets them come with the pauses of the
JavaScript SDK, while subscribers that were there before go on (`loadtest.probe`). It ends with 1 unless all get in, and
not faster than a tenth above the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import uvloop

from loadtest.crowd import Crowd, raise_file_limit

GIVES_WAY = 15
"""How nice the process of the many clients is to that of the few that are measured."""
SHARE = 1.1
"""How much of the limit may come in."""


def p99_ms(heard: Sequence[tuple[float, float]], begin: float, end: float) -> float | None:
    times = sorted(seconds for sent, seconds in heard if begin <= sent < end)
    return round(times[len(times) * 99 // 100] * 1000, 1) if times else None


async def storm(options: argparse.Namespace) -> int:
    raise_file_limit()
    parts = urlsplit(options.url)
    assert parts.hostname is not None  # noqa: S101 - a URL has a host
    assert parts.port is not None  # noqa: S101 - and here a port
    probe = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "loadtest.probe", "--url", options.url, "--key", options.key, "--topic", options.topic),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    # where they share a core, the storm's own work must not pass for the node's: what is measured goes first
    os.nice(GIVES_WAY)
    await asyncio.sleep(2 + options.before)
    began = time.monotonic()
    all_in: float | None = None
    async with Crowd(options.clients, [(parts.hostname, parts.port)]) as crowd:
        while time.monotonic() - began < options.patience:
            await asyncio.sleep(0.05)
            if len(crowd) == options.clients:
                all_in = time.monotonic() - began
                break
        ended = time.monotonic()
        await asyncio.sleep(1)
        inside = len(crowd)
        output, _ = await probe.communicate(b"")
    heard = json.loads(output or b"[]")
    seconds = [0] * (int(ended - began) + 1)
    for at in crowd.admissions:
        seconds[min(int(at - began), len(seconds) - 1)] += 1
    report = {
        "clients": options.clients,
        "inside": inside,
        "seconds_until_all_in": None if all_in is None else round(all_in, 2),
        "fastest_average": round(crowd.fastest_average(began), 1),
        "most_admissions_seen_in_a_second": crowd.most_in_a_second(),
        "admissions_seen_by_second": seconds,
        "attempts_in_vain": dict(crowd.refusals),
        "thrown_out": crowd.lost,
        "p99_before_ms": p99_ms(heard, began - options.before, began),
        "p99_during_ms": p99_ms(heard, began, ended),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    held = crowd.fastest_average(began) <= options.rate_limit * SHARE
    return 0 if held and inside == options.clients else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.storm", description=__doc__)
    parser.add_argument("--url", required=True, help="URL of the node")
    parser.add_argument("--key", required=True, help="an API key")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rate-limit", type=float, required=True, help="the node's limits.connections_per_second")
    parser.add_argument("--topic", default="probe", help="first token of the living subscribers' topic")
    parser.add_argument("--before", type=float, default=5.0, help="seconds before the storm that are measured")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until it is given up")
    return uvloop.run(storm(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
