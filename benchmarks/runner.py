"""Measurements, one after the other: what is compared takes turns (A B A B …).

Each measurement has processes of its own, which start, measure and are gone: nothing is left of
the last scenario, and where the system happens to place a process differs from round to round as
it will differ for users. The spread over the rounds shows it.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.client import Job
from benchmarks.peers import Peer, missing_modules, peer_named
from benchmarks.processes import Child, ChildFailed, environment
from benchmarks.scenarios import Budget, Metrics, Scenario, scenario_named

START_SECONDS = 30.0
HARMLESS = {
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
}
"""Variables that no figure depends on."""

MEASURE_SECONDS = 60.0
"""After which a measurement is given up: three times the patience of a scenario."""


class MeasurementFailed(Exception):
    """There is no figure; the message says why."""


def measure(peer: Peer, scenario: Scenario, budget: Budget) -> Metrics:
    """Measure once, with new processes. Raises MeasurementFailed; leaves no process behind."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        env = environment(folder)
        env |= peer.environment(folder)

        def child(command: Sequence[str], more: Mapping[str, str] | None = None) -> Child:
            return stack.enter_context(Child(command, {**env, **(more or {})}, folder))

        try:
            for command in peer.background():
                child(command)
            ready: list[dict[str, Any]] = [{} for _ in range(scenario.servers)]
            if peer.separate_server:
                commands = [peer.server_command(scenario.name, n) for n in range(scenario.servers)]
                servers = [child(command) for command in commands]
                ready = [server.read(START_SECONDS) for server in servers]
            job = Job(peer.name, scenario.name, dataclasses.asdict(budget), ready)
            client = child(peer.client_command(job), peer.client_environment(ready))
            said = client.read(MEASURE_SECONDS)
        except ChildFailed as exc:
            raise MeasurementFailed(str(exc)) from None
    if said.get("event") != "result":
        raise MeasurementFailed(str(said.get("reason", said)))
    metrics: Metrics = said["metrics"]
    return metrics


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Figure:
    """One metric of one peer over the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the largest."""
        return min(self.values), max(self.values)


@dataclass
class Results:
    """All figures of a run, and what must be known to judge them. Saved as JSON, and read again."""

    about: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """{"scenario", "peer", "round", "metrics"} of each measurement that gave figures."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """{"scenario", "peer", "round", "reason"} of the others."""

    def scenarios(self) -> list[str]:
        """Those with figures, in the order in which they were measured."""
        return list(dict.fromkeys(row["scenario"] for row in self.rows))

    def peers(self, scenario: str | None = None) -> list[str]:
        """Those with figures, in a scenario or at all."""
        rows = [row for row in self.rows if scenario in (None, row["scenario"])]
        return list(dict.fromkeys(row["peer"] for row in rows))

    def figure(self, scenario: str, peer: str, metric: str) -> Figure | None:
        """A metric over the rounds, or None if it was not measured."""
        values = tuple(self._by_round(scenario, peer, metric).values())
        return Figure(values) if values else None

    def ratio(
        self, peer: str, against: str, scenario: str, metric: str, theirs: str | None = None
    ) -> float | None:
        """How many times `against`'s figure is `peer`'s: the median of the rounds' ratios.

        Within a round both were measured one after the other, so that a machine that is slower
        for a while is slower for both. `theirs` is the other's scenario, if it is another.
        """
        own = self._by_round(scenario, peer, metric)
        other = self._by_round(theirs or scenario, against, metric)
        ratios = [own[n] / other[n] for n in own.keys() & other.keys() if other[n]]
        return statistics.median(ratios) if ratios else None

    def _by_round(self, scenario: str, peer: str, metric: str) -> dict[int, float]:
        rows = [row for row in self.rows if (row["scenario"], row["peer"]) == (scenario, peer)]
        values = {row["round"]: row["metrics"].get(metric, math.nan) for row in rows}
        # NaN: CPU time, where the system does not tell it.
        return {number: value for number, value in values.items() if not math.isnan(value)}

    def to_json(self) -> dict[str, Any]:
        """As it is saved."""
        return dataclasses.asdict(self)


Plan = dict[str, list[str]]
"""The peers of each scenario, in their order."""


def plan(wanted: Mapping[str, Iterable[str]]) -> tuple[Plan, list[str]]:
    """Who can take part in what is wanted, and one line for each peer or scenario that cannot."""
    lines: dict[str, str] = {}
    for peer in map(peer_named, dict.fromkeys(name for names in wanted.values() for name in names)):
        if missing := peer.missing():
            lines[peer.name] = f"{peer.title}: left out, {missing}"
    for scenario in map(scenario_named, wanted):
        if missing := missing_modules(scenario.modules):
            lines[scenario.name] = f"{scenario.name}: left out, {missing}"
    found = {
        scenario: [
            peer for peer in peers if peer not in lines and scenario in peer_named(peer).scenarios
        ]
        for scenario, peers in wanted.items()
        if scenario not in lines
    }
    return found, list(lines.values())


def run(planned: Plan, rounds: int, budget: Budget, tell: Callable[[str], object]) -> Results:
    """Measure what is planned, in turn. `tell` gets a line for each measurement.

    Ctrl-C ends the run; what was measured until then is in the results.
    """
    results = Results(about=about(planned, rounds, budget))
    try:
        for name, peers in planned.items():
            for number in range(rounds):
                for peer in peers:
                    _one(results, scenario_named(name), peer_named(peer), number, budget, tell)
    except KeyboardInterrupt:
        results.about["interrupted"] = True
        tell("interrupted: what follows is what there is")
    return results


def _one(
    results: Results,
    scenario: Scenario,
    peer: Peer,
    number: int,
    budget: Budget,
    tell: Callable[[str], object],
) -> None:
    where = {"scenario": scenario.name, "peer": peer.name, "round": number}
    try:
        metrics = measure(peer, scenario, budget)
    except MeasurementFailed as exc:
        results.failures.append({**where, "reason": str(exc)})
        tell(f"{scenario.name} {peer.name}: failed: {exc}")
        return
    results.rows.append({**where, "metrics": metrics})
    first = scenario.metrics[0]
    tell(f"{scenario.name} {peer.name}, round {number + 1}: {metrics[first.key]:,.4g} {first.unit}")


def about(planned: Plan, rounds: int, budget: Budget) -> dict[str, Any]:
    """What must be known to judge figures; nothing that names the machine or its user."""
    named = dict.fromkeys(peer for peers in planned.values() for peer in peers)
    variables = {name for name in os.environ if name.startswith(("GENRPC_", "GRPC_", "PYTHON"))}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "rounds": rounds,
        "budget": dataclasses.asdict(budget),
        "versions": {name: peer_named(name).version() for name in named},
        "environment": sorted(variables - HARMLESS),
    }
