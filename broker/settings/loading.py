"""Loads the settings: lays the sources over each other and collects every mistake on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from broker.settings.mistakes import Finding, SettingsError, explain
from broker.settings.shape import ANY, Path, Shape
from broker.settings.sources import ABSENT, Layer, read_environment, read_file, read_flags
from broker.settings.tree import Settings

NOT_YET = (
    "auth.jwks_url",
    "telemetry.otlp_endpoint",
    "telemetry.sample_ratio",
)
"""Names of the contract that nothing in this version acts on. To take another value than the default and ignore it
would be a lie, so it is a mistake. Whoever makes a name work deletes its line."""

_NOT_YET = "is not supported by this version yet; leave it out"

SHAPE = Shape(Settings)


def _accept(_: Settings) -> Sequence[Finding]:
    return ()


def load(
    config_file: FilePath | None,
    environ: Mapping[str, str],
    flags: Mapping[str, Any],
    *,
    inspect: Callable[[Settings], Sequence[Finding]] = _accept,
) -> Settings:
    """The settings in force.

    Args:
        config_file: TOML or JSON, by its suffix; None for no file.
        environ: All of the environment; what does not begin with `BROKER_` is passed over.
        flags: A tree like the settings', of what the command line says; None where a flag is not given.
        inspect: Finds what only shows when the settings are put to use. It is asked even when there are mistakes; what
            they are about has its default then.

    Raises:
        SettingsError: there are mistakes; it names all of them.
    """
    layers = (
        read_flags(flags, Settings, SHAPE),
        read_environment(environ, Settings, SHAPE),
        read_file(config_file, Settings, SHAPE),
    )
    judge = _Judge(layers)
    judge.blame([Finding(path, text=_NOT_YET) for name in NOT_YET for path in judge.used(name)])
    build: Callable[..., Settings] = Settings  # type checkers see only the fields among the arguments
    while True:
        try:
            settings = build(_build_sources=(layers, {}))
        except ValidationError as error:
            if judge.blame(list(explain(error, SHAPE))):
                continue
        else:
            judge.blame(inspect(settings))
            if not judge.mistakes:
                return settings
        raise SettingsError(dict.fromkeys(judge.mistakes))


class _Judge:
    """Collects mistakes. What one is about is taken out of its layer, so that the rest can be judged without it."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._blamed: set[Path] = set()
        self.mistakes = [mistake for layer in layers for mistake in layer.mistakes]

    def blame(self, findings: Sequence[Finding]) -> bool:
        """Writes findings down, but for those that only follow from earlier ones.

        Returns:
            Whether there was anything to take out, so that there is something new to judge.
        """
        paths = [path for finding in findings for path in finding.paths]
        earlier = frozenset(self._blamed)
        for finding in findings:
            follows = any(_overlap(path, bad) for path in finding.paths for bad in earlier)
            # of one round, a list is blamed after its entries; it does not matter what else a finding names
            if not follows and not any(_overlap(finding.paths[0], bad) for bad in self._blamed - earlier):
                self.mistakes.append(f"{self._place(finding.paths)}: {finding.text}")
            self._blamed.add(finding.paths[0])
        self._blamed.update(paths)
        return sum(self._take_out(path, stand_in=path not in earlier) for path in paths) > 0

    def used(self, name: str) -> list[Path]:
        """Where a name, with `[]` for any position, has another value than its default."""
        path: Path = tuple(ANY if step == "[]" else step for step in name.replace("[]", ".[]").split("."))
        default = SHAPE.default(path)
        usual = list(default) if isinstance(default, tuple) else default
        return [found for found, value in self._in_force(path).entries(path) if value != usual]

    def _in_force(self, path: Path) -> Layer:
        # two steps lead to a setting; what is inside it comes whole from one layer, the first that has it
        return max(self._layers, key=lambda layer: layer.depth(path[:2]))

    def _place(self, paths: Sequence[Path]) -> str:
        """Where the first of these stands that anybody has given."""
        given = (path for path in paths if self._in_force(path).entry(path) is not ABSENT)
        path = next(given, paths[0])
        return self._in_force(path).place(path)

    def _take_out(self, path: Path, *, stand_in: bool) -> bool:
        layer = self._in_force(path)
        sound = SHAPE.stand_in(path)
        if sound is not None:
            # without it there would be nothing to judge its neighbours by; when that was tried already, all go
            return layer.put(path, sound) if stand_in else layer.take(path[:-1]) != ()
        taken = layer.take(path)
        for other in self._layers:
            if taken and other.entry(taken) is not ABSENT:
                other.take(taken)
        return taken != ()


def _overlap(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
