"""`broker config`: checks the settings, prints their JSON Schema, or what is in force."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from broker.settings import Settings, SettingsError, load
from broker.settings.mistakes import Finding
from broker.settings.values import MASK, mask_urls

_BAD_SETTINGS = 2


def run_config(
    mode: Literal["check", "schema", "show"],
    config_file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, Any],
    *,
    inspect: Callable[[Settings], Sequence[Finding]],
) -> int:
    """Prints what was asked for to standard output, or mistakes, one per line, to standard error.

    Args:
        mode: What is asked for.
        config_file: As `load` takes it, and so the next two.
        environ: See there.
        flags: See there.
        inspect: What `serve` finds wrong with settings that are sound by themselves.

    Returns:
        The exit code: 0, or 2 when the settings have mistakes.
    """
    if mode == "schema":
        return _say(_json(json_schema()))
    try:
        settings = load(config_file, environ, flags, inspect=inspect)
    except SettingsError as error:
        sys.stderr.write("".join(f"{mistake}\n" for mistake in error.mistakes))
        return _BAD_SETTINGS
    return _say("ok" if mode == "check" else _json(in_force(settings)))


def in_force(settings: Settings) -> dict[str, Any]:
    """The tree as JSON has it: secrets masked, what is unset left out. Without secrets, `load` takes it back."""
    return {name: _plain(section) for name, section in settings.model_dump(exclude_none=True).items()}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a settings file."""
    schema = Settings.model_json_schema(schema_generator=_FileSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **_one_line(schema)}


class _FileSchema(GenerateJsonSchema):
    """Says of names without a value what files can say: they are left out, since null is a mistake."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def encode_default(self, dft: Any) -> Any:
        return _without_nulls(super().encode_default(dft))

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        if "default" in described and described["default"] is None:
            del described["default"]
        return described


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inside) for name, inside in value.items() if inside is not None}
    if isinstance(value, list):
        return [_without_nulls(inside) for inside in value]
    return value


def _one_line(schema: Any) -> Any:
    """Descriptions as one line each; where they were wrapped in the source says nothing to others."""
    if isinstance(schema, list):
        return [_one_line(inside) for inside in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: " ".join(inside.split()) if name == "description" and isinstance(inside, str) else _one_line(inside)
        for name, inside in schema.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inside) for name, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inside) for inside in value]
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Path):
        return str(value)
    return mask_urls(value) if isinstance(value, str) else value


def _json(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False)


def _say(text: str) -> int:
    sys.stdout.write(f"{text}\n")
    return 0
