"""`genrpc bench` against real nodes."""

import json

from genrpc.cli.measuring import _in_words


def test_bench_measures_calls_casts_and_bytes(cli, node):
    done = cli("bench", node.dest, "--seconds", "50ms", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["S1"]["p50"] <= found["S1"]["p99"]
    for name, unit in (("C64", "calls"), ("CAST", "casts"), ("P500K", "bytes")):
        assert found[name][f"{unit}_per_second"] > 0


def test_bench_prints_a_line_for_each_measure(cli, node):
    done = cli("bench", node.dest, "--seconds", "20ms")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["S1", "C64", "CAST", "P500K"]


def test_bench_leaves_out_what_the_policy_forbids(cli, guarded_node):
    done = cli("bench", guarded_node.dest, "--seconds", "20ms", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["P500K"] is None
    assert "policy" in _in_words(None)


def test_bench_of_a_dead_node_ends_with_4(cli):
    assert cli("bench", "dead@127.0.0.1:1").returncode == 4


def test_bench_fails_when_the_node_is_lost(cli, serve):
    # The first measure finds that the calls take too long.
    done = cli("bench", serve().dest, "--timeout", "0")
    assert done.returncode == 124
