"""multiprocessing.managers: each calling thread has a connection, and a thread of the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.managers import BaseManager
from typing import Any

from benchmarks.functions import FUNCTIONS
from benchmarks.peers import Call, Client, Peer, Ready, scenarios

KEY = b"benchmarks"


class Functions:
    """The object behind the proxies."""


for _name, _function in FUNCTIONS.items():
    setattr(Functions, _name, staticmethod(_function))


class Manager(BaseManager):
    """Gives proxies of one Functions."""


class ManagersClient(Client):
    """One proxy; it connects once in each thread."""

    def __init__(self, servers: Sequence[Ready]) -> None:
        super().__init__(servers)
        Manager.register("functions")
        manager = Manager(("127.0.0.1", servers[0]["port"]), KEY)
        manager.connect()
        self._functions: Any = manager.functions()  # type: ignore[attr-defined]  # registered

    def caller(self, function: str) -> Call:
        found: Call = getattr(self._functions, function)
        return found


class ManagersPeer(Peer):
    """In the standard library, so it is always there."""

    name = "managers"
    title = "multiprocessing managers"
    scenarios = scenarios("S1 C64 P500K P500K-echo P10M P10M-array HOL CPU20 MEM")
    connection = "one a caller"

    def serve(self, scenario: str, announce: Callable[..., None]) -> None:
        functions = Functions()
        Manager.register("functions", lambda: functions, exposed=list(FUNCTIONS))
        server = Manager(("127.0.0.1", 0), KEY).get_server()
        assert isinstance(server.address, tuple)
        announce(port=server.address[1])
        server.serve_forever()

    def connect(self, servers: Sequence[Ready]) -> Client:
        return ManagersClient(servers)


PEER = ManagersPeer()
