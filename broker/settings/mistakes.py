"""Mistakes in the settings: what was found, and what would be right, in one line each and without secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from broker.settings.shape import Path, Shape
from broker.settings.values import MASK

_SHOWN_CHARACTERS = 60
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_Checked = TypeVar("_Checked")


class SettingsError(Exception):
    """The settings cannot be used. `mistakes` has one line for each reason."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


class Finding:
    """What is wrong with names that may each be sound by themselves. The first that anybody has given is blamed."""

    __slots__ = ("paths", "text")

    def __init__(self, *paths: Path, text: str) -> None:
        self.paths = paths
        self.text = text


class Findings(ValueError):  # noqa: N818 - only carried by pydantic, never seen as an error
    """Several findings of one check, since a validator can raise only once."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("; ".join(finding.text for finding in findings))

    @staticmethod
    def none_in(findings: Sequence[Finding], checked: _Checked) -> _Checked:
        """What was checked, as validators must return, when there is nothing to complain about.

        Raises:
            Findings: there is.
        """
        if findings:
            raise Findings(findings)
        return checked


def dotted(path: Path) -> str:
    """`topics[1].subscribe`, in one line whatever the names are."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{plain(step)}" if text else plain(step)
    return text


def plain(name: str) -> str:
    """A name as it is, or quoted when it could break the line or the terminal."""
    return name if _PLAIN_NAME.fullmatch(name) else _shortened(repr(name))


def shown(value: Any) -> str:
    """A value as a complaint names it. Lists and tables are not spelled out."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 128:
        return "so large a number"  # Python itself refuses to print those of many thousand digits
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        # nobody has checked yet that this is a URL, so whatever could be a password before an @ goes
        _, at, rest = value.rpartition("@")
        return _shortened(repr(f"{MASK}@{rest}" if at else value))
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a {type(value).__name__}"  # TOML has dates and times


def did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:100].lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def explain(error: ValidationError, shape: Shape) -> Iterator[Finding]:
    """Pydantic's complaints about a tree, as ours."""
    for detail in error.errors(include_url=False):
        path: Path = detail["loc"]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Findings):
            for finding in cause.findings:
                yield Finding(*((*path, *inside) for inside in finding.paths), text=finding.text)
        else:
            yield Finding(path, text=_explain_one(path, detail, shape))


def _explain_one(path: Path, detail: ErrorDetails, shape: Shape) -> str:
    if detail["type"] == "missing":
        return "is missing and has no default; give it"
    if detail["type"] == "extra_forbidden":
        what = "section" if len(path) == 1 else "name"
        return f"unknown {what}; {did_you_mean(str(path[-1]), shape.names(path[:-1]))}"
    value = detail["input"]
    subject = "the value" if isinstance(value, str) and shape.hides(path) else shown(value)
    if detail["type"] in _PREDICATES:
        return f"{subject} {_PREDICATES[detail['type']](detail)}"
    # a kind of complaint that a later pydantic may bring: its own words, which do not quote the value
    return f"{subject} cannot be used: {' '.join(detail['msg'].split())}"


def _choice(detail: ErrorDetails) -> str:
    """From pydantic's "'a', 'b' or 'c'"."""
    return f"is none of {detail['ctx']['expected']}".replace(" or ", ", ").replace("'", "")


_PREDICATES: dict[str, Callable[[ErrorDetails], str]] = {
    "worded": lambda detail: detail["msg"],
    "value_error": lambda detail: str(detail["ctx"]["error"]),
    "enum": _choice,
    "literal_error": _choice,
    "string_type": lambda _: "is not a text; give a string in quotes",
    "path_type": lambda _: "is not a path; give a string in quotes",
    "tuple_type": lambda _: "is not a list; give one in square brackets",
    "too_short": lambda _: "without entries; give at least one",
    "model_type": lambda _: "is not a table; give names and values",
}
