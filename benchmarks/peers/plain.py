"""Plain grpcio: what one writes who wants to call functions over gRPC and nothing more.

One unary method, no serialisers, requests and replies pickled with protocol 5. Threads are served
by `grpc.server(ThreadPoolExecutor(128))` and call by the sync stub; tasks are served by the aio
server, which runs the function on its loop, and call by the aio stub in their own loop. No
security, deadlines or errors: it is as quick as unary calls get.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.functions import FUNCTIONS
from benchmarks.peers import ALL, TASKS, Call, Client, Peer, Ready

METHOD = "/benchmarks.Plain/Call"
WORKERS = 128
OUTSTANDING = 1_000
"""Calls in flight in `pipeline`: with 10,000, grpcio's server answers some with CANCELLED."""

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

dumps, loads = pickle.dumps, pickle.loads


def _encode(function: str, args: tuple[object, ...]) -> bytes:
    return dumps((function, args), 5)


def _run(request: bytes) -> bytes:
    function, args = loads(request)
    return dumps(FUNCTIONS[function](*args), 5)


class PlainClient(Client):
    """One channel for each server."""

    def __init__(self, servers: Sequence[Ready]) -> None:
        super().__init__(servers)
        self._addresses = [f"127.0.0.1:{server['port']}" for server in servers]
        self._open: list[Any] = []

    def _stub(self, number: int = 0) -> Any:
        import grpc

        if not self._open:
            channels = [grpc.insecure_channel(place, OPTIONS) for place in self._addresses]
            self._open = [channel.unary_unary(METHOD) for channel in channels]
        return self._open[number]

    def caller(self, function: str) -> Call:
        stub = self._stub()
        return lambda *args: loads(stub(_encode(function, args)))

    async def task_caller(self, function: str) -> Callable[..., Awaitable[Any]]:
        import grpc

        channel = grpc.aio.insecure_channel(self._addresses[0], OPTIONS)
        stub = channel.unary_unary(METHOD)

        async def call(*args: object) -> Any:
            return loads(await stub(_encode(function, args)))

        return call

    def pipeline(self, count: int) -> list[Any]:
        stub = self._stub()
        results: list[Any] = []
        waiting: deque[Any] = deque()
        for _ in range(count):
            if len(waiting) >= OUTSTANDING:
                results.append(loads(waiting.popleft().result()))
            waiting.append(stub.future(_encode("add", (2, 3))))
        results.extend(loads(future.result()) for future in waiting)
        return results

    def multicaller(self) -> Callable[[], list[Any]]:
        stubs = [self._stub(number) for number in range(len(self._addresses))]

        def call() -> list[Any]:
            futures = [stub.future(_encode("add", (2, 3))) for stub in stubs]
            return [loads(future.result()) for future in futures]

        return call


class PlainPeer(Peer):
    """The server is sync or aio as the scenario's callers are."""

    name = "plain"
    title = "plain grpcio"
    modules = ("grpc",)
    package = "grpcio"
    scenarios = ALL - {"CAST"}

    def serve(self, scenario: str, announce: Callable[..., None]) -> None:
        if scenario in TASKS:
            asyncio.run(self._serve_tasks(announce))
        else:
            self._serve_threads(announce)

    def _serve_threads(self, announce: Callable[..., None]) -> None:
        import grpc

        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: _run(request))
        server = grpc.server(ThreadPoolExecutor(WORKERS), [_Generic(handler)], options=OPTIONS)
        announce(port=server.add_insecure_port("127.0.0.1:0"))
        server.start()
        server.wait_for_termination()

    async def _serve_tasks(self, announce: Callable[..., None]) -> None:
        import grpc

        async def run(request: bytes, context: object) -> bytes:
            return _run(request)

        handler = grpc.unary_unary_rpc_method_handler(run)
        server = grpc.aio.server(handlers=[_Generic(handler)], options=OPTIONS)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        announce(port=port)
        await server.wait_for_termination()

    def connect(self, servers: Sequence[Ready]) -> Client:
        return PlainClient(servers)


class _Generic:
    """A grpc.GenericRpcHandler, which is nothing but this method."""

    def __init__(self, handler: object) -> None:
        self._handler = handler

    def service(self, details: Any) -> object:
        return self._handler if details.method == METHOD else None


PEER = PlainPeer()
