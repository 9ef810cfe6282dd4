"""What a call costs as the work grows: peers, keys, calls pending, bytes.

Each size is measured with new processes, one for all the nodes and one for the caller, sizes in
turn. One caller goes from destination to destination in `peers` and `keys`, so that no frame
ever carries two calls and the sizes can be compared; `pending` sends so many async calls and then
takes their results; `payload` sends so many bytes with each call. Connecting is not measured.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.processes import Child, ChildFailed, end_with_parent, environment, say
from benchmarks.report import markdown_table, number, table
from benchmarks.runner import MeasurementFailed, Results
from benchmarks.scenarios import WARM_UP_SHARE, Budget, Meter, Metrics, WrongResult, between

START_SECONDS, MEASURE_SECONDS = 120.0, 180.0
WITHIN = 1.5
"""CPU time a call may grow by this factor from the smallest size on."""


@dataclass(frozen=True)
class Sweep:
    """One kind of growth."""

    name: str
    title: str
    sizes: tuple[int, ...]
    is_per_byte: bool = False
    """Whether cost may grow with the size, and only a byte's share may not."""


SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep("peers", "nodes called in turn", (1, 10, 50, 200)),
        Sweep("keys", "keys of one node, called in turn", (1, 10, 100, 1_000)),
        Sweep("pending", "async calls pending", (1, 10, 100, 1_000, 10_000, 100_000)),
        Sweep(
            "payload",
            "bytes of argument",
            (1, 1_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
            is_per_byte=True,
        ),
    )
}


# ---------------------------------------------------------------- in the children


