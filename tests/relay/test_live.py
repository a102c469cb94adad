from __future__ import annotations

import pytest

from broker.relay.connection import confirmed
from broker.relay.errors import RelayLostError, RelayUnavailableError
from broker.relay.live import LINGER_SECONDS, LiveRelay
from broker.relay.subjects import Subjects
from tests.harness.nats import NatsServer
from tests.harness.web import request
from tests.relay.relaying import Clock, Connection, Inbox, running

pytestmark = pytest.mark.anyio


class Live(LiveRelay):
    """Keeps what it delivers, and how it stands with time."""

    def __init__(self, connection: Connection, prefix: str = "live") -> None:
        self.clock = Clock()
        self.delivered: list[tuple[str, bytes]] = []
        super().__init__(connection, Subjects(prefix), self._keep, self.clock)

    def _keep(self, topic: str, subject: bytes, data: bytes, block: bytes | None) -> None:
        del subject, block
        self.delivered.append((topic, data))

    async def subscribe(self, topic: str) -> None:
        waiting = self.want("p", topic)
        if waiting is not None:
            await confirmed(waiting)

    async def announce(self, topic: str, data: bytes) -> None:
        await confirmed(self.publish("p", topic, data, None))


async def interests(server: NatsServer) -> set[str]:
    """The subjects that the server knows somebody to be interested in."""
    answer = await request("GET", f"http://127.0.0.1:{server.port + 1}/subsz?subs=1")
    return {entry["subject"] for entry in answer.json().get("subscriptions_list", ()) if entry["account"] == "$G"}


@pytest.fixture
def watched(own_server: NatsServer) -> NatsServer:
    """A server that tells of its subscriptions, on the port above its own."""
    own_server.kill()
    own_server.configure({"http": f"127.0.0.1:{own_server.port + 1}"})
    own_server.start()
    own_server.wait_ready()
    return own_server


async def test_who_wants_a_topic_gets_all_of_it_from_then_on(server: NatsServer) -> None:
    async with running(server.url) as here, running(server.url) as there:
        live, other = Live(here), Live(there)
        for number in range(100):
            await live.subscribe(f"t.{number}")
            await other.announce(f"t.{number}", b"%d" % number)
        await live.announce("nobody", b"")
        assert live.delivered == [(f"t.{number}", b"%d" % number) for number in range(100)]


async def test_concurrent_first_subscribers_wait_for_the_same_interest(server: NatsServer) -> None:
    async with running(server.url) as here, running(server.url) as there:
        live, other = Live(here), Live(there)
        first, second = live.want("p", "t"), live.want("p", "t")
        assert first is not None
        assert first is second
        await confirmed(first)
        assert live.want("p", "t") is None
        await other.announce("t", b"1")
        await live.announce("nobody", b"")
        assert live.delivered == [("t", b"1")]  # once for this node, however many want it


async def test_nothing_of_other_topics_policies_or_prefixes_comes(server: NatsServer) -> None:
    async with running(server.url) as here, running(server.url) as there:
        live = Live(here)
        await live.subscribe("a.b")
        for topic in ("a", "a.b.c", "a.c", "A.b"):
            await Live(there).announce(topic, b"other")
        await confirmed(Live(there).publish("q", "a.b", b"other", None))
        await Live(there, "prefix").announce("a.b", b"other")
        await live.announce("nobody", b"")
        assert live.delivered == []


async def test_an_interest_lingers_when_the_last_subscriber_has_left(watched: NatsServer) -> None:
    async with running(watched.url) as connection:
        live = Live(connection)
        await live.subscribe("t")
        live.release("t")
        live.clock.now += LINGER_SECONDS - 0.1
        live.sweep()
        await live.announce("t", b"1")
        assert live.delivered == [("t", b"1")]
        assert await interests(watched) >= {"live.p.live.t"}
        live.clock.now += 0.2
        live.sweep()
        await live.announce("t", b"2")
        assert live.delivered == [("t", b"1")]
        assert "live.p.live.t" not in await interests(watched)


