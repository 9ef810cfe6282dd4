"""No cookie, token, key or payload is in any output: marked ones are looked for.

In every run a program that writes down all that it can; in the long form the whole suite.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from noisy import ARGUMENT
from scale import LONG, patient

from genrpc import security

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COOKIE = "MARKED-COOKIE-5d07-b2ce-43f1"
TOKEN = re.compile(r"g1\.[\w-]{40,}\.[\w-]{43}")
"""What every token looks like."""


def marks(cookie: str) -> list[str]:
    """The cookie, and the key that is made of it, as they could be written."""
    key = security.Cookie(cookie).key
    return [
        cookie,
        key.hex(),
        base64.b64encode(key).decode().rstrip("="),
        base64.urlsafe_b64encode(key).decode().rstrip("="),
        repr(key)[2:-1],
    ]


def assert_nothing_is_told(output: str, *more: str) -> None:
    for mark in (*marks(COOKIE), *more):
        assert mark not in output
    assert not TOKEN.search(output)


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": path, "GENRPC_COOKIE": COOKIE, **changes}


def test_program_that_writes_down_everything_tells_no_secret(tmp_path):
    tokens = tmp_path / "tokens"
    done = subprocess.run(
        [sys.executable, str(HERE / "noisy.py")],
        env=environment(TOKENS=str(tokens)),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-2000:]
    assert output.count("event=refused_authentication") >= 3  # it has come to that
    assert "event=refused_target" in output
    assert "event=limit_hit" in output
    assert "LookupError: of the function" in output
    told = tokens.read_text().split()
    assert len(told) == 4
    assert TOKEN.fullmatch(told[0])
    assert_nothing_is_told(output, *told, *(token.rpartition(".")[2] for token in told))
    # An argument is in nobody's log; in what its own function or decoder says, it may be.
    lines = [line for line in output.splitlines() if ARGUMENT in line]
    assert [line for line in lines if re.match(r"(DEBUG|INFO|WARNING|ERROR):genrpc", line)] == []


@pytest.mark.parametrize(
    "command",
    [
        ("call", "b@127.0.0.1:1", "math.sqrt", "4"),
        ("status", "b@127.0.0.1:1", "--json"),
        ("ping", "b@127.0.0.1:1"),
        ("cookie",),
        ("serve", "--port", "99999"),
        ("serve", "no_such_module"),
    ],
    ids=lambda command: " ".join(command[:1]),
)
def test_commands_tell_no_secret(command):
    done = subprocess.run(
        [sys.executable, "-m", "genrpc", *command],
        env=environment(GENRPC_CONNECT_TIMEOUT="5"),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if command != ("cookie",):
        assert done.returncode != 0
    assert_nothing_is_told(done.stdout + done.stderr)


@pytest.mark.parametrize("text", ["MARKED-short", f"{COOKIE}\udcff"])
def test_cookie_that_is_refused_is_not_shown(text, tmp_path):
    for name, value in {"GENRPC_COOKIE": text, "GENRPC_CONFIG": str(tmp_path / "x.toml")}.items():
        (tmp_path / "x.toml").write_text(
            f"[genrpc]\ncookie = {json.dumps(text.encode(errors='replace').decode())}\n"
        )
        (tmp_path / "x.toml").chmod(0o644)
        env = {k: v for k, v in environment().items() if k != "GENRPC_COOKIE"}
        done = subprocess.run(
            [sys.executable, "-m", "genrpc", "call", "b@127.0.0.1:1", "math.sqrt"],
            env={**env, name: value},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 78 or text.startswith(COOKIE)
        assert "MARKED" not in done.stdout + done.stderr


@patient
@pytest.mark.skipif(not LONG, reason="it runs the whole suite: only with SECURITY_TESTS=long")
def test_whole_suite_with_a_marked_cookie_tells_it_nowhere(tmp_path):
    quick = {name: text for name, text in os.environ.items() if name != "SECURITY_TESTS"}
    log = tmp_path / "output"
    with log.open("w") as file:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "tests", "-m", "not slow", "-rA", "-s"),
                *("-p", "no:cacheprovider", "--tb=short", "--deselect", str(Path(__file__).name)),
                *("-o", "log_cli=true", "--log-cli-level=DEBUG", f"--basetemp={tmp_path / 'base'}"),
                *(f"--ignore={HERE}", "--ignore=tests/clients", "--ignore=tests/mixed"),
            ],
            cwd=ROOT,
            env={**quick, "TESTS_COOKIE": COOKIE},
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=1800,
            check=False,
        )
    output = log.read_text(errors="replace")
    assert done.returncode == 0, output[-3000:]
    assert_nothing_is_told(output)
