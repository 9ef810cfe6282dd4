"""Which threads the CPU time of a call goes to, on both sides of genrpc.

The kernel counts each thread's time, and a thread's name tells what it is for. What a process took
while a scenario ran, warming up included, is divided as the CPU time of a call in its window is.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peers import Client
from benchmarks.processes import cpu_clock
from benchmarks.scenarios import Budget, Metrics, Scenario

SCENARIOS = ("S1", "S1a", "C64", "C64a", "A", "CAST", "MC8")
"""Those of small calls; a multicall counts as one call."""

COLUMNS = {
    "client_callers_us": "client: callers",
    "client_loop_us": "client: loop thread",
    "client_grpc_us": "client: gRPC's threads",
    "server_loop_us": "node: loop thread",
    "server_workers_us": "node: workers",
    "server_grpc_us": "node: gRPC's threads",
}

_GRPC = "_poll_wrapper"
"""In the name of the one Python thread that grpc.aio starts; its others are none of Python's."""


def names() -> dict[int, str]:
    """The Python threads of this process: their names, by the system's numbers."""
    return {each.native_id: each.name for each in threading.enumerate() if each.native_id}


def measure(scenario: Scenario, client: Client, budget: Budget) -> Metrics:
    """As the scenario does; besides, the microseconds of CPU time of a call in each of COLUMNS.

    Raises OSError where the system does not tell the time of threads (all but Linux).
    """
    client.thread_names(0)  # so that it is connected
    processes = {
        "client": [_Process(os.getpid(), names, "callers")],
        "server": [
            _Process(pid, lambda n=n: client.thread_names(n), "workers")  # type: ignore[misc]
            for n, pid in enumerate(client.server_pids)
        ],
    }
    metrics = scenario.measure(client, budget)
    for side, of_side in processes.items():
        seconds: Counter[str] = Counter()
        for process in of_side:
            seconds.update(process.seconds())
        in_all = sum(seconds.values())
        for role in ("callers", "loop", "workers", "grpc"):
            if f"{side}_{role}_us" in COLUMNS:
                share = seconds[role] / in_all
                metrics[f"{side}_{role}_us"] = share * metrics[f"{side}_cpu_us"]
    return metrics


class _Process:
    """What the threads of a process take from now on; `others` are those without a known name."""

    def __init__(self, pid: int, names_of: Callable[[], Mapping[int, str]], others: str) -> None:
        self._pid = pid
        self._names_of = names_of
        self._others = others
        self._clock = cpu_clock(pid)
        self._before, self._all_before = self._threads(), self._clock()

    def _threads(self) -> dict[int, float]:
        """Seconds by thread. The first number of its schedstat is nanoseconds on a processor."""
        found = {}
        for folder in Path(f"/proc/{self._pid}/task").iterdir():
            try:
                found[int(folder.name)] = int((folder / "schedstat").read_text().split()[0]) / 1e9
            except FileNotFoundError:  # it has ended meanwhile
                continue
        if not found:
            raise OSError("the system does not tell the time of threads")
        return found

    def seconds(self) -> Counter[str]:
        """Seconds by role: "loop", "workers", "grpc", or `others`, as ended threads are too."""
        after, in_all = self._threads(), self._clock() - self._all_before
        known, found = self._names_of(), Counter[str]()
        for thread, now in after.items():
            found[self._role(known.get(thread))] += now - self._before.get(thread, 0.0)
        found[self._others] += max(0.0, in_all - sum(found.values()))
        return found

    def _role(self, name: str | None) -> str:
        if name is None or _GRPC in name:
            return "grpc"
        if name == "genrpc-loop":
            return "loop"
        return "workers" if name.startswith("genrpc-worker") else self._others
