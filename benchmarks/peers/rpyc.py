"""RPyC: a threaded server, and one connection for all callers of the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.functions import FUNCTIONS
from benchmarks.peers import Call, Client, Peer, Ready, scenarios

CONFIG = {"sync_request_timeout": 60}


class RpycClient(Client):
    """Arrays would go as references, so their bytes are sent."""

    carries_arrays = False

    def __init__(self, servers: Sequence[Ready]) -> None:
        import rpyc

        super().__init__(servers)
        self._connections = [
            rpyc.connect("127.0.0.1", server["port"], config=CONFIG) for server in servers
        ]

    def caller(self, function: str) -> Call:
        found: Call = getattr(self._connections[0].root, function)
        return found

    def pipeline(self, count: int) -> list[Any]:
        import rpyc

        add = rpyc.async_(self._connections[0].root.add)
        waiting = [add(2, 3) for _ in range(count)]
        return [result.value for result in waiting]

    def multicaller(self) -> Callable[[], list[Any]]:
        import rpyc

        adders = [rpyc.async_(connection.root.add) for connection in self._connections]

        def call() -> list[Any]:
            waiting = [add(2, 3) for add in adders]
            return [result.value for result in waiting]

        return call


class RpycPeer(Peer):
    """Its server has a thread for each connection."""

    name = "rpyc"
    title = "RPyC"
    modules = ("rpyc",)
    package = "rpyc"
    scenarios = scenarios("S1 C64 A P500K P500K-echo P10M P10M-array HOL CPU20 MC8 MEM")

    def serve(self, scenario: str, announce: Callable[..., None]) -> None:
        import rpyc
        from rpyc.utils.server import ThreadedServer

        methods = {
            f"exposed_{name}": staticmethod(function) for name, function in FUNCTIONS.items()
        }
        service = type("Functions", (rpyc.Service,), methods)
        server = ThreadedServer(service, "127.0.0.1", port=0, protocol_config=CONFIG)
        announce(port=server.port)
        server.start()

    def connect(self, servers: Sequence[Ready]) -> Client:
        return RpycClient(servers)


PEER = RpycPeer()
