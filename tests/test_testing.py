"""Clusters and pairs for users' tests, and the fixtures that give them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import SECONDS, until

import genrpc
from genrpc import default, testing


def gone(pid):
    """Whether a process has ended; init may not have asked how yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run(*command, **options):
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=50, **options
    )


@pytest.fixture(scope="module")
def cluster():
    with testing.cluster(3, receive_timeout=40, nonblocking=["operator:add"]) as nodes:
        yield nodes


# ------------------------------------------------------------------ what a cluster is


def test_nodes_are_processes_of_their_own(cluster):
    assert genrpc.multicall(cluster.names, "os", "getpid", []) == (cluster.pids, [])
    assert len({*cluster.pids, os.getpid()}) == 4


def test_names_end_in_letters_and_are_on_loopback(cluster):
    assert all(name.endswith("@127.0.0.1") for name in cluster.names)
    assert not any(name.partition("@")[0][-1].isdigit() for name in cluster.names)
    assert len(set(cluster.names)) == 3


def test_nodes_find_each_other_by_name(cluster):
    first, second, third = cluster.names
    nested = [second, "genrpc", "call", [third, "genrpc", "node"]]
    assert genrpc.call(first, "genrpc", "call", nested) == third


def test_settings_reach_the_nodes_and_the_caller(cluster):
    settings = genrpc.erpc.run(cluster.names[0], lambda: default.acting_node().settings)
    assert settings.receive_timeout == cluster.caller.settings.receive_timeout == 40
    assert settings.nonblocking == ("operator:add",)
    assert settings.switch_interval == 0.0002
    assert cluster.caller.settings.switch_interval is None


def test_cookie_is_on_no_command_line_and_in_no_repr(cluster):
    cookie = cluster.caller.settings.cookie
    commands = [" ".join(psutil.Process(pid).cmdline()) for pid in cluster.pids]
    assert cookie not in f"{commands} {cluster!r} {cluster.caller!r}"


def test_functions_find_nothing_to_read_on_stdin(cluster):
    assert genrpc.erpc.run(cluster.names[0], lambda: sys.stdin.read()) == ""


def test_output_of_functions_is_kept_for_the_caller(cluster):
    genrpc.erpc.call(
        cluster.names[1], "builtins", "print", ["a line on stdout"], kwargs={"flush": True}
    )
    assert "a line on stdout\n" in cluster.outputs()[1]
    assert "a line on stdout\n" not in cluster.outputs()[2]


# ------------------------------------------------------------------ doing harm to it


def test_killed_node_is_gone_and_comes_back_with_its_name(cluster):
    name, former = cluster.names[0], cluster.pids[0]
    assert genrpc.call(name, "os", "getpid") == former
    key = genrpc.async_call(name, "time", "sleep", [60])
    cluster.kill(0)
    assert gone(former)
    assert genrpc.yield_(key) == genrpc.BadTCP("closed")
    assert genrpc.call(name, "os", "getpid") == genrpc.BadTCP("econnrefused")
    cluster.restart(0)
    assert genrpc.call(name, "os", "getpid") == cluster.pids[0] != former


def test_restart_replaces_a_node_that_lives(cluster):
    former = cluster.pids[1]
    cluster.restart(1)
    assert gone(former)
    assert genrpc.call((cluster.names[1], "a new stream"), "os", "getpid") == cluster.pids[1]


def test_frozen_node_answers_nothing_until_it_is_thawed(cluster):
    cluster.freeze(2)
    try:
        silence = genrpc.call(cluster.names[2], "os", "getpid", [], 0.5)
    finally:
        cluster.thaw(2)
    assert silence == genrpc.BadRPC("timeout")
    assert genrpc.call(cluster.names[2], "os", "getpid") == cluster.pids[2]


def test_killed_node_cannot_be_frozen():
    with testing.cluster(1) as nodes:
        nodes.kill(0)
        nodes.kill(0)  # which is no mistake
        with pytest.raises(RuntimeError, match=r"ended with code -9: restart it first"):
            nodes.freeze(0)


# ------------------------------------------------------------------ the caller's default node


