"""What genrpc is to reach, each as a ratio in one run, and whether it does."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import NAMES, peer_named
from benchmarks.report import EMPTY, number
from benchmarks.runner import Results

OWN = "genrpc"


@dataclass(frozen=True)
class Measured:
    """What was found for a target: the figure to compare, and a word beside it."""

    value: float
    note: str = ""


@dataclass(frozen=True)
class Target:
    """A bound on a figure of genrpc's."""

    scenario: str
    what: str
    sense: str
    """"<=" or ">="."""
    bound: float
    measured: Callable[[Results], Measured | None]
    needs: dict[str, tuple[str, ...]]
    """The peers that must take part, by scenario."""

    def is_met(self, measured: Measured) -> bool:
        """Whether the bound holds."""
        compare = operator.le if self.sense == "<=" else operator.ge
        return bool(compare(measured.value, self.bound))


def _against(scenario: str, metric: str, sense: str, bound: float, peer: str, what: str) -> Target:
    def measured(results: Results) -> Measured | None:
        ratio = results.ratio(OWN, peer, scenario, metric)
        return None if ratio is None else Measured(ratio)

    return Target(
        scenario,
        f"{what} × {peer_named(peer).title}",
        sense,
        bound,
        measured,
        {scenario: (OWN, peer)},
    )


def _against_best(
    scenario: str, metric: str, sense: str, bound: float, peers: tuple[str, ...], what: str
) -> Target:
    """A bound on the ratio to whichever of the peers does best."""

    def measured(results: Results) -> Measured | None:
        ratios = {peer: results.ratio(OWN, peer, scenario, metric) for peer in peers}
        known = {peer: ratio for peer, ratio in ratios.items() if ratio is not None}
        if not known:
            return None
        worst = max if sense == "<=" else min
        best = worst(known, key=lambda peer: known[peer])
        return Measured(known[best], peer_named(best).title)

    return Target(scenario, what, sense, bound, measured, {scenario: (OWN, *peers)})


def _alone(scenario: str, metric: str, sense: str, bound: float, what: str) -> Target:
    """A bound on a figure as it is."""

    def measured(results: Results) -> Measured | None:
        figure = results.figure(scenario, OWN, metric)
        return None if figure is None else Measured(figure.median)

    return Target(scenario, what, sense, bound, measured, {scenario: (OWN,)})


def _array_beside_bytes(results: Results) -> Measured | None:
    ratio = results.ratio(OWN, OWN, "P10M-array", "mb_per_second", theirs="P10M")
    return None if ratio is None else Measured(ratio)


_OTHERS = tuple(name for name in NAMES if name != OWN)
_SAME_STREAM = tuple(
    name for name in _OTHERS if name != "plain" and peer_named(name).connection == "one"
)
_ARRAYS = tuple(name for name in _OTHERS if "P10M-array" in peer_named(name).scenarios)

TARGETS = (
    _against("S1", "p50_us", "<=", 0.9, "plain", "p50"),
    _against("S1a", "p50_us", "<=", 0.85, "plain", "p50"),
    _against("C64", "rate", ">=", 5, "plain", "rate"),
    _against("C64", "rate", ">=", 0.5, "erpc", "rate"),
    _against("C64a", "rate", ">=", 7, "plain", "rate"),
    _against("C64a", "rate", ">=", 1, "erpc", "rate"),
    _against("A", "rate", ">=", 2.5, "erpc", "rate"),
    _against("CAST", "rate", ">=", 2, "pyzmq", "rate"),
    _against("CAST", "rate", ">=", 6, "erpc", "rate"),
    _against("P500K", "mb_per_second", ">=", 1.2, "plain", "rate"),
    _against("P500K-echo", "mb_per_second", ">=", 1.4, "plain", "rate"),
    _against("P10M", "mb_per_second", ">=", 1.5, "plain", "rate"),
    Target(
        "P10M-array",
        "rate × that of bytes",
        ">=",
        0.9,
        _array_beside_bytes,
        {"P10M": (OWN,), "P10M-array": (OWN,)},
    ),
    _against_best("P10M-array", "mb_per_second", ">=", 1, _ARRAYS, "rate × the best peer's"),
    _against("HOL", "p99_ms", "<=", 0.1, "plain", "p99"),
    _against_best(
        "HOL", "p99_ms", "<=", 0.3, _SAME_STREAM, "p99 × the best peer's with one connection"
    ),
    _alone("HOL", "share_of_alone", ">=", 0.8, "rate of bulk × its rate alone"),
    _against("CPU20", "p50_ms", "<=", 0.15, "plain", "p50"),
    _against("MC8", "rate", ">=", 3, "plain", "rate"),
    _against("C64", "cpu_us", "<=", 0.2, "plain", "CPU a call, both sides,"),
    _alone("MEM", "client_mb", "<=", 4, "growth of the client, MB"),
    _alone("MEM", "server_mb", "<=", 24, "growth of the server, MB"),
)


def plan() -> dict[str, list[str]]:
    """What must be measured: the peers of each scenario, in their order."""
    needed: dict[str, set[str]] = {}
    for target in TARGETS:
        for scenario, peers in target.needs.items():
            needed.setdefault(scenario, set()).update(peers)
    return {name: [p for p in NAMES if p in peers] for name, peers in needed.items()}


def rows(results: Results) -> list[list[str]]:
    """The table: scenario, target, bound, measured, verdict; headed."""
    found = [["", "target", "bound", "measured", ""]]
    for target in TARGETS:
        measured = target.measured(results)
        shown, verdict = EMPTY, "not measured"
        if measured is not None:
            shown = number(measured.value) + (f" ({measured.note})" if measured.note else "")
            verdict = "met" if target.is_met(measured) else "MISSED"
        sense = {"<=": "≤", ">=": "≥"}[target.sense]
        found.append([target.scenario, target.what, f"{sense} {target.bound:g}", shown, verdict])
    return found


def missed(results: Results) -> list[Target]:
    """The targets that were measured and not met."""
    return [
        target
        for target in TARGETS
        if (measured := target.measured(results)) is not None and not target.is_met(measured)
    ]
