"""The operators' calls as the HTTP API has them, on nodes in this process."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.api.call import Backend, Call
from broker.api.methods import METHODS
from broker.auth.api_keys import ApiKey
from broker.core.topic import parse_pattern
from broker.wire.codes import CommandError
from tests.client.conversing import Stage

ALL = ApiKey("all")
SOME = ApiKey("some", topics=(parse_pattern("news.>"),))


async def ask(stage: Stage, method: str, key: ApiKey = ALL, /, **request: Any) -> Any:
    """The result; or the error, as code and message."""
    call = Call(Backend(stage.node, stage.node.operations), key)
    known = METHODS[method]
    outcome = await known.run(call, known.decode(msgspec.json.encode(request)))
    if isinstance(outcome, CommandError):
        return int(outcome.code), outcome.message
    return msgspec.json.decode(outcome)
