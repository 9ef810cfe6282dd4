"""README.md: every command and every example of it does what it says."""

import shutil
from pathlib import Path

import pytest
from pages import ROOT, Reader, blocks, commands, sections

README = ROOT / "README.md"
MAIN_JOB, TESTS = (next(commands(block)).text for block in list(blocks(README))[:2])

NOT_OF_THE_CHECKOUT = (".*", "*.egg-info", "__pycache__", "build", "dist", "node_modules")


def test_readme_is_at_most_160_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


def test_first_screen_has_the_two_commands() -> None:
    first, second = list(blocks(README))[:2]
    assert (first.line, second.line) < (20, 24)
    assert MAIN_JOB.startswith("python3 -m venv .venv && .venv/bin/pip install -q . ")
    assert MAIN_JOB.endswith(" && .venv/bin/genrpc demo")
    assert TESTS.startswith("python3 -m venv .venv && .venv/bin/pip install -q tox ")
    assert TESTS.endswith(" && .venv/bin/tox")


def test_ci_runs_the_test_command_as_it_is_here() -> None:
    assert TESTS in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("heading", [heading for heading in sections(README) if heading])
def test_examples_do_what_they_show(heading: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        for block in sections(README)[heading]:
            reader.follow(block)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_main_job_runs_in_a_fresh_checkout(tmp_path: Path) -> None:
    output = _run_in_a_fresh_checkout(MAIN_JOB, tmp_path)
    assert "the same words and hashes: yes" in output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_test_command_runs_tox_in_a_fresh_checkout(tmp_path: Path) -> None:
    # These very tests are among what it runs: here it is left one environment, the quickest. What
    # that one finds is its own business.
    command = f"export TOX_SKIP_ENV='^(?!lint$)' && {TESTS} || true"
    output = _run_in_a_fresh_checkout(command, tmp_path)
    assert "lint: commands[0]> ruff check" in output


def _run_in_a_fresh_checkout(command: str, tmp_path: Path) -> str:
    with Reader(tmp_path, seconds=800) as reader:
        checkout = reader.home() / "genrpc"
        ignored = shutil.ignore_patterns(*NOT_OF_THE_CHECKOUT)
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignored)
        return reader.output_of(f"cd genrpc && {command}")
