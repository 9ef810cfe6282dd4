"""`genrpc ping`, `status` and `list` against real nodes."""

import json
import socket

import pytest

from genrpc.cli import looks

DEAD = "dead@127.0.0.1:1"


@pytest.fixture
def mute():
    """A destination that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"mute@127.0.0.1:{server.getsockname()[1]}"


# ---------------------------------------------------------------- ping


def test_ping_tells_how_long_each_step_took(cli, node):
    done = cli("ping", node.dest, "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found.pop("node") == node.name
    assert found.pop("address") == f"127.0.0.1:{node.event['port']}"
    assert list(found) == ["resolve", "connect", "handshake", "round_trip"]
    assert all(0 <= seconds < 30 for seconds in found.values())


def test_ping_prints_a_line_for_each_step(cli, guarded_node):
    done = cli("ping", guarded_node.dest)
    names = [line.rsplit("  ", 1)[0].strip() for line in done.stdout.splitlines()]
    assert names == ["address", "resolve", "connect", "handshake", "round trip"]


def test_ping_tells_how_far_it_came(cli, node):
    done = cli("ping", node.dest, GENRPC_COOKIE="another secret of some length")
    assert done.returncode == 5
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("address", "resolve", "connect")
    ]


@pytest.mark.parametrize("command", ["ping", "status", "list"])
def test_a_dead_node_ends_with_4(cli, command):
    assert cli(command, DEAD).returncode == 4
    error = json.loads(cli(command, DEAD, "--json").stdout)["error"]
    assert error["reason"] == "econnrefused"


@pytest.mark.parametrize("command", ["ping", "status", "list"])
def test_a_silent_node_ends_with_124(cli, mute, command):
    assert cli(command, mute, "--timeout", "300ms").returncode == 124


@pytest.mark.parametrize("command", ["ping", "status", "list"])
def test_another_cookie_ends_with_5(cli, node, command):
    done = cli(command, node.dest, GENRPC_COOKIE="another secret of some length")
    assert done.returncode == 5


# ---------------------------------------------------------------- status


def test_status_tells_who_the_node_is(cli, guarded_node):
    done = cli("status", guarded_node.dest)
    assert done.returncode == 0, done.stderr
    assert guarded_node.name in done.stdout.splitlines()[0]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["max_depth", "100"] in lines
    assert ["max_connection_age", "none"] in lines


def test_status_in_json(cli, node):
    found = json.loads(cli("status", node.dest, "--json").stdout)
    assert found["node"] == node.name
    assert found["uptime"] > 0
    assert isinstance(found["calls_total"], dict)
    assert (found["limits"]["max_calls"], found["limits"]["handshake_timeout"]) == (10_000, 5)
    assert found["limits"]["max_connection_age"] is None  # it is not set


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min 0 s"), (90_000, "1 d 1 h 0 min 0 s")],
)
def test_uptime_is_told_in_words(seconds, words):
    assert looks._in_words("uptime", seconds) == words


# ---------------------------------------------------------------- list


def test_list_names_what_may_be_called(cli, guarded_node):
    done = cli("list", guarded_node.dest)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "cli_targets.touch(path)" in lines
    assert any(line.startswith("cli_targets.node_that_acts()  The name of") for line in lines)
    assert "os." not in done.stdout


def test_list_takes_a_prefix(cli, guarded_node):
    done = cli("list", guarded_node.dest, "cli_targets.a", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["function"] for entry in found] == ["a_generator", "awkward"]


def test_list_says_that_there_is_nothing(cli, guarded_node):
    done = cli("list", guarded_node.dest, "nothing.like.it")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no function" in done.stderr
