"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import peers, plot, report, runner, scaling, scenarios, targets, threads
from benchmarks.runner import Results
from benchmarks.scenarios import QUICK, Budget

DEFAULT_ROUNDS = 3
QUICK_LARGEST = 10_000

MODES = """\
modes:
  run       every scenario (or --scenarios) for every peer that is installed (or --peers)
  targets   what is needed to tell which targets genrpc meets; exit code 1 if it misses one
  threads   which threads a call's CPU time goes to, on both sides of genrpc (Linux)
  scaling   what a call costs as peers, keys, pending calls and payloads grow
  report    print, plot and file figures that were saved by --json

All of `run` takes about half an hour with all peers; --quick gives a first look.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure genrpc, and other ways to call a function in another process.",
        epilog=MODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add(
        "mode", nargs="?", choices=("run", "targets", "threads", "scaling", "report"), default="run"
    )
    add("files", nargs="*", type=Path, metavar="FILE", help="report: files written by --json")
    add(
        "--scenarios",
        type=_names("scenario", scenarios.NAMES),
        default=list(scenarios.NAMES),
        metavar="S1,C64",
        help=f"run: of {', '.join(scenarios.NAMES)}",
    )
    add(
        "--peers",
        type=_names("peer", peers.NAMES),
        default=list(peers.NAMES),
        metavar="genrpc,plain",
        help=f"run: of {', '.join(peers.NAMES)}",
    )
    add(
        "--sweeps",
        type=_names("sweep", scaling.SWEEPS),
        default=list(scaling.SWEEPS),
        metavar="peers,keys",
        help=f"scaling: of {', '.join(scaling.SWEEPS)}",
    )
    add("--against", choices=peers.NAMES, default="plain", help="the peer of the ratios (plain)")
    add("--rounds", type=int, help=f"repetitions, in turn ({DEFAULT_ROUNDS}; --quick: 1)")
    add("--seconds", type=float, help="how long a measurement looks (1; --quick: 0.2)")
    add("--quick", action="store_true", help="a first look: short, once, and not to be quoted")
    add("--json", type=Path, metavar="FILE", help="save the figures")
    add("--plot", type=Path, metavar="FILE", help="draw them as PNG (wants matplotlib)")
    add("--docs", type=Path, metavar="FILE", help="put them into docs/performance.md")
    return found


def _names(kind: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    known = list(known)

    def parse(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",") if name.strip()]
        for name in found:
            if name not in known:
                choices = ", ".join(known)
                raise argparse.ArgumentTypeError(f"there is no {kind} {name!r}: it is {choices}")
        return found

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked for; returns the exit code."""
    options = parser().parse_args(argv)
    if options.mode == "report":
        return _report(options)
    if options.files:
        parser().error(f"{options.mode} takes no file")
    # So that children are ended as they are on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    budget = QUICK if options.quick else Budget()
    if options.seconds is not None:
        budget = dataclasses.replace(budget, seconds=options.seconds)
    rounds = options.rounds or (1 if options.quick else DEFAULT_ROUNDS)
    if options.mode == "scaling":
        most = QUICK_LARGEST if options.quick else sys.maxsize
        results = scaling.run(options.sweeps, rounds, budget.seconds, _tell, most)
        return _give("scaling", results, options)
    if options.mode == "threads":
        present = {name: ["genrpc"] for name in threads.SCENARIOS}
        budget = dataclasses.replace(budget, by_thread=True)
        return _give("threads", runner.run(present, rounds, budget, _tell), options)
    if options.mode == "targets":
        wanted = targets.plan()
    else:
        wanted = dict.fromkeys(options.scenarios, options.peers)
    present, lines = runner.plan(wanted)
    for line in lines:
        _tell(line)
    return _give("scenarios", runner.run(present, rounds, budget, _tell), options)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _report(options: argparse.Namespace) -> int:
    if not options.files:
        parser().error("report wants the files that --json has written")
    if options.plot and len(options.files) > 1:
        parser().error("one file with --plot: the next would be drawn over it")
    code = 0
    for path in options.files:
        kind, results = report.load(path)
        code = max(code, _give(kind, results, options))
    return code


def _give(kind: str, results: Results, options: argparse.Namespace) -> int:
    """Print, save, draw and file results; returns the exit code."""
    if options.json:
        report.save(options.json, kind, results)
    print(_text(kind, results, options))
    drawn = _draw(kind, results, options.plot) if options.plot else None
    if options.docs:
        report.fill_page(options.docs, _places(kind, results, options, drawn))
    if results.about.get("interrupted"):
        return 130
    return 1 if options.mode == "targets" and targets.missed(results) else 0


def _text(kind: str, results: Results, options: argparse.Namespace) -> str:
    if kind == "scaling":
        return scaling.as_text(results)
    if kind == "threads":
        return f"{report.about(results)}\n\n{report.table(report.thread_rows(results))}"
    verdicts = report.table(targets.rows(results))
    if options.mode == "targets":
        return f"{report.about(results)}\n\n{verdicts}"
    found = report.text(results, options.against)
    return f"{found}\n\nTargets\n{verdicts}" if options.mode == "report" else found


def _draw(kind: str, results: Results, path: Path) -> Path | None:
    """Draw what can be drawn, and give its path."""
    try:
        (plot.draw_scaling if kind == "scaling" else plot.draw)(results, path)
    except plot.NoPlot as exc:
        _tell(str(exc))
        return None
    return path


def _places(
    kind: str, results: Results, options: argparse.Namespace, drawn: Path | None
) -> dict[str, str]:
    """What goes into which place of the page."""
    image = f"![{kind}]({drawn.name})" if drawn else None
    if kind == "scaling":
        parts = [report.about(results), scaling.as_markdown(results), image]
        return {"scaling": "\n\n".join(filter(None, parts))}
    if kind == "threads":
        return {"threads": report.markdown_table(report.thread_rows(results))}
    places = {"targets": report.markdown_table(targets.rows(results))}
    if options.mode != "targets":
        places["about"] = report.about(results)
        places["table"] = report.markdown(results, options.against)
        places["connections"] = report.connections(results.peers())
        if image:
            places["plot"] = image
    return places


if __name__ == "__main__":
    sys.exit(main())
