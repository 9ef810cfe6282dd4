"""A server of grpcio's with nothing of ours in it: how much memory gRPC alone keeps of strangers.

gRPC 1.83.2 keeps some 90 bytes for each connection on which there was a call, in servers of both
kinds, and more for hellos of TLS: over two million conversations that is more than a node may grow.
As a script it serves methods of the names of ours, prints its port, and ends with its standard
input; its arguments are the files of a certificate, its key, and the authority, if any.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from waiting import SECONDS

CALL = "/genrpc.v1.NodeService/Call"
CONNECT = "/genrpc.v1.NodeService/Connect"
HEALTH = "/grpc.health.v1.Health/Check"


class PlainServer:
    """The process."""

    def __init__(self, files: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdout is not None
        self.address = ("127.0.0.1", int(self._process.stdout.readline()))
        self._seen = psutil.Process(self._process.pid)

    def memory(self) -> int:
        """Bytes of the process that lie in memory."""
        return self._seen.memory_info().rss

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(SECONDS) == 0
        finally:
            self._process.kill()


@contextmanager
def plain_server(
    certfile: str = "", keyfile: str = "", cacertfile: str = ""
) -> Iterator[PlainServer]:
    """Run one for as long as the block takes."""
    server = PlainServer([certfile, keyfile, cacertfile] if certfile else [])
    try:
        yield server
    finally:
        server.stop()


class Methods(grpc.GenericRpcHandler):
    """One of each kind that a node has."""

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        if details.method == CONNECT:
            return grpc.stream_stream_rpc_method_handler(self._connect)
        if details.method in (CALL, HEALTH):
            return grpc.unary_unary_rpc_method_handler(self._call)
        return None

    async def _connect(self, _: object, context: Any) -> None:
        if await context.read() is not grpc.aio.EOF:
            await context.write(bytes(100))

    async def _call(self, _: bytes, context: object) -> bytes:
        return b""


async def serve(files: list[str]) -> None:
    """Be the process."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Methods(),))
    if files:
        certificate, key, authority = (Path(each).read_bytes() for each in files)
        credentials = grpc.ssl_server_credentials([(key, certificate)], authority, True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
