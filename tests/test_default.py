"""The process's default node; what belongs to a process of its own runs in one."""

import concurrent.futures
import subprocess
import sys
import threading

import pytest
from nodes import COOKIE
from waiting import SECONDS

import genrpc
from genrpc import default, erpc, rpc
from genrpc.local_node import Node

HERE = __name__
OPTIONS = {"tcp_server_port": 0, "cookie": COOKIE, "port_discovery": "manual"}


@pytest.fixture(autouse=True)
def no_default_node():
    genrpc.stop(0)
    yield
    genrpc.stop(0)


def echo(value):
    return value


def node_in_a_thread():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(genrpc.node).result(SECONDS)


def ask_for_nodes(dest):
    return genrpc.node(), rpc.call(dest, "genrpc", "node"), genrpc.nodes()


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**environment, **{"PYTHONPATH": ":".join(sys.path), "GENRPC_COOKIE": COOKIE}},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_started_node_is_the_default_until_it_is_stopped():
    node = genrpc.start("x", **OPTIONS)
    assert genrpc.node() == node.name == "x@127.0.0.1"
    assert genrpc.call("x", "math", "factorial", [5]) == 120
    genrpc.stop(0)
    assert node.is_stopped
    genrpc.stop(0)  # there is none any more


def test_with_starts_and_stops_and_can_be_repeated():
    for name in ("x", "y"):
        with genrpc.start(name, **OPTIONS) as node:
            assert genrpc.node() == node.name == f"{name}@127.0.0.1"
        assert node.is_stopped


def test_second_start_is_refused_with_a_sentence():
    genrpc.start("x", **OPTIONS)
    with pytest.raises(RuntimeError, match=r"x@127\.0\.0\.1 is this process's node already"):
        genrpc.start("y", **OPTIONS)


def test_node_that_was_stopped_by_itself_makes_room_for_another():
    genrpc.start("x", **OPTIONS).stop(0)
    with genrpc.start("y", **OPTIONS) as node:
        assert genrpc.node() == node.name


def test_failed_start_leaves_no_default_node():
    with pytest.raises(genrpc.ConfigurationError):
        genrpc.start("x", listen_address="0.0.0.0", **OPTIONS)
    with genrpc.start("x", **OPTIONS) as node:
        assert genrpc.node() == node.name


def test_first_call_makes_a_node_that_only_calls(monkeypatch):
    monkeypatch.setenv("GENRPC_COOKIE", COOKIE)
    name = genrpc.node()
    assert name.endswith("@127.0.0.1")
    node = default.acting_node()
    assert (node.port, node_in_a_thread()) == (None, name)
    assert rpc.call(name, HERE, "echo", [5]) == 5
    serving = genrpc.start("x", **OPTIONS)  # takes its place
    assert (node.is_stopped, genrpc.node()) == (True, serving.name)


def test_first_call_after_a_stop_makes_a_new_one_that_can_be_replaced(monkeypatch):
    monkeypatch.setenv("GENRPC_COOKIE", COOKIE)
    genrpc.start("x", **OPTIONS).stop(0)
    assert genrpc.node() != "x@127.0.0.1"
    with genrpc.start("y", **OPTIONS) as node:
        assert genrpc.node() == node.name


def test_of_many_threads_that_call_first_all_get_one_node(monkeypatch):
    monkeypatch.setenv("GENRPC_COOKIE", COOKIE)
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait(SECONDS)
        return default.acting_node()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = {future.result() for future in [pool.submit(ask) for _ in range(8)]}
    assert len(found) == 1


def test_called_function_acts_for_the_node_that_runs_it(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    with genrpc.start("x", **OPTIONS):
        assert erpc.call(b.name, HERE, "ask_for_nodes", [a.name], via=a) == (
            b.name,
            a.name,
            [a.name],
        )
        assert genrpc.node() == "x@127.0.0.1"


def test_via_acts_for_another_node(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    with genrpc.start("x", **OPTIONS):
        assert rpc.call(b.name, "genrpc", "node", via=a) == b.name
        assert (genrpc.nodes(), genrpc.nodes(via=a)) == ([], [b.name])
        assert default.acting_node(a) is a


def test_default_node_can_be_replaced_for_a_while(nodes):
    a = nodes.start("a")
    with genrpc.start("x", **OPTIONS) as x:
        with default.replaced_by(a, serves=True):
            assert genrpc.node() == a.name
            with pytest.raises(RuntimeError, match="already"):
                genrpc.start("y", **OPTIONS)
        assert genrpc.node() == x.name
    assert not a.is_stopped


def test_name_of_the_default_node_is_the_programs():
    assert run("import genrpc; print(genrpc.start(tcp_server_port=0).name)") == ["python@127.0.0.1"]


def test_client_only_node_takes_its_settings_from_the_environment():
    code = """
import genrpc, genrpc.default
node = genrpc.default.acting_node()
print(node.settings.receive_timeout, node.port, genrpc.nodes())
"""
    assert run(code, GENRPC_RECEIVE_TIMEOUT="7.5") == ["7.5", "None", "[]"]


def test_default_node_is_a_node():
    with genrpc.start("x", **OPTIONS) as node:
        assert isinstance(node, Node)
        assert isinstance(node, genrpc.Node)
