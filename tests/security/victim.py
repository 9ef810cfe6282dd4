"""A node in a process of its own that tells what it was made to do.

As a script it starts a node with the settings of its first argument (JSON), prints its port, and
answers each line of standard input with a line of JSON: "arm" begins to count, "report" tells.
Counted are Python's own audit events, which no code can get around: names that unpicklers looked
up, and imports of what was not imported yet.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from nodes import COOKIE
from waiting import SECONDS, until

import genrpc
from genrpc import Node

TARGETS = str(Path(__file__).parent / "targets")
NAME = "victim@127.0.0.1"


class Victim:
    """The process, and a peer of it in this one."""

    def __init__(self, settings: dict[str, object], peer_settings: dict[str, object]) -> None:
        given = {"cookie": COOKIE, "tcp_server_port": 0, **settings}
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([TARGETS, *sys.path])},
        )
        self.port = int(self._line())
        self.dest = f"{NAME}:{self.port}"
        self.address = ("127.0.0.1", self.port)
        self.seen = psutil.Process(self.process.pid)
        name = peer_settings.pop("name", "peer@127.0.0.1")
        self.peer = Node(
            name, genrpc.Settings(cookie=COOKIE, tcp_server_port=None, **peer_settings)
        ).start()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the node's process has ended"
        return line

    def ask(self, word: str) -> dict[str, Any]:
        """Send a word, return what the process tells."""
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)
        return json.loads(self._line())

    def is_alive(self) -> bool:
        """Whether an authenticated peer gets its answer."""
        return self.peer.call(self.dest, "genrpc", "ping", [], SECONDS) == "pong"

    def is_alone(self) -> bool:
        """Whether nothing is left of all that came but the stream of the peer."""
        return self.ask("report")["handshakes"] == 0

    def memory(self) -> int:
        """Bytes of the process that lie in memory."""
        return self.seen.memory_info().rss

    def forget_peak(self) -> None:
        """Let the peak of memory begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """The most bytes that lay in memory since then."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])

    def descriptors(self) -> int:
        return self.seen.num_fds()

    def stop(self) -> None:
        self.peer.stop(0)
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(SECONDS) == 0
        finally:
            self.process.kill()


@contextmanager
def victim(peer_settings: dict[str, object] | None = None, **settings: object) -> Iterator[Victim]:
    """Run a node in a process of its own for as long as the block takes.

    `files` is how many descriptors it may have; all else are settings.
    """
    found = Victim(settings, peer_settings or {})
    try:
        until(found.is_alive)
        yield found
    finally:
        found.stop()


def serve(settings: dict[str, Any]) -> None:
    """Be the process."""
    armed = False
    found: list[str] = []
    imported: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if armed and event == "pickle.find_class":
            found.append(":".join(map(str, args)))
        elif armed and event == "import":
            imported.append(str(args[0]))

    sys.addaudithook(hook)
    files = settings.pop("files", None)
    if files is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    with Node(NAME, genrpc.Settings(**settings)) as node:
        print(node.port, flush=True)
        for line in sys.stdin:
            if line.strip() == "arm":
                armed = True
            report = {
                "canary": os.environ.get("CANARY"),
                "found": found[:10],
                "imported": imported[:10],
                "handshakes": node._reception.handshakes,
                "streams": len(node._reception.streams),
                "statistics": node.statistics(),
            }
            print(json.dumps(report), flush=True)
        armed = False  # the end imports


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
