"""Reading files, TOML and JSON.

Complaints say what is wrong and where, and never quote more than a name: any text may be a secret.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.settings.mistakes import plain

_MAX_FILE_BYTES = 4_194_304


def read_text(path: Path) -> str:
    """A file's text, without the line end that editors leave after a secret.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL
        raise ValueError("cannot be read: that is not the name of a file") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"cannot be read: it has more than {_MAX_FILE_BYTES} bytes")
    try:
        return content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("cannot be read: it is not UTF-8 text") from None


def read_document(path: Path) -> Any:
    """What a file of TOML or JSON holds.

    Raises:
        ValueError: neither by its suffix, or not what the suffix says.
    """
    form = path.suffix.lower()
    if form not in _PARSERS:
        found = plain(path.suffix.removeprefix(".")) if path.suffix else "none"
        raise ValueError(f"the suffix ({found}) says neither TOML nor JSON; name the file .toml or .json")
    text = read_text(path)
    try:
        return _PARSERS[form](text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not {form[1:].upper()}: {' '.join(str(error).split())}") from None


def parse_json(text: str) -> Any:
    """Strict JSON: no NaN, no name twice.

    Raises:
        ValueError: something else; the message says what and where.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (at line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{plain(twice)} stands twice in one object")
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has")


_PARSERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": parse_json}
