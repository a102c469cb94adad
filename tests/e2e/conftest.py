"""What only end-to-end tests need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def javascript(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the script for the JavaScript SDK and the packages it needs."""
    program("node")
    npm = program("npm")
    directory = tmp_path_factory.mktemp("js")
    shutil.copytree(HERE / "js", directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    installed = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode != 0:
        reason = f"npm ci failed: {installed.stderr}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return directory
