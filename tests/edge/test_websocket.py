"""Slow readers, floods, deadlines and broken connections, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from broker.core.frames import CLOSE, PONG, TEXT, frame
from broker.edge import websocket as module
from broker.wire.codes import CloseCode, close
from tests.edge import raw
from tests.edge.raw import FIN, client_frame, ping, text
from tests.edge.serving import served
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

FRAME = frame(TEXT, b"x" * 10_000)
SMALL = 4096


async def test_a_slow_reader_is_closed_at_its_bound_and_a_fast_one_goes_on() -> None:
    async with served(rules={"limit_bytes": 100_000}) as at:
        fast, _ = await at.joined()
        _, slow = await at.joined(receive_buffer=SMALL)
        sent = 0
        while slow.end is None and not slow._closing:
            at.fan_out(FRAME)
            sent += 1
            assert at.edge.pressure.queued_bytes <= 100_000
            assert await fast.read(len(FRAME)) == FRAME
            assert sent < 10_000
        assert slow._code == CloseCode.SLOW
        assert at.edge.pressure.queued_bytes == 0
        at.fan_out(FRAME)
        assert await fast.read(len(FRAME)) == FRAME
        # nine waited and the tenth was too many; the hub names it until it is gone, but it is sent nothing more
        assert b'broker_dropped_total{policy="default",reason="slow"} 10.0' in at.edge.metrics.exposition()[0]


async def test_a_slow_reader_that_catches_up_gets_everything_in_order() -> None:
    async with served(rules={"limit_bytes": 10_000_000}) as at:
        client, peer = await at.joined(receive_buffer=SMALL)
        number = 0
        while not peer._queue or number < 100:
            at.fan_out(frame(TEXT, b"%06d" % number * 1000))
            number += 1
        for expected in range(number):
            assert await client.read_frame() == (FIN | TEXT, b"%06d" % expected * 1000)
        await eventually(lambda: peer.ready)
        assert at.edge.pressure.queued_bytes == 0


async def test_what_waits_too_long_closes_the_connection() -> None:
    async with served(rules={"limit_seconds": 0.3}) as at:
        client, peer = await at.joined(receive_buffer=SMALL)
        while not peer._queue:
            at.fan_out(FRAME)
        await eventually(lambda: peer._code == CloseCode.SLOW)
        received = await client.read_end()
        assert received.endswith(frame(CLOSE, (3008).to_bytes(2) + b"slow: too long behind"))


async def test_one_broken_connection_in_a_fan_out_disturbs_no_other() -> None:
    async with served() as at:
        pairs = [await at.joined() for _ in range(5)]
        for victim in (0, 2, 4):
            transport = pairs[victim][1]._transport
            assert transport is not None
            transport.abort()  # uvloop's write raises from now on, and the hub is not told yet
        at.fan_out(FRAME)
        for healthy in (1, 3):
            assert await pairs[healthy][0].read(len(FRAME)) == FRAME
        await eventually(lambda: len(at.edge.sockets) == 2)
        assert [peer.end for _, peer in pairs] == [1006, None, 1006, None, 1006]


async def test_a_write_that_raises_disturbs_no_other() -> None:
    def closed(_: bytes) -> object:
        raise RuntimeError("unable to perform operation; the handler is closed")  # as uvloop says it

    async with served() as at:
        pairs = [await at.joined() for _ in range(3)]
        pairs[1][1].write = closed
        at.fan_out(FRAME)
        for healthy in (0, 2):
            assert await pairs[healthy][0].read(len(FRAME)) == FRAME


async def test_one_message_is_one_write_for_each_subscriber() -> None:
    async with served() as at:
        pairs = [await at.joined() for _ in range(3)]
        writes: list[bytes] = []

        def counting(write: Callable[[bytes], object]) -> Callable[[bytes], object]:
            def counted(data: bytes) -> object:
                writes.append(data)
                return write(data)

            return counted

        for _, peer in pairs:
            peer.write = counting(peer.write)
        for number in range(10):
            at.fan_out(frame(TEXT, b"%d" % number))
        assert len(writes) == 30
        at.hub.push(at.hub.topics["t"], b"one", 0)
        at.hub.push(at.hub.topics["t"], b"two", 0)
        at.hub.run()
        assert writes[30:] == [b"one\ntwo"] * 3  # what came in one turn leaves in one write
        assert all(data is writes[30] for data in writes[30:])


@pytest.mark.parametrize("flood", [ping(b"x" * 100), text("echo me, please")], ids=["pings", "messages"])
async def test_who_floods_and_never_reads_is_not_read_any_more(flood: bytes) -> None:
    async with served(rules={"limit_bytes": 4_000_000}) as at:
        client, peer = await at.joined(receive_buffer=SMALL)
        assert peer._transport is not None
        # pings bring little to be sent, as most are passed over: the kernel is to take little of it
        peer._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        sending = asyncio.create_task(client.send(flood * 1_000_000))
        await eventually(lambda: peer._paused)
        assert not sending.done()
        assert peer.end is None
        assert at.edge.pressure.queued_bytes < 2_500_000  # what one read from the socket can bring
        client.raw.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await sending


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(32, [*range(32)]), (33, [*range(33)]), (34, [*range(32), 33]), (5000, [*range(32), 4999])],
)
async def test_of_many_pings_in_one_read_the_first_and_the_last_are_answered(sent: int, answered: list[int]) -> None:
    async with served() as at:
        client, peer = await at.joined()
        flood = b"".join(ping(b"%d" % number) for number in range(sent))
        peer.data_received(flood + text("behind them"))
        assert [await client.read_frame() for _ in answered] == [(FIN | PONG, b"%d" % number) for number in answered]
        assert await client.read_frame() == (FIN | TEXT, b"behind them")
        peer.data_received(ping(b"the next read"))
        assert await client.read_frame() == (FIN | PONG, b"the next read")


async def test_a_close_that_is_not_answered_ends_with_tcp_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
    async with served() as at:
        client, peer = await at.joined()
        peer.close(close(CloseCode.SHUTDOWN))
        assert await client.read_frame() == (FIN | CLOSE, (3001).to_bytes(2) + b"shutdown")
        assert await client.read_end() == b""
        assert peer.end == 3001


async def test_a_close_that_is_answered_ends_at_once_and_nothing_is_sent_behind_it() -> None:
    async with served() as at:
        client, peer = await at.joined()
        peer.close(close(CloseCode.SHUTDOWN))
        peer.close(close(CloseCode.SLOW))
        at.fan_out(FRAME)
        await client.send(text("too late") + raw.close(3001))
        assert await client.read_end() == frame(CLOSE, (3001).to_bytes(2) + b"shutdown")
        await eventually(lambda: peer.end == 3001)


async def test_who_closes_and_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
    async with served() as at:
        client, peer = await at.joined(receive_buffer=SMALL)
        transport = peer._transport
        assert transport is not None
        while not 0 < transport.get_write_buffer_size() < 60_000:
            at.fan_out(frame(TEXT, b"x" * 1000))
        await client.send(raw.close(1000))
        await eventually(lambda: peer.end == 1000)
        assert not at.edge.sockets


async def test_a_client_that_a_timer_closes_has_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as at:
        client, peer = await at.joined()

        def stale(now: float) -> float:
            peer.close(close(CloseCode.STALE))
            return now

        monkeypatch.setattr(type(peer), "due", lambda _, now: stale(now))
        peer.wake_by(at.edge.clock())
        assert (await client.read_frame())[0] == FIN | CLOSE
        at.edge.wheel.advance(at.edge.clock() + module.CLOSE_SECONDS / 2)
        assert peer.end is None
        await client.send(raw.close(3502))
        assert await client.read_end() == b""
        await eventually(lambda: peer.end == 3502)


async def test_a_mistake_in_a_handler_ends_its_own_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as at:
        client, peer = await at.joined()
        other, _ = await at.joined()

        def broken(payload: bytes) -> None:
            raise RuntimeError(payload)

        monkeypatch.setattr(type(peer), "binary", lambda _, payload: broken(payload))
        await client.send(raw.binary(b"x"))
        assert (await client.read_frame())[1][:2] == (3004).to_bytes(2)
        await other.send(text("fine"))
        assert await other.read_frame() == (FIN | TEXT, b"fine")
    assert [record.message for record in caplog.records] == ["a message could not be handled"]


async def test_ends_are_told_by_their_code() -> None:
    async with served() as at:
        for sent, code in ((raw.close(1001), 1001), (raw.close(None), 1005), (client_frame(0x83), 1002)):
            client, peer = await at.joined()
            await client.send(sent)
            await client.read_end()
            client.raw.socket.close()
            await eventually(lambda peer=peer, code=code: peer.end == code)  # type: ignore[misc]
        client, peer = await at.joined()
        client.raw.socket.close()
        await eventually(lambda: peer.end == 1006)
        assert len(at.edge.wheel) == 0


async def test_reading_can_be_held_and_let_go_again() -> None:
    async with served() as at:
        client, peer = await at.joined()
        other, _ = await at.joined()
        peer.pause_reading()
        await client.send(ping(b"held"))
        for _ in range(3):  # turns in which it would have been read
            await other.send(ping(b"now"))
            assert await other.read_frame() == (FIN | PONG, b"now")
        assert client.raw._rest == b""
        peer.resume_reading()
        assert await client.read_frame() == (FIN | PONG, b"held")
