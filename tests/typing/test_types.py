"""For users who check types: what README.md shows is right, and what `api.py` says of the rest."""

import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks

pytest.importorskip("mypy", reason="checked where coverage is measured")

PROGRAMS = [block for block in blocks(ROOT / "README.md") if block.language == "python"]


def test_examples_of_the_readme_are_typed(tmp_path: Path) -> None:
    files = []
    for block in PROGRAMS:
        file = tmp_path / f"readme_line_{block.line}.py"
        file.write_text(block.text)
        files.append(file)
    _check(files)


def test_public_functions_have_the_types_that_users_rely_on() -> None:
    _check([Path(__file__).with_name("api.py")])


def _check(files: list[Path]) -> None:
    # Silent about genrpc itself, as for users.
    options = ["--strict", "--follow-imports=silent", *map(str, files)]
    command = [sys.executable, "-m", "mypy", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
