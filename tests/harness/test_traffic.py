"""Publisher and subscribers come through what they should come through, and report what they should not put up with."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness.accounting import Accounting
from tests.harness.pretend import PretendNode, PretendStream, pretended
from tests.harness.traffic import traffic
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

Publication = dict[str, Any]


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[PretendNode]]:
    stream = PretendStream()
    async with pretended(tmp_path, stream) as one, pretended(tmp_path, stream) as other:
        yield [one, other]


def every_tenth(
    change: Callable[[Publication], Sequence[Publication]],
) -> Callable[[Publication], Sequence[Publication]]:
    numbers = itertools.count(1)
    return lambda publication: change(publication) if next(numbers) % 10 == 0 else [publication]


async def test_where_nothing_goes_wrong_nothing_is_found(nodes: list[PretendNode]) -> None:
    async with traffic(nodes) as running:
        await running.goes_on(100)

    assert len(running.accounting.receipts) > 150
    assert [log.recoveries for log in running.accounting.logs] == [[]] * 6


async def test_lost_connections_are_come_back_from(nodes: list[PretendNode]) -> None:
    async with traffic(nodes) as running:
        for node in (nodes[0], nodes[1], nodes[0]):
            await node.cut()
            await running.goes_on()

    assert all(log.recoveries and all(log.recoveries) for log in running.accounting.logs)
    assert any(arrival.recovered for log in running.accounting.logs for arrival in log.arrivals)


async def test_who_is_sent_away_with_2500_comes_back(nodes: list[PretendNode]) -> None:
    async with traffic(nodes) as running:
        nodes[0].send_away(2500)
        await running.goes_on()

    assert [log.recoveries for log in running.accounting.logs] == [[True]] * 3 + [[]] * 3


async def test_what_is_stored_and_answered_with_503_is_published_once(nodes: list[PretendNode]) -> None:
    async with traffic(nodes) as running:
        nodes[0].busy = 20
        await running.goes_on()

    assert running.publisher.retries >= 20


async def test_who_is_told_of_a_gap_is_excused(nodes: list[PretendNode]) -> None:
    async with traffic(nodes, excuses=True) as running:
        for node in nodes:
            node.forget = True
        await nodes[0].cut()
        await running.goes_on(60)

    logs = running.accounting.logs
    assert [log.recoveries for log in logs] == [[False], [], [False], [], [], []]
    assert [[gap.why for gap in log.gaps[1:]] for log in logs[:3]] == [
        ["recovered: false"],
        ["error 112"],
        ["recovered: false"],
    ]


async def test_who_must_not_be_told_of_a_gap_is_not_excused(nodes: list[PretendNode]) -> None:
    async def is_told() -> None:
        async with traffic(nodes) as running:
            for node in nodes:
                node.forget = True
            # cut off, not sent away: what is published until they are back is missed
            await nodes[0].cut()
            await running.goes_on()

    with pytest.raises(AssertionError, match="was told that it misses"):
        await is_told()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda _: [], "lost"),
        (lambda publication: [publication, publication], "twice"),
        (lambda publication: [{**publication, "offset": publication["offset"] + 1}], "misplaced"),
        (
            lambda publication: [{"data": {"id": "ghost"}, "offset": publication["offset"] - 1}, publication],
            "unheard-of",
        ),
    ],
    ids=["lost", "twice", "misplaced", "unheard-of"],
)
async def test_what_a_node_does_wrong_is_found(
    nodes: list[PretendNode],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Publication], Sequence[Publication]],
    kind: str,
) -> None:
    monkeypatch.setattr("tests.harness.traffic.FAULT_SECONDS", 3.0)
    seen: list[Accounting] = []

    async def goes_wrong() -> None:
        async with traffic(nodes) as running:
            seen.append(running.accounting)
            nodes[1].change = every_tenth(change)
            await eventually(lambda: len(running.accounting.receipts) > 60)

    with pytest.raises(AssertionError):
        await goes_wrong()
    findings = seen[0].findings()

    # a ghost that comes again comes twice
    assert {finding.kind for finding in findings} - {"twice"} == {kind} - {"twice"}
    assert {finding.subscriber for finding in findings} == {
        log.name for log in seen[0].logs if str(nodes[1].port) in log.name
    }


async def test_a_recovery_that_leaves_something_out_is_found(
    nodes: list[PretendNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.harness.traffic.FAULT_SECONDS", 3.0)
    seen: list[Accounting] = []

    async def leaves_out() -> None:
        async with traffic(nodes) as running:
            seen.append(running.accounting)
            receipts = running.accounting.receipts
            nodes[0].change = lambda _: []
            begin = len(receipts)
            await eventually(lambda: len(receipts) > begin + 20)
            del nodes[0].stream.kept[-10:-5]
            nodes[0].change = lambda publication: [publication]
            await nodes[0].cut()

    with pytest.raises(AssertionError):
        await leaves_out()
    findings = seen[0].findings()

    assert [(finding.kind, len(finding.idents)) for finding in findings] == [("lost", 5)] * 3


async def test_a_subscriber_that_is_sent_away_for_good_fails_at_once(nodes: list[PretendNode]) -> None:
    async def is_sent_away() -> None:
        async with traffic(nodes) as running:
            nodes[0].send_away(2000)
            await running.goes_on()

    with pytest.raises(RuntimeError, match="2000"):
        await is_sent_away()
