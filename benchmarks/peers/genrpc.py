"""genrpc as its users call it: the public functions, nodes by `genrpc serve`, security on."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.functions import TARGETS
from benchmarks.peers import ALL, Call, Client, Peer, Ready


class GenrpcClient(Client):
    """Calls by the value door, as most users do."""

    def __init__(self, servers: Sequence[Ready]) -> None:
        super().__init__(servers)
        self._nodes = [server["node"] for server in servers]

    def caller(self, function: str) -> Call:
        import genrpc

        call, node = genrpc.call, self._nodes[0]
        module, name = TARGETS[function]
        return lambda *args: call(node, module, name, args)

    async def task_caller(self, function: str) -> Callable[..., Awaitable[Any]]:
        import genrpc

        call, node = genrpc.aio.call, self._nodes[0]
        module, name = TARGETS[function]
        return lambda *args: call(node, module, name, args)

    def pipeline(self, count: int) -> list[Any]:
        import genrpc

        async_call, yield_, node = genrpc.async_call, genrpc.yield_, self._nodes[0]
        keys = [async_call(node, "operator", "add", [2, 3]) for _ in range(count)]
        return [yield_(key) for key in keys]

    def cast(self, count: int) -> None:
        import genrpc

        cast, node = genrpc.cast, self._nodes[0]
        for _ in range(count):
            cast(node, "benchmarks.functions", "tally")

    def multicaller(self) -> Callable[[], list[Any]]:
        import genrpc

        nodes = self._nodes

        def call() -> list[Any]:
            results, bad_nodes = genrpc.multicall(nodes, "operator", "add", [2, 3])
            return [*results, *bad_nodes]

        return call

    def thread_names(self, number: int) -> dict[int, str]:
        import genrpc

        found: dict[int, str] = genrpc.call(self._nodes[number], "benchmarks.threads", "names")
        return found

    def close(self) -> None:
        import genrpc

        genrpc.stop(0)


class GenrpcPeer(Peer):
    """Each server is a node server0@127.0.0.1, server1@…, with a cookie for this measurement."""

    name = "genrpc"
    title = "genrpc"
    modules = ("genrpc", "grpc")
    package = "genrpc"
    scenarios = ALL

    def environment(self, folder: Path) -> dict[str, str]:
        return {"GENRPC_COOKIE": secrets.token_hex(32)}

    def server_command(self, scenario: str, number: int) -> list[str]:
        name = f"server{number}@127.0.0.1"
        return [sys.executable, "-m", "genrpc", "serve", "--json", "--name", name, "--port", "0"]

    def client_environment(self, servers: Sequence[Ready]) -> dict[str, str]:
        ports = {server["node"]: server["port"] for server in servers}
        return {"GENRPC_REMOTE_TCP_SERVER_PORTS": json.dumps(ports)}

    def connect(self, servers: Sequence[Ready]) -> Client:
        return GenrpcClient(servers)


PEER = GenrpcPeer()
