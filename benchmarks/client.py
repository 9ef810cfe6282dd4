"""A client process: `python -m benchmarks.client JSON`, JSON being what `Job` has.

Prints one line, {"event": "result", "metrics": {…}} or {"event": "failed", "reason": …}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from typing import Any

from benchmarks import threads
from benchmarks.peers import peer_named
from benchmarks.processes import end_with_parent, say
from benchmarks.scenarios import Budget, scenario_named


@dataclasses.dataclass(frozen=True)
class Job:
    """What one client process is to do."""

    peer: str
    scenario: str
    budget: dict[str, Any]
    servers: list[dict[str, Any]]
    """What the servers said when they were ready."""

    def to_json(self) -> str:
        """As the command line has it."""
        return json.dumps(dataclasses.asdict(self))


def main() -> None:
    """Measure one scenario once."""
    end_with_parent()
    job = Job(**json.loads(sys.argv[1]))
    try:
        client = peer_named(job.peer).connect(job.servers)
        scenario = scenario_named(job.scenario)
        budget = Budget(**job.budget)
        if budget.by_thread:
            metrics = threads.measure(scenario, client, budget)
        else:
            metrics = scenario.measure(client, budget)
    except Exception as exc:  # whatever a peer may raise: it is reported, and the rest goes on
        traceback.print_exc()
        say(event="failed", reason=f"{type(exc).__name__}: {exc}")
    else:
        say(event="result", metrics=metrics)
        client.close()
    sys.stdout.flush()
    # Some of the peers' libraries wait at exit for threads that wait for the server.
    os._exit(0)


if __name__ == "__main__":
    main()
