"""What is measured: each scenario, as a client process runs it against its server.

A scenario is bounded by time: it warms up until every caller was answered once, then looks at
what happens in a window of `Budget.seconds`. Calls and CPU time are counted at both ends of the
window, so nothing depends on when callers begin or end. Every result is checked.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from benchmarks.peers import Client
from benchmarks.processes import cpu_clock, peak_memory, reset_peak_memory

Metrics = dict[str, float]

MANY = 64
HALF_MEGABYTE, TEN_MEGABYTES = 500_000, 10_000_000
MEGA = 1_000_000
SPIN_SECONDS = 0.02
MULTICALL_NODES = 8

WARM_UP_SHARE = 0.15
PATIENCE_SECONDS = 20.0
"""How long a window may grow until something has happened in it."""

TRIAL_SHARE = 0.05
BATCH_SECONDS = 1.5
"""How long a batch of async calls or casts may take; a slow peer gets a smaller one."""


@dataclass(frozen=True)
class Budget:
    """How much work one measurement is, and whether it tells threads apart."""

    seconds: float = 1.0
    async_calls: int = 10_000
    casts: int = 100_000
    by_thread: bool = False
    """See benchmarks.threads."""


QUICK = Budget(seconds=0.2, async_calls=2_000, casts=10_000)


@dataclass(frozen=True)
class Metric:
    """One figure of a scenario."""

    key: str
    unit: str
    better: Literal["less", "more"]


@dataclass(frozen=True)
class Scenario:
    """One row of the tables. The first metric is the one that is compared and plotted."""

    name: str
    title: str
    measure: Callable[[Client, Budget], Metrics]
    metrics: tuple[Metric, ...]
    servers: int = 1
    modules: tuple[str, ...] = ()
    """What must be importable besides what the peer needs."""


class WrongResult(Exception):
    """A peer gave a result that is not the function's."""


# ---------------------------------------------------------------- clocks and windows


class Meter:
    """The time, and the CPU time of this process and of the servers."""

    def __init__(self, server_pids: Sequence[int]) -> None:
        self._own = cpu_clock(os.getpid())
        self._servers = [cpu_clock(pid) for pid in server_pids]

    def read(self) -> tuple[float, float, float]:
        """Seconds: now, used here, used there."""
        return time.perf_counter(), self._own(), sum(clock() for clock in self._servers)


