"""The module-level door: failures are values, as in OTP's rpc and in gen_rpc.

Every function here is that of `genrpc.erpc`, where it is documented, through one translation:
a CallError becomes its BadRPC or BadTCP, a thrown value is returned. Mistakes of the caller
(TypeError, ValueError, CodecError) are raised here too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import Any, ParamSpec, TypeVar

from genrpc import erpc
from genrpc.default import acting_node
from genrpc.erpc import Args, Dest, Module
from genrpc.errors import BadRPC, BadTCP, CallError, Ok, Throw
from genrpc.keys import Key, value_of
from genrpc.local_node import Node
from genrpc.names import check_timeout

P = ParamSpec("P")
R = TypeVar("R")

_NO_ANSWER = frozenset({"timeout", "invalid_cookie", "badnode"})
"""Reasons of a BadRPC for which a node counts as one that gave no answer."""


def _as_value(function: Callable[P, R]) -> Callable[P, R]:
    """Give failures as values."""

    @functools.wraps(function)
    def translated(*args: P.args, **kwargs: P.kwargs) -> Any:  # noqa: ANN401
        try:
            return function(*args, **kwargs)
        except Throw as thrown:
            return thrown.value
        except (CallError, CancelledError) as exc:
            return value_of(exc)

    return translated


call = _as_value(erpc.call)
block_call = _as_value(erpc.block_call)
cast = erpc.cast
ordered_cast = erpc.ordered_cast
async_call = erpc.async_call
eval_everywhere = erpc.eval_everywhere
abcast = erpc.abcast
sbcast = erpc.sbcast
pmap = erpc.pmap
register = erpc.register
unregister = erpc.unregister
whereis = erpc.whereis
apply = erpc.apply


def yield_(key: Key) -> Any:  # noqa: ANN401  # whatever the function returns
    """Wait for the outcome of a key: the result, BadRPC or BadTCP; again gives the same."""
    try:
        return _checked(key).result()
    except Throw as thrown:
        return thrown.value
    except (CallError, CancelledError) as exc:
        return value_of(exc)


def nb_yield(key: Key, timeout: float | None = 0.0) -> tuple[str, Any] | str:
    """Look whether the call behind `key` has its outcome.

    Waits at most `timeout` seconds (None: for ever). Returns ("value", outcome), where a failure
    is a BadRPC or BadTCP, or "timeout"; then the key is as it was before.
    """
    arrived = _checked(key).wait(check_timeout(timeout))
    return ("value", yield_(key)) if arrived else "timeout"


def _checked(key: object) -> Key:
    if not isinstance(key, Key):
        raise TypeError(f"a key is what async_call returned, not {key!r:.100}")
    return key


@functools.wraps(erpc.multicall)
def multicall(*nodes_and_target: Any, **options: Any) -> tuple[list[Any], list[Dest]]:  # noqa: ANN401
    """`multicall([nodes,] module, function, args, timeout)`: (results, bad_nodes).

    As OTP's rpc: results in the order of the nodes, a failed function among them as its BadRPC;
    `bad_nodes` are those that gave no answer (unreachable, lost, timed out), as they were given.
    """
    # The nodes are needed twice, and may be left out or come from an iterator.
    node = acting_node(options.get("via"))
    names = list(erpc._TARGET)
    dests, rest = erpc.spread(nodes_and_target, options.pop("nodes", None), names, node)
    outcomes = erpc.multicall(*rest, nodes=dests, **options)
    results, bad = [], []
    for dest, outcome in zip(dests, outcomes, strict=True):
        if isinstance(outcome, Ok):
            results.append(outcome.value)
        elif is_bad_node(value := value_of(outcome)):
            bad.append(dest)
        else:
            results.append(value)
    return results, bad


def is_bad_node(value: object) -> bool:
    """Whether a failure says that its node gave no answer."""
    if isinstance(value, BadTCP):
        return True
    return (
        isinstance(value, BadRPC) and isinstance(value.reason, str) and value.reason in _NO_ANSWER
    )


def parallel_eval(
    calls: Iterable[tuple[Module, str, Args]], *, via: Node | None = None
) -> list[Any]:
    """Results of `[(module, function, args), …]` in order, failures inline.

    The calls are spread round-robin over this node and its peers.
    """
    return erpc.collected(erpc.spread_calls(calls, via), yield_)
