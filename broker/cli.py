"""The `broker` command."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop

from broker import __version__
from broker.app import check
from broker.auth.keys import load_keys
from broker.auth.mint import mint, parse_duration
from broker.auth.ring import HASHES
from broker.auth.tokens import Rejected, TokenVerifier
from broker.config_command import run_config
from broker.core.topic import subscription_problem
from broker.dev import dev
from broker.serve import StartError, Worker, serve
from broker.settings import Settings, SettingsError, load
from broker.supervisor import WORKER_VARIABLE, supervise

OK, FAILED, BAD_SETTINGS = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 clean, 1 failure, 2 bad settings or arguments."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except SettingsError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)
        return BAD_SETTINGS
    except StartError as error:
        print(error, file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # whoever read our output has gone; Python would complain while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="broker", description="A WebSocket pub/sub broker on NATS.")
    parser.add_argument("--version", action="version", version=f"broker {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    one = commands.add_parser("dev", help="run a node on this machine with all that it needs, and everything permitted")
    one.add_argument("--port", type=int, default=8000, metavar="PORT", help="default: 8000; 0: any that is free")
    one.set_defaults(command=_dev)

    one = commands.add_parser("serve", help="run a production node")
    _add_config(one)
    one.add_argument("--host", metavar="HOST", help="the address to listen on")
    one.add_argument("--port", type=int, metavar="PORT", help="the port to listen on")
    one.add_argument("--nats", metavar="URL", help="NATS servers, separated by commas, or `embedded`")
    one.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that share the port")
    one.set_defaults(command=_serve)

    one = commands.add_parser("token", help="make a token with the configured secret")
    _add_config(one)
    one.add_argument("user", metavar="USER", help="whose token; '' for the anonymous")
    one.add_argument("--ttl", type=_duration, default="1h", metavar="1h", help="how long it is valid (default: 1h)")
    one.add_argument(
        "--topic", type=_topic, action="append", default=[], metavar="T", help="make a subscription token for it"
    )
    one.set_defaults(command=_token)

    one = commands.add_parser("config", help="check or show the settings")
    _add_config(one)
    mode = one.add_mutually_exclusive_group()
    for name, text in (
        ("check", "say `ok`, or a line for each mistake (the default)"),
        ("schema", "print the JSON Schema of the settings"),
        ("show", "print what is in force, secrets masked"),
    ):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=text)
    one.set_defaults(command=_config, mode="check")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML or JSON")


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _topic(text: str) -> str:
    problem = subscription_problem(text)
    if problem is not None:
        raise argparse.ArgumentTypeError(f"{text!r} {problem}")
    return text


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes from 1 to 256")
    return int(text)


def _load(options: argparse.Namespace, flags: dict[str, dict[str, Any]]) -> Settings:
    return load(options.config, os.environ, flags, inspect=check)


def _run(coroutine: Coroutine[Any, Any, int]) -> int:
    return uvloop.run(coroutine)


def _dev(options: argparse.Namespace) -> int:
    return _run(dev(options.port))


def _serve(options: argparse.Namespace) -> int:
    settings = _load(options, {"http": {"host": options.host, "port": options.port}, "nats": {"url": options.nats}})
    index = os.environ.get(WORKER_VARIABLE)
    if index is not None:
        return _run(serve(settings, worker=Worker(int(index))))
    if options.workers == 1:
        return _run(serve(settings))
    arguments = []
    if options.config is not None:
        arguments += ["--config", str(options.config)]
    if options.host is not None:
        arguments += ["--host", options.host]
    return asyncio.run(supervise(settings, options.workers, arguments))


def _token(options: argparse.Namespace) -> int:
    auth = _load(options, {}).auth
    if auth.hmac_secret is None:
        raise SettingsError(("auth.hmac_secret: is not set, so nothing can be signed",))
    if not options.user and not auth.anonymous:
        raise SettingsError(("auth.anonymous: is false, so a node would refuse the token of the anonymous",))
    secret = auth.hmac_secret.get_secret_value()
    tokens = mint(
        user=options.user,
        topic=options.topic,
        ttl_seconds=options.ttl,
        secret=secret,
        audience=auth.audience,
        issuer=auth.issuer,
        now=time.time(),
        # there is one: `check` refuses a secret that no algorithm is allowed for
        algorithm=next(name for name in auth.algorithms or HASHES if name in HASHES),
        user_claim=auth.user_claim,
    )
    # the user's name and the time have their bounds, too: better refused here than by the node
    verifier = TokenVerifier(
        load_keys(secret, (), auth.algorithms, minimum_secret_bytes=auth.minimum_secret_bytes),
        audience=auth.audience,
        issuer=auth.issuer,
        leeway_seconds=auth.leeway_seconds,
        user_claim=auth.user_claim,
        require_exp=auth.require_exp,
    )
    for token in tokens:
        taken = verifier.subscription(token) if options.topic else verifier.connection(token)
        if isinstance(taken, Rejected):
            raise SettingsError((f"a node with these settings would refuse this token: {taken.reason}",))
    for token in tokens:
        print(token)
    return OK


def _config(options: argparse.Namespace) -> int:
    return run_config(options.mode, options.config, os.environ, {}, inspect=check)
