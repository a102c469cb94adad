"""Whatever stands in files, flags and the environment: settings or mistakes come of it, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.settings import Settings, SettingsError, load
from broker.settings.loading import SHAPE
from broker.settings.sources import variable

NAMES = [
    name for path in [(), *((section,) for section in SHAPE.names(())), ("topics", 0)] for name in SHAPE.names(path)
]
VARIABLES = [variable(path) for path in SHAPE.variables()]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["*", "a.>", "1", "embedded"]),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inside, max_size=4)
    ),
    max_leaves=20,
)


def assert_one_line_each(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> None:
    lines: tuple[str, ...] = ("none",)
    try:
        assert isinstance(load(file, environ, flags), Settings)
    except SettingsError as error:
        lines = error.mistakes
    assert lines
    assert all(line.isprintable() for line in lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(SHAPE.names(())) | st.text(), JUNK, max_size=6))
def test_junk_in_files_and_flags_makes_mistakes_and_nothing_worse(tmp_path: Path, tree: dict[str, Any]) -> None:
    file = tmp_path / "junk.json"
    file.write_text(json.dumps(tree))

    assert_one_line_each(file, {}, {})
    assert_one_line_each(None, {}, tree)


@given(
    st.dictionaries(
        st.sampled_from(VARIABLES)
        | st.sampled_from(VARIABLES).map(lambda name: f"{name}_FILE")
        | st.text().map("BROKER_{}".format),
        st.text() | JUNK.map(json.dumps),
        max_size=6,
    )
)
def test_junk_in_the_environment_makes_mistakes_and_nothing_worse(environ: dict[str, str]) -> None:
    assert_one_line_each(None, environ, {})
