"""pyzmq with pickle: a ROUTER that runs each function in its one thread, DEALERs that call.

Each calling thread has a socket of its own, as ZeroMQ wants; tasks share one.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.functions import FUNCTIONS
from benchmarks.peers import Call, Client, Peer, Ready, scenarios

dumps, loads = pickle.dumps, pickle.loads


class ZmqClient(Client):
    """One context, and with it one I/O thread, for all sockets."""

    def __init__(self, servers: Sequence[Ready]) -> None:
        import zmq

        super().__init__(servers)
        self._context = zmq.Context()
        self._readers: list[asyncio.Task[None]] = []

    def _dealer(self, number: int = 0, kind: Any = None) -> Any:
        import zmq

        socket = self._context.socket(zmq.DEALER) if kind is None else kind(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{self.servers[number]['port']}")
        return socket

    def caller(self, function: str) -> Call:
        socket = self._dealer()

        def call(*args: object) -> Any:
            socket.send(dumps((0, function, args), 5), copy=False)
            return loads(socket.recv(copy=False).buffer)[1]

        return call

    async def task_caller(self, function: str) -> Callable[..., Awaitable[Any]]:
        import zmq.asyncio

        socket = self._dealer(kind=zmq.asyncio.Context.shadow(self._context).socket)
        loop = asyncio.get_running_loop()
        waiting: dict[int, asyncio.Future[Any]] = {}
        number = 0

        async def read() -> None:
            while True:
                found, result = loads(await socket.recv())
                waiting.pop(found).set_result(result)

        async def call(*args: object) -> Any:
            nonlocal number
            number += 1
            future = waiting[number] = loop.create_future()
            await socket.send(dumps((number, function, args), 5))
            return await future

        self._readers.append(asyncio.ensure_future(read()))
        return call

    def pipeline(self, count: int) -> list[Any]:
        socket = self._dealer()
        for number in range(count):
            socket.send(dumps((number, "add", (2, 3)), 5))
        results = dict(loads(socket.recv()) for _ in range(count))
        socket.close()
        return list(results.values())

    def cast(self, count: int) -> None:
        import zmq

        socket = self._dealer()
        socket.setsockopt(zmq.LINGER, -1)
        for _ in range(count):
            socket.send(dumps((None, "tally", ()), 5))
        socket.close()

    def multicaller(self) -> Callable[[], list[Any]]:
        sockets = [self._dealer(number) for number in range(len(self.servers))]

        def call() -> list[Any]:
            for socket in sockets:
                socket.send(dumps((0, "add", (2, 3)), 5))
            return [loads(socket.recv())[1] for socket in sockets]

        return call


class ZmqPeer(Peer):
    """The server runs functions where it reads: no hand-over, and nothing beside a long one."""

    name = "pyzmq"
    title = "pyzmq + pickle"
    modules = ("zmq",)
    package = "pyzmq"
    scenarios = scenarios(
        "S1 S1a C64 C64a A CAST P500K P500K-echo P10M P10M-array HOL CPU20 MC8 MEM"
    )
    connection = "one a caller"

    def serve(self, scenario: str, announce: Callable[..., None]) -> None:
        import zmq

        socket = zmq.Context().socket(zmq.ROUTER)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        announce(port=socket.bind_to_random_port("tcp://127.0.0.1"))
        while True:
            sender, request = socket.recv_multipart(copy=False)
            number, function, args = loads(request.buffer)
            result = FUNCTIONS[function](*args)
            if number is not None:
                socket.send_multipart([sender, dumps((number, result), 5)], copy=False)

    def connect(self, servers: Sequence[Ready]) -> Client:
        return ZmqClient(servers)


PEER = ZmqPeer()
