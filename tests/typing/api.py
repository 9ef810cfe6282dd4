"""What type checkers are to know of the public functions; checked by mypy, never run."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

from typing_extensions import assert_type

import genrpc
from genrpc import aio, erpc, testing


def greet(name: str, *, times: int = 1) -> str:
    return name * times


def values() -> None:
    assert_type(genrpc.node(), str)
    assert_type(genrpc.nodes(), list[str])
    assert_type(genrpc.call("b", "math", "sqrt", [4], 5.0), Any)
    assert_type(genrpc.call(("b", 7), ("math", "1"), "sqrt", (4,), None, kwargs={"x": 1}), Any)
    assert_type(genrpc.cast("b", "math", "sqrt", [4]), bool)
    assert_type(genrpc.ordered_cast(("b", "key"), "math", "sqrt", [4]), bool)
    key = genrpc.async_call("b", "math", "sqrt", [4])
    assert_type(key, genrpc.Key)
    assert_type(key.result(), Any)
    assert_type(genrpc.nb_yield(key, 1), tuple[str, Any] | str)
    results, bad_nodes = genrpc.multicall(["b", ("c", 1)], "math", "sqrt", [4])
    assert_type(results, list[Any])
    assert_type(bad_nodes, list[str | tuple[str, Hashable]])


def failures(outcome: object) -> str:
    match outcome:
        case genrpc.BadTCP(reason):
            assert_type(reason, str)
            return reason
        case genrpc.BadRPC(genrpc.RemoteExit(kind, message)):
            assert_type(kind, str)
            return message
        case genrpc.BadRPC(execution="not_started"):
            return "again"
    return "done"


def raising() -> None:
    assert_type(erpc.run("b", greet, "Ann", times=2), str)
    assert_type(genrpc.erpc.run("b", lambda: 5), int)
    erpc.run("b", greet, 5)  # type: ignore[arg-type]  # a name is a text
    erpc.run("b", greet, "Ann", often=2)  # type: ignore[call-arg]  # there is no such keyword
    for outcome in erpc.multicall(["b"], "math", "sqrt", [4]):
        if isinstance(outcome, erpc.Ok):
            assert_type(outcome.value, Any)
        else:
            assert_type(outcome, genrpc.CallError)
    try:
        erpc.call("b", "math", "sqrt", [4])
    except genrpc.RemoteError as error:
        assert_type(error.exit, genrpc.RemoteExit)
    except genrpc.TransportError as error:
        assert_type(error.reason, str)


async def awaiting() -> None:
    assert_type(await aio.run("b", greet, "Ann"), str)
    assert_type(await aio.call("b", "math", "sqrt", [4]), Any)
    assert_type(await aio.async_call("b", "math", "sqrt", [4]), asyncio.Task[Any])


@genrpc.nonblocking
def quick(number: int) -> int:
    return number


def nodes() -> None:
    assert_type(quick(1), int)
    with genrpc.start("a", receive_timeout=5) as node:
        assert_type(node, genrpc.Node)
        assert_type(node.port, int | None)
        assert_type(node.statistics(), dict[str, int])
    with testing.cluster(2) as cluster:
        assert_type(cluster.names, list[str])
    with testing.pair() as (a, b):
        genrpc.call(b.name, "genrpc", "node", via=a)
    assert_type(genrpc.Settings(max_calls=5).max_calls, int)
