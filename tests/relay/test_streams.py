"""Streams are made, brought up to date and made anew, and never at the cost of what somebody else has stored."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from typing import Any

import pytest

from broker.relay import streams as module
from broker.relay.streams import Stream, StreamProblemError, Streams, stream_config
from broker.relay.subjects import Subjects
from tests.harness.nats import NatsServer
from tests.harness.site import Site
from tests.harness.waiting import eventually
from tests.relay.durably import Bench, bench, durable_policy

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.02, 0.1))


async def config_of(made: Bench, stream: str = "") -> dict[str, Any]:
    return (await made.jetstream.info(stream or made.stream)).config


def streams_of(made: Bench, **changes: Any) -> Streams:
    """Those of another node, whose settings say something else."""
    return Streams(made.jetstream, made.subjects, (durable_policy(**changes),), 1)


def epoch(streams: Streams) -> str:
    return streams.by_policy["kept"].epoch


async def test_a_stream_is_made_as_the_policy_says(nats: NatsServer) -> None:
    policy = durable_policy(
        history_messages=9, history_seconds=3600.0, history_bytes=1_000_000, idempotency_seconds=60.0
    )
    async with bench(nats, policy) as made:
        config = await config_of(made)
        prefix = made.subjects.prefix
        assert made.stream == f"{prefix}_KEPT".upper()
        assert config["subjects"] == [f"{prefix}.kept.in.>"]
        assert config["republish"] == {"src": f"{prefix}.kept.in.>", "dest": f"{prefix}.kept.live.>"}
        assert config["max_msgs_per_subject"] == 10  # one more than the policy says, as a witness
        assert (config["max_age"], config["max_bytes"]) == (3600 * 10**9, 1_000_000)
        assert config["duplicate_window"] == 60 * 10**9
        assert (config["allow_direct"], config["deny_delete"]) == (True, True)
        assert (config["storage"], config["discard"], config["num_replicas"]) == ("file", "old", 1)
        assert made.streams.reasons_against() == []
        assert made.streams.ready
        assert len(epoch(made.streams)) == 12


async def test_only_durable_policies_have_one(nats: NatsServer) -> None:
    async with bench(nats, durable_policy("one"), durable_policy("two", durable=False)) as made:
        assert list(made.streams.by_policy) == ["one"]


async def test_a_stream_that_is_there_is_left_as_it_is(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await made.store("t", 1)
        other = streams_of(made)
        await other.settle()
        assert (await made.jetstream.info(made.stream)).state.messages == 1
        assert epoch(other) == epoch(made.streams)


async def test_a_stream_is_brought_up_to_date_in_place(nats: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with bench(nats) as made:
        await made.store("t", 1, 2, 3)
        # what somebody has set besides stays
        await made.api(f"STREAM.UPDATE.{made.stream}", {**await config_of(made), "description": "ours"})
        other = streams_of(made, history_messages=1, history_seconds=7200.0)
        with caplog.at_level(logging.INFO):
            await other.settle()
        config = await config_of(made)
        assert (config["max_msgs_per_subject"], config["max_age"]) == (2, 7200 * 10**9)
        assert config["description"] == "ours"
        assert f"stream {made.stream} was brought up to date: max_age, max_msgs_per_subject" in caplog.text
        assert (await made.jetstream.info(made.stream)).state.messages == 2
        assert epoch(other) == epoch(made.streams)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            await streams_of(made, history_messages=1, history_seconds=7200.0).settle()
        assert "brought up to date" not in caplog.text


async def test_limits_that_are_taken_back_are_taken_back(nats: NatsServer) -> None:
    async with bench(nats, durable_policy(history_bytes=1_000_000)) as made:
        await streams_of(made).settle()
        assert (await config_of(made))["max_bytes"] == -1


async def test_ten_nodes_that_begin_at_once_make_one_stream(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        nodes = [streams_of(made) for _ in range(10)]
        await asyncio.gather(*(node.settle() for node in nodes))
        assert len({epoch(node) for node in nodes}) == 1
        names = json.loads(await made.api("STREAM.NAMES"))["streams"]
        assert [name for name in names if name.startswith(made.subjects.prefix.upper())] == [made.stream]


async def test_nodes_with_different_settings_that_begin_at_once_agree_on_one_of_them(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        nodes = [streams_of(made, history_messages=number) for number in range(1, 9)]
        await asyncio.gather(*(node.settle() for node in nodes))
        assert len({epoch(node) for node in nodes}) == 1
        assert 2 <= (await config_of(made))["max_msgs_per_subject"] <= 9


@pytest.mark.parametrize("name", ["subjects", "republish"])
async def test_somebody_elses_stream_is_refused_with_one_clear_line(nats: NatsServer, name: str) -> None:
    async with bench(nats, settle=False) as made:
        config = dict(made.streams.by_policy["kept"].config)
        if name == "subjects":
            config["subjects"] = [f"{made.subjects.prefix}.theirs.>"]
            config["republish"] = None
        else:
            config["republish"] = {"src": ">", "dest": f"{made.subjects.prefix}.elsewhere.>"}
        await made.api(f"STREAM.CREATE.{made.stream}", config)
        before = await config_of(made)
        with pytest.raises(StreamProblemError) as problem:
            await made.streams.settle()
        text = str(problem.value)
        assert text.startswith(f"stream {made.stream} is there already with other ")
        assert name in text
        assert "\n" not in text
        assert await config_of(made) == before
        assert made.streams.reasons_against() == [f"stream {made.stream}: not asked for yet"]


async def test_what_cant_be_changed_is_refused_and_nothing_is_changed(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        config = {**made.streams.by_policy["kept"].config, "storage": "memory", "max_msgs_per_subject": 5}
        await made.api(f"STREAM.CREATE.{made.stream}", config)
        await made.store("t", 1, 2, 3)
        before = await config_of(made)
        with pytest.raises(StreamProblemError) as problem:
            await made.streams.settle()
        assert f"stream {made.stream} can't be made or changed as the settings say" in str(problem.value)
        assert "storage" in str(problem.value)
        assert await config_of(made) == before
        assert (await made.jetstream.info(made.stream)).state.messages == 3


async def test_subjects_of_another_stream_are_refused_by_name(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        theirs = f"THEIRS_{secrets.token_hex(4)}"
        await made.api(f"STREAM.CREATE.{theirs}", {"name": theirs, "subjects": [f"{made.subjects.prefix}.kept.in.a"]})
        try:
            with pytest.raises(StreamProblemError, match=f"stream {made.stream} can't be made.*overlap"):
                await made.streams.settle()
        finally:
            await made.api(f"STREAM.DELETE.{theirs}")


async def test_more_replicas_than_a_lone_server_can_keep_are_a_mistake(nats: NatsServer) -> None:
    async with bench(nats, settle=False) as made:
        streams = Streams(made.jetstream, made.subjects, (durable_policy(),), 3)
        with pytest.raises(StreamProblemError, match=rf"stream {made.stream} can't be made.*replicas"):
            await streams.settle()


async def test_jetstream_that_is_not_there_yet_is_tried_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    server = site.start_nats()
    async with bench(server, settle=False) as made:
        settling = asyncio.create_task(made.streams.settle())
        await eventually(lambda: f"stream {made.stream}: JetStream does not answer" in caplog.text)
        assert not settling.done()
        server.kill()
        server.configure({"jetstream": {"store_dir": str(site.directory / "store")}})
        server.start()
        async with asyncio.timeout(20):
            await settling
        assert made.streams.ready
        # not a line for each attempt
        assert caplog.text.count("JetStream does not answer") <= 2


async def test_a_stream_that_has_gone_is_made_anew_with_another_epoch(nats: NatsServer) -> None:
    async with bench(nats) as made:
        stream, before = made.streams.by_policy["kept"], epoch(made.streams)
        assert await made.streams.renew(stream) is False
        await made.api(f"STREAM.DELETE.{made.stream}")
        assert await made.streams.renew(stream) is True
        assert epoch(made.streams) != before
        assert (await config_of(made))["subjects"] == stream.config["subjects"]
        assert await made.streams.renew(stream) is False


async def test_nodes_that_renew_at_once_make_one_stream(nats: NatsServer) -> None:
    async with bench(nats) as made:
        nodes = [streams_of(made) for _ in range(6)]
        for node in nodes:
            await node.settle()
        await made.api(f"STREAM.DELETE.{made.stream}")
        renewed = await asyncio.gather(*(node.renew(node.by_policy["kept"]) for node in nodes))
        assert renewed == [True] * 6
        assert len({epoch(node) for node in nodes}) == 1


async def test_renewing_touches_no_settings_of_a_stream_that_is_there(nats: NatsServer) -> None:
    async with bench(nats) as made:
        await streams_of(made, history_messages=5).settle()
        await made.streams.renew(made.streams.by_policy["kept"])
        assert (await config_of(made))["max_msgs_per_subject"] == 6


async def test_the_epoch_is_the_same_for_all_who_see_the_same_stream(nats: NatsServer) -> None:
    async with bench(nats) as made:
        info = await made.jetstream.info(made.stream)
        stream = Stream(durable_policy(), made.subjects, 1, made.jetstream)
        assert stream.take(info) is False
        assert stream.epoch == epoch(made.streams)
        assert stream.take(info) is False


async def test_those_who_look_while_an_answer_is_on_its_way_share_the_next(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(nats) as made:
        await made.checked()
        stream, asked = made.streams.by_policy["kept"], []
        original = made.jetstream.info

        async def info(name: str) -> Any:
            asked.append(name)
            return await original(name)

        monkeypatch.setattr(made.jetstream, "info", info)
        first = asyncio.create_task(stream.look())
        await eventually(lambda: asked)
        (offset,) = await made.store("t", 1)
        states = await asyncio.gather(first, *(stream.look() for _ in range(50)))
        assert len(asked) <= 3
        assert all(one.state.last_seq >= offset for one in states[1:])
        await stream.look()
        assert len(asked) <= 4


async def test_one_who_looks_and_leaves_spoils_it_for_nobody(nats: NatsServer) -> None:
    async with bench(nats) as made:
        stream = made.streams.by_policy["kept"]
        one, other = (asyncio.create_task(stream.look()) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        assert (await other).created
        assert (await stream.look()).created


def test_prefixes_with_dots_make_sound_stream_names() -> None:
    config = stream_config(durable_policy("my-policy"), Subjects("acme.eu"), 3)
    assert config["name"] == "ACME_EU_MY-POLICY"
    assert config["subjects"] == ["acme.eu.my-policy.in.>"]
