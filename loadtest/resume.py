"""A resume storm: many clients come back at once, each some publications behind, and want exactly those.

`python -m loadtest.resume --publish URL --connect URL --key KEY` publishes through one node and lets the clients come
to the other, so that it has nothing at hand. It ends with 1 unless all were recovered.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import sys
import time
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import uvloop


class Returning(asyncio.Protocol):
    """One client that comes back."""

    def __init__(self, host: str, topic: str, position: tuple[int, str], done: asyncio.Future[bytes]) -> None:
        subscribe = {"channel": topic, "recover": True, "offset": position[0], "epoch": position[1]}
        commands = [{"id": 1, "connect": {}}, {"id": 2, "subscribe": subscribe}]
        self._hello = "\n".join(json.dumps(one) for one in commands).encode()
        self._host = host
        self._done = done
        self._came = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET /connection/websocket HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        )
        size = len(self._hello)
        length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
        # a mask of zeros leaves the payload as it is
        transport.write(head.encode() + b"\x81" + length + bytes(4) + self._hello)

    def data_received(self, data: bytes) -> None:
        self._came += data
        at = self._came.find(b'{"id":2,')
        if at >= 0 and not self._done.done() and self._came.find(b'"was_recovering":true', at) >= 0:
            self._done.set_result(bytes(self._came[at:]))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("closed before the answer"))


def call(url: str, key: str, method: str, body: object) -> dict[str, Any]:
    request = Request(f"{url}/api/{method}", json.dumps(body).encode(), {"X-API-Key": key})  # noqa: S310 - the user's own
    with urlopen(request) as response:  # noqa: S310 - the user's own
        answer: dict[str, Any] = json.load(response)
    return answer


def metric(url: str, name: str) -> float:
    with urlopen(f"{url}/metrics") as response:  # noqa: S310 - the user's own
        lines = response.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{", f"{name}}}"))
    )


async def storm(options: argparse.Namespace) -> int:
    topics = [f"{options.prefix}.{random.randrange(10**9)}.{number}" for number in range(options.topics)]  # noqa: S311
    positions = {}
    for topic in topics:
        result = call(options.publish, options.key, "publish", {"channel": topic, "data": 0})["result"]
        positions[topic] = (result["offset"], result["epoch"])
    data = "x" * options.size
    for number in range(options.behind):
        body = {"channels": topics, "data": {"n": number, "text": data}}
        call(options.publish, options.key, "broadcast", body)
    before = metric(options.connect, "broker_relay_reads_total")
    parts = urlsplit(options.connect)
    loop = asyncio.get_running_loop()
    begun = time.monotonic()

    async def come(number: int) -> tuple[bool, float]:
        await asyncio.sleep(random.uniform(0, options.within))  # noqa: S311 - spread
        topic = topics[number % len(topics)]
        started = time.monotonic()
        done: asyncio.Future[bytes] = loop.create_future()
        await loop.create_connection(
            lambda: Returning(parts.netloc, topic, positions[topic], done), parts.hostname, parts.port
        )
        reply = await done
        whole = b'"recovered":true' in reply and reply.count(b'"offset":') == options.behind + 1
        return whole, time.monotonic() - started

    outcomes = await asyncio.gather(*(come(number) for number in range(options.clients)), return_exceptions=True)
    took = time.monotonic() - begun
    answers = [one for one in outcomes if isinstance(one, tuple)]
    times = sorted(seconds for _, seconds in answers)
    lag = {
        bound: metric(options.connect, f'broker_loop_lag_seconds_bucket{{le="{bound}"') for bound in ("0.05", "+Inf")
    }
    report = {
        "clients": options.clients,
        "recovered": sum(whole for whole, _ in answers),
        "failed": options.clients - len(answers),
        "seconds": round(took, 2),
        "answer_p50_ms": round(times[len(times) // 2] * 1000, 1) if times else None,
        "answer_p99_ms": round(times[len(times) * 99 // 100] * 1000, 1) if times else None,
        "reads": metric(options.connect, "broker_relay_reads_total") - before,
        "lags_over_50_ms": lag["+Inf"] - lag["0.05"],
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if report["recovered"] == options.clients else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.resume", description=__doc__)
    parser.add_argument("--publish", required=True, help="URL of the node to publish through")
    parser.add_argument("--connect", required=True, help="URL of the node that the clients come to")
    parser.add_argument("--key", required=True, help="an API key")
    parser.add_argument("--prefix", default="storm", help="the topics' first token; they must be durable")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--behind", type=int, default=50, help="publications that each client has missed")
    parser.add_argument("--size", type=int, default=100, help="bytes of text in each of them")
    parser.add_argument("--within", type=float, default=5.0, help="seconds in which they come")
    options = parser.parse_args()
    return uvloop.run(storm(options))


if __name__ == "__main__":
    raise SystemExit(main())
