"""The raising door: every function returns the value, or raises a CallError.

This is the one in which the functions are written and documented; `genrpc.rpc` gives their
failures as values, `genrpc.aio` makes them awaitable. What holds for all:

- `dest` is "name@host", "name@host:port" or one of them with a key, `(dest, key)`; any hashable
  key gives a stream of its own.
- `module` is a name, or `(name, version)`, which runs only if `str(version)` is the module's
  `__version__` on the node. `function` is a name, or "Class.method".
- `timeout` is in seconds, connecting included; None is for ever, 0 over at once and nothing is
  sent; left out, it is the setting `receive_timeout` (async_call: None). `send_timeout` bounds the
  time in which the transport must accept the request.
- A mistake of the caller raises TypeError, ValueError or CodecError before anything is sent.
- `via` is the node that acts; see `genrpc.default`.

Any thread may call any of it, but for functions that were declared non-blocking.
Over 400 lines, most of them docstrings: it is the reference of all three doors.
"""

from __future__ import annotations

import functools
import queue
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, ParamSpec, TypeVar

from genrpc.calling import DEFAULT, encode
from genrpc.default import acting_node
from genrpc.errors import (
    BadArgumentsError,
    BadResultError,
    BadRPC,
    CallError,
    CallTimeoutError,
    DrainingError,
    ExpiredError,
    IncompatibleError,
    NotAllowedError,
    Ok,
    OverloadError,
    RemoteError,
    Throw,
    TooLargeError,
    TransportError,
    WorkerKilledError,
    error_of,
)
from genrpc.keys import Key, take
from genrpc.local_node import Node
from genrpc.names import check_timeout, parse_destination
from genrpc.protocol.pending import BLOCK_CALL, CAST, ORDERED_CAST, Call

__all__ = [
    "BadArgumentsError",
    "BadResultError",
    "CallError",
    "CallTimeoutError",
    "DrainingError",
    "ExpiredError",
    "IncompatibleError",
    "Key",
    "NotAllowedError",
    "Ok",
    "OverloadError",
    "RemoteError",
    "RequestCollection",
    "TooLargeError",
    "TransportError",
    "WorkerKilledError",
    "abcast",
    "apply",
    "async_call",
    "block_call",
    "call",
    "cast",
    "check_response",
    "eval_everywhere",
    "multicall",
    "multicast",
    "ordered_cast",
    "parallel_eval",
    "pmap",
    "receive_response",
    "register",
    "run",
    "sbcast",
    "send_request",
    "unregister",
    "wait_response",
    "whereis",
]

P = ParamSpec("P")
R = TypeVar("R")

Dest = str | tuple[str, Hashable]
Module = str | tuple[str, object]
Args = Sequence[object]
Kwargs = Mapping[str, object]
Timeout = float | None
Outcome = Ok[Any] | CallError

_MISSING = ("builtins.ModuleNotFoundError", "builtins.ImportError", "builtins.AttributeError")


# ---------------------------------------------------------------- one call


