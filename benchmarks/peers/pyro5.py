"""Pyro5, with its quickest serialiser (marshal): each caller has a connection of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.functions import FUNCTIONS
from benchmarks.peers import Call, Client, Peer, Ready, scenarios

OBJECT = "functions"


class PyroClient(Client):
    """A proxy belongs to the thread that made it. marshal knows no arrays."""

    carries_arrays = False

    def caller(self, function: str) -> Call:
        import Pyro5.api

        Pyro5.api.config.SERIALIZER = "marshal"
        proxy = Pyro5.api.Proxy(f"PYRO:{OBJECT}@127.0.0.1:{self.servers[0]['port']}")
        found: Call = getattr(proxy, function)
        return found


class PyroPeer(Peer):
    """Its server has a thread for each connection."""

    name = "pyro5"
    title = "Pyro5"
    modules = ("Pyro5",)
    package = "Pyro5"
    scenarios = scenarios("S1 C64 P500K P500K-echo P10M P10M-array HOL CPU20 MEM")
    connection = "one a caller"

    def serve(self, scenario: str, announce: Callable[..., None]) -> None:
        import Pyro5.api

        Pyro5.api.config.SERIALIZER = "marshal"
        Pyro5.api.config.SERVERTYPE = "thread"
        Pyro5.api.config.THREADPOOL_SIZE = 200
        daemon = Pyro5.api.Daemon("127.0.0.1", 0)
        # Functions in C can be no methods: they would not get the object passed.
        methods = {name: _method(function) for name, function in FUNCTIONS.items()}
        exposed = Pyro5.api.expose(type("Functions", (), methods))
        daemon.register(exposed(), OBJECT)
        announce(port=int(daemon.locationStr.rpartition(":")[2]))
        daemon.requestLoop()

    def connect(self, servers: Sequence[Ready]) -> Client:
        return PyroClient(servers)


def _method(function: Callable[..., object]) -> Callable[..., object]:
    def method(self: object, *args: object) -> object:
        return function(*args)

    return method


PEER = PyroPeer()
