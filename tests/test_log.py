from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest

from broker.log import set_up


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """Logging is one for the process: leave it as it was."""
    names = (None, "uvicorn", "nats")
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    handlers = logging.getLogger().handlers[:]
    yield
    for logger, level in before:
        logger.setLevel(level)
    logging.getLogger().handlers[:] = handlers


def say(capsys: pytest.CaptureFixture[str], form: Literal["text", "json"], level: str = "info") -> str:
    set_up(level, form, "node 50%s")
    logging.getLogger("broker.a").info("hello %s", "wörld\n", extra={"client": "c1"})
    return capsys.readouterr().err


def test_text_is_a_line_with_the_nodes_name(capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, "text")
    assert "INFO" in said
    assert "node 50%s broker.a: hello wörld" in said
    assert "client=c1" in said


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = say(capsys, "json").splitlines()
    entry = json.loads(line)
    assert {name: entry[name] for name in ("level", "node", "logger", "message", "client")} == {
        "level": "info",
        "node": "node 50%s",
        "logger": "broker.a",
        "message": "hello wörld\n",
        "client": "c1",
    }
    assert entry["time"].endswith("Z")


def test_an_exception_stays_within_its_object(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "json", "n")
    try:
        int("oops")
    except ValueError:
        logging.getLogger("broker").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_less_than_the_level_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, "text", "warning") == ""


def test_libraries_say_no_more_than_they_should(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("debug", "text", "n")
    logging.getLogger("uvicorn.access").info("GET /?token=secret")
    logging.getLogger("nats.aio.client").error("a callback's argument")
    assert capsys.readouterr().err == ""
