"""Child processes that speak JSON lines, and what a process has used of the machine.

A child runs in a session of its own, so that Ctrl-C in the terminal reaches the parent only, which
then ends it together with whatever it started. It ends by itself when its stdin is closed, as
happens when the parent is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

STOP_SECONDS = 5.0
LOG_LINES_SHOWN = 12


class ChildFailed(Exception):
    """A child ended, or did not speak in time; the message has its last words."""


class Child:
    """A process that is ended with its context, and everything that it started with it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.command = list(command)
        self._log = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # `stop` closes it
        self._unread = b""
        self._process = subprocess.Popen(
            self.command,
            env=dict(env),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process's id, which is its session's too."""
        return self._process.pid

    def read(self, seconds: float) -> dict[str, Any]:
        """The next JSON object that it prints; anything else on its stdout is passed over.

        Raises ChildFailed if it ends before, or if there is none within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            line = self._read_line(deadline)
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found

    def _read_line(self, deadline: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ChildFailed(f"said nothing in time{self._last_words()}")
                came = os.read(stdout.fileno(), 65536)
                if not came:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(STOP_SECONDS)
                    code = self._process.returncode
                    raise ChildFailed(f"ended with exit code {code}{self._last_words()}")
                self._unread += came
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return "".join(f"\n    {line}" for line in lines[-LOG_LINES_SHOWN:])

    def stop(self) -> None:
        """End it: SIGTERM to all of its session, SIGKILL to what is left of it in the end."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._log):
                if pipe is not None:
                    pipe.close()

    def _signal(self, number: int) -> None:
        # The group outlives its leader as long as any process is in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def environment(folder: Path) -> dict[str, str]:
    """What children get: this process's environment and import path, and a home of their own.

    So no cookie and no runtime file of the user's is read or written. GENRPC_ and GRPC_ variables
    are kept: they are how variants are compared.
    """
    path = [os.path.abspath(entry) for entry in sys.path]
    names = ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
    return {
        **os.environ,
        **dict.fromkeys(names, str(folder)),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
    }


def say(**what: object) -> None:
    """Print a JSON line, in a child."""
    print(json.dumps(what), flush=True)


def end_with_parent() -> None:
    """In a child: end when the parent has gone."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


# ---------------------------------------------------------------- what a process has used


def cpu_clock(pid: int) -> Callable[[], float]:
    """A function that gives the seconds of CPU time, user and system, that a process has used.

    On Linux the kernel's clock of that process: exact where /proc counts in steps of 10 ms. Its
    number is what clock_getcpuclockid(3) computes. Elsewhere psutil's, or NaN without it.
    """
    if pid == os.getpid():
        return time.process_time
    if sys.platform == "linux":
        clock = (~pid << 3) | 2
        return lambda: time.clock_gettime(clock)
    try:
        import psutil
    except ImportError:
        return lambda: float("nan")
    process = psutil.Process(pid)
    return lambda: sum(process.cpu_times()[:2])


def reset_peak_memory(pid: int) -> int:
    """Let the peak of a process's resident memory be what it is now; returns it in bytes.

    Raises OSError where the system keeps no such number (all but Linux).
    """
    with contextlib.suppress(PermissionError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_memory(pid)


def peak_memory(pid: int) -> int:
    """The peak of a process's resident memory, in bytes. Raises OSError as above."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc")
