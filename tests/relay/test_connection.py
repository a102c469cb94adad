from __future__ import annotations

import asyncio

import pytest

from broker.relay.connection import HEADER_OVERHEAD_BYTES, confirmed
from broker.relay.errors import RelayLostError, RelayRefusedError, RelayTooLargeError, RelayUnavailableError
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.relay.relaying import Connection, Inbox, running

pytestmark = pytest.mark.anyio

ROUNDS = 200


async def test_a_confirmed_subscription_misses_nothing_that_is_published_from_then_on(server: NatsServer) -> None:
    # nats-py's own rtt and flush write their PING past the commands that wait in the client, so that a PONG proves
    # nothing; the two connections have no order between them but what the confirmation gives
    async with running(server.url) as subscriber, running(server.url) as publisher:
        missed = 0
        for number in range(ROUNDS):
            inbox = Inbox()
            await confirmed(subscriber.subscribe(f"race.{number}", inbox))
            await confirmed(publisher.publish(f"race.{number}", b"first"))
            await confirmed(subscriber.publish("nobody", b""))  # behind this, all has come that will
            missed += inbox.payloads != [b"first"]
        assert missed == 0


async def test_a_confirmed_publication_is_with_the_server(server: NatsServer) -> None:
    async with running(server.url) as publisher, running(server.url) as subscriber:
        inbox = Inbox()
        await confirmed(subscriber.subscribe("accepted", inbox))
        for number in range(ROUNDS):
            await confirmed(publisher.publish("accepted", b"%d" % number))
            await confirmed(subscriber.publish("nobody", b""))
            assert len(inbox.payloads) == number + 1


async def test_own_publications_come_before_their_confirmation(server: NatsServer) -> None:
    async with running(server.url) as connection:
        inbox = Inbox()
        connection.subscribe("own", inbox)
        for number in range(ROUNDS):
            await confirmed(connection.publish("own", b"%d" % number))
            assert len(inbox.payloads) == number + 1
        assert inbox.payloads == [b"%d" % number for number in range(ROUNDS)]


async def test_what_one_turn_sends_shares_a_confirmation(server: NatsServer) -> None:
    async with running(server.url) as connection:
        assert connection.publish("a", b"1") is connection.publish("b", b"2")
        await confirmed(connection.publish("a", b"3"))


async def test_a_subscription_made_and_dropped_in_one_turn_brings_nothing(server: NatsServer) -> None:
    async with running(server.url) as connection:
        inbox = Inbox()
        connection.subscribe("dropped", inbox)
        connection.unsubscribe("dropped")
        await confirmed(connection.publish("dropped", b"1"))
        assert inbox.payloads == []
        connection.unsubscribe("dropped")  # once more, of what is not there


async def test_waiting_for_a_confirmation_can_be_cancelled_without_cancelling_it(server: NatsServer) -> None:
    async with running(server.url) as connection:
        confirmation = connection.publish("a", b"1")
        impatient = asyncio.create_task(confirmed(confirmation))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        await confirmed(confirmation)


async def test_headers_and_payloads_come_as_they_were_sent(server: NatsServer) -> None:
    async with running(server.url) as connection:
        inbox = Inbox()
        connection.subscribe("headers", inbox)
        await confirmed(connection.publish("headers", b"", {"Broker-Tags": '{"who":"Åsa λ 🎈"}', "A": ": b:c"}))
        await confirmed(connection.publish("headers", bytes(range(256)), None))
        assert inbox.headers == [{"Broker-Tags": '{"who":"Åsa λ 🎈"}', "A": ": b:c"}, None]
        assert inbox.payloads == [b"", bytes(range(256))]


