"""Who is measured: one module for each peer, which is imported when it is asked for.

A module here may import at its top only what every machine has; the library it is about is
imported in `serve` and `connect`, which run in processes of their own. So a peer that is not
installed is known by `missing()`, and is no error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from benchmarks.client import Job

NAMES = (
    "genrpc",
    "plain",
    "rpyc",
    "pyro5",
    "pyzmq",
    "execnet",
    "thriftpy2",
    "managers",
    "erpc",
)
"""In the order in which they take turns and stand in tables."""

TASKS = frozenset({"S1a", "C64a"})
"""The scenarios whose callers are asyncio tasks."""

ALL = TASKS | {
    "S1",
    "C64",
    "A",
    "CAST",
    "P500K",
    "P500K-echo",
    "P10M",
    "P10M-array",
    "HOL",
    "CPU20",
    "MC8",
    "MEM",
}
"""All scenarios."""

Ready = dict[str, Any]
"""What a server said when it could be called: its pid, and where it is."""

Call = Callable[..., Any]


class Client:
    """One process's access to its servers: what the scenarios call.

    A peer overrides what its scenarios need. The functions are those of `benchmarks.functions`,
    by their names there.
    """

    carries_arrays: ClassVar[bool] = True
    """Whether a numpy array is an argument like any other; else its bytes are sent."""

    def __init__(self, servers: Sequence[Ready]) -> None:
        self.servers = list(servers)

    @property
    def server_pids(self) -> list[int]:
        """The processes whose CPU time counts as the servers'."""
        return [server["pid"] for server in self.servers]

    def caller(self, function: str) -> Call:
        """A function that calls and waits; made in the thread that will use it."""
        raise NotImplementedError

    async def task_caller(self, function: str) -> Callable[..., Awaitable[Any]]:
        """A function to await; made in the loop that will use it."""
        raise NotImplementedError

    def pipeline(self, count: int) -> list[Any]:
        """Send `count` calls of add(2, 3), as many at once as can be, then take their results."""
        raise NotImplementedError

    def cast(self, count: int) -> None:
        """Send `count` casts of tally()."""
        raise NotImplementedError

    def multicaller(self) -> Callable[[], list[Any]]:
        """A function that calls add(2, 3) on all servers at once and gives their results."""
        raise NotImplementedError

    def thread_names(self, number: int) -> dict[int, str]:
        """The Python threads of a server, for `benchmarks.threads`, which is about genrpc only."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the servers."""


class Peer:
    """What the runner knows of a peer without importing it."""

    name: ClassVar[str]
    title: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    """What must be importable."""
    package: ClassVar[str] = ""
    """The distribution whose version is reported."""
    scenarios: ClassVar[frozenset[str]]
    connection: ClassVar[str] = "one"
    """"one" for all callers of a process, or "one a caller": then bulk delays nobody else's."""
    separate_server: ClassVar[bool] = True
    """Whether a server process is started before the client; else the client starts it."""

    def missing(self) -> str | None:
        """What is not there, as a sentence; None if it can run."""
        return missing_modules(self.modules)

    def version(self) -> str:
        """The version of what is measured."""
        if not self.package:
            return ""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:  # a checkout, and not installed
            return "(checkout)"

    def environment(self, folder: Path) -> dict[str, str]:
        """What its processes need in the environment; `folder` is theirs, for one measurement."""
        return {}

    def background(self) -> list[list[str]]:
        """Commands of processes that must run beside the servers."""
        return []

    def server_command(self, scenario: str, number: int) -> list[str]:
        """How the server process with that number is started."""
        return [sys.executable, "-m", "benchmarks.serve", self.name, scenario]

    def client_command(self, job: Job) -> list[str]:
        """How the client process is started."""
        return [sys.executable, "-m", "benchmarks.client", job.to_json()]

    def client_environment(self, servers: Sequence[Ready]) -> dict[str, str]:
        """What the client needs besides, now that the servers are known."""
        return {}

    def serve(self, scenario: str, announce: Callable[..., None]) -> None:
        """In a server process: call `announce(…)` when it can be called, and serve for ever."""
        raise NotImplementedError

    def connect(self, servers: Sequence[Ready]) -> Client:
        """In a client process: its access to the servers."""
        raise NotImplementedError


def missing_modules(names: Sequence[str]) -> str | None:
    """Which of the modules cannot be imported, in words; None if all can."""
    absent = [name for name in names if not importlib.util.find_spec(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


def peer_named(name: str) -> Peer:
    """The peer of that name. Raises ValueError, with those that there are."""
    if name not in NAMES:
        raise ValueError(f"there is no peer {name!r}: choose from {', '.join(NAMES)}")
    peer: Peer = importlib.import_module(f"benchmarks.peers.{name}").PEER
    return peer


def scenarios(text: str) -> frozenset[str]:
    """The scenarios a peer can run, as its module lists them."""
    return frozenset(text.split())
