"""A server process: `python -m benchmarks.serve PEER SCENARIO`.

Prints one line {"event": "ready", "pid": …, …} when it can be called, where the rest is what the
peer's clients need to find it, and serves until it is killed or its stdin is closed.
"""

from __future__ import annotations

import os
import sys

from benchmarks.peers import peer_named
from benchmarks.processes import end_with_parent, say


def main() -> None:
    """Serve."""
    name, scenario = sys.argv[1:]
    end_with_parent()
    peer_named(name).serve(scenario, lambda **where: say(event="ready", pid=os.getpid(), **where))


if __name__ == "__main__":
    main()
