"""The benchmarks run, measure what they say, and report it; no test asserts a speed."""

import dataclasses
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Last, so that an installed genrpc stays the one that is tested.
sys.path.append(str(ROOT))

from benchmarks import __main__ as command_line  # noqa: E402
from benchmarks import (  # noqa: E402
    functions,
    peers,
    plot,
    processes,
    report,
    runner,
    scaling,
    scenarios,
    targets,
    threads,
)
from benchmarks.runner import Results  # noqa: E402
from benchmarks.scenarios import Budget  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
INSTANT = Budget(seconds=0.05, async_calls=200, casts=500)
ABOUT = {
    "date": "2026-01-01",
    "python": "3.11.0",
    "system": "Linux x86_64",
    "cores": 2,
    "rounds": 2,
    "budget": {"seconds": 1.0},
    "versions": {"genrpc": "0.1", "plain": "1.85"},
    "environment": [],
}


def results(*rows):
    """Results of (scenario, peer, metrics), each peer's rounds in their order."""
    found = Results(about=dict(ABOUT))
    for scenario, peer, metrics in rows:
        before = [r for r in found.rows if (r["scenario"], r["peer"]) == (scenario, peer)]
        found.rows.append(
            {"scenario": scenario, "peer": peer, "round": len(before), "metrics": metrics}
        )
    return found


S1 = results(
    ("S1", "genrpc", {"p50_us": 200.0, "p99_us": 300.0}),
    ("S1", "plain", {"p50_us": 400.0, "p99_us": 500.0}),
    ("S1", "genrpc", {"p50_us": 210.0, "p99_us": 310.0}),
    ("S1", "plain", {"p50_us": 300.0, "p99_us": 500.0}),
)


# ---------------------------------------------------------------- measurements


def assert_sane(scenario, metrics):
    for metric in scenario.metrics:
        assert math.isfinite(metrics[metric.key]), metric
        assert metrics[metric.key] >= 0, metric
    # Memory may not grow, and CPU time may be less than a tick; what is compared is more.
    assert metrics[scenario.metrics[0].key] > 0 or scenario.name == "MEM"
    for unit in ("us", "ms"):
        assert metrics.get(f"p50_{unit}", 0) <= metrics.get(f"p99_{unit}", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "peer"),
    [*((name, "genrpc") for name in scenarios.NAMES), ("C64", "plain"), ("C64a", "plain")],
)
def test_scenario_yields_sane_figures(name, peer):
    scenario = scenarios.scenario_named(name)
    assert_sane(scenario, runner.measure(peers.peer_named(peer), scenario, INSTANT))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in peers.NAMES if name not in ("genrpc", "plain")])
def test_other_peers_that_are_here_yield_sane_figures(name):
    peer = peers.peer_named(name)
    if missing := peer.missing():
        pytest.skip(missing)
    scenario = scenarios.scenario_named("C64")
    assert_sane(scenario, runner.measure(peer, scenario, INSTANT))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the time of threads")
def test_cpu_time_of_a_call_is_divided_among_the_threads():
    scenario, peer = scenarios.scenario_named("C64"), peers.peer_named("genrpc")
    metrics = runner.measure(peer, scenario, dataclasses.replace(INSTANT, by_thread=True))
    for side in ("client", "server"):
        parts = [metrics[key] for key in threads.COLUMNS if key.startswith(side)]
        assert all(part > 0 for part in parts)
        assert sum(parts) == pytest.approx(metrics[f"{side}_cpu_us"])


@pytest.mark.slow
@pytest.mark.parametrize("name", scaling.SWEEPS)
def test_sweep_yields_sane_figures(name):
    for size in scaling.SWEEPS[name].sizes[:2]:
        metrics = scaling.measure(scaling.SWEEPS[name], size, 0.05)
        assert metrics["us"] > 0
        assert metrics["client_cpu_us"] + metrics["server_cpu_us"] == pytest.approx(
            metrics["cpu_us"]
        )


