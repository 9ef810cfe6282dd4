"""Clients in other languages, grpcurl and `buf curl`: all get the same from a node.

The clients are examples/clients/, whose README has the table of the cases. One that cannot run for
want of its toolchain is skipped with a line that says so; where CLIENTS_REQUIRED is set, as by
.ci/run, it fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command_line
import pytest
from pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLIENTS = ROOT / "examples/clients"
NODE = "clients-node@127.0.0.1"
SECONDS = 240.0
"""For a client with its compiler, on a machine that does something else too."""

Told = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A node in a process of its own, which forbids `os`."""

    address: str
    token: str
    cookie: str


@pytest.fixture(scope="module")
def node(isolated_environment: None) -> Iterator[Served]:
    command = [sys.executable, "-m", "genrpc"]
    policy = {"GENRPC_RPC_MODULE_CONTROL": "blacklist", "GENRPC_RPC_MODULE_LIST": '["os"]'}
    process = subprocess.Popen(
        [*command, "serve", "--name", NODE, "--port", "0", "--json"],
        env={**os.environ, **policy},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    token, cookie = (
        subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout
        for words in (["token"], ["cookie", "--show"])
    )
    yield Served(f"127.0.0.1:{ready['port']}", token.strip(), cookie.strip())
    process.terminate()
    process.communicate(timeout=30)


# ---------------------------------------------------------------- running the clients

WANTED = {
    "javascript": ["node", CLIENTS / "javascript/node_modules/@grpc/grpc-js"],
    "ruby": ["ruby", "protoc", "grpc_ruby_plugin"],
    "java": ["javac", "protoc", "grpc_java_plugin", Path("/usr/share/java/grpc-netty.jar")],
    "grpcurl": ["grpcurl"],
    "buf": ["buf"],
}
"""Programs on PATH, and files."""


def need(client: str) -> None:
    """Skip the test, or fail it in .ci/run, where a client cannot run."""
    missing = [
        str(wanted)
        for wanted in WANTED[client]
        if not (wanted.exists() if isinstance(wanted, Path) else shutil.which(wanted))
    ]
    if missing:
        text = f"The client {client} cannot run: no {', '.join(missing)}; see .ci/run."
        (pytest.fail if os.environ.get("CLIENTS_REQUIRED") else pytest.skip)(text)


def printed(client: str, node: Served, build: Path) -> dict[str, Told]:
    """Run a client of examples/clients/; gives what it prints, by case."""
    environment = {
        **os.environ,
        "BUILD": str(build),
        "GENRPC_ADDRESS": node.address,
        "GENRPC_NODE": NODE,
        "GENRPC_TOKEN": node.token,
        "GENRPC_COOKIE": node.cookie,
    }
    ended = subprocess.run(
        [CLIENTS / client / "run"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return {line.pop("case"): line for line in map(json.loads, ended.stdout.splitlines())}


def asked(ask: Callable[[str, str], command_line.Ask], node: Served) -> dict[str, Told]:
    """Do the cases with a program of the command line."""
    return dict(command_line.cases(ask(node.address, node.token)))


@pytest.fixture(scope="module", params=WANTED)
def answers(
    request: pytest.FixtureRequest, node: Served, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Told]:
    """What one client got, by case."""
    client = request.param
    need(client)
    if client in ("grpcurl", "buf"):
        return asked(getattr(command_line, client), node)
    return printed(client, node, tmp_path_factory.mktemp(client))


# ---------------------------------------------------------------- what they are to get


def raised(kind: str, message: str, execution: str, reason: str = "EXIT") -> Told:
    """An error as it is in a response."""
    return {
        "reason": f"ERROR_REASON_{reason}",
        "message": f"builtins.{kind}: {message}",
        "execution": f"EXECUTION_{execution}",
        "exception": {"type": f"builtins.{kind}", "message": message},
    }


def refused(code: str, reason: str, message: str) -> Told:
    """A status as a call has that never ran; `message` is its begin."""
    return {
        "code": code,
        "message": message,
        "reason": reason,
        "domain": "genrpc",
        "execution": "NOT_STARTED",
    }


ATTRIBUTE = "module 'math' has no attribute 'no_such_function'"
FORBIDDEN = "The node's policy does not allow os:getpid"
FACTORIAL = {"response": {"result": {"value": 120}, "node": NODE}}
LARGE = {
    "bytes": len(command_line.LARGE),
    "sha256": hashlib.sha256(command_line.LARGE).hexdigest(),
}
UNARY: dict[str, Told] = {
    "empty_unary": {"response": {"node": NODE}},
    "unary_args": FACTORIAL,
    "unary_kwargs": {"response": {"result": {"value": [3, 2, 1]}, "node": NODE}},
    "unary_terms": {"response": {"result": {"term": command_line.TUPLE}, "node": NODE}},
    "exception": {
        "response": {
            "error": raised("ZeroDivisionError", "division by zero", "FINISHED"),
            "node": NODE,
        }
    },
    "undefined_function": {
        "response": {
            "error": raised("AttributeError", ATTRIBUTE, "NOT_STARTED", "UNDEF"),
            "node": NODE,
        }
    },
    "status_code_and_message": {"status": refused("PERMISSION_DENIED", "UNAUTHORIZED", FORBIDDEN)},
    "custom_metadata": {
        **FACTORIAL,
        "status": refused("UNAUTHENTICATED", "INVALID_COOKIE", "This node wants metadata"),
    },
    "timeout_on_sleeping_server": {"status": {"code": "DEADLINE_EXCEEDED"}},
    "large_unary": LARGE,
}
STREAM: dict[str, Told] = {
    "wrong_cookie": {"reason": "ERROR_REASON_INVALID_COOKIE"},
    "ping_pong": {"results": [1, 2, 6, 24]},
    "pipelined_calls": {"calls": 1000, "right": 1000, "frames": 1},
    "stream_terms": {
        "term": {"tuple_value": {"items": [{"int_value": "-1"}, {"bytes_value": "AP8="}]}}
    },
    "large_transfer": {"results": [LARGE] * 5},
    "stream_exception": {"error": raised("ZeroDivisionError", "division by zero", "FINISHED")},
    "stream_refused": {
        "error": {
            "reason": "ERROR_REASON_UNAUTHORIZED",
            "message": FORBIDDEN,
            "execution": "EXECUTION_NOT_STARTED",
        }
    },
    "stream_timeout": {"reason": "ERROR_REASON_TIMEOUT"},
    "cancel_after_begin": {"cancelled": "AbortError", "result": 120, "after": 6},
}


def comparable(found: Any, expected: Any) -> Any:
    """Give what was found, in the spelling of what is expected.

    Field names of protobuf come as in the proto or in lowerCamel; how long a call took and where
    it raised differ; a message is compared as far as it is expected.
    """
    if isinstance(found, list) and isinstance(expected, list):
        return [comparable(*pair) for pair in zip(found, expected, strict=True)]
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return found
    told = {_snake(name): value for name, value in found.items()}
    if told.get("code") == "DEADLINE_EXCEEDED":
        told.pop("message", None)  # the client's own
    if "traceback" in told:
        assert told["message"] in told.pop("traceback")
    told.pop("elapsed", None)
    if told.get("message", "").startswith(expected.get("message", "")) and "message" in expected:
        told["message"] = expected["message"]
    return {name: comparable(value, expected.get(name)) for name, value in told.items()}


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


@pytest.mark.parametrize("case", UNARY)
def test_every_client_gets_the_same(answers: dict[str, Told], case: str) -> None:
    assert comparable(answers[case], UNARY[case]) == UNARY[case]


@pytest.mark.parametrize("case", STREAM)
@pytest.mark.parametrize("answers", ["javascript"], indirect=True)
def test_stream_client_written_from_the_proto_gets_its_answers(
    answers: dict[str, Told], case: str
) -> None:
    assert comparable(answers[case], STREAM[case]) == STREAM[case]
