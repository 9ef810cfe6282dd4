"""Figures as a PNG. Needs matplotlib, which is imported when something is drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.peers import peer_named
from benchmarks.report import number
from benchmarks.runner import Results
from benchmarks.scenarios import scenario_named

OWN, PLAIN, OTHER, LINE = "#0b6e4f", "#c8553d", "#9aa5b1", "#333333"
COLUMNS = 3


class NoPlot(Exception):
    """Nothing can be drawn; the message says what to do."""


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise NoPlot("no plot: matplotlib is not installed (pip install matplotlib)") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw(results: Results, path: Path) -> None:
    """Draw a panel for each scenario: a bar for each peer, the best on top, with its spread."""
    plt = _pyplot()
    names = results.scenarios()
    if not names:
        raise NoPlot("no plot: there are no figures")
    lines = math.ceil(len(names) / COLUMNS)
    bars = max(len(results.peers(name)) for name in names)
    height = lines * (1.1 + 0.3 * bars)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(16, height), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        _panel(axis, results, name)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    facts = results.about
    figure.suptitle(
        f"Medians; rounds: {facts['rounds']}, lines from the least to the largest; "
        f"Python {facts['python']}, {facts['cores']} cores, loopback",
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / height))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, results: Results, name: str) -> None:
    scenario = scenario_named(name)
    metric = scenario.metrics[0]
    found = [(results.figure(name, peer, metric.key), peer) for peer in results.peers(name)]
    figures = [(figure, peer) for figure, peer in found if figure is not None]
    figures.sort(key=lambda pair: pair[0].median, reverse=metric.better == "less")
    medians = [figure.median for figure, _ in figures]
    spreads = [figure.spread for figure, _ in figures]
    is_repeated = any(len(figure.values) > 1 for figure, _ in figures)
    axis.barh(
        [peer_named(peer).title for _, peer in figures],
        medians,
        color=[{"genrpc": OWN, "plain": PLAIN}.get(peer, OTHER) for _, peer in figures],
        xerr=[
            [median - least for median, (least, _) in zip(medians, spreads, strict=True)],
            [largest - median for median, (_, largest) in zip(medians, spreads, strict=True)],
        ],
        error_kw={"ecolor": LINE, "elinewidth": 1, "capsize": 2 if is_repeated else 0},
    )
    furthest = max(largest for _, largest in spreads)
    for place, (median, (_, largest)) in enumerate(zip(medians, spreads, strict=True)):
        axis.text(largest + furthest * 0.015, place, number(median), va="center", fontsize=8)
    axis.set_xlim(0, furthest * 1.18)
    axis.set_title(f"{name}: {scenario.title}", fontsize=9, loc="left", fontweight="bold")
    axis.set_xlabel(f"{metric.unit} ({metric.better} is better)", fontsize=8)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def draw_scaling(results: Results, path: Path) -> None:
    """Draw a panel for each sweep: time and CPU time a call over the size, the size logarithmic."""
    from benchmarks.scaling import SWEEPS

    plt = _pyplot()
    names = results.scenarios()
    if not names:
        raise NoPlot("no plot: there are no figures")
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 4.2), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=True):
        sizes = [int(size) for size in results.peers(name)]
        for metric, label, colour in (
            ("us", "time a call", OTHER),
            ("cpu_us", "CPU time a call, both sides", OWN),
        ):
            figures = [results.figure(name, str(size), metric) for size in sizes]
            axis.plot(sizes, [f.median for f in figures if f], "o-", label=label, color=colour)
        axis.set(xscale="log", xlabel=SWEEPS[name].title, title=name, ylabel="µs")
        drawn = [value for line in axis.lines for value in line.get_ydata()]
        if max(drawn) > 10 * min(drawn):
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.15 * max(drawn))
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
