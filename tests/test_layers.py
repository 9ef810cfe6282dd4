"""The import layers of pyproject.toml, `[tool.importlinter]`, hold."""

import sys
from pathlib import Path

import pytest
from importlinter import cli

ROOT = Path(__file__).resolve().parent.parent


def test_imports_point_down_and_only_transport_knows_grpc(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))  # The linter puts the folder on it.
    code = cli.lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    if code != cli.EXIT_STATUS_SUCCESS:
        pytest.fail(capsys.readouterr().out, pytrace=False)
