"""`genrpc bench` and `genrpc demo`.

The benchmark calls what any policy allows (`genrpc:ping`) wherever it can, so that it measures a
node in service as it is. Callers are threads of this process: with both ends on one machine they
share its cores.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from genrpc.cli import codes, output
from genrpc.cli.acting import acting, timeout_of
from genrpc.cli.arguments import Command, Parser, node, positive_duration
from genrpc.errors import NotAllowedError
from genrpc.names import parse_destination

if TYPE_CHECKING:
    from genrpc.local_node import Node

MAX_SECONDS = 60.0
MANY = 64
FEW = 16
PAYLOAD = 500_000
MAX_CASTS = 500_000
"""Fewer than may wait here (max_queued_casts), so that none is dropped."""

_BENCH = f"""\
S1      one caller, one call after the other: the time of a call
C64     {MANY} threads that call: calls a second
CAST    casts, until the node has accepted the last
P500K   {FEW} threads that send {PAYLOAD:,} bytes with each call: megabytes a second

example:
  genrpc bench worker@10.0.0.7 --seconds 5
"""

_DEMO = """\
Starts nodes of its own on this machine, and ends them.
"""


def _declare_bench(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", type=node, help="name@host, name@host:port, name")
    parser.add_argument(
        "--seconds",
        metavar="DURATION",
        type=_seconds,
        default=1.5,
        help="how long each of the four takes, at most 60 (default: 1.5)",
    )
    parser.add_timeout("the setting receive_timeout, 15s", "how long to wait for each answer")


def _seconds(text: str) -> float:
    seconds = positive_duration(text)
    if seconds > MAX_SECONDS:
        raise ArgumentTypeError(f"{text!r}: at most {MAX_SECONDS:g} seconds are allowed")
    return seconds


# ---------------------------------------------------------------- bench

Numbers = dict[str, float]


def _bench(args: Namespace) -> int:
    measures: dict[str, Callable[[_Bench], Numbers]] = {
        "S1": _Bench.one_caller,
        "C64": _Bench.many_callers,
        "CAST": _Bench.casts,
        "P500K": _Bench.payloads,
    }
    found: dict[str, Numbers | None] = {}
    with acting() as acting_node, _progress(args, len(measures)) as advance:
        acting_node.ping(args.node, timeout_of(args))  # opens the stream, which is not measured
        bench = _Bench(acting_node, args.node, args.seconds, timeout_of(args))
        for name, measure in measures.items():
            advance(name)
            try:
                found[name] = measure(bench)
            except NotAllowedError:
                found[name] = None
    if args.json:
        output.print_json({"node": parse_destination(args.node).node, **found})
    else:
        for name, numbers in found.items():
            print(f"{name:<6}  {_in_words(numbers)}")
    return codes.OK


def _in_words(numbers: Numbers | None) -> str:
    if numbers is None:
        return "not measured: the node's policy forbids builtins.len"
    units = {
        "p50": lambda value: f"p50 {value * 1e3:.3f} ms",
        "p99": lambda value: f"p99 {value * 1e3:.3f} ms",
        "calls_per_second": lambda value: f"{value:,.0f} calls/s",
        "casts_per_second": lambda value: f"{value:,.0f} casts/s",
        "bytes_per_second": lambda value: f"{value / 1e6:,.0f} MB/s",
    }
    return "   ".join(units[name](value) for name, value in numbers.items())


class _Bench:
    """The measurements, from one node towards another."""

    def __init__(self, acting_node: Node, dest: str, seconds: float, timeout: float | None) -> None:
        self._node = acting_node
        self._dest = dest
        self._seconds = seconds
        self._timeout = timeout

    def one_caller(self) -> Numbers:
        """How long a lone call takes."""
        ((times, elapsed),) = self._callers(1, "genrpc", "ping", [])
        times.sort()
        return {
            "p50": times[len(times) // 2],
            "p99": times[min(len(times) - 1, len(times) * 99 // 100)],
            "calls_per_second": len(times) / elapsed,
        }

    def many_callers(self) -> Numbers:
        """How many calls there are in a second."""
        found = self._callers(MANY, "genrpc", "ping", [])
        return {"calls_per_second": _total_rate(found)}

    def payloads(self) -> Numbers:
        """How many bytes go out in a second."""
        found = self._callers(FEW, "builtins", "len", [os.urandom(PAYLOAD)])
        return {"bytes_per_second": PAYLOAD * _total_rate(found)}

    def casts(self) -> Numbers:
        """How many casts there are in a second."""
        from genrpc.local_node import Node
        from genrpc.protocol.pending import CAST
        from genrpc.settings import Settings

        # By a node of its own: when that has stopped, all is sent.
        name, _, host = self._node.name.partition("@")
        caster = Node(f"{name}-casts@{host}", Settings(tcp_server_port=None)).start()
        try:
            caster.ping(self._dest, self._timeout)
            begun = time.perf_counter()
            count = 0
            while count < MAX_CASTS and time.perf_counter() - begun < self._seconds:
                for _ in range(100):
                    caster.send(self._dest, "genrpc", "ping", kind=CAST)
                count += 100
        finally:
            caster.stop(MAX_SECONDS)
        return {"casts_per_second": count / (time.perf_counter() - begun)}

    def _callers(
        self, count: int, module: str, function: str, args: Sequence[object]
    ) -> list[tuple[list[float], float]]:
        """Call from `count` threads; gives of each the times of its calls, and the time of all."""
        found: list[tuple[list[float], float]] = []
        failures: list[Exception] = []
        over = threading.Event()

        def work() -> None:
            times: list[float] = []
            clock, call = time.perf_counter, self._node.call
            begun = last = clock()
            try:
                while last - begun < self._seconds and not over.is_set():
                    call(self._dest, module, function, args, self._timeout)
                    now = clock()
                    times.append(now - last)
                    last = now
            except Exception as exc:  # raised again on the main thread
                failures.append(exc)
                over.set()
            else:
                found.append((times, last - begun))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            over.set()  # after Ctrl-C
        if failures:
            raise failures[0]
        return found


def _total_rate(found: list[tuple[list[float], float]]) -> float:
    return sum(len(times) for times, _ in found) / max(elapsed for _, elapsed in found)


@contextlib.contextmanager
def _progress(args: Namespace, count: int) -> Iterator[Callable[[str], object]]:
    """Give a function that is told what is measured now."""
    if args.json or not output.is_terminal(sys.stderr) or not output.has_rich():
        yield lambda name: None
    else:
        from genrpc.cli.live import Progress

        with Progress(count) as progress:
            yield progress.advance


# ---------------------------------------------------------------- demo


def _declare_demo(parser: Parser) -> None:
    pass


def _demo(args: Namespace) -> int:
    from genrpc import demo

    return demo.main()


COMMANDS = {
    "bench": Command(_declare_bench, _bench, _BENCH),
    "demo": Command(_declare_demo, _demo, _DEMO),
}
