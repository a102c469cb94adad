"""What ends a connection to NATS, and that it always comes back."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from broker.relay import connection as module
from broker.relay.connection import confirmed
from broker.relay.errors import RelayLostError, RelayUnavailableError
from broker.relay.options import NatsOptions
from tests.harness.nats import NatsServer
from tests.harness.waiting import eventually
from tests.relay.impostors import Behaviour, answering, black_hole, garbage, impostor, saying
from tests.relay.relaying import Connection, Inbox, running

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(module, "WATCHDOG_SECONDS", 0.1)
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.02, 0.1))


async def assert_it_works(connection: Connection, subject: str) -> None:
    inbox = Inbox()
    await confirmed(connection.subscribe(subject, inbox))
    await confirmed(connection.publish(subject, b"works"))
    await inbox.has(b"works")


async def test_publishing_is_refused_while_nats_is_down_and_works_again_afterwards(own_server: NatsServer) -> None:
    async with running(own_server.url) as connection:
        own_server.kill()
        await connection.down()
        with pytest.raises(RelayUnavailableError):
            connection.publish("a", b"1")
        own_server.start()
        await connection.another_life(2)
        await assert_it_works(connection, "a")
        assert connection.changes == [True, False, True]


async def test_what_was_not_confirmed_is_lost_with_the_connection(own_server: NatsServer) -> None:
    async with running(own_server.url) as connection:
        own_server.pause()
        published = connection.publish("a", b"1")
        await asyncio.sleep(0)  # the turn ends: it is on its way
        subscribed = connection.subscribe("b", Inbox())
        own_server.kill()
        for confirmation in (published, subscribed):
            with pytest.raises(RelayLostError):
                await confirmed(confirmation)


async def test_subscriptions_come_back_as_they_are_wanted_by_then(own_server: NatsServer) -> None:
    kept, dropped, new = Inbox(), Inbox(), Inbox()
    async with running(own_server.url) as connection:
        await confirmed(connection.subscribe("kept", kept))
        await confirmed(connection.subscribe("dropped", dropped))
        own_server.kill()
        await connection.down()
        connection.unsubscribe("dropped")
        with pytest.raises(RelayLostError):
            await confirmed(connection.subscribe("new", new))
        own_server.start()
        await connection.another_life(2)
        async with running(own_server.url) as other:
            for subject in ("kept", "dropped", "new"):
                await confirmed(other.publish(subject, b"after"))
        await kept.has(b"after")
        await new.has(b"after")
        await confirmed(connection.publish("nobody", b""))
        assert dropped.payloads == []


async def test_messages_come_once_after_a_reconnect(own_server: NatsServer) -> None:
    async with running(own_server.url) as connection:
        inbox = Inbox()
        await confirmed(connection.subscribe("once", inbox))
        for life in (2, 3):
            own_server.kill()
            await connection.down()
            own_server.start()
            await connection.another_life(life)
        await confirmed(connection.publish("once", b"1"))
        assert inbox.payloads == [b"1"]


async def test_a_server_that_stands_still_is_given_up(own_server: NatsServer) -> None:
    async with running(own_server.url) as connection:
        own_server.pause()
        pending = connection.publish("a", b"1")
        with pytest.raises(RelayLostError):
            async with asyncio.timeout(10):
                await confirmed(pending)
        await connection.down()
        own_server.resume()
        await connection.another_life(2)
        await assert_it_works(connection, "a")


async def test_a_client_that_an_error_closed_for_good_is_replaced(own_server: NatsServer) -> None:
    # three things see to it, each of which is enough: closed_cb, the watchdog, and a write that fails
    async with running(own_server.url) as connection:
        client = connection._client
        assert client is not None
        assert client._transport is not None
        client._transport.write(b"NOT A COMMAND\r\n")  # the server answers with an -ERR and ends the connection
        await eventually(lambda: client.is_closed)
        await connection.another_life(2)
        assert connection._client is not client
        await assert_it_works(connection, "a")


async def test_a_read_loop_that_dies_unseen_is_replaced(own_server: NatsServer) -> None:
    async with running(own_server.url) as connection:
        client = connection._client
        assert client is not None
        assert client._reading_task is not None
        client._reading_task.cancel()  # as an unexpected exception does: the client still looks connected
        await connection.another_life(2)
        assert connection._client is not client
        await assert_it_works(connection, "a")


async def test_a_read_loop_that_an_exception_ends_is_replaced(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes) -> NoReturn:
        raise ValueError("something unheard of")

    async with running(own_server.url) as connection:
        client = connection._client
        assert client is not None
        monkeypatch.setattr(client._ps, "parse", fail, raising=True)
        await connection.another_life(2)
        assert connection._client is not client
        await assert_it_works(connection, "a")


@pytest.mark.parametrize(
    "behaviour",
    [garbage, black_hole, answering(0), answering(1), answering(2), saying(b"-ERR 'no'\r\n"), saying(b"\x00no\r\n")],
    ids=["garbage", "silent", "no pong", "silent once connected", "silent later", "an -ERR", "nonsense"],
)
async def test_what_is_no_sound_server_is_left_for_one_that_is(own_server: NatsServer, behaviour: Behaviour) -> None:
    met = asyncio.Event()
    async with impostor(behaviour, met) as url, running(url, wait=False) as connection:
        await met.wait()
        connection._options = NatsOptions(servers=[own_server.url], name="test")
        connection._known = [own_server.url]
        await eventually(lambda: _port(connection) == own_server.port)
        await assert_it_works(connection, "a")


def _port(connection: Connection) -> int | None:
    client = connection._client
    return None if client is None or client._current_server is None else client._current_server.uri.port


async def test_a_connection_that_starts_before_nats_waits_for_it(own_server: NatsServer) -> None:
    own_server.kill()
    async with running(own_server.url, wait=False) as connection:
        await eventually(lambda: connection._known)
        own_server.start()
        await connection.up()
        await assert_it_works(connection, "a")


async def test_an_outage_is_told_once_and_never_with_a_traceback(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(own_server.url) as connection:
        own_server.kill()
        await connection.down()
        await eventually(lambda: any("cannot connect" in record.message for record in caplog.records))
        own_server.start()
        await connection.another_life(2)
    said = [record.message for record in caplog.records if record.name.startswith("broker")]
    assert sum("cannot connect" in message for message in said) <= 2
    assert all(record.exc_info is None for record in caplog.records if record.name.startswith("broker"))


@pytest.mark.parametrize("turns", range(12))
async def test_it_can_be_ended_at_every_moment_of_a_loss(own_server: NatsServer, turns: int) -> None:
    # nats-py swallows a cancellation while it flushes, so that a node could not end
    connection = Connection(own_server.url)
    task = asyncio.create_task(connection.run())
    await connection.up()
    own_server.kill()
    connection.send("a", b"1")
    await connection.down()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=5)
    assert done