def _allow_many_files() -> None:
    """A key is a connection: 1,000 of them want more descriptors than many systems give."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(count: int) -> None:
    """Run so many nodes in this process, until it is killed."""
    import genrpc

    settings = genrpc.Settings(tcp_server_port=0, port_discovery="manual")
    nodes = [genrpc.Node(f"server{n}@127.0.0.1", settings).start() for n in range(count)]
    say(event="ready", pid=os.getpid(), ports={node.name: node.port for node in nodes})
    threading.Event().wait()


def client(sweep: str, size: int, seconds: float, server: dict[str, Any]) -> Metrics:
    """Measure one size."""
    nodes = list(server["ports"])
    if sweep == "peers":
        step, calls = _in_turn(nodes)
    elif sweep == "keys":
        step, calls = _in_turn([(nodes[0], number) for number in range(size)])
    elif sweep == "pending":
        step, calls = _pending(nodes[0], size)
    else:
        step, calls = _payload(nodes[0], size)
    warm = time.perf_counter() + seconds * WARM_UP_SHARE
    while time.perf_counter() < warm:
        step()
    meter = Meter([server["pid"]])
    before = meter.read()
    count = 0
    while not count or time.perf_counter() < before[0] + seconds:
        step()
        count += calls
    passed, cpu = between(before, meter.read(), count)
    return {"us": passed / count * 1e6, **cpu}


def _in_turn(dests: list[Any]) -> tuple[Callable[[], None], int]:
    import genrpc

    def call(dest: Any) -> None:
        if (result := genrpc.call(dest, "operator", "add", [2, 3])) != 5:
            raise WrongResult(f"{result!r:.200} instead of 5, from {dest}")

    for dest in dests:
        call(dest)
    following = cycle(dests)

    def step() -> None:
        for _ in range(20):
            call(next(following))

    return step, 20


def _pending(node: str, size: int) -> tuple[Callable[[], None], int]:
    import genrpc

    def step() -> None:
        keys = [genrpc.async_call(node, "operator", "add", [2, 3]) for _ in range(size)]
        for key in keys:
            if (result := genrpc.yield_(key)) != 5:
                raise WrongResult(f"{result!r:.200} instead of 5")

    step()
    return step, size


def _payload(node: str, size: int) -> tuple[Callable[[], None], int]:
    import genrpc

    payload = b"x" * size

    def step() -> None:
        if (result := genrpc.call(node, "builtins", "len", [payload])) != size:
            raise WrongResult(f"{result!r:.200} instead of {size}")

    step()
    return step, 1


# ---------------------------------------------------------------- in the parent


def measure(sweep: Sweep, size: int, seconds: float) -> Metrics:
    """Measure one size once, with new processes. Raises MeasurementFailed."""
    command = [sys.executable, "-m", "benchmarks.scaling"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        env = environment(folder)
        env["GENRPC_COOKIE"] = secrets.token_hex(32)
        # The default of 10,000 calls per peer would answer "overload" to the last of `pending`.
        env["GENRPC_MAX_CALLS"] = "1000000"
        try:
            nodes = size if sweep.name == "peers" else 1
            served = stack.enter_context(Child([*command, "serve", str(nodes)], env, folder))
            server = served.read(START_SECONDS)
            env["GENRPC_REMOTE_TCP_SERVER_PORTS"] = json.dumps(server["ports"])
            job = json.dumps([sweep.name, size, seconds, server])
            called = stack.enter_context(Child([*command, "client", job], env, folder))
            return dict(called.read(MEASURE_SECONDS)["metrics"])
        except ChildFailed as exc:
            raise MeasurementFailed(str(exc)) from None


def run(
    names: Iterable[str], rounds: int, seconds: float, tell: Callable[[str], object], most: int
) -> Results:
    """Measure sweeps, up to size `most`. In the results, a size stands where peers stand."""
    results = Results(about=runner.about({"": ["genrpc"]}, rounds, Budget(seconds=seconds)))
    try:
        for name in names:
            sweep = SWEEPS[name]
            for number_ in range(rounds):
                for size in [size for size in sweep.sizes if size <= most]:
                    where = {"scenario": name, "peer": str(size), "round": number_}
                    try:
                        metrics = measure(sweep, size, seconds)
                    except MeasurementFailed as exc:
                        results.failures.append({**where, "reason": str(exc)})
                        tell(f"{name} {size:,}: failed: {exc}")
                    else:
                        results.rows.append({**where, "metrics": metrics})
                        tell(f"{name} {size:,}: {number(metrics['cpu_us'])} CPU µs a call")
    except KeyboardInterrupt:
        results.about["interrupted"] = True
        tell("interrupted: what follows is what there is")
    return results


def rows(results: Results, name: str) -> list[list[str]]:
    """The table of a sweep, headed; the last column is the growth that may not pass WITHIN.

    For `payload` that is the growth of CPU time a byte over the least of any smaller size, which
    is 1 or less as long as cost grows no faster than the size.
    """
    sweep = SWEEPS[name]
    per = "CPU a byte × the least so far" if sweep.is_per_byte else "CPU a call × the smallest"
    found = [[sweep.title, "µs a call", "CPU µs, client", "CPU µs, server", per, ""]]
    least: float | None = None
    for text in results.peers(name):
        figures = {
            metric: results.figure(name, text, metric)
            for metric in ("us", "client_cpu_us", "server_cpu_us", "cpu_us")
        }
        medians = {metric: figure.median for metric, figure in figures.items() if figure}
        cost = medians["cpu_us"] / (int(text) if sweep.is_per_byte else 1)
        growth = 1.0 if least is None else cost / least
        if least is None or (sweep.is_per_byte and cost < least):
            least = cost
        found.append(
            [
                f"{int(text):,}",
                *(number(medians[m]) for m in ("us", "client_cpu_us", "server_cpu_us")),
                number(growth),
                "" if growth <= WITHIN else "GROWS",
            ]
        )
    return found


def as_text(results: Results) -> str:
    """All sweeps, as text."""
    parts = [table(rows(results, name)) for name in results.scenarios()]
    parts += [f"{f['scenario']} {f['peer']}: failed: {f['reason']}" for f in results.failures]
    return "\n\n".join(parts)


def as_markdown(results: Results) -> str:
    """All sweeps, as Markdown."""
    return "\n\n".join(markdown_table(rows(results, name)) for name in results.scenarios())


def main() -> None:
    """What a child does: `serve COUNT` or `client JSON`."""
    end_with_parent()
    _allow_many_files()
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        say(event="result", metrics=client(*json.loads(sys.argv[2])))
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
