"""genrpc: call a Python function on another machine. gen_rpc (Erlang) for Python, over gRPC.

    import genrpc
    genrpc.call("worker@10.0.0.7", "math", "factorial", [5])

Three doors to one implementation: the functions of this module return failures as values
(`BadRPC`, `BadTCP`), those of `genrpc.erpc` raise them, those of `genrpc.aio` are awaited.

Everything is imported at its first use: `import genrpc` does not wait for gRPC.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from genrpc import aio as aio
    from genrpc import erpc as erpc
    from genrpc import testing as testing
    from genrpc.default import start as start
    from genrpc.default import stop as stop
    from genrpc.errors import BadArgumentsError as BadArgumentsError
    from genrpc.errors import BadResultError as BadResultError
    from genrpc.errors import BadRPC as BadRPC
    from genrpc.errors import BadTCP as BadTCP
    from genrpc.errors import CallError as CallError
    from genrpc.errors import CallTimeoutError as CallTimeoutError
    from genrpc.errors import CodecError as CodecError
    from genrpc.errors import ConfigurationError as ConfigurationError
    from genrpc.errors import DrainingError as DrainingError
    from genrpc.errors import ExpiredError as ExpiredError
    from genrpc.errors import IncompatibleError as IncompatibleError
    from genrpc.errors import NotAllowedError as NotAllowedError
    from genrpc.errors import Ok as Ok
    from genrpc.errors import OverloadError as OverloadError
    from genrpc.errors import RemoteError as RemoteError
    from genrpc.errors import RemoteExit as RemoteExit
    from genrpc.errors import Throw as Throw
    from genrpc.errors import TooLargeError as TooLargeError
    from genrpc.errors import TransportError as TransportError
    from genrpc.errors import UnsafeConfigurationError as UnsafeConfigurationError
    from genrpc.errors import WorkerKilledError as WorkerKilledError
    from genrpc.keys import Key as Key
    from genrpc.local_node import Node as Node
    from genrpc.neutral import Atom as Atom
    from genrpc.rpc import abcast as abcast
    from genrpc.rpc import apply as apply
    from genrpc.rpc import async_call as async_call
    from genrpc.rpc import block_call as block_call
    from genrpc.rpc import call as call
    from genrpc.rpc import cast as cast
    from genrpc.rpc import eval_everywhere as eval_everywhere
    from genrpc.rpc import multicall as multicall
    from genrpc.rpc import nb_yield as nb_yield
    from genrpc.rpc import ordered_cast as ordered_cast
    from genrpc.rpc import parallel_eval as parallel_eval
    from genrpc.rpc import pmap as pmap
    from genrpc.rpc import register as register
    from genrpc.rpc import sbcast as sbcast
    from genrpc.rpc import unregister as unregister
    from genrpc.rpc import whereis as whereis
    from genrpc.rpc import yield_ as yield_
    from genrpc.settings import Settings as Settings

F = TypeVar("F", bound=Callable[..., Any])

_MODULES = ("aio", "erpc", "testing")

_HOMES = {
    "default": ("start", "stop"),
    "errors": (
        "BadArgumentsError",
        "BadRPC",
        "BadResultError",
        "BadTCP",
        "CallError",
        "CallTimeoutError",
        "CodecError",
        "ConfigurationError",
        "DrainingError",
        "ExpiredError",
        "IncompatibleError",
        "NotAllowedError",
        "Ok",
        "OverloadError",
        "RemoteError",
        "RemoteExit",
        "Throw",
        "TooLargeError",
        "TransportError",
        "UnsafeConfigurationError",
        "WorkerKilledError",
    ),
    "keys": ("Key",),
    "local_node": ("Node",),
    "neutral": ("Atom",),
    "rpc": (
        "abcast",
        "apply",
        "async_call",
        "block_call",
        "call",
        "cast",
        "eval_everywhere",
        "multicall",
        "nb_yield",
        "ordered_cast",
        "parallel_eval",
        "pmap",
        "register",
        "sbcast",
        "unregister",
        "whereis",
        "yield_",
    ),
    "settings": ("Settings",),
}

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    *sorted((*_HOME_OF, *_MODULES)),
    "cancelled",
    "deliver",
    "node",
    "nodes",
    "nonblocking",
    "ping",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    """Import what is asked for at its first use."""
    if name in _MODULES:
        return importlib.import_module(f"genrpc.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'genrpc' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"genrpc.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def node() -> str:
    """The name of this process's node; inside a called function, that of the node that runs it."""
    from genrpc.default import acting_node

    return acting_node().name


def nodes(*, via: Node | None = None) -> list[str]:
    """The peers with an open stream, sorted, each once, without this node."""
    from genrpc.default import acting_node

    return acting_node(via).nodes()


def cancelled() -> bool:
    """Inside a called function: whether its caller no longer waits for it."""
    from genrpc.executor import current

    running = current.get()
    return running is not None and running.call.cancelled


def ping() -> str:
    """Answer "pong": a target that every node's policy allows."""
    return "pong"


def deliver(name: str, message: object) -> bool:
    """Hand a message to what is registered under `name`: the target of abcast and sbcast.

    Returns whether anything is registered there.
    """
    from genrpc.default import acting_node

    return acting_node().handlers.deliver(name, message)


def nonblocking(function: F) -> F:
    """Promise that a function returns at once, so that no worker is needed to run it.

    It then runs on the thread that serves all streams. One that takes longer than 5 ms is logged
    and runs on a worker from then on; a blocking genrpc call in it raises at once.
    """
    function.__genrpc_nonblocking__ = True  # type: ignore[attr-defined]  # as executors look for it
    return function
