"""The import layers of pyproject.toml, `[tool.importlinter]`, hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("importlinter", reason="checked where coverage is measured, and by lint")


def test_imports_point_down_and_only_transport_knows_grpc():
    # In a process of its own: the linter configures logging, which silences loggers under test.
    linter = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run(
        [sys.executable, "-c", linter, "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
