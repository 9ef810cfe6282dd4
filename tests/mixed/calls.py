"""Calls a node in every way there is, and prints what came of it as JSON.

Run by the Python of the caller, with the node's name:port; see test_mixed.py.
"""

import asyncio
import json
import sys

import google.protobuf
import grpc

import genrpc


def attempts(node: str) -> dict[str, object]:
    """All ways, by name."""
    large = bytes(range(256)) * 20_000  # 5 MB: chunks and credit, both ways
    key = genrpc.async_call(node, "operator", "add", [1, 2])
    failure = genrpc.call(node, "operator", "truediv", [1, 0])
    return {
        "call": genrpc.call(node, "math", "factorial", [20]),
        "keywords": genrpc.call(node, "builtins", "sorted", [[1, 3, 2]], kwargs={"reverse": True}),
        "async_call": genrpc.yield_(key),
        "large": genrpc.call(node, "copy", "deepcopy", [large]) == large,
        "raised": type(failure).__name__ + " " + failure.reason.type,
        "missing": genrpc.call(node, "no_such_module", "f").reason.type,
        "timeout": genrpc.call(node, "time", "sleep", [5], timeout=0.2).reason,
        "multicall": genrpc.multicall([node, node], "operator", "neg", [1]),
        "awaited": asyncio.run(genrpc.aio.call(node, "math", "sqrt", [16])),
        "cast": genrpc.cast(node, "math", "sqrt", [1]),
        "versions": genrpc.call(node, "importlib.metadata", "version", ["grpcio"]),
    }


if __name__ == "__main__":
    told = attempts(sys.argv[1])
    told["own versions"] = [grpc.__version__, google.protobuf.__version__]
    print(json.dumps(told))
