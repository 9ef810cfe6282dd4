"""thriftpy2 with its compiled protocol: each caller has a connection of its own."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.functions import FUNCTIONS
from benchmarks.peers import Call, Client, Peer, Ready, scenarios

INTERFACE = """
service Functions {
    i64 add(1: i64 a, 2: i64 b)
    i64 length(1: binary data)
    i64 length_of_floats(1: binary data)
    binary echo(1: binary data)
    i64 spin(1: double seconds)
    oneway void tally()
    i64 tallied()
}
"""


def _service() -> Any:
    import thriftpy2

    return thriftpy2.load_fp(io.StringIO(INTERFACE), "functions_thrift").Functions


class ThriftClient(Client):
    """Thrift has no arrays: their bytes are sent."""

    carries_arrays = False

    def _connection(self) -> Any:
        from thriftpy2.rpc import make_client

        port = self.servers[0]["port"]
        return make_client(_service(), "127.0.0.1", port, timeout=60_000)

    def caller(self, function: str) -> Call:
        found: Call = getattr(self._connection(), function)
        return found

    def cast(self, count: int) -> None:
        connection = self._connection()
        for _ in range(count):
            connection.tally()
        connection.close()


class ThriftPeer(Peer):
    """Its server has a thread for each connection."""

    name = "thriftpy2"
    title = "thriftpy2"
    modules = ("thriftpy2",)
    package = "thriftpy2"
    scenarios = scenarios("S1 C64 CAST P500K P500K-echo P10M P10M-array HOL CPU20 MEM")
    connection = "one a caller"

    def serve(self, scenario: str, announce: Callable[..., None]) -> None:
        from thriftpy2.protocol.cybin import TCyBinaryProtocolFactory
        from thriftpy2.server import TThreadedServer
        from thriftpy2.thrift import TProcessor
        from thriftpy2.transport import TCyBufferedTransportFactory, TServerSocket

        class Listener(TServerSocket):  # type: ignore[misc]  # it has no types
            def listen(self) -> None:
                super().listen()
                announce(port=self.sock.getsockname()[1])

        methods = {name: staticmethod(function) for name, function in FUNCTIONS.items()}
        TThreadedServer(
            TProcessor(_service(), type("Handler", (), methods)()),
            Listener("127.0.0.1", 0, client_timeout=0),
            iprot_factory=TCyBinaryProtocolFactory(),
            itrans_factory=TCyBufferedTransportFactory(),
        ).serve()

    def connect(self, servers: Sequence[Ready]) -> Client:
        return ThriftClient(servers)


PEER = ThriftPeer()
