"""The SDKs as subscribers whose books are kept: what they recover by themselves is written down as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.javascript import javascript_subscriber
from tests.harness.pretend import PretendStream, pretended
from tests.harness.subscriber import sdk_subscriber
from tests.harness.traffic import TOPIC, traffic
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.mark.parametrize("forgets", [False, True], ids=["recovered", "not recovered"])
async def test_the_sdks_come_back_and_say_whether_they_have_recovered(
    tmp_path: Path, javascript: Path, *, forgets: bool
) -> None:
    stream = PretendStream()
    async with (
        pretended(tmp_path, stream) as node,
        pretended(tmp_path, stream) as other,
        traffic([other], excuses=forgets) as running,
    ):
        logs = [running.accounting.log(name) for name in ("Python SDK", "JavaScript SDK")]
        await running.joined_by(sdk_subscriber(logs[0], TOPIC, node.websocket_url))
        await running.joined_by(javascript_subscriber(javascript, logs[1], TOPIC, node.websocket_url))
        await running.goes_on()
        node.forget = forgets
        await node.cut()
        await eventually(lambda: all(log.recoveries for log in logs))
        await running.goes_on()

    assert [log.recoveries for log in logs] == [[not forgets], [not forgets]]
