"""A node and a caller with the oldest and the newest grpcio and protobuf call each other.

The newest are those of the Python that runs the tests, the oldest have an environment of their
own, made here with the versions that tox.ini pins for `oldest`.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CALLS = Path(__file__).with_name("calls.py")
SECONDS = 60.0


def pins() -> list[str]:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", "utf-8")
    return [line for line in tox["testenv:oldest"]["deps"].splitlines() if line]


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with the oldest releases."""
    folder = tmp_path_factory.mktemp("oldest")
    python = folder / "bin/python"
    base = shutil.which("python3.10")
    if base is None:
        venv.create(folder, with_pip=True)
    else:
        subprocess.run([base, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *pins()], check=True)
    return str(python)


@pytest.fixture(scope="module")
def pythons(oldest: str) -> dict[str, str]:
    return {"oldest": oldest, "newest": sys.executable}


def environment() -> dict[str, str]:
    """The checkout for both: it is one genrpc over two sets of packages."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(params=["oldest", "newest"])
def node(request: pytest.FixtureRequest, pythons: dict[str, str]) -> Iterator[tuple[str, str]]:
    """A node: whose packages it has, and its name:port."""
    process = subprocess.Popen(
        [pythons[request.param], "-m", "genrpc", "serve", "--name", "mixed", "--port=0", "--json"],
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    yield request.param, f"mixed@127.0.0.1:{ready['port']}"
    process.terminate()
    process.communicate(timeout=SECONDS)


def run(*words: str) -> str:
    ended = subprocess.run(
        words,
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


EXPECTED: dict[str, Any] = {
    "call": 2432902008176640000,
    "keywords": [3, 2, 1],
    "async_call": 3,
    "large": True,
    "raised": "BadRPC builtins.ZeroDivisionError",
    "missing": "builtins.ModuleNotFoundError",
    "timeout": "timeout",
    "multicall": [[-1, -1], []],
    "awaited": 4.0,
    "cast": True,
}


def test_nodes_of_both_ages_call_each_other(pythons: dict[str, str], node: tuple[str, str]) -> None:
    age, name = node
    caller = "newest" if age == "oldest" else "oldest"
    told = json.loads(run(pythons[caller], str(CALLS), name))
    theirs, ours = told.pop("versions"), told.pop("own versions")
    assert told == EXPECTED
    old, new = (theirs, ours[0]) if age == "oldest" else (ours[0], theirs)
    assert old.split(".")[:2] == ["1", "80"]
    assert [int(part) for part in new.split(".")[:2]] > [1, 80]


def test_unary_methods_go_between_both_ages(pythons: dict[str, str], node: tuple[str, str]) -> None:
    age, name = node
    python = pythons["newest" if age == "oldest" else "oldest"]
    listed = run(python, "-m", "genrpc", "list", name, "math.factorial")
    assert listed.startswith("math.factorial(")
    status = json.loads(run(python, "-m", "genrpc", "status", name, "--json"))
    assert status["node"] == "mixed@127.0.0.1"
