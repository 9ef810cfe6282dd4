"""The inside of a worker process: runs one call after the other for the node that started it.

Started as `python -m genrpc.worker_process FD` by `genrpc.processes`. Functions run in the main
thread, as in a program of their own; a second thread listens to the node, for cancellations and
for its end, with which this process ends too. To a function it looks as if it ran in the node:
`genrpc.node()` is the node's name, and its calls go out under that name.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, cast

from genrpc import codec
from genrpc.executor import Executor, UnaryCall
from genrpc.local_node import Node
from genrpc.names import Destination
from genrpc.peers import Peer
from genrpc.policy import Policy
from genrpc.protocol.pending import IncomingCall
from genrpc.settings import Settings

if TYPE_CHECKING:
    from genrpc.protocol.pending import Buffer, Outcome


class WorkerNode(Node):
    """The node as its functions see it from here: started, without a listener, if one calls out."""

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(name, settings.changed(tcp_server_port=None, executor="thread"))
        self._starting = threading.Lock()

    def _peer(self, dest: object) -> tuple[Peer, Destination | None]:
        with self._starting:
            if self._state == "new":
                self.start()
        return super()._peer(dest)


class Line:
    """The line to the node: calls come by it, outcomes go."""

    def __init__(self, connection: Connection) -> None:
        self.calls: queue.SimpleQueue[tuple[int, IncomingCall]] = queue.SimpleQueue()
        self._connection = connection
        self._answered = threading.Event()
        self._number = 0
        self.running: IncomingCall | None = None

    def listen(self, executor: Executor) -> None:
        """Take in what the node sends, until it is gone."""
        try:
            while True:
                kind, *message = self._connection.recv()
                if kind == "call":
                    number, request, head, buffers = message
                    self.calls.put((number, self._incoming(request, head, buffers)))
                elif self.running is not None:
                    executor.cancel(self.running)
        except (EOFError, OSError):
            os._exit(0)  # the node is gone; whatever runs here is for nobody

    def _incoming(self, request: Any, head: bytes, buffers: Any) -> IncomingCall:  # noqa: ANN401
        target, kind, encoding, reply_encoding, left, max_reply_bytes = request
        deadline = None if left is None else time.monotonic() + left
        if reply_encoding is None:
            call = IncomingCall(0, target, kind, encoding, deadline, head, buffers)
        else:
            call = UnaryCall(target, kind, encoding, reply_encoding, deadline, head, buffers)
        call.sink, call.max_reply_bytes = self, max_reply_bytes
        return call

    def run(self, executor: Executor) -> None:
        """Run the next call, to its end."""
        self._number, call = self.calls.get()
        self._answered.clear()
        self.running = call
        executor.run(call)
        self._answered.wait()  # a coroutine answers from its own thread
        self.running = None

    def post(self, item: tuple[IncomingCall, Outcome, bytes, Sequence[Buffer]], /) -> None:
        """Send an outcome: this is the sink of its calls."""
        _, outcome, head, buffers = item
        plain = [bytes(part) if isinstance(part, memoryview) else part for part in buffers]
        try:
            self._connection.send((self._number, outcome, head, plain))
        except OSError:
            os._exit(0)
        self._answered.set()


def main() -> None:
    """Serve the node at the other end of the socket whose number is on the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which ends this one
    connection = Connection(int(sys.argv[1]))
    head, buffers = connection.recv()
    name, settings, path = cast(
        "tuple[str, Settings, list[str]]", codec.decode_value(head, buffers)
    )
    sys.path[:] = path
    line = Line(connection)
    executor = Executor(
        asyncio.new_event_loop(),
        WorkerNode(name, settings),
        Policy.of(settings),
        max_workers=1,
        tracebacks=settings.send_tracebacks,
        max_depth=settings.max_depth,
    )
    threading.Thread(target=line.listen, args=(executor,), name="genrpc-line", daemon=True).start()
    connection.send((0, 0, b"", []))
    while True:
        line.run(executor)


if __name__ == "__main__":
    main()