async def test_what_nodes_say_of_members_comes_only_where_it_is_wanted_and_as_long_as_the_topic(
    watched: NatsServer,
) -> None:
    async with running(watched.url) as connection:
        live, inbox, subjects = Live(connection), Inbox(), Subjects("live")
        waiting = live.want("p", "a", members=inbox)
        assert waiting is not None
        await confirmed(waiting)
        await live.subscribe("b")
        assert live.want("p", "a", members=inbox) is None
        for topic in "ab":
            await confirmed(connection.publish(subjects.members(topic), topic.encode()))
            await live.announce(topic, topic.encode())
        assert (inbox.payloads, live.delivered) == ([b"a"], [("a", b"a"), ("b", b"b")])
        live.release("a")
        live.clock.now += LINGER_SECONDS
        live.sweep()
        await live.announce("a", b"")
        assert not {subjects.members("a"), subjects.live("p", "a")} & await interests(watched)


async def test_a_topic_that_is_wanted_again_in_time_is_kept(watched: NatsServer) -> None:
    async with running(watched.url) as connection:
        live = Live(connection)
        await live.subscribe("t")
        live.release("t")
        live.clock.now += LINGER_SECONDS - 0.1
        assert live.want("p", "t") is None
        live.clock.now += LINGER_SECONDS
        live.sweep()
        await live.announce("t", b"1")
        assert live.delivered == [("t", b"1")]
        live.release("t")
        live.clock.now += LINGER_SECONDS - 0.1
        live.sweep()
        assert await interests(watched) >= {"live.p.live.t"}  # the time counts from the last release


async def test_each_topic_lingers_by_itself(watched: NatsServer) -> None:
    async with running(watched.url) as connection:
        live = Live(connection)
        for topic in ("a", "b", "c"):
            await live.subscribe(topic)
            live.release(topic)
            live.clock.now += 1
        live.clock.now += LINGER_SECONDS - 2
        live.sweep()
        await live.announce("nobody", b"")
        assert {topic for topic in "abc" if f"live.p.live.{topic}" in await interests(watched)} == {"c"}


async def test_a_topic_wanted_again_after_its_end_is_made_anew(server: NatsServer) -> None:
    async with running(server.url) as connection:
        live = Live(connection)
        await live.subscribe("t")
        live.release("t")
        live.clock.now += LINGER_SECONDS
        live.sweep()
        assert live.want("p", "t") is not None
        await live.announce("t", b"1")
        assert live.delivered == [("t", b"1")]


async def test_what_nobody_wanted_can_be_released(server: NatsServer) -> None:
    async with running(server.url) as connection:
        live = Live(connection)
        live.release("unheard of")
        live.clock.now += LINGER_SECONDS
        live.sweep()


async def test_an_interest_survives_the_loss_of_the_connection(own_server: NatsServer) -> None:
    async with running(own_server.url) as connection:
        live = Live(connection)
        await live.subscribe("t")
        own_server.kill()
        await connection.down()
        again = live.want("p", "t")
        assert again is not None
        with pytest.raises(RelayLostError):
            again.result()  # what others publish now would be missed
        with pytest.raises(RelayUnavailableError):
            live.publish("p", "t", b"lost", None)
        own_server.start()
        await connection.another_life(2)
        await live.announce("t", b"1")
        assert live.delivered == [("t", b"1")]
        assert live.want("p", "t") is None


async def test_a_topic_first_wanted_while_nats_is_down_is_an_error_and_can_be_wanted_again(
    own_server: NatsServer,
) -> None:
    async with running(own_server.url) as connection:
        live = Live(connection)
        own_server.kill()
        await connection.down()
        with pytest.raises(RelayLostError):
            await live.subscribe("t")
        own_server.start()
        await connection.another_life(2)
        await live.announce("t", b"nobody wants it")
        assert live.delivered == []
        await live.subscribe("t")
        await live.announce("t", b"1")
        assert live.delivered == [("t", b"1")]


async def test_a_topic_left_before_its_interest_failed_leaves_nothing_behind(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.relay.connection.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("broker.relay.connection.WATCHDOG_SECONDS", 0.1)
    async with running(own_server.url) as connection:
        live = Live(connection)
        own_server.pause()
        waiting = live.want("p", "t", members=Inbox())
        assert waiting is not None
        live.release("t")
        own_server.kill()
        with pytest.raises(RelayLostError):
            await confirmed(waiting)
        live.clock.now += LINGER_SECONDS
        live.sweep()
        assert (live._interests, live._leaving, connection._sinks) == ({}, {}, {})
