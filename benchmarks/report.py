"""Figures as text, as Markdown for `docs/performance.md`, and as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import peer_named
from benchmarks.runner import Figure, Results
from benchmarks.scenarios import Metric, scenario_named
from benchmarks.threads import COLUMNS

EMPTY = "–"


def number(value: float | None) -> str:
    """Three digits that count, and no more."""
    if value is None or math.isnan(value):
        return EMPTY
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(0, min(3, decimals))}f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headings: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The same for Markdown."""
    heading, *others = rows
    lines = [heading, ["---"] * len(heading), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(results: Results) -> str:
    """What must be known to judge the figures, in one paragraph."""
    facts = results.about
    names = ", ".join(f"{name} {version}".strip() for name, version in facts["versions"].items())
    variables = ", ".join(facts["environment"]) or "none"
    return (
        f"{facts['date']}; Python {facts['python']}, {facts['system']}, {facts['cores']} cores; "
        f"rounds: {facts['rounds']}, of {facts['budget']['seconds']:g} s, in turn; {names}; "
        f"environment variables that matter: {variables}."
    )


def text(results: Results, against: str) -> str:
    """One block for each scenario: every peer's median, spread, ratio and CPU time."""
    parts = [about(results), ""]
    parts.append(
        "Medians of the rounds, (least – largest). × is the ratio to "
        f"{peer_named(against).title} within a round, the median over the rounds."
    )
    parts.extend(_block(results, name, against) for name in results.scenarios())
    if results.failures:
        parts.append("\nFailed:\n" + "\n".join(map(_failure, results.failures)))
    return "\n".join(parts)


def _failure(failure: dict[str, Any]) -> str:
    return f"  {failure['scenario']} {failure['peer']}: {failure['reason']}"


def _block(results: Results, name: str, against: str) -> str:
    scenario = scenario_named(name)
    first = scenario.metrics[0]
    rows = [["", first.unit, "", "×", *(metric.unit for metric in scenario.metrics[1:])]]
    for peer in results.peers(name):
        figures = [results.figure(name, peer, metric.key) for metric in scenario.metrics]
        rows.append(
            [
                f"  {peer_named(peer).title}",
                _median(figures[0]),
                _spread(figures[0]),
                number(results.ratio(peer, against, name, first.key)),
                *map(_median, figures[1:]),
            ]
        )
    sense = f"{first.better} is better"
    return f"\n{name}: {scenario.title} ({first.unit}: {sense})\n{table(rows)}"


def _median(figure: Figure | None) -> str:
    return number(figure.median if figure else None)


def _spread(figure: Figure | None) -> str:
    if figure is None or len(figure.values) == 1:
        return ""
    least, largest = figure.spread
    return f"({number(least)} – {number(largest)})"


# ---------------------------------------------------------------- Markdown


def markdown(results: Results, against: str) -> str:
    """One table of all: a row for each figure, a column for each peer, and genrpc's ratio."""
    peers = results.peers()
    heading = ["", *(peer_named(peer).title for peer in peers)]
    if "genrpc" in peers and against in peers:
        heading.append(f"genrpc × {peer_named(against).title}")
    rows = [heading]
    for name in results.scenarios():
        for metric in _shown(name):
            figures = [results.figure(name, peer, metric.key) for peer in peers]
            row = [f"{name}, {metric.unit}", *map(_median, figures)]
            if len(heading) > len(row):
                row.append(number(results.ratio("genrpc", against, name, metric.key)))
            rows.append(row)
    return markdown_table(rows)


def _shown(name: str) -> list[Metric]:
    """A scenario's figures in the one table: CPU time for C64 only, both sides together."""
    hidden = ("client_cpu_us", "server_cpu_us", "batch")
    metrics = [metric for metric in scenario_named(name).metrics if metric.key not in hidden]
    if name == "C64":
        metrics.append(Metric("cpu_us", "CPU µs a call, both sides", "less"))
    return metrics


def connections(peers: Iterable[str]) -> str:
    """Who shares a connection: what large data can delay depends on it."""
    kinds: dict[str, list[str]] = {}
    for peer in map(peer_named, peers):
        kinds.setdefault(peer.connection, []).append(peer.title)
    words = {"one": "One connection for all callers", "one a caller": "one for each caller"}
    return "; ".join(f"{words[kind]}: {', '.join(who)}" for kind, who in kinds.items()) + "."


def thread_rows(results: Results) -> list[list[str]]:
    """The table of threads: microseconds of CPU time a call by role, medians of the rounds."""
    found = [["CPU µs a call", *COLUMNS.values()]]
    for scenario in results.scenarios():
        figures = [results.figure(scenario, "genrpc", key) for key in COLUMNS]
        found.append([scenario, *map(_median, figures)])
    return found


def fill(page: str, name: str, content: str) -> str:
    """Replace what stands between a page's two marks `<!-- benchmarks: NAME … -->`.

    Raises ValueError if the page has no such place.
    """
    place = re.compile(
        rf"(<!-- benchmarks: {re.escape(name)} begins -->\n).*?"
        rf"(<!-- benchmarks: {re.escape(name)} ends -->)",
        re.DOTALL,
    )
    if not place.search(page):
        raise ValueError(f"the page has no place for {name!r}, between two marks of that name")
    return place.sub(lambda found: f"{found[1]}{content}\n{found[2]}", page)


def fill_page(path: Path, contents: dict[str, str]) -> None:
    """Fill the places of a page that are named."""
    page = path.read_text("utf-8")
    for name, content in contents.items():
        page = fill(page, name, content)
    path.write_text(page, "utf-8")


# ---------------------------------------------------------------- JSON


def save(path: Path, kind: str, results: Results) -> None:
    """Write results to a file; `kind` is "scenarios", "threads" or "scaling"."""
    path.write_text(json.dumps({"kind": kind, **results.to_json()}, indent=1) + "\n", "utf-8")


def load(path: Path) -> tuple[str, Results]:
    """Read results. Raises ValueError if the file holds none."""
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict) or "kind" not in found:
        raise ValueError(f"{path} holds no results of these benchmarks")
    kind = found.pop("kind")
    return kind, Results(**found)