async def test_a_sink_that_raises_harms_only_itself(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(subject: bytes, payload: bytes, block: object) -> None:
        raise RuntimeError("a sink's own mistake")

    async with running(server.url) as connection:
        inbox = Inbox()
        connection.subscribe("broken", broken)
        connection.subscribe("sound", inbox)
        await confirmed(connection.publish("broken", b"1"))
        await confirmed(connection.publish("sound", b"2"))
        assert inbox.payloads == [b"2"]
        assert connection.changes == [True]
    assert [record.message for record in caplog.records] == ["a message from NATS could not be handled"]


async def test_the_servers_limit_is_kept_to_the_byte(server: NatsServer) -> None:
    async with running(server.url) as connection:
        inbox = Inbox()
        connection.subscribe("large", inbox)
        assert connection.max_payload == 4096
        await confirmed(connection.publish("large", bytes(4096)))
        with pytest.raises(RelayTooLargeError, match="4097 bytes with headers, the NATS server takes 4096"):
            connection.publish("large", bytes(4097))
        assert len(inbox.payloads) == 1
        assert connection.changes == [True]  # the server would have ended the connection, for everybody


@pytest.mark.parametrize("value", ["x" * 100, "λ" * 100, "🎈" * 100])
async def test_headers_count_against_the_servers_limit(server: NatsServer, value: str) -> None:
    async with running(server.url) as connection:
        inbox = Inbox()
        connection.subscribe("large", inbox)
        headers = {"Broker-Tags": value}
        fits = 4096 - HEADER_OVERHEAD_BYTES - len("Broker-Tags") - 4 * len(value) - 4
        await confirmed(connection.publish("large", bytes(fits), headers))
        with pytest.raises(RelayTooLargeError):
            connection.publish("large", bytes(4096 - len(value.encode())), headers)
        assert connection.changes == [True]
        assert len(inbox.payloads) == 1


async def test_without_a_connection_nothing_is_published(server: NatsServer) -> None:
    connection = Connection(server.url)  # it doesn't run
    with pytest.raises(RelayUnavailableError, match="not connected to NATS"):
        connection.publish("a", b"1")
    connection.send("a", b"1")
    await connection.settle()


async def test_a_subscription_made_before_the_connection_comes_with_it(server: NatsServer) -> None:
    async with running(server.url) as publisher:
        connection = Connection(server.url)
        inbox = Inbox()
        with pytest.raises(RelayLostError):
            await confirmed(connection.subscribe("early", inbox))
        task = asyncio.create_task(connection.run())
        await connection.up()
        await confirmed(publisher.publish("early", b"1"))
        await inbox.has(b"1")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert connection.changes == [True, False]


async def test_more_than_nats_keeps_up_with_is_refused(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.relay.connection.UNCONFIRMED_BYTES", 1000)
    async with running(server.url) as connection:
        confirmation = connection.publish("a", bytes(900))
        with pytest.raises(RelayUnavailableError, match="does not keep up"):
            connection.publish("a", bytes(101))
        await confirmed(confirmation)
        await confirmed(connection.publish("a", bytes(1000)))


async def test_settling_waits_for_what_was_sent(server: NatsServer) -> None:
    async with running(server.url) as connection, running(server.url) as other:
        inbox = Inbox()
        await confirmed(other.subscribe("settled", inbox))
        connection.send("settled", b"1")
        await connection.settle()
        await inbox.has(b"1")


async def test_a_second_server_is_tried_when_the_first_is_not_there(server: NatsServer) -> None:
    async with running("nats://127.0.0.1:1", server.url) as connection:
        await confirmed(connection.publish("a", b"1"))


async def test_what_nats_does_not_permit_is_not_confirmed(site: Site) -> None:
    rights = {"publish": ["open.>"], "subscribe": ["open.>"]}
    users = [{"user": "u", "password": "p", "permissions": rights}]
    server = site.start_nats({"authorization": {"users": users}})
    async with running(server.url.replace("//", "//u:p@")) as connection:
        for _ in range(20):
            refused = connection.publish("closed.a", b"1")
            with pytest.raises(RelayRefusedError, match="closed"):
                await confirmed(refused)
            await confirmed(connection.publish("open.a", b"1"))
            refused = connection.subscribe("closed.b", Inbox())
            with pytest.raises(RelayRefusedError, match="closed"):
                await confirmed(refused)
            connection.unsubscribe("closed.b")
        assert connection.changes == [True]
