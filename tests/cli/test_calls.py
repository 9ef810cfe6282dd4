"""`genrpc call`, `cast` and `multicall` against real nodes."""

import json
import signal
import subprocess

import pytest
from conftest import COMMAND, SECONDS, environment

import genrpc

DEAD = "dead@127.0.0.1:1"


def result(done):
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == ["result"]
    return answer["result"]


# ---------------------------------------------------------------- results


def test_call_prints_the_result_alone(cli_process, node):
    done = cli_process("call", node.dest, "math.sqrt", 4)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2.0\n", "")


def test_call_finds_a_node_by_its_name(cli, node):
    assert cli("call", node.name, "genrpc.node").stdout == f"{node.name}\n"


def test_call_takes_arguments_of_all_kinds(cli, node):
    done = cli(
        "call", node.dest, "cli_targets.echo", 1, "two", "[3]", "-", "--json", input='{"four": 4}'
    )
    assert result(done) == [1, "two", [3], {"four": 4}]


def test_call_takes_keyword_arguments(cli, node):
    done = cli("call", "--kw", "a=1", node.dest, "--json", "cli_targets.echo", "--kw", "b=c d")
    assert result(done) == {"a": 1, "b": "c d"}


def test_call_reaches_methods_after_a_colon(cli, node):
    assert result(cli("call", node.dest, "cli_targets:Counter.add", 2, 3, "--json")) == 5


def test_a_thrown_value_is_a_result(cli, node):
    assert cli("call", node.dest, "cli_targets.throws").stdout == "thrown\n"


def test_a_result_without_json_is_its_repr(cli, node):
    done = cli("call", node.dest, "builtins.set", "[1]", "--json")
    assert json.loads(done.stdout) == {"result": "{1}", "repr": True}


# ---------------------------------------------------------------- failures


FAILURES = {
    "raised": (1, "exit", ["{node}", "cli_targets.fails"]),
    "missing": (1, "exit", ["{node}", "cli_targets.missing"]),
    "bad result": (3, "bad_result", ["{node}", "cli_targets.a_generator"]),
    "nobody": (4, "econnrefused", [DEAD, "math.sqrt", "4"]),
    "forbidden": (5, "unauthorized", ["{guarded}", "os.getcwd"]),
    "timeout": (124, "timeout", ["{node}", "time.sleep", "5", "--timeout", "200ms"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_has_its_exit_code_and_a_sentence(cli, node, guarded_node, name):
    code, reason, words = FAILURES[name]
    words = [word.format(node=node.dest, guarded=guarded_node.dest) for word in words]
    done = cli("call", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("genrpc: ")
    done = cli("call", *words, "--json")
    assert done.returncode == code
    error = json.loads(done.stdout)["error"]
    assert error["reason"] == reason
    assert error["message"]


def test_another_cookie_ends_with_5(cli, node):
    done = cli("call", node.dest, "math.sqrt", 4, GENRPC_COOKIE="another secret of some length")
    assert done.returncode == 5
    assert "invalid_cookie" in done.stderr


def test_a_wrong_setting_ends_with_2(cli):
    done = cli("call", DEAD, "math.sqrt", GENRPC_RECEIVE_TIMEOUT="soon")
    assert done.returncode == 2
    assert "GENRPC_RECEIVE_TIMEOUT" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unsafe_cookie_file_ends_with_78(cli, tmp_path):
    path = tmp_path / "cookie"
    path.write_text("a secret of some length")
    path.chmod(0o644)
    done = cli("call", DEAD, "math.sqrt", GENRPC_COOKIE_FILE=str(path))
    assert done.returncode == 78
    assert "chmod 600" in done.stderr


def test_the_remote_traceback_is_shown(cli, node):
    done = cli("call", node.dest, "cli_targets.fails")
    assert "LookupError: nothing is here" in done.stderr
    assert 'raise LookupError("nothing is here")' in done.stderr


def test_interrupt_cancels_the_call_on_the_node(node, tmp_path, eventually):
    started, cancelled = tmp_path / "started", tmp_path / "cancelled"
    process = subprocess.Popen(
        [*COMMAND, "call", node.dest, "cli_targets.wait", started, cancelled],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(started.exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (130, "", "genrpc: cancelled\n")
    eventually(cancelled.exists)


def test_output_that_nobody_reads_is_no_traceback():
    process = subprocess.Popen(
        [*COMMAND, "proto"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.wait(SECONDS) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


# ---------------------------------------------------------------- cast


def test_cast_has_the_function_run(cli, node, tmp_path, eventually):
    done = cli("cast", node.dest, "cli_targets.touch", tmp_path / "file")
    assert (done.returncode, done.stdout) == (0, "")
    eventually((tmp_path / "file").exists)


def test_cast_tells_in_json_that_it_was_sent(cli, node):
    assert result(cli("cast", node.dest, "genrpc.ping", "--json")) is True


def test_cast_does_not_tell_what_became_of_the_function(cli, node):
    assert cli("cast", node.dest, "cli_targets.fails").returncode == 0


def test_cast_tells_that_there_is_no_node(cli):
    assert cli("cast", DEAD, "math.sqrt", 4).returncode == 4


# ---------------------------------------------------------------- multicall


def test_multicall_prints_a_line_for_each_node(cli_process, node, guarded_node):
    done = cli_process("multicall", f"{node.dest},{guarded_node.dest}", "genrpc.node")
    assert done.returncode == 0
    lines = sorted(line.split() for line in done.stdout.splitlines())
    assert lines == sorted([[n.dest, n.name] for n in (node, guarded_node)])


def test_multicall_prints_json_lines_with_the_nodes_names(cli, node):
    done = cli("multicall", f"{node.dest},{DEAD}", "math.sqrt", 4, "--json")
    assert done.returncode == 6
    found = {line["node"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found[node.name]["result"] == 2.0
    assert found["dead@127.0.0.1"]["error"]["reason"] == "econnrefused"


def test_multicall_tells_failures_on_standard_error(cli, node):
    done = cli("multicall", f"{node.dest}, {DEAD}", "math.sqrt", 4)
    assert done.returncode == 6
    assert done.stdout.split() == [node.dest, "2.0"]
    assert done.stderr.startswith(f"genrpc: {DEAD}: econnrefused")


def test_multicall_serves_a_node_as_often_as_it_is_named(cli, node):
    done = cli("multicall", f"{node.dest},{node.dest}", "math.sqrt", 4)
    assert len(done.stdout.splitlines()) == 2


def test_multicall_shows_who_raised(cli, node):
    done = cli("multicall", node.dest, "cli_targets.fails")
    assert done.returncode == 6
    assert "LookupError" in done.stderr


# ---------------------------------------------------------------- afterwards


def test_a_command_leaves_no_default_node_behind(cli, node):
    cli("call", node.dest, "genrpc.node")
    assert genrpc.nodes() == []
    genrpc.stop()
