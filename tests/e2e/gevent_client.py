"""Twenty clients as greenlets, with `websocket-client` under gevent's monkey patching: each publishes, all receive.

Run as a program, for the patching is for a whole process: gevent_client.py URL TOKEN
"""
# ruff: noqa: E402 - the patching comes before everything else

from gevent import monkey

monkey.patch_all()

import json
import sys

import gevent
import websocket

CLIENTS = 20


def converse(url: str, token: str, number: int, subscribed: "list[int]") -> int:
    """Publish once; how many publications came."""
    connection = websocket.create_connection(url, timeout=15)
    unread: list[str] = []

    def following() -> "dict[str, object]":
        while not unread:
            message = connection.recv()
            assert isinstance(message, str)
            unread.extend(message.split("\n"))
        line: dict[str, object] = json.loads(unread.pop(0))
        return line

    connection.send(json.dumps({"id": 1, "connect": {"token": token}}))
    assert "connect" in following()
    connection.send(json.dumps({"id": 2, "subscribe": {"channel": "greenlets"}}))
    assert "subscribe" in following()
    subscribed.append(number)
    while len(subscribed) < CLIENTS:
        gevent.sleep(0.01)
    connection.send(json.dumps({"id": 3, "publish": {"channel": "greenlets", "data": number}}))
    lines = [following() for _ in range(CLIENTS + 1)]
    connection.close()
    return sum("push" in line for line in lines)


def main() -> None:
    url, token = sys.argv[1:]
    subscribed: list[int] = []
    running = [gevent.spawn(converse, url, token, number, subscribed) for number in range(CLIENTS)]
    gevent.joinall(running, timeout=30, raise_error=True)
    print(json.dumps({"clients": CLIENTS, "received": sum(one.value for one in running)}))  # noqa: T201


main()
