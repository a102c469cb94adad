"""Logging: one line for people, or one JSON object for machines; the node's name on each."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

_OURS = ("client", "policy")
"""What records may carry beside their text, by `extra`."""


class _TextFormatter(logging.Formatter):
    def __init__(self, node: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {node.replace('%', '%%')} %(name)s: %(message)s")
        self.default_msec_format = "%s.%03d"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        text = super().formatMessage(record)
        more = " ".join(f"{name}={getattr(record, name)}" for name in _OURS if hasattr(record, name))
        return f"{text} {more}" if more else text


class _JsonFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "node": self._node,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in _OURS if hasattr(record, name)},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up(level: str, form: Literal["text", "json"], node: str) -> None:
    """Send all logging of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(node) if form == "json" else _TextFormatter(node))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn tells what we tell ourselves; its errors remain
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, root.level))
    # nats-py logs what its callbacks are given, too
    logging.getLogger("nats").setLevel(logging.CRITICAL)
