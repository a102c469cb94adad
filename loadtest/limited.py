"""A publisher gone wild: one at ten times its key's limit, beside others with another key.

`python -m loadtest.limited --url URL --key LIMITED --limit RATE --other-key OTHER` publishes for a while without the
wild one and then with it. It ends with 1 when the wild one got through by more than its limit and a tenth, or when any
of the others was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from typing import Any

import uvloop

from loadtest.sockets import Publisher, data_of, percentile


async def publish(options: argparse.Namespace, key: str, rate: float, *, topic: str) -> Publisher:
    """Publish at a rate for as long as was asked for."""
    publisher = Publisher(options.url, key)
    await publisher.open()
    count = int(rate * options.seconds)
    await publisher.run(rate, count, lambda number: {"channel": topic, "data": data_of(number, options.size)})
    return publisher


async def compare(options: argparse.Namespace) -> int:
    run = random.randrange(10**9)  # noqa: S311 - fresh topics

    def others() -> list[Any]:
        names = [f"{options.topic_prefix}.{run}.{number}" for number in range(options.others)]
        return [publish(options, options.other_key, options.other_rate, topic=name) for name in names]

    alone = await asyncio.gather(*others())
    wild_topic = f"{options.topic_prefix}.{run}.wild"
    wild, *beside = await asyncio.gather(
        publish(options, options.key, options.times * options.limit, topic=wild_topic), *others()
    )
    taken, refused = wild.answers["200"], sum(one.answers.total() - one.answers["200"] for one in (*alone, *beside))
    report = {
        "wild": dict(wild.answers),
        "wild_taken_per_second": round(taken / options.seconds, 1),
        "others_refused": refused,
        "others_p99_ms": percentile(sorted(time for one in alone for time in one.times), 0.99),
        "others_p99_ms_beside_it": percentile(sorted(time for one in beside for time in one.times), 0.99),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    # a bucket may be full at the beginning: that is one second's worth more
    most = options.limit * (options.seconds + 1) * 1.1
    return 0 if taken <= most and not refused else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.limited", description=__doc__)
    parser.add_argument("--url", required=True, help="URL of the node")
    parser.add_argument("--key", required=True, help="the API key with a limit")
    parser.add_argument("--limit", type=float, required=True, help="its publish_rate")
    parser.add_argument("--other-key", required=True, help="an API key without one")
    parser.add_argument("--topic-prefix", default="limited", help="the topics' first tokens")
    parser.add_argument("--times", type=float, default=10, help="how many times its limit the wild one tries")
    parser.add_argument("--others", type=int, default=4, help="publishers beside it")
    parser.add_argument("--other-rate", type=float, default=50, help="publications per second of each")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10)
    return uvloop.run(compare(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
