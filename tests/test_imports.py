"""Dependencies point inward: which part of the package may know which, read from the imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "broker"

KNOWS: dict[str, set[str]] = {
    "core": set(),
    "metrics": set(),
    "wire": {"core"},
    "relay": {"core", "rounds"},
    "auth": {"core"},
    "settings": {"core"},
    "edge": {"core", "wire", "metrics"},
    "publications": {"core", "wire", "relay"},
    "fan_out": {"core", "wire", "metrics"},
    "downstream": {"core", "relay", "metrics", "publications"},
    "admission": {"core", "wire", "relay", "metrics"},
    "catching_up": {"core", "relay", "metrics"},
    "durability": {"core", "wire", "relay", "metrics", "publications", "downstream", "admission", "catching_up"},
    "membership": {"core", "wire", "relay"},
    "publisher": {"core", "wire", "relay", "metrics", "durability"},
    "operations": {"core", "wire", "relay"},
    "operating": {"core", "wire"},
    "rounds": set(),
    "lobby": {"wire"},
    "overload": {"core", "metrics"},
    "presence": {"core", "wire", "relay", "operations", "rounds"},
    "node": {
        "core",
        "wire",
        "relay",
        "auth",
        "metrics",
        "publications",
        "publisher",
        "durability",
        "fan_out",
        "lobby",
        "membership",
        "operations",
        "overload",
        "presence",
    },
    "client": {"core", "wire", "relay", "auth", "admission", "node", "presence", "publisher"},
    "api": {"core", "wire", "relay", "auth", "metrics", "node", "operations", "operating", "publisher"},
    "log": set(),
    "serve": {"app", "edge", "log", "relay", "settings"},
    "supervisor": {"log", "relay", "serve", "settings"},
    "dev": {"auth", "serve", "settings"},
    "config_command": {"settings"},
    "__main__": {"cli"},
}
"""A part of the package, and the other parts that it imports."""

KNOWS_EVERYTHING = {"app", "cli"}

KNOWS_FOR_TYPES: dict[str, set[str]] = {
    "edge": {"client"},
    "lobby": {"client"},
    "node": {"client"},
    "operations": {"client", "node"},
    "operating": {"client", "node"},
}
"""What a part imports beyond that for annotations alone, under TYPE_CHECKING."""

INSTALLED: dict[str, set[str]] = {
    "core": set(),
    "core/frames": {"websockets"},
    "metrics": {"prometheus_client"},
    "wire": {"msgspec"},
    "relay": {"nats", "msgspec"},
    "auth": {"msgspec", "cryptography", "jwt"},
    "settings": {"pydantic", "pydantic_core", "pydantic_settings"},
    "edge": {"uvicorn", "httptools"},
    "publications": set(),
    "fan_out": set(),
    "downstream": set(),
    "admission": set(),
    "catching_up": set(),
    "durability": {"msgspec"},
    "membership": {"msgspec"},
    "publisher": set(),
    "node": {"nats"},
    "client": set(),
    "operations": {"msgspec"},
    "operating": {"msgspec"},
    "rounds": set(),
    "lobby": set(),
    "overload": set(),
    "presence": {"msgspec"},
    "api": {"msgspec", "starlette"},
    "log": set(),
    "serve": {"starlette", "uvicorn"},
    "supervisor": {"prometheus_client"},
    "dev": set(),
    "config_command": {"pydantic", "pydantic_core"},
    "__main__": set(),
}
"""What each part, or one file of it, imports of what others have written."""

WORLDLY = {
    "asyncio",
    "datetime",
    "logging",
    "os",
    "random",
    "secrets",
    "selectors",
    "socket",
    "ssl",
    "threading",
    "time",
}
"""Clocks, loops, sockets and logs: nothing for a sans-I/O core, where time is an argument."""


@dataclass(frozen=True)
class Import:
    file: str
    """Below the package, without its suffix: `core/hub`."""
    part: str
    module: str
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file} imports {self.module}"

    @property
    def root(self) -> str:
        return self.module.split(".")[0]

    @property
    def target(self) -> str:
        """The part of our own package that is imported; empty for the package itself."""
        return self.module.partition(".")[2].split(".")[0]


def read_imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).with_suffix("").as_posix()
        tree = ast.parse(path.read_text())
        guarded = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for statement in node.body
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            for module in imported_modules(node):
                yield Import(file, file.split("/")[0], module, node in guarded)


def imported_modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            # `from broker import wire` imports a part, `from broker import __version__` none
            return [f"broker.{alias.name}" for alias in names] if module == "broker" else [module]
        case ast.ImportFrom():
            return ["."]
        case _:
            return []


IMPORTS = [one for one in read_imports() if one.file != "__init__" and one.part not in KNOWS_EVERYTHING]
OWN = [one for one in IMPORTS if one.root == "broker" and one.target not in {"", "__version__", one.part}]


def test_no_import_is_relative() -> None:
    assert [one.file for one in IMPORTS if one.module == "."] == []


def test_every_part_has_its_place_in_the_table() -> None:
    assert {one.part for one in IMPORTS} == KNOWS.keys()
    assert {key for key in INSTALLED if "/" not in key} == KNOWS.keys()


@pytest.mark.parametrize("part", KNOWS)
def test_a_part_knows_only_the_parts_it_may(part: str) -> None:
    assert [str(one) for one in OWN if one.part == part and not one.for_types and one.target not in KNOWS[part]] == []


@pytest.mark.parametrize("part", KNOWS)
def test_a_part_knows_only_those_for_their_types_that_it_may(part: str) -> None:
    allowed = KNOWS[part] | KNOWS_FOR_TYPES.get(part, set())
    assert [str(one) for one in OWN if one.part == part and one.for_types and one.target not in allowed] == []


@pytest.mark.parametrize("part", KNOWS)
def test_a_part_uses_only_the_libraries_it_may(part: str) -> None:
    foreign = [one for one in IMPORTS if one.part == part and one.root not in sys.stdlib_module_names | {"broker"}]
    assert [str(one) for one in foreign if one.root not in INSTALLED.get(one.file, INSTALLED[part])] == []


@pytest.mark.parametrize("part", ["core", "wire"])
def test_what_is_sans_io_has_no_clock_no_loop_and_no_log(part: str) -> None:
    assert [str(one) for one in IMPORTS if one.part == part and one.root in WORLDLY] == []


def test_the_table_has_no_circle() -> None:
    remaining = {part: set(known) & KNOWS.keys() for part, known in KNOWS.items()}
    while innermost := {part for part, known in remaining.items() if not known}:
        remaining = {part: known - innermost for part, known in remaining.items() if part not in innermost}
    assert remaining == {}
