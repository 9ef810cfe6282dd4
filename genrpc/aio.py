"""The awaitable door: the functions of `genrpc.erpc`, to be awaited; failures raise.

Cancelling a task that awaits a call cancels the call. Any event loop of the process may be used,
several at once too: the streams do not live in it. Arguments and returns are those of
`genrpc.erpc`, where they are documented.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ParamSpec, TypeVar

from genrpc import erpc
from genrpc.calling import DEFAULT
from genrpc.default import acting_node
from genrpc.erpc import _TARGET, _UNSET, Args, Dest, Kwargs, Module, Outcome, Timeout, _target
from genrpc.errors import CallError, CodecError, Ok, Throw
from genrpc.local_node import Node
from genrpc.protocol.pending import BLOCK_CALL

P = ParamSpec("P")
R = TypeVar("R")

_MISTAKES = (TypeError, ValueError, CodecError)


async def call(
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
    """Run a function on a node and give its result."""
    return await acting_node(via).call_soon(
        dest, module, function, args, timeout, kwargs=kwargs, send_timeout=send_timeout
    )


async def cast(
    dest: Dest,
    module: Module,
    function: str,
    args: Args = (),
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> bool:
    """Run a function on a node and give True at once."""
    return erpc.cast(
        dest, module, function, args, kwargs=kwargs, send_timeout=send_timeout, via=via
    )


async def ordered_cast(
    dest: tuple[str, Hashable],
    module: Module,
    function: str,
    args: Args = (),
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> bool:
    """Cast so that it runs when the last ordered cast to the same (dest, key) has ended."""
    return erpc.ordered_cast(
        dest, module, function, args, kwargs=kwargs, send_timeout=send_timeout, via=via
    )


async def async_call(
    dest: Dest,
    module: Module,
    function: str,
    args: Args = (),
    timeout: Timeout = None,
    *,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> asyncio.Task[Any]:
    """Begin a call and give a task that can be awaited for its value."""
    coroutine = acting_node(via).call_soon(
        dest, module, function, args, timeout, kwargs=kwargs, send_timeout=send_timeout
    )
    task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
    # One round of the loop: the call is on its way, with its arguments as they are now.
    await asyncio.sleep(0)
    if task.done() and not task.cancelled() and isinstance(task.exception(), _MISTAKES):
        await task  # a mistake of the caller's is raised here, as in the other doors
    return task


async def block_call(
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
    """As `call`, but one at a time on the node with all other block calls."""
    return await acting_node(via).call_soon(
        dest,
        module,
        function,
        args,
        timeout,
        kwargs=kwargs,
        send_timeout=send_timeout,
        kind=BLOCK_CALL,
    )


async def run(dest: Dest, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a callable on a node: by name where it can be imported there, else by value."""
    for target in erpc.ways_to_run(function, args, kwargs):
        try:
            return await acting_node().call_soon(dest, **target)  # type: ignore[no-any-return]
        except CallError as exc:
            if not erpc.is_missing(exc) or target["module"] == "genrpc":
                raise
    raise AssertionError("the last way to run a function returns or raises")


async def multicall(
    *nodes_and_target: Any,  # noqa: ANN401  # see erpc.multicall
    nodes: Iterable[Dest] | None = None,
    module: Module = _UNSET,
    function: str = _UNSET,
    args: Args = _UNSET,
    timeout: Timeout = _UNSET,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> list[Outcome]:
    """One outcome for each node, aligned with the nodes: Ok(value) or the CallError."""
    node = acting_node(via)
    dests, rest = erpc.spread(nodes_and_target, nodes, list(_TARGET), node)
    named = {"module": module, "function": function, "args": args, "timeout": timeout}
    module, function, args, timeout = _target(rest, named)
    return await asyncio.gather(
        *(
            _outcome(node, dest, module, function, args, timeout, kwargs, send_timeout)
            for dest in dests
        )
    )


async def _outcome(
    node: Node,
    dest: Dest,
    module: Module,
    function: str,
    args: Args,
    timeout: Timeout = DEFAULT,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
) -> Outcome:
    try:
        return Ok(
            await node.call_soon(
                dest, module, function, args, timeout, kwargs=kwargs, send_timeout=send_timeout
            )
        )
    except Throw as thrown:
        return Ok(thrown.value)
    except CallError as exc:
        return exc


async def eval_everywhere(
    *nodes_and_target: Any,  # noqa: ANN401  # see erpc.eval_everywhere
    nodes: Iterable[Dest] | None = None,
    module: Module = _UNSET,
    function: str = _UNSET,
    args: Args = _UNSET,
    kwargs: Kwargs | None = None,
    send_timeout: Timeout = DEFAULT,
    via: Node | None = None,
) -> str:
    """Cast to all; "abcast", at once."""
    return erpc.eval_everywhere(
        *nodes_and_target,
        nodes=nodes,
        module=module,
        function=function,
        args=args,
        kwargs=kwargs,
        send_timeout=send_timeout,
        via=via,
    )


async def parallel_eval(
    calls: Iterable[tuple[Module, str, Args]], *, via: Node | None = None
) -> list[Any]:
    """Results in order, spread over this node and its peers; raises the first failure."""
    node = acting_node(via)
    dests = [node.name, *node.nodes()]
    return await _gather(
        node.call_soon(dests[number % len(dests)], *one)
        for number, one in enumerate(erpc.checked_calls(calls))
    )


async def pmap(
    target: tuple[Module, str],
    extra_args: Args,
    items: Iterable[object],
    *,
    via: Node | None = None,
) -> list[Any]:
    """`[function(item, *extra_args) …]` in order, spread over the nodes; any failure raises."""
    module, function = erpc.pair(target)
    return await parallel_eval([(module, function, [item, *extra_args]) for item in items], via=via)


async def _gather(coroutines: Iterable[Any]) -> list[Any]:
    """All results, or the first failure, after which nobody wants the rest."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def abcast(
    *nodes_and_message: Any,  # noqa: ANN401  # see erpc.abcast
    nodes: Iterable[Dest] | None = None,
    via: Node | None = None,
) -> str:
    """Hand a message to what is registered under a name; "abcast", at once."""
    return erpc.abcast(*nodes_and_message, nodes=nodes, via=via)


async def sbcast(
    *nodes_and_message: Any,  # noqa: ANN401  # see erpc.sbcast
    nodes: Iterable[Dest] | None = None,
    via: Node | None = None,
) -> tuple[list[Dest], list[Dest]]:
    """As abcast, and wait to hear where it arrived: (good, bad)."""
    node = acting_node(via)
    dests, message = erpc.addressed(nodes_and_message, nodes, node)
    outcomes = await asyncio.gather(
        *(_outcome(node, dest, "genrpc", "deliver", message) for dest in dests)
    )
    return erpc.parted(dests, outcomes)


async def register(name: str, handler: object, *, via: Node | None = None) -> None:
    """Let `handler` get the messages that abcast and sbcast send to `name` on this node."""
    erpc.register(name, handler, via=via)


async def unregister(name: str, *, via: Node | None = None) -> None:
    """Take a name back."""
    erpc.unregister(name, via=via)


async def whereis(name: str, *, via: Node | None = None) -> object:
    """The handler registered under a name, or None."""
    return erpc.whereis(name, via=via)


async def apply(function: Callable[..., R], args: Args = (), kwargs: Kwargs | None = None) -> R:
    """Call a function here."""
    return erpc.apply(function, args, kwargs)