def between(
    before: tuple[float, float, float], after: tuple[float, float, float], calls: int
) -> tuple[float, Metrics]:
    """Seconds that passed, and CPU microseconds a call on both sides."""
    seconds, own, servers = (b - a for a, b in zip(before, after, strict=True))
    return seconds, {
        "client_cpu_us": own / calls * MEGA,
        "server_cpu_us": servers / calls * MEGA,
        "cpu_us": (own + servers) / calls * MEGA,
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


class Crowd:
    """Threads that call in a loop, from `with` until its end."""

    def __init__(self, size: int, make: Callable[[], Callable[[], object]], expected: object):
        self._make = make
        self._expected = expected
        self._counts = [0] * size
        self._entrance = threading.Lock()
        self._stopping = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(size)
        ]

    def _run(self, number: int) -> None:
        try:
            expected, counts = self._expected, self._counts
            # One after the other: 64 callers that connect at once overrun the backlog of some.
            with self._entrance:
                call = self._make()
                call()
            while not self._stopping:
                result = call()
                if result != expected:
                    raise WrongResult(f"{result!r:.200} instead of {expected!r:.50}")
                counts[number] += 1
        except BaseException as exc:  # it is raised again where somebody waits
            self._failure = exc

    def total(self) -> int:
        """The calls that were answered. Raises what ended a caller."""
        if self._failure is not None:
            raise self._failure
        return sum(self._counts)

    def wait_until(self, is_enough: Callable[[], bool]) -> None:
        """Wait for it, PATIENCE_SECONDS at most."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_enough():
            self.total()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the callers got no answer in {PATIENCE_SECONDS} s")
            time.sleep(0.002)

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        try:
            self.wait_until(lambda: all(self._counts))
        except BaseException:
            self._stopping = True
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)


def rate_of(crowd: Crowd, seconds: float, meter: Meter, enough: int = 8) -> Metrics:
    """Calls a second of a crowd in a window, and their CPU time."""
    time.sleep(seconds * WARM_UP_SHARE)
    before, calls_before = meter.read(), crowd.total()
    time.sleep(seconds)
    crowd.wait_until(lambda: crowd.total() - calls_before >= enough)
    after, calls = meter.read(), crowd.total() - calls_before
    seconds, cpu = between(before, after, calls)
    return {"rate": calls / seconds, **cpu}


def latencies_of(
    call: Callable[..., Any], seconds: float, meter: Meter, enough: int = 8
) -> tuple[list[float], Metrics]:
    """How long each call of add(2, 3) took, one after the other, and their CPU time."""
    clock = time.perf_counter
    end = clock() + seconds * WARM_UP_SHARE
    call(2, 3)
    while clock() < end:
        call(2, 3)
    latencies: list[float] = []
    before = meter.read()
    stopped = clock()
    end = stopped + seconds
    while stopped < end or len(latencies) < enough:
        started = clock()
        result = call(2, 3)
        stopped = clock()
        if result != 5:
            raise WrongResult(f"{result!r:.200} instead of 5")
        latencies.append(stopped - started)
    return latencies, between(before, meter.read(), len(latencies))[1]


def quantiles(latencies: Sequence[float], unit: str) -> Metrics:
    """p50 and p99 in "us" or "ms"."""
    factor = {"us": 1e6, "ms": 1e3}[unit]
    return {
        f"p50_{unit}": percentile(latencies, 0.5) * factor,
        f"p99_{unit}": percentile(latencies, 0.99) * factor,
    }


# ---------------------------------------------------------------- small calls


def lone_caller(client: Client, budget: Budget) -> Metrics:
    """S1: one thread, one call after the other."""
    meter = Meter(client.server_pids)
    latencies, cpu = latencies_of(client.caller("add"), budget.seconds, meter)
    return {**quantiles(latencies, "us"), **cpu}


def lone_task(client: Client, budget: Budget) -> Metrics:
    """S1a: one asyncio task, one call after the other."""
    return asyncio.run(_lone_task(client, budget))


async def _lone_task(client: Client, budget: Budget) -> Metrics:
    call = await client.task_caller("add")
    clock = time.perf_counter
    end = clock() + budget.seconds * WARM_UP_SHARE
    await call(2, 3)
    while clock() < end:
        await call(2, 3)
    meter = Meter(client.server_pids)
    latencies: list[float] = []
    before = meter.read()
    stopped = clock()
    end = stopped + budget.seconds
    while stopped < end:
        started = clock()
        result = await call(2, 3)
        stopped = clock()
        if result != 5:
            raise WrongResult(f"{result!r:.200} instead of 5")
        latencies.append(stopped - started)
    _, cpu = between(before, meter.read(), len(latencies))
    return {**quantiles(latencies, "us"), **cpu}


def _small(client: Client) -> Callable[[], object]:
    call = client.caller("add")
    return lambda: call(2, 3)


def many_threads(client: Client, budget: Budget) -> Metrics:
    """C64: 64 threads, each one call after the other."""
    with Crowd(MANY, lambda: _small(client), 5) as crowd:
        return rate_of(crowd, budget.seconds, Meter(client.server_pids))


def many_tasks(client: Client, budget: Budget) -> Metrics:
    """C64a: the same with 64 asyncio tasks."""
    return asyncio.run(_many_tasks(client, budget))


async def _many_tasks(client: Client, budget: Budget) -> Metrics:
    call = await client.task_caller("add")
    answered = 0

    async def run(call: Callable[..., Awaitable[Any]]) -> None:
        nonlocal answered
        while True:
            if (result := await call(2, 3)) != 5:
                raise WrongResult(f"{result!r:.200} instead of 5")
            answered += 1

    tasks = [asyncio.ensure_future(run(call)) for _ in range(MANY)]
    failed = asyncio.gather(*tasks)
    try:
        await asyncio.wait([failed], timeout=max(0.05, budget.seconds * WARM_UP_SHARE))
        meter = Meter(client.server_pids)
        before, answered_before = meter.read(), answered
        deadline = time.monotonic() + PATIENCE_SECONDS
        calls = 0
        while not calls:  # once, unless the machine has much else to do
            await asyncio.wait([failed], timeout=budget.seconds)
            after, calls = meter.read(), answered - answered_before
            if failed.done():
                failed.result()
            if not calls and time.monotonic() > deadline:
                raise TimeoutError(f"the tasks got no answer in {PATIENCE_SECONDS} s")
        seconds, cpu = between(before, after, calls)
        return {"rate": calls / seconds, **cpu}
    finally:
        failed.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def async_calls(client: Client, budget: Budget) -> Metrics:
    """A: 10,000 calls sent before any result is taken, then all of them taken."""

    def run(count: int) -> None:
        results = client.pipeline(count)
        if results.count(5) != count:
            wrong = next((result for result in results if result != 5), "nothing")
            raise WrongResult(f"{len(results)} results, with {wrong!r:.200} instead of 5")

    return _batches(run, budget.async_calls, client, budget)


def casts(client: Client, budget: Budget) -> Metrics:
    """CAST: 100,000 casts sent, until the last of them has run."""
    tallied = client.caller("tallied")

    def run(count: int) -> None:
        wanted = tallied() + count
        client.cast(count)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (came := tallied()) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{wanted - came} of {count} casts were not executed")
            time.sleep(0.002)

    return _batches(run, budget.casts, client, budget)


def _batches(run: Callable[[int], None], most: int, client: Client, budget: Budget) -> Metrics:
    """Run batches as large as a trial says that time allows, one at least; the median rate."""
    run(50)
    trial = max(50, int(most * TRIAL_SHARE))
    started = time.perf_counter()
    run(trial)
    fitting = int(trial / (time.perf_counter() - started) * BATCH_SECONDS)
    count = max(trial, most // 10, min(most, fitting))
    meter = Meter(client.server_pids)
    before = meter.read()
    rates: list[float] = []
    end = before[0] + budget.seconds
    while not rates or time.perf_counter() < end:
        started = time.perf_counter()
        run(count)
        rates.append(count / (time.perf_counter() - started))
    _, cpu = between(before, meter.read(), count * len(rates))
    return {"rate": percentile(rates, 0.5), "batch": count, **cpu}


# ---------------------------------------------------------------- large data


def _bulk(client: Client, size: int) -> Callable[[], object]:
    call, payload = client.caller("length"), b"x" * size
    return lambda: call(payload)


def _echo(client: Client, size: int) -> Callable[[], object]:
    call, payload = client.caller("echo"), b"x" * size
    return lambda: len(call(payload))


def _array(client: Client, size: int) -> Callable[[], object]:
    import numpy

    array = numpy.arange(size // 8, dtype=numpy.float64)
    if client.carries_arrays:
        call = client.caller("length")
        return lambda: call(array)
    call = client.caller("length_of_floats")
    return lambda: call(array.tobytes())


def _transfer(
    make: Callable[[Client, int], Callable[[], object]], callers: int, size: int, expected: int
) -> Callable[[Client, Budget], Metrics]:
    def measure(client: Client, budget: Budget) -> Metrics:
        with Crowd(callers, lambda: make(client, size), expected) as crowd:
            found = rate_of(crowd, budget.seconds, Meter(client.server_pids))
        return {"mb_per_second": found.pop("rate") * size / MEGA, **found}

    return measure


def beside_bulk(client: Client, budget: Budget) -> Metrics:
    """HOL: small calls while four callers send 10 MB calls to the same node."""
    meter = Meter(client.server_pids)
    small = client.caller("add")
    size = TEN_MEGABYTES
    with Crowd(4, lambda: _bulk(client, size), size) as crowd:
        alone = rate_of(crowd, budget.seconds / 2, meter)["rate"]
        started, calls = time.perf_counter(), crowd.total()
        latencies, _ = latencies_of(small, budget.seconds, meter)
        # The window holds the small calls' warm-up too: the load is the same.
        crowd.wait_until(lambda: crowd.total() - calls >= 4)
        rate = (crowd.total() - calls) / (time.perf_counter() - started)
    return {
        **quantiles(latencies, "ms"),
        "mb_per_second": rate * size / MEGA,
        "share_of_alone": rate / alone,
    }


def beside_cpu(client: Client, budget: Budget) -> Metrics:
    """CPU20: small calls while one caller keeps a CPU-bound function of 20 ms running there."""
    small = client.caller("add")

    def spinning() -> Callable[[], object]:
        call = client.caller("spin")
        return lambda: call(SPIN_SECONDS) > 0

    with Crowd(1, spinning, True):
        latencies, _ = latencies_of(small, budget.seconds, Meter(client.server_pids))
    return quantiles(latencies, "ms")


# ---------------------------------------------------------------- many nodes, memory


def multicalls(client: Client, budget: Budget) -> Metrics:
    """MC8: one caller, multicalls of eight nodes one after the other."""
    call = client.multicaller()
    meter = Meter(client.server_pids)
    expected = [5] * MULTICALL_NODES

    def run(seconds: float) -> tuple[int, float]:
        started = now = time.perf_counter()
        calls = 0
        while now < started + seconds or not calls:
            if (results := call()) != expected:
                raise WrongResult(f"{results!r:.300} instead of eight 5")
            calls += 1
            now = time.perf_counter()
        return calls, now - started

    run(budget.seconds * WARM_UP_SHARE)
    before = meter.read()
    calls, seconds = run(budget.seconds)
    _, cpu = between(before, meter.read(), calls)
    return {"rate": calls / seconds, **cpu}


def memory(client: Client, budget: Budget) -> Metrics:
    """MEM: by how much the peak of resident memory grows for one call with 10 MB."""
    small, bulk = client.caller("add"), _bulk(client, TEN_MEGABYTES)
    for _ in range(100):
        small(2, 3)
    pids = [os.getpid(), *client.server_pids]
    before = [reset_peak_memory(pid) for pid in pids]
    if (result := bulk()) != TEN_MEGABYTES:
        raise WrongResult(f"{result!r:.200} instead of {TEN_MEGABYTES}")
    own, *servers = (peak_memory(pid) - was for pid, was in zip(pids, before, strict=True))
    return {"client_mb": own / MEGA, "server_mb": sum(servers) / MEGA}


# ---------------------------------------------------------------- all of them

CPU = (
    Metric("client_cpu_us", "CPU µs a call, client", "less"),
    Metric("server_cpu_us", "CPU µs a call, server", "less"),
)
MICROSECONDS = (Metric("p50_us", "µs, p50", "less"), Metric("p99_us", "µs, p99", "less"), *CPU)
MILLISECONDS = (Metric("p50_ms", "ms, p50", "less"), Metric("p99_ms", "ms, p99", "less"))
CALLS = (Metric("rate", "calls/s", "more"), *CPU)
BATCH = Metric("batch", "in one batch", "more")
"""Fewer than the title says if the peer would need much longer than BATCH_SECONDS for them."""

BANDWIDTH = (Metric("mb_per_second", "MB/s", "more"), *CPU)

SCENARIOS = (
    Scenario("S1", "one caller in a loop", lone_caller, MICROSECONDS),
    Scenario("S1a", "one asyncio task", lone_task, MICROSECONDS),
    Scenario("C64", "64 threads", many_threads, CALLS),
    Scenario("C64a", "64 asyncio tasks", many_tasks, CALLS),
    Scenario("A", "10,000 async calls, then all results", async_calls, (*CALLS, BATCH)),
    Scenario(
        "CAST",
        "100,000 casts until executed",
        casts,
        (Metric("rate", "casts/s", "more"), *CPU, BATCH),
    ),
    Scenario(
        "P500K",
        "500 KB one way, 16 callers",
        _transfer(_bulk, 16, HALF_MEGABYTE, HALF_MEGABYTE),
        BANDWIDTH,
    ),
    Scenario(
        "P500K-echo",
        "500 KB there and back, 16 callers, each way",
        _transfer(_echo, 16, HALF_MEGABYTE, HALF_MEGABYTE),
        BANDWIDTH,
    ),
    Scenario(
        "P10M",
        "10 MB of bytes, 4 callers",
        _transfer(_bulk, 4, TEN_MEGABYTES, TEN_MEGABYTES),
        BANDWIDTH,
    ),
    Scenario(
        "P10M-array",
        "10 MB as a float64 array, 4 callers",
        _transfer(_array, 4, TEN_MEGABYTES, TEN_MEGABYTES // 8),
        BANDWIDTH,
        modules=("numpy",),
    ),
    Scenario(
        "HOL",
        "a small call beside four 10 MB calls to the same node",
        beside_bulk,
        (
            Metric("p99_ms", "ms, p99", "less"),
            Metric("p50_ms", "ms, p50", "less"),
            Metric("mb_per_second", "MB/s of bulk", "more"),
            Metric("share_of_alone", "of the bulk's rate alone", "more"),
        ),
    ),
    Scenario("CPU20", "a small call beside a CPU-bound function", beside_cpu, MILLISECONDS),
    Scenario(
        "MC8",
        "multicalls of 8 nodes",
        multicalls,
        (Metric("rate", "multicalls/s", "more"), *CPU),
        servers=MULTICALL_NODES,
    ),
    Scenario(
        "MEM",
        "growth of memory for one 10 MB call",
        memory,
        (Metric("client_mb", "MB, client", "less"), Metric("server_mb", "MB, server", "less")),
    ),
)

NAMES = tuple(scenario.name for scenario in SCENARIOS)


def scenario_named(name: str) -> Scenario:
    """The scenario of that name. Raises ValueError, with those that there are."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise ValueError(f"there is no scenario {name!r}: choose from {', '.join(NAMES)}")