def test_former_default_node_is_back_afterwards_with_its_streams():
    with (
        genrpc.Node("former@127.0.0.1", genrpc.Settings(tcp_server_port=None)) as former,
        genrpc.Node("peer@127.0.0.1", genrpc.Settings(tcp_server_port=0)) as peer,
        default.replaced_by(former, serves=False),
    ):
        assert genrpc.call(peer.name, "genrpc", "node") == peer.name
        opened = peer.statistics()["streams_in"]
        with testing.cluster(1) as nodes:
            assert genrpc.node() == nodes.caller.name != former.name
            assert genrpc.call(nodes.names[0], "math", "sqrt", [9]) == 3.0
            assert genrpc.call(peer.name, "math", "sqrt", [9]) == genrpc.BadRPC("invalid_cookie")
        assert nodes.caller.is_stopped
        assert genrpc.node() == former.name
        assert genrpc.nodes() == [peer.name]
        assert genrpc.call(peer.name, "genrpc", "node") == peer.name
        assert peer.statistics()["streams_in"] == opened


# ------------------------------------------------------------------ starting and ending


def test_nodes_import_what_the_caller_can_import(tmp_path, monkeypatch):
    (tmp_path / "of_the_test.py").write_text("def where(): return __file__")
    (tmp_path / "json.py").write_text("raise ImportError('the standard library comes first')")
    monkeypatch.syspath_prepend(tmp_path)
    sys.path.append(sys.path.pop(0))
    with testing.cluster(1) as nodes:
        found = genrpc.call(nodes.names[0], "of_the_test", "where")
        assert found == str(tmp_path / "of_the_test.py")
        assert genrpc.erpc.run(nodes.names[0], lambda: sys.path) == [
            os.path.abspath(folder) for folder in dict.fromkeys(sys.path)
        ]


def test_processes_are_gone_after_an_exception_frozen_and_busy_ones_too():
    with pytest.raises(KeyError), testing.cluster(3) as nodes:  # noqa: PT012
        genrpc.async_call(nodes.names[1], "time", "sleep", [3600])
        genrpc.call(nodes.names[1], "os", "getpid")  # so the other is there as well
        nodes.freeze(0)
        raise KeyError
    assert all(map(gone, nodes.pids))


def test_node_that_does_not_start_says_why_and_leaves_no_process():
    before = {child.pid for child in psutil.Process().children()}
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with code 1 .* It wrote:.*cannot listen on"),
        testing.cluster(2, listen_address="192.0.2.1", insecure_listen=True, tcp_server_port=9),
    ):
        pass
    assert {child.pid for child in psutil.Process().children()} <= before


