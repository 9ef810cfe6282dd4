"""A cluster: nodes as processes, and the node that calls them.

For one thread at a time. No process outlives `close`, or this process: see `child`.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, SupportsIndex

from genrpc.settings import Settings
from genrpc.testing.child import END_SECONDS, NAME_VARIABLE
from genrpc.testing.throw_away import new_name, private_settings

if TYPE_CHECKING:
    from genrpc.local_node import Node

START_SECONDS = 60.0
"""A node that is not ready by then, on whatever slow machine, will never be."""

_COMMAND = (
    # -c puts the working directory before all else; what the caller imports comes from PYTHONPATH.
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from genrpc.testing.child import main; main()"
)


class Cluster:
    """Nodes that run as processes; made by `genrpc.testing.cluster`.

    A node is meant by its place in `names`. `caller` is the node of this process that has the
    cluster's cookie: the default node while the cluster's block lasts.
    """

    def __init__(self, n: int, settings: Mapping[str, object]) -> None:
        self.names = [new_name(f"node{i}") for i in range(_number(n))]
        given = {**private_settings(), "port_discovery": "local", **settings}
        # Checked here, where the mistake is seen; and not for the caller's whole process.
        own = {name: value for name, value in given.items() if name != "switch_interval"}
        self._caller_settings = Settings(**{**own, "tcp_server_port": None})
        Settings(**given)
        self._environment = _environment(given)
        self._stack = ExitStack()
        self._processes: list[NodeProcess] = []
        self._caller: Node | None = None

    def __repr__(self) -> str:
        return f"<Cluster {', '.join(self.names)}>"

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> None:
        outputs = Path(tempfile.mkdtemp(prefix="genrpc-cluster-"))
        self._stack.callback(shutil.rmtree, outputs, ignore_errors=True)
        self._stack.callback(_end_all, self._processes)
        for i, name in enumerate(self.names):
            output = outputs / f"node{i}.txt"
            self._processes.append(NodeProcess(name, self._environment, output))
        # While they start, which takes as long: this imports gRPC.
        from genrpc.local_node import Node

        self._caller = Node(new_name("caller"), self._caller_settings).start()
        self._stack.callback(self._caller.stop, 0)
        for process in self._processes:
            process.wait_ready()

    def close(self) -> None:
        """End all processes, frozen ones too, and the calling node."""
        for process in self._processes:
            process.ask_to_end()
        self._stack.close()

    @property
    def caller(self) -> Node:
        """The node of this process that calls the cluster's nodes; it does not listen."""
        assert self._caller is not None
        return self._caller

    @property
    def pids(self) -> list[int]:
        """The ids of the processes, in the order of `names`, also of those that have ended."""
        return [process.pid for process in self._processes]

    def outputs(self) -> list[str]:
        """What each node's process has written so far, to stdout and stderr."""
        return [process.output() for process in self._processes]

    def kill(self, i: int) -> None:
        """End a node with SIGKILL; when this returns, the process is gone."""
        self._processes[i].kill()

    def freeze(self, i: int) -> None:
        """Stop a node's process with SIGSTOP: it stays connected and answers nothing."""
        self._processes[i].freeze()

    def thaw(self, i: int) -> None:
        """Let a frozen node go on."""
        self._processes[i].thaw()

    def restart(self, i: int) -> None:
        """Replace a node by a new process of the same name, and wait until it can be called.

        The old one, if it still lives, is killed.
        """
        self._processes[i].restart()


class NodeProcess:
    """The process of one node, as its parent sees it; several in a row, when it is restarted."""

    def __init__(self, name: str, environment: Mapping[str, str], output: Path) -> None:
        self.name = name
        self._environment = {**environment, NAME_VARIABLE: name}
        self._output = output
        self._is_frozen = False
        self._deadline = 0.0
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        """Start a process, without waiting for it."""
        self._deadline = time.monotonic() + START_SECONDS
        self._is_frozen = False
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=self._environment,
            )

    def restart(self) -> None:
        """Put another process in the place of this one, and wait until it can be called."""
        self.kill()
        self._process = self._started()
        self.wait_ready()

    @property
    def pid(self) -> int:
        """The id of the latest process."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until the node can be called; raises RuntimeError if it does not come to that."""
        with _pipe(self._process.stdout) as ready, selectors.DefaultSelector() as selector:
            selector.register(ready, selectors.EVENT_READ)
            if not selector.select(max(0.0, self._deadline - time.monotonic())):
                what = f"was not ready within {START_SECONDS:g} s"
            elif ready.readline():
                return
            else:
                what = f"ended with code {self._process.wait()} before it was ready"
        raise RuntimeError(f"The node {self.name} {what}. It wrote:\n{self.output().strip()}")

    def output(self) -> str:
        """What the processes have written to stdout and stderr."""
        return self._output.read_text(errors="replace")

    def freeze(self) -> None:
        """Send SIGSTOP and wait until it works; raises RuntimeError if the process has ended."""
        self._signal(signal.SIGSTOP)
        self._is_frozen = True
        if hasattr(os, "waitid"):  # macOS has it since Python 3.13
            # All its threads stand still only a little later; the stop is not reported away.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Send SIGCONT; raises RuntimeError if the process has ended."""
        self._signal(signal.SIGCONT)
        self._is_frozen = False

    def _signal(self, number: int) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(
                f"The process of {self.name} has ended with code {self._process.returncode}:"
                " restart it first."
            )
        self._process.send_signal(number)

    def ask_to_end(self) -> None:
        """Tell the process to end, without waiting for it; one that is frozen is killed."""
        self._process.send_signal(signal.SIGKILL if self._is_frozen else signal.SIGTERM)

    def kill(self) -> None:
        """End the process, if it has not ended, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()

    def wait(self, deadline: float) -> None:
        """Wait for the process to end by itself, until `deadline`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))


def _pipe(file: IO[bytes] | None) -> IO[bytes]:
    """One of the pipes that the process was started with."""
    assert file is not None
    return file


def _end_all(processes: Sequence[NodeProcess]) -> None:
    deadline = time.monotonic() + END_SECONDS
    try:
        for process in processes:
            process.wait(deadline)
    finally:  # Ctrl-C has no patience
        for process in processes:
            process.kill()


def _number(n: SupportsIndex) -> int:
    if isinstance(n, bool) or not isinstance(n, SupportsIndex):
        raise TypeError(f"a cluster has a whole number of nodes, not {n!r:.100}")
    if n.__index__() < 1:
        raise ValueError(f"a cluster has at least one node, not {n}")
    return n.__index__()


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    """The environment of the nodes' processes: the settings, and where to import from."""
    environment = dict(os.environ)
    environment.setdefault("GENRPC_SWITCH_INTERVAL", "0.0002")  # as `genrpc serve` has it
    for name, value in settings.items():
        environment[f"GENRPC_{name.upper()}"] = _text(name, value)
    # All of it, in its order, the caller's own directory included; "" is the working directory.
    folders = [os.path.abspath(folder) for folder in sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    return environment


def _text(name: str, value: object) -> str:
    """A setting as an environment variable's text."""
    if callable(value):
        raise TypeError(
            f"the setting {name} of a cluster cannot be a function: its nodes are other processes"
        )
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(list(value) if isinstance(value, (set, frozenset, tuple)) else value)
