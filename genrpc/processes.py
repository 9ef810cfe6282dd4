"""Calls that run in worker processes, one at a time in each.

A worker thread has a process and waits for it, so that what holds for threads (growth, order,
limits) holds for processes. What takes its process along (a crash, `os._exit`, a signal) takes
only the call that it ran: that one is "killed", and the thread starts another process for the
next. The child is `genrpc.worker_process`; both talk over a socket that dies with either.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from genrpc import codec
from genrpc.pool import PROCESSES, Worker, WorkerPool
from genrpc.protocol.pending import ERROR, IncomingCall
from genrpc.settings import Settings

if TYPE_CHECKING:
    from genrpc.errors import Execution
    from genrpc.protocol.pending import Buffer, Outcome

log = logging.getLogger("genrpc")

START_SECONDS = 30.0

_SEE_THE_LOG = "The node could not have it run in a worker process; its log says why."

Answer = Callable[..., object]  # Executor.answer


class WorkerDiedError(Exception):
    """The process ended before it had answered; the text says how."""


class WorkerProcess:
    """One process. `run` and `close` are for its thread; `cancel` and `kill` for any."""

    def __init__(self, node: str, settings: Settings) -> None:
        self.settings = settings
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "genrpc.worker_process", str(there.fileno())],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(here.detach())
        self._sending = threading.Lock()
        self._next_id = 1
        # By the codec, for a setting may be a function of the program's __main__.
        start = codec.encode_value((node, settings, list(sys.path)), snapshot=True)
        self._send(start)
        if not self._connection.poll(START_SECONDS):
            self.kill()
        self._receive()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def run(self, call: IncomingCall) -> tuple[Outcome, bytes, Sequence[Buffer]]:
        """Have the call run and wait for its outcome; raises WorkerDiedError."""
        number, self._next_id = self._next_id, self._next_id + 1
        left = None if call.deadline is None else call.deadline - time.monotonic()
        call.task = self
        buffers = [
            bytes(buffer) if isinstance(buffer, memoryview) else buffer for buffer in call.buffers
        ]
        reply_encoding = getattr(call, "reply_encoding", None)  # of the unary methods
        request = (
            call.target,
            call.kind,
            call.encoding,
            reply_encoding,
            left,
            call.max_reply_bytes,
        )
        self._send(("call", number, request, call.head, buffers))
        call.head, call.buffers = b"", ()
        while True:
            answered, outcome, head, buffers = self._receive()
            if answered == number:
                return outcome, head, buffers

    def cancel(self) -> None:
        """Tell the process that nobody waits for what it runs."""
        try:
            self._send(("cancel",))
        except WorkerDiedError:
            return  # then it is over anyway

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end: it does when the line is closed."""
        self._connection.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            try:
                self._connection.send(message)
            except OSError:
                raise WorkerDiedError(self._how_it_ended()) from None

    def _receive(self) -> Any:  # noqa: ANN401  # whatever the protocol between the two says
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise WorkerDiedError(self._how_it_ended()) from None

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return f"The worker process {self.pid} does not answer any more."
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"The worker process {self.pid} that ran the function ended {how}."


class Processes:
    """The calls of a node that run in worker processes; a part of its executor."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, node: str, settings: Settings, answer: Answer
    ) -> None:
        self.pool: WorkerPool[Any] = WorkerPool(
            loop, self._work, self._leave, settings.max_workers, PROCESSES
        )
        self._node = node
        self._settings = settings
        self._answer = answer
        self._all = settings.executor == "process"
        self._modules = settings.executor_per_module
        self._running: set[WorkerProcess] = set()

    def takes(self, call: IncomingCall) -> bool:
        """Whether a call is to run in a process, by its module."""
        way = self._modules.get(call.target[0])
        return self._all if way is None else way == "process"

    def change_policy(self, control: str, entries: Sequence[str]) -> None:
        """Let another policy hold for what is decided in the processes too."""
        self._settings = self._settings.changed(
            rpc_module_control=control, rpc_module_list=list(entries)
        )

    def stop(self) -> None:
        """End all processes; calls that still run in one are "killed"."""
        self.pool.stop()
        for process in list(self._running):
            process.kill()

    def _work(self, worker: Worker, call: IncomingCall) -> None:
        if call.cancelled or (call.deadline is not None and call.deadline < time.monotonic()):
            self._fail(call, "timeout", "not_started", "")
            return
        execution: Execution = "not_started"
        try:
            process = self._process_of(worker)
            execution = "started"
            if hasattr(call, "began_at"):
                call.began_at = time.monotonic()
            answer = process.run(call)
        except WorkerDiedError as exc:
            self._leave(worker)
            self._fail(call, "killed", execution, str(exc))
        except Exception:  # no process can be started, say; the call is to know
            log.exception("A worker process went wrong")
            self._leave(worker)
            self._fail(call, "killed", execution, _SEE_THE_LOG)
        else:
            self._answer(call, *answer)

    def _process_of(self, worker: Worker) -> WorkerProcess:
        """The worker's process, begun anew if the settings have changed."""
        process = worker.process
        if isinstance(process, WorkerProcess) and process.settings is self._settings:
            return process
        self._leave(worker)
        process = worker.process = WorkerProcess(self._node, self._settings)
        self._running.add(process)
        return process

    def _fail(self, call: IncomingCall, reason: str, execution: Execution, message: str) -> None:
        self._answer(call, ERROR, codec.encode_error(reason, execution, message))

    def _leave(self, worker: Worker) -> None:
        process, worker.process = worker.process, None
        if isinstance(process, WorkerProcess):
            self._running.discard(process)
            process.close()