def test_node_that_is_never_ready_is_waited_for_no_longer(monkeypatch):
    monkeypatch.setattr("genrpc.testing.cluster_nodes.START_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match=r"was not ready within 0 s"), testing.cluster(1):
        pass


def test_node_that_does_not_end_by_itself_is_killed(monkeypatch):
    monkeypatch.setattr("genrpc.testing.cluster_nodes.END_SECONDS", 0.0)
    with testing.cluster(1) as nodes:
        pass
    assert gone(nodes.pids[0])


ORPHANS = """
import os, signal, sys, genrpc.testing
with genrpc.testing.cluster(2) as nodes:
    nodes.freeze(1)
    keeper = os.fork() if "fork" in sys.argv else 0
    if "fork" in sys.argv and not keeper:
        os.close(1)
        os.close(2)
        signal.pause()
    print(keeper, *nodes.pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_a_killed_parent_frozen_ones_too():
    done = run("-c", ORPHANS)
    assert done.returncode == -signal.SIGKILL, done.stderr
    _, *pids = map(int, done.stdout.split())
    until(lambda: all(map(gone, pids)), SECONDS)


def test_processes_end_with_a_killed_parent_whose_pipes_a_forked_process_holds():
    done = run("-c", ORPHANS, "fork")
    keeper, *pids = map(int, done.stdout.split())
    try:
        until(lambda: all(map(gone, pids)), SECONDS)
        assert not gone(keeper)
    finally:
        os.kill(keeper, signal.SIGKILL)


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), ("3", TypeError)]
)
def test_number_of_nodes_is_checked(n, error):
    with pytest.raises(error, match="a cluster has"), testing.cluster(n):
        pass


def test_wrong_setting_is_refused_before_anything_starts():
    with pytest.raises(genrpc.ConfigurationError, match="receive_timeout"):
        testing.cluster(1, receive_timeout="soon").__enter__()


def test_function_as_a_setting_is_refused():
    with pytest.raises(TypeError, match="port_discovery of a cluster cannot be a function"):
        testing.cluster(1, port_discovery=lambda name: None).__enter__()


def test_settings_of_every_kind_survive_the_environment(tmp_path):
    given = {
        "connect_timeout": None,
        "send_timeout": 2.5,
        "max_calls": 7,
        "send_tracebacks": False,
        "rpc_module_list": ("math", "os:getpid"),
        "remote_tcp_server_ports": {"z@127.0.0.1": 4000},
        "cookie_file": tmp_path / "cookie",
        "rpc_module_control": "blacklist",
    }
    from genrpc.testing.cluster_nodes import Cluster, _environment

    nodes = Cluster(1, given)
    with pytest.MonkeyPatch.context() as patch:
        for name, text in _environment(given).items():
            if name.startswith("GENRPC_"):
                patch.setenv(name, text)
        read = genrpc.Settings()
    for name in given:
        assert getattr(read, name) == getattr(genrpc.Settings(**given), name)
        assert getattr(read, name) == getattr(nodes._caller_settings, name)


# ------------------------------------------------------------------ pairs and fixtures


def test_pair_finds_each_other_by_name_and_leaves_the_default_alone():
    with testing.pair(receive_timeout=30) as (a, b):
        assert genrpc.call(b.name, "genrpc", "node", via=a) == b.name
        assert genrpc.call(a.name, "genrpc", "node", via=b) == a.name
        assert a.settings.receive_timeout == 30
        assert a.nodes() == [b.name]
        assert genrpc.node() not in (a.name, b.name)
        stranger = genrpc.call("c@127.0.0.1", "genrpc", "node", via=a)
        assert stranger == genrpc.BadTCP("nxdomain")
    assert a.is_stopped
    assert b.is_stopped


def test_fixture_gives_a_pair(genrpc_pair):
    a, b = genrpc_pair
    assert genrpc.call(b.name, "genrpc", "node", via=a) == b.name


def test_fixture_starts_clusters(genrpc_cluster):
    nodes, others = genrpc_cluster(1), genrpc_cluster(1, receive_timeout=20)
    assert genrpc.call(others.names[0], "genrpc", "node") == others.names[0]
    assert genrpc.call(nodes.names[0], "genrpc", "node", via=nodes.caller) == nodes.names[0]


FAILING = """
import genrpc

def test_that_fails(genrpc_cluster):
    nodes = genrpc_cluster(1)
    genrpc.call(nodes.names[0], "builtins", "print", ["what it had to say"], kwargs={"flush": True})
    assert nodes.names == []
"""


def test_failed_test_shows_what_the_nodes_wrote(tmp_path):
    (tmp_path / "test_it.py").write_text(FAILING)
    done = run("-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path)
    assert done.returncode == 1
    assert "wrote:\nwhat it had to say\n" in done.stdout


def test_importing_it_costs_nothing():
    code = "import sys, genrpc.testing; print({'grpc', 'pytest', 'dill'}.intersection(sys.modules))"
    assert run("-c", code).stdout == "set()\n"


def test_cluster_is_a_type_by_name():
    assert testing.Cluster.__module__ == "genrpc.testing.cluster_nodes"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testing.nothing


def test_child_serves_until_told_to_end():
    from genrpc.testing import child

    environment = {**os.environ, child.NAME_VARIABLE: "solo@127.0.0.1"}
    environment |= {"GENRPC_COOKIE": "c" * 32, "GENRPC_TCP_SERVER_PORT": "0"}
    with subprocess.Popen(
        [sys.executable, Path(child.__file__)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.stdin.close()
        assert process.wait(SECONDS) == 0
