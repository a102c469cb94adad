"""Where settings come from: flags, the environment, a file. Each becomes a layer that knows what stands where."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from broker.settings.files import parse_json, read_document, read_text
from broker.settings.mistakes import did_you_mean, dotted, plain, shown
from broker.settings.shape import ANY, Path, Shape

PREFIX = "BROKER_"
FLAGS: dict[Path, str] = {("http", "host"): "--host", ("http", "port"): "--port", ("nats", "url"): "--nats"}
"""The settings that have a flag of their own."""

_DEEPEST = 8
"""Deeper than any setting, and shallow enough for whatever walks the tree."""

# Kubernetes tells every container about the Services of its namespace, in variables of a fixed form. Those of a Service
# that is called `broker` or `broker-nats` begin like ours.
_SERVICE_LINK = re.compile(
    r"BROKER_([A-Z0-9_]+_)?"
    r"(SERVICE_HOST=.*|SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+|PORT(_[0-9]+_[A-Z]+)?=[a-z]+://.*|PORT_[0-9]+_[A-Z]+_[A-Z]+=.*)"
)


class Layer(PydanticBaseSettingsSource):
    """What one source says: a tree, where its entries stand, and the mistakes found while reading it."""

    def __init__(self, root: type[BaseSettings], place: Callable[[Path], str]) -> None:
        super().__init__(root)
        self.tree: dict[str, Any] = {}
        self.place = place
        """Names an entry of this source, for people."""
        self.mistakes: list[str] = []

    def __call__(self) -> dict[str, Any]:
        return self.tree

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The base class wants it, for sources that are asked name by name."""
        del field
        return self.tree.get(field_name), field_name, False

    def entry(self, path: Path) -> Any:
        """What this source has at `path`, or `ABSENT`."""
        entry: Any = self.tree
        for step in path:
            entry = member(entry, step)
        return entry

    def entries(self, path: Path) -> Iterator[tuple[Path, Any]]:
        """What this source has at each path that `path` stands for with `ANY` in it."""
        at = path.index(ANY) if ANY in path else len(path)
        entry = self.entry(path[:at])
        if at < len(path) and isinstance(entry, list):
            for position in range(len(entry)):
                yield from self.entries((*path[:at], position, *path[at + 1 :]))
        elif at == len(path) and entry is not ABSENT:
            yield path, entry

    def depth(self, path: Path) -> int:
        """How many steps of `path` this source has entries for."""
        return sum(self.entry(path[:end]) is not ABSENT for end in range(1, len(path) + 1))

    def take(self, path: Path) -> Path:
        """Takes the entry at `path` out, or the nearest around it that can go: a list would move up, so it goes whole.

        Returns:
            What was taken; nothing: ().
        """
        for end in range(len(path), 0, -1):
            table = self.entry(path[: end - 1])
            if isinstance(table, dict) and table.pop(path[end - 1], ABSENT) is not ABSENT:
                return path[:end]
        return ()

    def put(self, path: Path, value: Any) -> bool:
        """Puts `value` at `path`, if there is a table for it; whether there is."""
        table = self.entry(path[:-1])
        if isinstance(table, dict):
            table[path[-1]] = value
        return isinstance(table, dict)

    def complain(self, path: Path, text: str) -> None:
        self.mistakes.append(f"{self.place(path)}: {text}")

    def cleaned(self, value: Any, path: Path) -> Any:
        """A copy of dicts and lists only, with a complaint about what no setting takes, whatever its type."""
        if value is None:
            self.complain(path, "null is no value; leave the name out to have its default")
            return ABSENT
        if len(path) > _DEEPEST:
            self.complain(path[:2], "is nested too deeply to be a setting")
            return ABSENT
        if isinstance(value, Mapping):
            members = {str(name): self.cleaned(inside, (*path, str(name))) for name, inside in value.items()}
            return {name: inside for name, inside in members.items() if inside is not ABSENT}
        if isinstance(value, (list, tuple)):
            # a null in a list keeps its place, so that the others keep theirs; no list takes one
            items = [inside if inside is None else self.cleaned(inside, (*path, at)) for at, inside in enumerate(value)]
            return [inside for inside in items if inside is not ABSENT]
        if isinstance(value, str) and not value.isascii():
            sound = value.encode(errors="replace").decode()
            if sound != value:  # JSON's \ud800, or bytes of the environment that are no UTF-8
                self.complain(path, "holds a character that has no UTF-8 form")
            return sound
        return value

    def accept(self, tree: Mapping[str, Any], shape: Shape) -> None:
        """Makes `tree` this layer's, without sections that are no tables: laid over others they would go unnoticed."""
        self.tree = self.cleaned(tree, ())
        for name, section in list(self.tree.items()):
            if shape.names((name,)) and not isinstance(section, dict):
                found = "the value" if isinstance(section, str) else shown(section)
                self.complain((name,), f"{found} is not a table; give names and values")
                del self.tree[name]


