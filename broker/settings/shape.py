"""What the tree of settings looks like from outside: its names, where lists and numbers belong, where secrets are."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from broker.settings.values import PublicKey

Path = tuple[str | int, ...]
"""Names and list positions from the tree's root: `("topics", 1, "subscribe")`."""

ANY = -1
"""Stands in a path for any position of a list."""


class Shape:
    """The names of a tree of models and what is known about them."""

    def __init__(self, root: type[BaseModel]) -> None:
        self.root = root
        self._models: dict[Path, type[BaseModel]] = {}
        self._kinds: dict[Path, Any] = {}
        for path, kind in _walk(root, ()):
            if _is_model(kind):
                self._models[path] = kind
            else:
                self._kinds[path] = kind
        self._secrets = frozenset(path for path, kind in self._kinds.items() if kind in (SecretStr, PublicKey))

    def names(self, table: Path) -> list[str]:
        """The names a table may have; none when there is no table at this path."""
        model = self._models.get(anywhere(table))
        return [] if model is None else list(model.model_fields)

    def variables(self) -> Iterator[Path]:
        """What an environment variable can set: each section's names, and sections that are lists."""
        for section in self.names(()):
            if (section,) in self._models:
                yield from ((section, name) for name in self.names((section,)))
            else:
                yield (section,)

    def kind(self, path: Path) -> Any:
        """The type of the single value at `path`, or `list`."""
        return self._kinds.get(anywhere(path), list)

    def default(self, path: Path) -> Any:
        field = self._models[anywhere(path[:-1])].model_fields[str(path[-1])]
        return field.get_default(call_default_factory=False)

    def stand_in(self, path: Path) -> Any:
        """A sound value for a name that has no default, to judge the rest by; None where there is a default."""
        owner = self._models.get(anywhere(path[:-1]))
        field = None if owner is None else owner.model_fields.get(str(path[-1]))
        return field.examples[0] if field is not None and field.is_required() and field.examples else None

    def hides(self, path: Path) -> bool:
        """Whether a text at `path` may be a secret: it belongs to one, or stands where there should be a table or a
        list that holds one.
        """
        general = anywhere(path)
        return any(general[: len(secret)] == secret[: len(general)] for secret in self._secrets)


def anywhere(path: Path) -> Path:
    return tuple(ANY if isinstance(step, int) else step for step in path)


def _walk(kind: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    yield path, kind
    if _is_model(kind):
        for name, field in kind.model_fields.items():
            for inside, member in _unwrapped(field.annotation, (*path, name)):
                yield from _walk(member, inside)


def _unwrapped(annotation: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Sees through `X | None`, `Annotated[X, …]` and `tuple[X, ...]`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == PublicKey:  # an alias of a text, told from others only whole
        yield path, annotation
    elif origin in (Union, UnionType):
        for argument in arguments:
            if argument is not NoneType:
                yield from _unwrapped(argument, path)
    elif origin is Annotated:
        yield from _unwrapped(arguments[0], path)
    elif origin is tuple:
        yield from _unwrapped(arguments[0], (*path, ANY))
    else:
        yield path, annotation


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
