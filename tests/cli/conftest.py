"""Nodes that `genrpc serve` runs, and commands run to their end."""

import io
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genrpc.cli import main

TARGETS = Path(__file__).with_name("targets")
COMMAND = [sys.executable, "-m", "genrpc"]
SECONDS = 30


def environment(**changes):
    """The environment of a command; None takes a variable out."""
    path = os.pathsep.join([str(TARGETS), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "TERM": "dumb", **changes}
    return {name: value for name, value in env.items() if value is not None}


class Served:
    """A node in a process of its own."""

    def __init__(self, *words, name=None, **env):
        self.name = name or f"n{secrets.token_hex(4)}x@127.0.0.1"
        argv = [*COMMAND, "serve", *words, "--name", self.name, "--port", "0", "--json"]
        self.process = subprocess.Popen(
            argv,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.event = json.loads(line)
        self.dest = f"{self.name}:{self.event['port']}"

    def end(self, signal_number):
        """Send a signal; gives the exit code and what else was printed."""
        self.process.send_signal(signal_number)
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err


@pytest.fixture
def serve():
    """Start nodes for one test: `serve(*words, **environment)`."""
    started = []

    def start(*words, **options):
        started.append(Served(*words, **options))
        return started[-1]

    yield start
    for node in started:
        if node.process.poll() is None:
            node.process.kill()
            node.process.communicate()


@pytest.fixture(scope="session")
def node(isolated_environment):
    """A node that allows everything."""
    served = Served()
    yield served
    served.process.terminate()
    served.process.communicate(timeout=SECONDS)


@pytest.fixture(scope="session")
def guarded_node(isolated_environment):
    """A node with a whitelist."""
    served = Served("cli_targets")
    yield served
    served.process.terminate()
    served.process.communicate(timeout=SECONDS)


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run a command within this process: `cli(*words, input=…, **environment)`."""

    def run(*words, input="", **env):
        words = list(map(str, words))
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode())))
            capsys.readouterr()
            code = main(words)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, err)

    return run


@pytest.fixture
def cli_process(tmp_path):
    """The same as a process of its own, in an empty directory."""

    def run(*words, input=None, **env):
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            env=environment(**env),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
        )

    return run


@pytest.fixture
def eventually():
    """Wait for a condition, with a deadline."""

    def wait(condition):
        deadline = time.monotonic() + SECONDS
        while not (value := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return value

    return wait
