"""Requests to NATS and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.relay import inbox as module
from broker.relay.connection import confirmed
from broker.relay.errors import (
    RelayError,
    RelayLostError,
    RelayRefusedError,
    RelayTimeoutError,
    RelayTooLargeError,
    RelayUnavailableError,
)
from broker.relay.headers import read_status
from broker.relay.inbox import Inbox
from broker.relay.subjects import Subjects
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.relay.relaying import Clock, Connection, running

pytestmark = pytest.mark.anyio


class Asked:
    """Waits for so many answers."""

    def __init__(self, answers: int = 1) -> None:
        self.left = answers
        self.answers: list[bytes] = []
        self.statuses: list[int] = []
        self.errors: list[RelayError] = []

    def answer(self, payload: bytes, block: bytes | None) -> bool:
        assert not self.errors
        self.answers.append(payload)
        self.statuses.append(0 if block is None else read_status(block))
        self.left -= 1
        return self.left <= 0

    def fail(self, error: RelayError) -> None:
        self.errors.append(error)


class Asking(Inbox):
    def __init__(self, connection: Connection, uid: str = "me") -> None:
        self.clock = Clock()
        super().__init__(connection, Subjects("inboxes"), uid, self.clock)

    def send(self, subject: str, payload: bytes = b"", answers: int = 1, seconds: float = 5.0) -> Asked:
        asked = Asked(answers)
        self.ask(subject, payload, None, asked, seconds)
        return asked


@asynccontextmanager
async def asking(server: NatsServer) -> AsyncIterator[tuple[Asking, Connection]]:
    async with running(server.url) as connection:
        inbox = Asking(connection)
        inbox.start()
        yield inbox, connection


async def echo(connection: Connection, subject: str, times: int = 1) -> None:
    """Answer as NATS's own services do. The sink isn't told where to; here the payload says it."""

    def answer(_: bytes, payload: bytes, __: bytes | None) -> None:
        for _number in range(times):
            connection.send(payload.decode(), payload)

    await confirmed(connection.subscribe(subject, answer))


async def test_each_answer_finds_who_asked(server: NatsServer) -> None:
    async with asking(server) as (inbox, connection):
        await echo(connection, "service")
        asked = [inbox.send("service", b"inboxes.ctl.reply.me.%d" % number) for number in (1, 2, 3)]
        await eventually(lambda: all(one.answers for one in asked))
        assert [one.answers for one in asked] == [[b"inboxes.ctl.reply.me.%d" % number] for number in (1, 2, 3)]
        assert len(inbox) == 0


async def test_who_wants_several_answers_waits_for_the_last_one(server: NatsServer) -> None:
    async with asking(server) as (inbox, connection):
        await echo(connection, "service", times=4)
        asked = inbox.send("service", b"inboxes.ctl.reply.me.1", answers=3)
        await eventually(lambda: len(asked.answers) >= 3)
        await connection.settle()
        assert len(asked.answers) == 3  # the fourth is nobody's
        assert len(inbox) == 0


async def test_nats_says_when_nobody_listens(server: NatsServer) -> None:
    async with asking(server) as (inbox, _):
        asked = inbox.send("nobody.there")
        await eventually(lambda: asked.statuses == [503])
        assert len(inbox) == 0


async def test_who_is_not_answered_is_told_once_and_late_answers_are_nobodys(server: NatsServer) -> None:
    async with asking(server) as (inbox, connection):
        heard: list[bytes] = []
        await confirmed(connection.subscribe("silent", lambda *message: heard.append(message[1])))
        soon, later = inbox.send("silent", seconds=1), inbox.send("silent", seconds=2)
        inbox.clock.now += 1
        inbox.sweep()
        inbox.sweep()
        assert [type(error) for error in soon.errors] == [RelayTimeoutError]
        assert later.errors == []
        await confirmed(connection.publish("inboxes.ctl.reply.me.1", b"late"))
        assert soon.answers == []
        inbox.clock.now += 1
        inbox.sweep()
        assert [type(error) for error in later.errors] == [RelayTimeoutError]
        assert len(inbox) == 0


async def test_the_end_of_the_connection_is_told_to_all_who_wait(own_server: NatsServer) -> None:
    async with asking(own_server) as (inbox, connection):
        await confirmed(connection.subscribe("silent", lambda *_: None))
        asked = [inbox.send("silent") for _ in range(3)]
        own_server.kill()
        await connection.down()
        inbox.lost()
        assert [[type(error) for error in one.errors] for one in asked] == [[RelayLostError]] * 3
        assert len(inbox) == 0
        with pytest.raises(RelayUnavailableError):
            inbox.send("silent")
        assert len(inbox) == 0
        own_server.start()
        await connection.another_life(2)
        again = inbox.send("nobody.there")
        await eventually(lambda: again.statuses == [503])


async def test_what_nats_does_not_permit_fails_and_nothing_else_does(site: Site) -> None:
    account = {"user": "me", "password": "pass", "permissions": {"publish": {"deny": ["secret.>"]}}}
    server = site.start_nats({"authorization": {"users": [account]}})
    async with running(server.url.replace("nats://", "nats://me:pass@")) as connection:
        inbox = Asking(connection)
        inbox.start()
        refused = inbox.send("secret.service")
        await eventually(lambda: refused.errors)
        assert [type(error) for error in refused.errors] == [RelayRefusedError]
        fine = inbox.send("nobody.there")
        await eventually(lambda: fine.statuses == [503])
        assert fine.errors == []


async def test_what_is_too_large_leaves_nobody_waiting(server: NatsServer) -> None:
    async with asking(server) as (inbox, _):
        with pytest.raises(RelayTooLargeError):
            inbox.send("service", b"x" * 5000)
        assert len(inbox) == 0


async def test_too_many_who_wait_are_refused(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    async with asking(server) as (inbox, connection):
        await confirmed(connection.subscribe("silent", lambda *_: None))
        inbox.send("silent")
        inbox.send("silent")
        with pytest.raises(RelayUnavailableError, match="does not keep up"):
            inbox.send("silent")


async def test_an_answer_to_no_question_disturbs_nobody(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with asking(server) as (inbox, connection):
        for name in ("77", "x", "-1"):
            await confirmed(connection.publish(f"inboxes.ctl.reply.me.{name}", b"?"))
        asked = inbox.send("nobody.there")
        await eventually(lambda: asked.statuses == [503])
        assert "Traceback" not in caplog.text


async def test_inboxes_of_different_nodes_do_not_mix(server: NatsServer) -> None:
    async with asking(server) as (inbox, connection), running(server.url) as other:
        another = Asking(other, "you")
        another.start()
        await echo(connection, "service")
        mine, yours = inbox.send("service", b"inboxes.ctl.reply.me.1"), another.send("nobody.there")
        await eventually(lambda: mine.answers and yours.statuses)
        assert (mine.statuses, yours.statuses) == ([0], [503])
        await asyncio.sleep(0)
        assert len(mine.answers) == 1
