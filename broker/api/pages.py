"""What a person sees who opens the node in a browser, and what an HTTP request for the WebSocket gets."""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from broker import __version__
from broker.api.health import Answer
from broker.api.problems import problem
from broker.node import Node

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>broker {version}</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}</style>
<h1>broker {version}</h1>
<p>This is node <b>{name}</b> of a WebSocket pub/sub broker.</p>
<ul>
<li>Clients connect to <code>/connection/websocket</code> with any Centrifuge SDK.</li>
<li>Back ends publish with <code>POST /api/publish</code>; see <a href="openapi.json">the API's description</a>.</li>
<li>Operators look at <a href="health/ready">health</a> and <a href="metrics">metrics</a>.</li>
</ul>
</html>
"""


def root(node: Node) -> Answer:
    async def answer(request: Request) -> Response:
        del request
        return HTMLResponse(_PAGE.format(version=escape(__version__), name=escape(node.name)))

    return answer


async def upgrade_required(request: Request) -> Response:
    """A plain HTTP request where a WebSocket is spoken (RFC 9110, section 15.5.22)."""
    del request
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    return problem(426, "this path speaks WebSocket only; open it with a Centrifuge SDK", headers)