def call(
    dest: Dest,
    module: Module,
    function: str,
    args: Args = (),
    timeout: Timeout = DEFAULT,
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> Any:  # noqa: ANN401  # whatever the function returns
    """Run a function on a node and return its result.

    Raises a CallError for whatever went wrong, RemoteError with the original exception as its
    `__cause__` if the function raised, Throw if it raised Throw. Nothing is retried.
    """
    return acting_node(via).call(
        dest, module, function, args, timeout, kwargs=kwargs, send_timeout=send_timeout
    )


def cast(
    dest: Dest,
    module: Module,
    function: str,
    args: Args = (),
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> bool:
    """Run a function on a node and return True at once; its result and its failures are lost.

    A cast that cannot be delivered is logged and counted (`casts_failed`).
    """
    acting_node(via).send(
        dest, module, function, args, kwargs=kwargs, send_timeout=send_timeout, kind=CAST
    )
    return True


def ordered_cast(
    dest: tuple[str, Hashable],
    module: Module,
    function: str,
    args: Args = (),
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> bool:
    """Cast so that it runs when the last ordered cast to the same (dest, key) has ended.

    A slow one delays later ordered casts of its key only, never calls.
    """
    if not isinstance(dest, tuple):
        raise TypeError(f"an ordered cast goes to (dest, key), not {dest!r:.100}")
    acting_node(via).send(
        dest, module, function, args, kwargs=kwargs, send_timeout=send_timeout, kind=ORDERED_CAST
    )
    return True


def async_call(
    dest: Dest,
    module: Module,
    function: str,
    args: Args = (),
    timeout: Timeout = None,
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> Key:
    """Call, and return a key at once: a future whose `result()` is the value or raises."""
    return acting_node(via).promise(
        dest, module, function, args, timeout, kwargs=kwargs, send_timeout=send_timeout
    )


def block_call(
    dest: Dest,
    module: Module,
    function: str,
    args: Args = (),
    timeout: Timeout = DEFAULT,
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> Any:  # noqa: ANN401  # whatever the function returns
    """As `call`, but one at a time on the node with all other block calls, whoever calls."""
    return acting_node(via).call(
        dest,
        module,
        function,
        args,
        timeout,
        kwargs=kwargs,
        send_timeout=send_timeout,
        kind=BLOCK_CALL,
    )


def run(dest: Dest, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a callable on a node: by name where it can be imported there, else by value.

    Lambdas, closures, functions of `__main__` and of modules that the node does not have are sent
    by value, with the globals that they use; that goes by `genrpc.apply`, which the node's policy
    must allow.
    """
    for target in ways_to_run(function, args, kwargs):
        try:
            return acting_node().call(dest, **target)  # type: ignore[no-any-return]
        except RemoteError as exc:
            if not is_missing(exc) or target["module"] == "genrpc":
                raise
    raise AssertionError("the last way to run a function returns or raises")


def ways_to_run(function: object, args: Args, kwargs: Kwargs) -> Iterator[dict[str, Any]]:
    """The calls by which a callable may be run, the better one first."""
    if not callable(function):
        raise TypeError(f"run wants a callable, not {function!r:.100}")
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "")
    if module and module != "__main__" and _is_importable(module, name, function):
        yield {"module": module, "function": name, "args": args, "kwargs": kwargs}
    yield {
        "module": "genrpc",
        "function": "apply",
        "args": [function, args, kwargs],
        "by_value": frozenset((module,)) if module else frozenset(),
    }


def is_missing(exc: CallError) -> bool:
    """Whether a call failed because the node does not have the module or the function."""
    return (
        isinstance(exc, RemoteError)
        and exc.execution == "not_started"
        and exc.exit.type in _MISSING
    )


def _is_importable(module: str, name: str, function: object) -> bool:
    """Whether `module:name` is the function, and a target can say so."""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is function and name.count(".") <= 1


def apply(function: Callable[..., R], args: Args = (), kwargs: Kwargs | None = None) -> R:
    """Call a function: a target for closures, as in `call(dest, "genrpc", "apply", [f, args])`."""
    return function(*args, **(kwargs or {}))


# ---------------------------------------------------------------- requests and responses


def send_request(
    dest: Dest,
    module: Module,
    function: str,
    args: Args = (),
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> Key:
    """Send a request; its response is taken by one of the functions below."""
    return async_call(
        dest, module, function, args, kwargs=kwargs, send_timeout=send_timeout, via=via
    )


def receive_response(request: Key, timeout: Timeout = None) -> Any:  # noqa: ANN401
    """The value of a request, once: a second time raises ValueError.

    No response within `timeout` seconds: the request is abandoned for good, CallTimeoutError.
    """
    _check_open(request)
    arrived = request.wait(check_timeout(timeout))
    request.is_received = True
    if not arrived:
        request.cancel()
        raise error_of(BadRPC("timeout", message="No response came in time: it is abandoned."))
    return request.result()


def wait_response(request: Key, timeout: Timeout = 0) -> tuple[str, Any] | str:
    """("response", value), or "no_response" within `timeout` seconds, which loses nothing.

    Raises the CallError of a request that failed.
    """
    _check_open(request)
    arrived = request.wait(check_timeout(timeout))
    return ("response", request.result()) if arrived else "no_response"


def check_response(request: Key) -> tuple[str, Any] | str:
    """Look, and do not wait: as `wait_response` with a timeout of 0."""
    return wait_response(request, 0)


def _check_open(request: Key) -> None:
    if not isinstance(request, Key):
        raise TypeError(f"a request is what send_request returned, not {request!r:.100}")
    if request.is_received:
        raise ValueError("the response of this request was received, or given up, already")


class RequestCollection:
    """Requests whose responses are taken in the order in which they come."""

    def __init__(self) -> None:
        self._labels: dict[Key, Hashable] = {}
        self._done: queue.SimpleQueue[Key] = queue.SimpleQueue()

    def add(self, request: Key, label: Hashable) -> None:
        """Add a request; `label` comes back with its response."""
        _check_open(request)
        self._labels[request] = label
        request.when_done(self._done.put)

    def __len__(self) -> int:
        """How many responses are to come."""
        return len(self._labels)

    def receive(self, timeout: Timeout = None) -> tuple[Any, Hashable] | str:
        """(value or error, label) of the next response; "no_request" if there is none to come.

        None within `timeout` seconds: all requests are abandoned, CallTimeoutError.
        """
        found = self._next(timeout)
        if found is None:
            abandoned, self._labels = self._labels, {}
            for request in abandoned:
                request.is_received = True
                request.cancel()
            raise error_of(BadRPC("timeout", message="No response came in time: all abandoned."))
        return found

    def wait(self, timeout: Timeout = None) -> tuple[Any, Hashable] | str:
        """As `receive`, but "no_response" when none came in time, and all are kept."""
        return self._next(timeout) or "no_response"

    def _next(self, timeout: Timeout) -> tuple[Any, Hashable] | str | None:
        seconds = check_timeout(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._labels:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                request = self._done.get(timeout=left)
            except queue.Empty:
                return None
            if request in self._labels:
                label = self._labels.pop(request)
                request.is_received = True
                return outcome_of(request.result, lambda value: value), label
        return "no_request"


def outcome_of(result: Callable[[], Any], wrap: Callable[[Any], Any] = Ok) -> Any:  # noqa: ANN401
    """What `result` gives, or the error that it raises, as a value."""
    try:
        return wrap(result())
    except Throw as thrown:
        return wrap(thrown.value)
    except (CallError, CancelledError) as exc:
        return exc


# ---------------------------------------------------------------- many nodes


def spread(
    positional: tuple[Any, ...], nodes: Iterable[Dest] | None, names: Sequence[str], node: Node
) -> tuple[list[Dest], list[Any]]:
    """Tell a list of nodes that comes first from what comes after it; both, checked.

    A list is one of nodes; a tuple too, unless it can only be (module, version). Without any:
    this node and its peers.
    """
    rest = list(positional)
    if nodes is None and rest and not isinstance(rest[0], str) and not _is_versioned(rest):
        nodes = rest.pop(0)
    if len(rest) > len(names):
        raise TypeError(f"too many arguments: {', '.join(names)} are wanted after the nodes")
    if nodes is None:
        return [node.name, *node.nodes()], rest
    if isinstance(nodes, str) or not isinstance(nodes, Iterable):
        raise TypeError(f"nodes is a list of destinations, not {nodes!r:.100}")
    found = list(nodes)
    for dest in found:
        parse_destination(dest)
    return found, rest


def _is_versioned(rest: list[Any]) -> bool:
    first = rest[0]
    if not isinstance(first, tuple) or len(first) != 2 or not isinstance(first[0], str):
        return False
    return len(rest) < 3 or not isinstance(rest[2], str)


def _target(rest: list[Any], named: Mapping[str, Any]) -> list[Any]:
    """Module, function, args and timeout from what came by position and by name."""
    values = []
    for number, (name, default) in enumerate(_TARGET.items()):
        if number < len(rest):
            if named[name] is not _UNSET:
                raise TypeError(f"{name} was given twice")
            values.append(rest[number])
        elif named[name] is not _UNSET:
            values.append(named[name])
        elif default is _UNSET:
            raise TypeError(f"{name} is missing")
        else:
            values.append(default)
    return values


class _Unset:
    """The type of the mark of an argument that was not given."""

    def __repr__(self) -> str:
        return "…"


_UNSET: Any = _Unset()
_TARGET: dict[str, Any] = {"module": _UNSET, "function": _UNSET, "args": (), "timeout": DEFAULT}


def multicall(
    *nodes_and_target: Any,  # noqa: ANN401  # see the docstring
    nodes: Iterable[Dest] | None = None,
    module: Module = _UNSET,
    function: str = _UNSET,
    args: Args = _UNSET,
    timeout: Timeout = _UNSET,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> list[Outcome]:
    """`multicall([nodes,] module, function, args, timeout)`: one outcome for each node.

    The list of nodes may be left out, which means this node and its peers, or be given as
    `nodes=`. Returns, aligned with the nodes, `Ok(value)` or the CallError, never mixed up with
    a value. All nodes run it at once, under one deadline.
    """
    node = acting_node(via)
    dests, rest = spread(nodes_and_target, nodes, list(_TARGET), node)
    named = {"module": module, "function": function, "args": args, "timeout": timeout}
    module, function, args, timeout = _target(rest, named)
    calls = node.call_all(
        dests, module, function, args, timeout, kwargs=kwargs, send_timeout=send_timeout
    )
    return _outcomes(calls, node)


def _outcomes(calls: Sequence[Call], node: Node) -> list[Outcome]:
    return [outcome_of(functools.partial(take, call, node.unpickle)) for call in calls]


def collected(keys: Sequence[Key], take: Callable[[Key], R]) -> list[R]:
    """What `take` makes of each key; if it raises, nobody wants the rest."""
    try:
        return [take(key) for key in keys]
    except BaseException:  # Ctrl-C too
        for key in keys:
            key.cancel()
        raise


def promises(
    node: Node,
    dests: Sequence[Dest],
    module: Module,
    function: str,
    args: Args,
    timeout: Timeout,
    kwargs: Kwargs | None,
    send_timeout: Timeout,
) -> list[Key]:
    """Call several nodes at once; the arguments are encoded once."""
    encoded = encode(args, kwargs, snapshot=True)
    return [
        node.promise(
            dest, module, function, args, timeout, send_timeout=send_timeout, encoded=encoded
        )
        for dest in dests
    ]


def eval_everywhere(
    *nodes_and_target: Any,  # noqa: ANN401  # see the docstring
    nodes: Iterable[Dest] | None = None,
    module: Module = _UNSET,
    function: str = _UNSET,
    args: Args = _UNSET,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> str:
    """`eval_everywhere([nodes,] module, function, args)`: cast to all; "abcast", at once."""
    node = acting_node(via)
    dests, rest = spread(nodes_and_target, nodes, list(_TARGET)[:3], node)
    named = {"module": module, "function": function, "args": args, "timeout": _UNSET}
    module, function, args, _ = _target(rest, named)
    for dest in dests:
        node.send(dest, module, function, args, kwargs=kwargs, send_timeout=send_timeout, kind=CAST)
    return "abcast"


def multicast(
    nodes: Iterable[Dest],
    module: Module,
    function: str,
    args: Args = (),
    *,
    kwargs: Kwargs | None = None,
    via: Node | None = None,
) -> None:
    """Cast to all nodes; as OTP's erpc:multicast, it returns nothing."""
    eval_everywhere(list(nodes), module, function, args, kwargs=kwargs, via=via)


def parallel_eval(
    calls: Iterable[tuple[Module, str, Args]], *, via: Node | None = None
) -> list[Any]:
    """Results of `[(module, function, args), …]` in order, spread over this node and its peers.

    Raises the first failure, in order. (The module-level door has failures inline.)
    """
    return collected(spread_calls(calls, via), Key.result)


def spread_calls(calls: Iterable[tuple[Module, str, Args]], via: Node | None) -> list[Key]:
    """Begin each call on the next node, in turn."""
    node = acting_node(via)
    dests = [node.name, *node.nodes()]
    return [
        node.promise(dests[number % len(dests)], *one, DEFAULT)
        for number, one in enumerate(checked_calls(calls))
    ]


def checked_calls(calls: Iterable[tuple[Module, str, Args]]) -> list[tuple[Module, str, Args]]:
    """Check that calls are triples."""
    listed = list(calls)
    for one in listed:
        if not isinstance(one, tuple) or len(one) != 3:
            raise TypeError(f"a call is (module, function, args), not {one!r:.100}")
    return listed


def pmap(
    target: tuple[Module, str],
    extra_args: Args,
    items: Iterable[object],
    *,
    via: Node | None = None,
) -> list[Any]:
    """`[function(item, *extra_args) …]` in order, spread over the nodes; any failure raises."""
    module, function = pair(target)
    keys = spread_calls([(module, function, [item, *extra_args]) for item in items], via)
    return collected(keys, Key.result)


def pair(target: tuple[Module, str]) -> tuple[Module, str]:
    """Check pmap's (module, function)."""
    if not isinstance(target, tuple) or len(target) != 2:
        raise TypeError(f"pmap wants (module, function), not {target!r:.100}")
    return target


# ---------------------------------------------------------------- named handlers


def abcast(
    *nodes_and_message: Any,  # noqa: ANN401  # see the docstring
    nodes: Iterable[Dest] | None = None,
    via: Node | None = None,
) -> str:
    """`abcast([nodes,] name, message)`: hand a message to what is registered under a name.

    "abcast", at once; nodes where nothing is registered, or that are not there, are none the wiser.
    """
    node = acting_node(via)
    dests, message = addressed(nodes_and_message, nodes, node)
    for dest in dests:
        node.send(dest, "genrpc", "deliver", message, kind=CAST)
    return "abcast"


def sbcast(
    *nodes_and_message: Any,  # noqa: ANN401  # see the docstring
    nodes: Iterable[Dest] | None = None,
    via: Node | None = None,
) -> tuple[list[Dest], list[Dest]]:
    """`sbcast([nodes,] name, message)`: as abcast, and wait to hear where it arrived.

    Returns (good, bad): the nodes where the name is registered, and the rest, as they were given.
    It waits for `receive_timeout` seconds, once for all.
    """
    node = acting_node(via)
    dests, message = addressed(nodes_and_message, nodes, node)
    calls = node.call_all(dests, "genrpc", "deliver", message)
    return parted(dests, _outcomes(calls, node))


def addressed(
    positional: tuple[Any, ...], nodes: Iterable[Dest] | None, node: Node
) -> tuple[list[Dest], list[Any]]:
    """Nodes, and [name, message], of abcast and sbcast."""
    rest = list(positional)
    if nodes is None and len(rest) == 3:
        nodes = rest.pop(0)
    if len(rest) != 2 or not isinstance(rest[0], str):
        raise TypeError("a name and a message are wanted after the nodes")
    return spread((), nodes, (), node)[0], rest


def parted(dests: list[Dest], outcomes: Sequence[Outcome]) -> tuple[list[Dest], list[Dest]]:
    """The nodes that said yes, and the rest."""
    good = [dest for dest, outcome in zip(dests, outcomes, strict=True) if outcome == Ok(True)]
    bad = [dest for dest, outcome in zip(dests, outcomes, strict=True) if outcome != Ok(True)]
    return good, bad


def register(name: str, handler: object, *, via: Node | None = None) -> None:
    """Let `handler` get the messages that abcast and sbcast send to `name` on this node.

    It is a callable, a queue.Queue, or an asyncio.Queue (registered from within its event loop).
    """
    acting_node(via).handlers.register(name, handler)


def unregister(name: str, *, via: Node | None = None) -> None:
    """Take a name back."""
    acting_node(via).handlers.unregister(name)


def whereis(name: str, *, via: Node | None = None) -> object:
    """The handler registered under a name, or None."""
    return acting_node(via).handlers.whereis(name)
