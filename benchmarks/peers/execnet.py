"""execnet: it starts the server itself and talks to it by pipes; one gateway for all callers.

Each calling thread has a channel of that gateway, which a thread of the server reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers import Call, Client, Peer, Ready, scenarios

SERVER = """
from benchmarks.functions import FUNCTIONS
for function, args in channel:
    result = FUNCTIONS[function](*args)
    if function != "tally":
        channel.send(result)
"""


class ExecnetClient(Client):
    """execnet carries plain values only: of arrays, the bytes."""

    carries_arrays = False

    def __init__(self, count: int) -> None:
        import execnet

        super().__init__([])
        self._gateways = [execnet.makegateway("popen//execmodel=thread") for _ in range(count)]
        self._pids = [
            gateway.remote_exec("import os; channel.send(os.getpid())").receive()
            for gateway in self._gateways
        ]

    @property
    def server_pids(self) -> list[int]:
        return self._pids

    def caller(self, function: str) -> Call:
        channel = self._gateways[0].remote_exec(SERVER)

        def call(*args: object) -> Any:
            channel.send((function, args))
            return channel.receive()

        return call

    def pipeline(self, count: int) -> list[Any]:
        channel = self._gateways[0].remote_exec(SERVER)
        for _ in range(count):
            channel.send(("add", (2, 3)))
        results = [channel.receive() for _ in range(count)]
        channel.close()
        return results

    def cast(self, count: int) -> None:
        channel = self._gateways[0].remote_exec(SERVER)
        for _ in range(count):
            channel.send(("tally", ()))

    def multicaller(self) -> Callable[[], list[Any]]:
        channels = [gateway.remote_exec(SERVER) for gateway in self._gateways]

        def call() -> list[Any]:
            for channel in channels:
                channel.send(("add", (2, 3)))
            return [channel.receive() for channel in channels]

        return call


class ExecnetPeer(Peer):
    """The client process starts the server, so there is none before."""

    name = "execnet"
    title = "execnet (pipes)"
    modules = ("execnet",)
    package = "execnet"
    scenarios = scenarios("S1 C64 A CAST P500K P500K-echo P10M P10M-array HOL CPU20 MC8 MEM")
    separate_server = False

    def connect(self, servers: Sequence[Ready]) -> Client:
        return ExecnetClient(max(1, len(servers)))


PEER = ExecnetPeer()
