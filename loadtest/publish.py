"""Durable publishes over HTTP, closed loop: so many are always on their way.

`python -m loadtest.publish --url URL --key KEY` prints publishes a second and how long one took. It ends with 1 when
one of them was not answered with its offset, or two with the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

import uvloop


async def publisher(
    options: argparse.Namespace, number: int, until: float, times: list[float], offsets: Counter[int]
) -> None:
    parts = urlsplit(options.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps({"channel": f"{options.prefix}.{number % options.topics}", "data": "x" * options.size}).encode()
    request = (
        f"POST /api/publish HTTP/1.1\r\nHost: {parts.netloc}\r\nX-API-Key: {options.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    while (begun := time.monotonic()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        offsets[answer["result"]["offset"]] += 1
        times.append(time.monotonic() - begun)
    writer.close()


async def run(options: argparse.Namespace) -> int:
    times: list[float] = []
    offsets: Counter[int] = Counter()
    begun = time.monotonic()
    until = begun + options.seconds
    await asyncio.gather(*(publisher(options, number, until, times, offsets) for number in range(options.in_flight)))
    took = time.monotonic() - begun
    times.sort()
    twice = sum(count > 1 for count in offsets.values())
    report = {
        "publishes": len(times),
        "a_second": round(len(times) / took),
        "p50_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[len(times) * 99 // 100] * 1000, 2),
        "offsets_given_twice": twice,
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if twice else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.publish", description=__doc__)
    parser.add_argument("--url", required=True, help="URL of the node")
    parser.add_argument("--key", required=True, help="an API key")
    parser.add_argument("--prefix", default="storm", help="the topics' first token; they must be durable")
    parser.add_argument("--topics", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--size", type=int, default=100, help="bytes of each publication's data")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    return uvloop.run(run(options))


if __name__ == "__main__":
    raise SystemExit(main())