@pytest.mark.slow
def test_interrupted_run_prints_what_it_has_and_leaves_no_process():
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, "-m", "benchmarks", "--scenarios", "S1,C64", "--peers", "genrpc"]
    run = subprocess.Popen(
        [*command, "--rounds", "1", "--seconds", "0.5"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert run.stderr.readline().startswith("S1 genrpc")
        children = wait_for(lambda: psutil.Process(run.pid).children(recursive=True))
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=30)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 130
    assert "S1: one caller in a loop" in out
    assert psutil.wait_procs(children, timeout=10)[1] == []


def wait_for(found, seconds=20):
    """What `found()` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
    return value


def test_peers_take_turns(monkeypatch):
    taken = []

    def measure(peer, scenario, budget):
        taken.append((scenario.name, peer.name))
        return {"p50_us": 1.0, "rate": 1.0}

    monkeypatch.setattr(runner, "measure", measure)
    planned = {"S1": ["genrpc", "plain"], "C64": ["plain"]}
    runner.run(planned, 2, INSTANT, lambda line: None)
    assert taken == [
        ("S1", "genrpc"),
        ("S1", "plain"),
        ("S1", "genrpc"),
        ("S1", "plain"),
        ("C64", "plain"),
        ("C64", "plain"),
    ]


def test_failed_measurement_is_reported_and_the_rest_goes_on(monkeypatch):
    def measure(peer, scenario, budget):
        if peer.name == "plain":
            raise runner.MeasurementFailed("it fell over")
        return {"p50_us": 1.0}

    monkeypatch.setattr(runner, "measure", measure)
    found = runner.run({"S1": ["plain", "genrpc"]}, 1, INSTANT, lambda line: None)
    assert found.peers() == ["genrpc"]
    assert "it fell over" in report.text(found, "plain")


def test_absent_peer_takes_one_line(monkeypatch):
    monkeypatch.setattr(type(peers.peer_named("rpyc")), "modules", ("no_such_module",))
    found, lines = runner.plan({"S1": ["genrpc", "rpyc"], "C64": ["rpyc"]})
    assert found == {"S1": ["genrpc"], "C64": []}
    assert lines == ["RPyC: left out, not installed: no_such_module"]


def test_peer_takes_part_only_in_what_it_can():
    found, _ = runner.plan({"CAST": ["genrpc", "plain", "managers"]})
    assert found == {"CAST": ["genrpc"]}


def test_each_scenario_is_one_that_peers_can_name():
    assert frozenset(scenarios.NAMES) == peers.ALL
    for name in peers.NAMES:
        assert peers.peer_named(name).scenarios <= peers.ALL


def test_functions_can_be_called_by_their_targets():
    for name, (module, attribute) in functions.TARGETS.items():
        assert getattr(sys.modules[module], attribute) is functions.FUNCTIONS[name]


def test_spin_takes_the_cpu_time_it_is_told():
    before = time.thread_time()
    functions.spin(0.005)
    assert time.thread_time() - before >= 0.005


# ---------------------------------------------------------------- inside the client


def test_percentile_is_the_nearest_rank():
    values = list(range(1, 101))
    assert scenarios.percentile(values, 0.5) == 51
    assert scenarios.percentile(values, 0.99) == 100
    assert scenarios.percentile([7.0], 0.99) == 7.0


def test_crowd_counts_the_calls_of_all_its_callers():
    with scenarios.Crowd(3, lambda: lambda: 5, 5) as crowd:
        before = crowd.total()
        crowd.wait_until(lambda: crowd.total() > before + 100)
    assert crowd.total() > 100


def test_wrong_result_ends_the_measurement():
    with (
        pytest.raises(scenarios.WrongResult, match="6 instead of 5"),
        scenarios.Crowd(2, lambda: lambda: 6, 5),
    ):
        pytest.fail("nobody was answered rightly")


def test_window_counts_the_cpu_time_of_this_process():
    meter = scenarios.Meter([])
    before = meter.read()
    functions.spin(0.01)
    seconds, cpu = scenarios.between(before, meter.read(), 10)
    assert seconds > 0
    assert cpu["client_cpu_us"] >= 1000
    assert cpu["server_cpu_us"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other clocks")
def test_cpu_clock_of_another_process_runs_with_it():
    code = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        used = processes.cpu_clock(other.pid)()
        other.communicate(b"\n")
    assert 0.2 <= used < 5


# ---------------------------------------------------------------- processes


def child(code, folder):
    command = [sys.executable, "-c", code]
    return processes.Child(command, processes.environment(folder), folder)


def test_child_says_json_lines_among_others(tmp_path):
    with child("print('hello'); print('[1]'); print('{\"a\": 1}')", tmp_path) as one:
        assert one.read(20) == {"a": 1}


def test_child_that_ends_leaves_its_last_words(tmp_path):
    with (
        child("raise SystemExit('so much for that')", tmp_path) as one,
        pytest.raises(processes.ChildFailed, match=r"exit code 1\n.*so much for that"),
    ):
        one.read(20)


def test_child_that_says_nothing_is_given_up(tmp_path):
    with (
        child("input()", tmp_path) as one,
        pytest.raises(processes.ChildFailed, match="nothing in time"),
    ):
        one.read(0.05)


def test_stopped_child_takes_its_own_children_along(tmp_path):
    code = (
        "import subprocess, sys, json, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(json.dumps({'pid': other.pid})); other.wait()"
    )
    psutil = pytest.importorskip("psutil")
    with child(code, tmp_path) as one:
        other = psutil.Process(one.read(20)["pid"])
    assert psutil.wait_procs([other], timeout=10)[1] == []


def test_children_see_what_their_parent_can_import_and_not_its_home(tmp_path):
    code = "import os, json, sys; print(json.dumps([sys.path, os.environ['HOME']]))"
    env = processes.environment(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, check=True
    )
    path, home = json.loads(done.stdout)
    assert {os.path.abspath(entry) for entry in sys.path} <= {*map(os.path.abspath, path)}
    assert home == str(tmp_path)


# ---------------------------------------------------------------- figures


def test_ratio_is_the_median_of_the_ratios_within_the_rounds():
    assert S1.ratio("genrpc", "plain", "S1", "p50_us") == pytest.approx((0.5 + 0.7) / 2)


def test_figure_has_median_and_spread():
    figure = S1.figure("S1", "genrpc", "p50_us")
    assert figure.median == 205
    assert figure.spread == (200, 210)


def test_figure_that_the_system_does_not_tell_is_none():
    found = results(("S1", "genrpc", {"cpu_us": math.nan}))
    assert found.figure("S1", "genrpc", "cpu_us") is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0"),
        (42_812.3, "42,800"),
        (223.4, "223"),
        (24.44, "24.4"),
        (1.184, "1.18"),
        (0.6712, "0.671"),
        (0.00064, "0.001"),
        (-0.5, "-0.500"),
    ],
)
def test_number_shows_three_digits(value, shown):
    assert report.number(value) == shown


def test_text_shows_median_spread_and_ratio_of_each_peer():
    found = report.text(S1, "plain")
    assert re.search(r"genrpc +205 +\(200 – 210\) +0\.600 +305", found)
    assert re.search(r"plain grpcio +350 +\(300 – 400\) +1\.00 +500", found)


def test_markdown_has_a_column_for_each_peer_and_the_ratio():
    lines = report.markdown(S1, "plain").splitlines()
    assert lines[0] == "|  | genrpc | plain grpcio | genrpc × plain grpcio |"
    assert lines[2] == "| S1, µs, p50 | 205 | 350 | 0.600 |"


def test_results_survive_their_file(tmp_path):
    report.save(tmp_path / "figures.json", "scenarios", S1)
    assert report.load(tmp_path / "figures.json") == ("scenarios", S1)


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no results"):
        report.load(tmp_path / "other.json")


def test_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    plot.draw(S1, tmp_path / "figures.png")
    sweep = results(("keys", "1", {"us": 1.0, "cpu_us": 1.0}))
    plot.draw_scaling(sweep, tmp_path / "scaling.png")
    for name in ("figures.png", "scaling.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plot.NoPlot, match="pip install matplotlib"):
        plot.draw(S1, tmp_path / "figures.png")


# ---------------------------------------------------------------- targets and growth


def verdicts(found):
    return {(row[0], row[1]): row[-1] for row in targets.rows(found)[1:]}


def test_target_is_met_or_missed_by_the_ratio():
    found = verdicts(S1)
    assert found["S1", "p50 × plain grpcio"] == "met"
    slow = results(("S1", "genrpc", {"p50_us": 95.0}), ("S1", "plain", {"p50_us": 100.0}))
    assert verdicts(slow)["S1", "p50 × plain grpcio"] == "MISSED"
    assert [target.scenario for target in targets.missed(slow)] == ["S1"]


def test_target_without_figures_is_neither_met_nor_missed():
    assert verdicts(S1)["CAST", "rate × OTP erpc"] == "not measured"
    assert targets.missed(S1) == []


def test_best_peer_is_the_one_that_is_hardest_to_beat():
    found = results(
        ("HOL", "genrpc", {"p99_ms": 3.0}),
        ("HOL", "rpyc", {"p99_ms": 30.0}),
        ("HOL", "execnet", {"p99_ms": 20.0}),
        ("HOL", "managers", {"p99_ms": 1.0}),  # has connections of its own
    )
    row = next(row for row in targets.rows(found) if "best peer" in row[1] and row[0] == "HOL")
    assert row[3:] == ["0.150 (execnet (pipes))", "met"]


def test_targets_plan_what_they_compare():
    planned = targets.plan()
    assert planned["S1"] == ["genrpc", "plain"]
    assert planned["CAST"] == ["genrpc", "pyzmq", "erpc"]
    for target in targets.TARGETS:
        for scenario, names in target.needs.items():
            assert set(names) <= set(planned[scenario])
            assert all(scenario in peers.peer_named(name).scenarios for name in names)


def sweep_rows(name, **costs):
    metrics = [
        (name, size[1:], {"us": 1.0, "client_cpu_us": cost, "server_cpu_us": 0.0, "cpu_us": cost})
        for size, cost in costs.items()
    ]
    return [row[-2:] for row in scaling.rows(results(*metrics), name)[1:]]


def test_growth_of_a_call_is_held_against_the_smallest_size():
    assert sweep_rows("keys", _1=10.0, _10=14.0, _100=16.0) == [
        ["1.00", ""],
        ["1.40", ""],
        ["1.60", "GROWS"],
    ]


def test_growth_of_a_payload_is_that_of_a_byte():
    assert sweep_rows("payload", _1=100.0, _100=200.0, _1000=4000.0) == [
        ["1.00", ""],
        ["0.020", ""],
        ["2.00", "GROWS"],
    ]


# ---------------------------------------------------------------- command line and page


def test_unknown_names_are_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["--scenarios", "S1,S2"])
    assert "there is no scenario 'S2': it is S1, S1a" in capsys.readouterr().err


def test_report_fills_the_page(tmp_path, capsys):
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    report.save(figures, "scenarios", S1)
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    for _ in range(2):  # again over what was filled in
        assert command_line.main(["report", str(figures), "--docs", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.count("| S1, µs, p50 | 205 | 350 | 0.600 |") == 1
    assert "| S1 | p50 × plain grpcio | ≤ 0.9 | 0.600 | met |" in text
    assert "S1: one caller in a loop" in capsys.readouterr().out


def test_report_of_sweeps_fills_their_place(tmp_path):
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    metrics = {"us": 1.0, "client_cpu_us": 1.0, "server_cpu_us": 1.0, "cpu_us": 2.0}
    report.save(figures, "scaling", results(("keys", "1", metrics)))
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    assert command_line.main(["report", str(figures), "--docs", str(page)]) == 0
    assert "| 1 | 1.00 | 1.00 | 1.00 | 1.00 |  |" in page.read_text("utf-8")


def test_report_of_threads_fills_their_place(tmp_path):
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    report.save(figures, "threads", results(("S1", "genrpc", dict.fromkeys(threads.COLUMNS, 2.0))))
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    assert command_line.main(["report", str(figures), "--docs", str(page)]) == 0
    assert f"| S1 |{' 2.00 |' * len(threads.COLUMNS)}" in page.read_text("utf-8")


def test_page_without_the_place_is_refused():
    with pytest.raises(ValueError, match="no place for 'table'"):
        report.fill("# Nothing here", "table", "x")


def test_page_has_all_places():
    page = PAGE.read_text("utf-8")
    for name in ("about", "connections", "table", "plot", "targets", "threads", "scaling"):
        report.fill(page, name, "")


def test_page_names_every_scenario_and_peer():
    page = PAGE.read_text("utf-8")
    for name in (*scenarios.NAMES, *(peers.peer_named(name).title for name in peers.NAMES)):
        assert name.removesuffix(" (pipes)") in page


def test_commands_of_the_page_are_ones_there_are():
    commands = re.findall(r"python -m benchmarks[^`\n#]*", PAGE.read_text("utf-8"))
    assert len(commands) > 8
    for command in commands:
        command_line.parser().parse_args(shlex.split(command)[3:])
