"""The process of one node of a cluster: serves until it is told to end, or its parent is gone.

`NodeProcess` starts it with its settings in the environment, and a pipe as its standard input
that closes when the parent ends, even by SIGKILL. When the node can be called, the process writes
`ready` to its standard output; what functions print from then on goes the way of stderr.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading

NAME_VARIABLE = "GENRPC_TESTING_NODE"

LOOK_SECONDS = 1.0
"""How often the child looks whether its parent is another one; the pipe tells it at once, unless
a process that the parent has forked holds it open."""

END_SECONDS = 3.0
"""How long threads of called functions can delay the end of the process."""


def main() -> None:
    """Serve as the node that the environment names, then end."""
    parent = os.getppid()
    # Away from the terminal's Ctrl-C, which is the parent's to handle. Besides, the kernel wakes
    # and hangs up a frozen process whose parent ends while it is in a group of its own (POSIX,
    # orphaned process groups); nothing else would end it.
    os.setpgid(0, 0)
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # functions that read get the end, not a share of the pipe
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())

    from genrpc import default

    default.start(os.environ[NAME_VARIABLE])
    try:
        os.write(1, b"ready\n")
        os.dup2(2, 1)
        while not select.select([pipe], [], [], LOOK_SECONDS)[0] and os.getppid() == parent:
            pass
    finally:
        last_word = threading.Timer(END_SECONDS, os._exit, [1])
        last_word.daemon = True
        last_word.start()
        default.stop(0)


if __name__ == "__main__":
    main()