ABSENT: Any = object()
"""Tells nothing from null."""


def member(table: Any, step: str | int) -> Any:
    if isinstance(step, int):
        return table[step] if isinstance(table, list) and 0 <= step < len(table) else ABSENT
    return table.get(step, ABSENT) if isinstance(table, dict) else ABSENT


def read_flags(flags: Mapping[str, Any], root: type[BaseSettings], shape: Shape) -> Layer:
    """Flags as a nested dict. None stands for a flag that was not given; texts are read like the environment's."""
    layer = Layer(root, lambda path: FLAGS.get(path[:2], f"flag {dotted(path)}"))
    tree: dict[str, Any] = {}
    for section, names in flags.items():
        if isinstance(names, Mapping):
            given = {name: value for name, value in names.items() if value is not None}
            tree[section] = {name: _typed(value, shape.kind((section, name))) for name, value in given.items()}
        elif names is not None:
            tree[section] = names
    layer.accept(tree, shape)
    return layer


def read_environment(environ: Mapping[str, str], root: type[BaseSettings], shape: Shape) -> Layer:
    """`BROKER_<SECTION>__<NAME>`, or the same with `_FILE` for the path of a file that holds the value."""
    known = {variable(path): path for path in shape.variables()}
    used: dict[Path, str] = {}

    def place(path: Path) -> str:
        start = next((start for start in (path[:2], path[:1]) if start in used), ())
        inside = dotted(path[len(start) :])
        return used.get(start, PREFIX) + (f": {inside}" if inside else "")

    layer = Layer(root, place)
    tree: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or _is_foreign(name, environ[name]):
            continue
        path = known.get(name) or known.get(name.removesuffix("_FILE"))
        if path is None:
            layer.mistakes.append(f"{plain(name)}: {_unknown_variable(name, known, shape)}")
        elif path in used:
            layer.mistakes.append(f"{name}: {used[path]} is given too; give only one of them")
        else:
            used[path] = name
            try:
                value = environ[name] if name in known else read_text(FilePath(environ[name]))
                entry = _parsed(value, shape.kind(path))
            except ValueError as error:
                layer.complain(path, str(error))
                continue
            table = tree.setdefault(str(path[0]), {}) if len(path) > 1 else tree
            table[str(path[-1])] = entry
    layer.accept(tree, shape)
    return layer


def variable(path: Path) -> str:
    """`BROKER_HTTP__PORT`."""
    return PREFIX + "__".join(str(step).upper() for step in path)


def _is_foreign(name: str, value: str) -> bool:
    if "__" in name:
        return False
    # BROKER_WORKER… is how our own processes speak to each other
    return name.startswith("BROKER_WORKER") or _SERVICE_LINK.fullmatch(f"{name}={value}") is not None


def _unknown_variable(name: str, known: Mapping[str, Path], shape: Shape) -> str:
    section, divider, rest = name.removeprefix(PREFIX).lower().partition("__")
    names = shape.names((section,)) if section else []
    if divider and names:
        listed = next((one for one in names if rest.startswith(f"{one}__")), None)
        if listed is not None:
            return f"unknown name; lists and objects are given as JSON, in {variable((section, listed))}"
        return f"unknown name; {did_you_mean(rest, names)}"
    if divider:
        return f"unknown section; {did_you_mean(section, shape.names(()))}"
    near = [one for one, path in known.items() if path[-1] == section or one.replace("__", "_") == name]
    return f"unknown name; did you mean {near[0]}?" if near else f"unknown name; give {PREFIX}<SECTION>__<NAME>"


def _parsed(text: str, kind: Any) -> Any:
    """Text as the kind of value that belongs there.

    Raises:
        ValueError: not JSON where a list belongs; the message says why.
    """
    if kind is not list:
        return _typed(text, kind)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}; give a list in square brackets, texts in double quotes") from None


def _typed(value: Any, kind: Any) -> Any:
    """A text as a number or switch where one belongs; left as it is when it is none, for the check to complain."""
    if not isinstance(value, str):
        return value
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    try:
        if kind is int:
            return int(value) if re.fullmatch(r"[+-]?[0-9]+", value) else value
        if kind is float:
            return float(value) if re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", value) else value
    except ValueError:  # 1.2.3, or more digits than Python converts
        pass
    return value


def read_file(path: FilePath | None, root: type[BaseSettings], shape: Shape) -> Layer:
    """A file of TOML or JSON, by its suffix; an empty layer for None."""
    name = "" if path is None else "".join(c if c.isprintable() else "?" for c in str(path))
    layer = Layer(root, lambda at: f"{name}: {dotted(at)}" if at else name)
    if path is None:
        return layer
    try:
        tree = read_document(path)
    except ValueError as error:
        layer.complain((), str(error))
        return layer
    if isinstance(tree, dict):
        layer.accept(tree, shape)
    else:
        layer.complain(
            (), f"holds {shown(tree) if isinstance(tree, list) else 'one value'}; give an object of sections"
        )
    return layer
