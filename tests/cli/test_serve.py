"""`genrpc serve` as a process."""

import json
import os
import signal
import socket
import subprocess

import pytest
from conftest import COMMAND, SECONDS, environment

from genrpc.cli import tuning


def call(cli, node, *words):
    done = cli("call", node.dest, *words, "--json")
    return json.loads(done.stdout)


# ---------------------------------------------------------------- ready


def test_the_ready_line_says_how_to_reach_the_node(node, cli):
    assert node.event == {
        "event": "ready",
        "node": node.name,
        "port": node.event["port"],
        "pid": node.process.pid,
    }
    assert call(cli, node, "genrpc.node") == {"result": node.name}


def test_what_functions_print_does_not_spoil_the_ready_line(serve, cli):
    node = serve()
    assert call(cli, node, "cli_targets.prints", "chatter") == {"result": None}
    code, out, err = node.end(signal.SIGTERM)
    assert (code, out) == (0, "")
    assert err.count("chatter") == 2  # by print, and by a program


def test_people_are_told_what_is_allowed_and_how_to_call():
    process = subprocess.Popen(
        [*COMMAND, "serve", "math", "--name", "told", "--port", "0"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = [process.stderr.readline() for _ in range(6)]
    assert told[0].startswith(f"told@127.0.0.1 is ready; process {process.pid}")
    text = "".join(told)
    for words in ("only math (whitelist)", "cookie    in ", "genrpc call told@127.0.0.1"):
        assert words in text
    process.terminate()
    out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, "")


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"GENRPC_COOKIE": "a secret of some length"}, "from the environment variable"),
        ({"GENRPC_TCP_SERVER_PORT": "none"}, "listens   nowhere"),
        ({"GENRPC_PORT_DISCOVERY": "manual"}, "genrpc call genrpc@127.0.0.1:"),
        (
            {"GENRPC_RPC_MODULE_CONTROL": "blacklist", "GENRPC_RPC_MODULE_LIST": '["os"]'},
            "all but os (blacklist)",
        ),
        ({}, "every function"),
    ],
    ids=str,
)
def test_people_are_told_of_the_settings_in_force(env, words):
    port = {} if "GENRPC_TCP_SERVER_PORT" in env else {"GENRPC_TCP_SERVER_PORT": "0"}
    process = subprocess.Popen(
        [*COMMAND, "serve"],
        env=environment(**port, **env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = "".join(process.stderr.readline() for _ in range(6))
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert words in told
    assert "a secret" not in told


# ---------------------------------------------------------------- settings


def test_named_modules_are_the_whitelist(guarded_node, cli):
    assert call(cli, guarded_node, "cli_targets.echo", 1) == {"result": 1}
    assert call(cli, guarded_node, "os.getcwd")["error"]["reason"] == "unauthorized"


def test_a_named_function_is_the_only_one(serve, cli):
    node = serve("cli_targets:echo")
    assert call(cli, node, "cli_targets.echo", 1) == {"result": 1}
    assert call(cli, node, "cli_targets.fails")["error"]["reason"] == "unauthorized"


def test_modules_are_found_in_the_current_directory(serve, cli, tmp_path, monkeypatch):
    (tmp_path / "here_only.py").write_text("def f(): return 'here'")
    monkeypatch.chdir(tmp_path)
    assert call(cli, serve("here_only"), "here_only.f") == {"result": "here"}


def test_functions_act_for_the_node(node, cli):
    assert call(cli, node, "cli_targets.node_that_acts") == {"result": node.name}


def test_threads_are_switched_more_often_than_python_does(node, cli):
    assert call(cli, node, "sys.getswitchinterval")["result"] == pytest.approx(0.0002)


def test_an_explicit_switch_interval_holds(serve, cli):
    node = serve(GENRPC_SWITCH_INTERVAL="0.01")
    assert call(cli, node, "sys.getswitchinterval")["result"] == pytest.approx(0.01)


def test_what_was_imported_is_no_work_for_the_garbage_collector(node, cli):
    assert call(cli, node, "gc.get_freeze_count")["result"] > 10_000


@pytest.mark.parametrize("fault", [OSError("no such library"), AttributeError("mallopt")])
def test_another_c_library_is_served_with_as_it_is(monkeypatch, fault):
    def no_library(name):
        raise fault

    monkeypatch.setattr("ctypes.CDLL", no_library)
    monkeypatch.setattr("gc.freeze", lambda: None)
    tuning.for_serving()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("no_such_module", "it is looked for in"),
        ("cli_targets.py", "did you mean cli_targets?"),
        ("cli_broken", "OSError: the disk is full"),
        ("cli_exits", "SystemExit: 3"),
        ("cli_syntax", "SyntaxError"),
        ("cli_wants_more", "No module named 'not_installed'"),
    ],
)
def test_a_module_that_cannot_be_imported_ends_with_2(cli_process, tmp_path, module, words):
    (tmp_path / "cli_exits.py").write_text("raise SystemExit(3)")
    (tmp_path / "cli_syntax.py").write_text("def")
    (tmp_path / "cli_wants_more.py").write_text("import not_installed")
    done = cli_process("serve", module, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_where_a_module_breaks_is_told(cli_process):
    assert "cli_broken.py, line 1" in cli_process("serve", "cli_broken").stderr


def test_a_taken_port_is_told(cli_process):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli_process("serve", "--port", port, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert str(port) in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_open_address_without_tls_is_unsafe(cli_process):
    done = cli_process("serve", "--port", 0, "--json", GENRPC_LISTEN_ADDRESS="0.0.0.0")
    assert (done.returncode, done.stdout) == (78, "")
    assert "insecure_listen" in done.stderr


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_node_in_good_order(serve, number):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, children ignore SIGHUP
    try:
        node = serve()
    finally:
        signal.signal(number, before)
    code, out, err = node.end(number)
    assert (code, out) == (0, "")
    assert f"is stopping ({signal.Signals(number).name})" in err
    assert "has stopped" in err


def running_call(node, tmp_path, eventually):
    """A call that takes long has begun on the node."""
    caller = subprocess.Popen(
        [*COMMAND, "call", node.dest, "cli_targets.wait", tmp_path / "started", tmp_path / "end"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually((tmp_path / "started").exists)
    return caller


def test_the_second_signal_ends_the_node_at_once(serve, tmp_path, eventually):
    node = serve("--grace", "none")
    caller = running_call(node, tmp_path, eventually)
    node.process.send_signal(signal.SIGINT)
    assert "is stopping" in node.process.stderr.readline()
    assert node.end(signal.SIGINT)[0] == 130
    assert caller.wait(SECONDS) == 4


def test_calls_that_outlive_the_grace_are_cut_off(serve, tmp_path, eventually):
    node = serve("--grace", "100ms")
    caller = running_call(node, tmp_path, eventually)
    assert node.end(signal.SIGTERM)[0] == 0
    assert caller.wait(SECONDS) == 4


def test_a_signal_may_come_while_modules_are_imported(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("import time; print('now', flush=True); time.sleep(0.5)")
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "serve", "slow", "--port", "0"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "now\n"
    process.terminate()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "has stopped" in err


def test_python_is_told_not_to_look_into_the_current_directory(tmp_path, monkeypatch):
    if not hasattr(__import__("sys").flags, "safe_path"):
        pytest.skip("since Python 3.11")
    (tmp_path / "here_only.py").touch()
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join(filter(None, __import__("sys").path))
    done = subprocess.run(
        [*COMMAND, "serve", "here_only"],
        env=environment(PYTHONSAFEPATH="1", PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 2
