"""Subscribers that live while something else goes on, and how long publications take to them.

`python -m loadtest.probe --url URL --key KEY` publishes until its standard input ends, and then prints a JSON list of
pairs: when a publication was sent (seconds on the monotonic clock), and after how many seconds a subscriber had it. Run
as a process of its own, it measures the node and not whoever disturbs it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from urllib.parse import urlsplit

import uvloop

from loadtest.crowd import Attempt, commands_of

_STAMP = re.compile(rb'"data":([0-9.]+)')


class Living(Attempt):
    """A subscriber that notes what it hears."""

    def __init__(self, host: str, topic: str, heard: list[tuple[float, float]]) -> None:
        super().__init__(host, commands_of(topic))
        self._heard = heard

    def heard(self, data: bytes) -> None:
        now = time.monotonic()
        for stamp in _STAMP.findall(data):
            self._heard.append((float(stamp), now - float(stamp)))


async def publish(parts: tuple[str, int], key: str, topic: str, rate: float) -> None:
    """Publish the time, again and again, on one connection."""
    reader, writer = await asyncio.open_connection(*parts)
    due = time.monotonic()
    while True:
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        body = json.dumps({"channel": topic, "data": time.monotonic()})
        head = f"POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer.lower())
        await reader.readexactly(int(length[1]) if length else 0)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise SystemExit(answer.decode())


async def probe(options: argparse.Namespace) -> int:
    parts = urlsplit(options.url)
    assert parts.hostname is not None  # noqa: S101 - a URL has a host
    assert parts.port is not None  # noqa: S101 - and here a port
    topic = f"{options.topic}.{random.randrange(10**9)}"  # noqa: S311 - no secret
    heard: list[tuple[float, float]] = []
    loop = asyncio.get_running_loop()
    for _ in range(options.subscribers):
        living = Living(parts.netloc, topic, heard)
        await loop.create_connection(lambda living=living: living, parts.hostname, parts.port)  # type: ignore[misc]
        await living.entered
        if not living.inside:
            raise SystemExit(f"a subscriber was not let in: {living.status}")
    publishing = asyncio.create_task(publish((parts.hostname, parts.port), options.key, topic, options.rate))
    ended = loop.run_in_executor(None, sys.stdin.read)
    await asyncio.wait([publishing, ended], return_when=asyncio.FIRST_COMPLETED)
    if publishing.done():
        publishing.result()
    publishing.cancel()
    sys.stdout.write(json.dumps(heard) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.probe", description=__doc__)
    parser.add_argument("--url", required=True, help="URL of the node")
    parser.add_argument("--key", required=True, help="an API key")
    parser.add_argument("--topic", default="probe", help="the topic's first token; anybody may subscribe")
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50, help="publications a second")
    return uvloop.run(probe(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
