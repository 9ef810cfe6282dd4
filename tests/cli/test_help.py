"""`genrpc --help` and what it costs."""

import subprocess
import sys

import pytest
from conftest import SECONDS, environment

from genrpc.cli import _COMMANDS

HEAVY = ("grpc", "google.protobuf", "dill", "rich", "cryptography", "asyncio", "importlib.metadata")

SHOW_IMPORTS = f"""
import sys
from genrpc.cli import main
code = main(sys.argv[1:])
print("imported:", [name for name in {HEAVY!r} if name in sys.modules], code)
"""


def test_help_names_every_command(cli):
    done = cli("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in _COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_a_command_has_an_example_or_says_what_it_does(cli, command):
    done = cli(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: genrpc {command} ")
    assert "example" in done.stdout or command == "demo"
    assert "--json" in done.stdout


def test_help_of_a_command_has_two_spellings(cli):
    assert cli("help", "call").stdout == cli("call", "-h").stdout
    assert cli("help").stdout == cli("-h").stdout


@pytest.mark.parametrize(
    "command", ["call", "multicall", "cast", "ping", "list", "status", "bench"]
)
def test_a_command_that_waits_has_a_timeout(cli, command):
    assert "--timeout DURATION" in cli(command, "--help").stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["serve", "--help"], 0), (["call"], 2), (["nonsense"], 2)],
    ids=str,
)
def test_help_and_mistakes_wait_for_nothing_heavy(words, code):
    done = subprocess.run(
        [sys.executable, "-c", SHOW_IMPORTS, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout.splitlines()[-1] == f"imported: [] {code}"


def test_version_is_that_of_the_package(cli):
    from importlib.metadata import version

    assert cli("--version").stdout == f"genrpc {version('genrpc')}\n"
