"""`genrpc call`, `cast` and `multicall`."""

from __future__ import annotations

import contextlib
import queue
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from genrpc.cli import codes, output
from genrpc.cli.acting import acting, timeout_of
from genrpc.cli.arguments import Command, Parser, node, nodes, target, values
from genrpc.errors import BadRPC, BadTCP, CallError, Ok, Throw

if TYPE_CHECKING:
    from genrpc.keys import Key

_ARGUMENTS = """\
An argument is JSON if it parses, else text: 5 is a number, "5" (in quotes that reach genrpc) and
abc are text. `-` reads one argument from standard input. After -- nothing is an option.
"""

_CALL = f"""\
{_ARGUMENTS}
Exit codes: 0 result, 1 the function raised, 3 another failure, 4 the transport failed,
5 unauthorized or wrong cookie, 75 overload or draining, 124 timeout, 130 Ctrl-C.

examples:
  genrpc call a math.factorial 5
  genrpc call worker@10.0.0.7:5369 jobs.resize photo.jpg --kw width=640 --timeout 10m
  echo '[3, 1, 2]' | genrpc call a builtins.sorted - --kw reverse=true --json
"""

_CAST = f"""\
{_ARGUMENTS}
The stream to the node is opened first, so that a node that is not there is told (exit code 4);
what becomes of the function is not.

example:
  genrpc cast worker@10.0.0.7 jobs.warm_up
"""

_MULTICALL = f"""\
{_ARGUMENTS}
Results come as the nodes answer. Exit code: 0 if all gave a result, else 6.

example:
  genrpc multicall a,b@127.0.0.1:5370 os.getpid --timeout 2s
"""


def _declare_target(parser: Parser) -> None:
    parser.add_argument(
        "target", metavar="M.F", type=target, help="module.function, or module:Class.method"
    )
    parser.add_argument("args", metavar="ARG", nargs="*", help="the arguments")
    parser.add_argument(
        "--kw",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a keyword argument; may be given several times",
    )
    parser.add_timeout("the setting receive_timeout, 15s", "how long to wait for the outcome")


def _declare_one(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", type=node, help="name@host, name@host:port, name")
    _declare_target(parser)


def _declare_many(parser: Parser) -> None:
    parser.add_argument("nodes", metavar="NODES", type=nodes, help="nodes with commas between")
    _declare_target(parser)


# ---------------------------------------------------------------- one node


def _call(args: Namespace) -> int:
    module, function = args.target
    positional, named = values(args.args, args.kw)
    with acting() as acting_node:
        try:
            result = acting_node.call(
                args.node, module, function, positional, timeout_of(args), kwargs=named
            )
        except Throw as thrown:
            result = thrown.value
    return output.show_result(result, as_json=args.json)


def _cast(args: Namespace) -> int:
    from genrpc import erpc

    module, function = args.target
    positional, named = values(args.args, args.kw)
    with acting() as acting_node:
        # A cast itself tells nothing, not even that there is no such node.
        acting_node.ping(args.node, timeout_of(args))
        erpc.cast(args.node, module, function, positional, kwargs=named, via=acting_node)
    if args.json:
        output.print_json({"result": True})
    return codes.OK


# ---------------------------------------------------------------- many nodes


Outcome = Ok[Any] | BadRPC | BadTCP


class _Report(Protocol):
    """How the outcomes of a multicall are shown."""

    def show(self, number: int, outcome: Outcome) -> None:
        """Show the outcome of the node that stands at `number`."""


def _multicall(args: Namespace) -> int:
    from genrpc import erpc
    from genrpc.calling import DEFAULT

    module, function = args.target
    positional, named = values(args.args, args.kw)
    timeout = timeout_of(args)
    failed = False
    with acting() as acting_node, _report(args) as report:
        done: queue.SimpleQueue[tuple[int, Key]] = queue.SimpleQueue()
        keys = erpc.promises(
            acting_node, args.nodes, module, function, positional, timeout, named, DEFAULT
        )
        for number, key in enumerate(keys):
            key.when_done(lambda key, number=number: done.put((number, key)))  # type: ignore[misc]  # mypy cannot infer it
        try:
            for _ in keys:
                number, key = done.get()
                outcome = _outcome(key)
                failed = failed or not isinstance(outcome, Ok)
                report.show(number, outcome)
        finally:
            for key in keys:  # those that are done are none the worse
                key.cancel()
    return codes.SOME_FAILED if failed else codes.OK


def _outcome(key: Key) -> Outcome:
    from genrpc.erpc import outcome_of

    found = outcome_of(key.result)
    return output.value_of(found) if isinstance(found, CallError) else found


@contextlib.contextmanager
def _report(args: Namespace) -> Iterator[_Report]:
    if args.json:
        yield _JsonLines(args.nodes)
    elif output.is_terminal(sys.stdout) and output.has_rich():
        from genrpc.cli.live import Table

        with Table(args.nodes) as table:
            yield table
    else:
        yield _Lines(args.nodes)


class _Lines:
    """Results as lines on standard output, failures on standard error."""

    def __init__(self, nodes: list[str]) -> None:
        self._nodes = nodes
        self._width = max(map(len, nodes))

    def show(self, number: int, outcome: Outcome) -> None:
        name = self._nodes[number]
        if isinstance(outcome, Ok):
            print(f"{name:<{self._width}}  {output.text_of(outcome.value)}", flush=True)
        else:
            output.show_failure(outcome, name, as_json=False)


class _JsonLines:
    """A JSON object in a line of its own for each node."""

    def __init__(self, nodes: list[str]) -> None:
        from genrpc.names import parse_destination

        self._names = [parse_destination(text).node for text in nodes]

    def show(self, number: int, outcome: Outcome) -> None:
        if isinstance(outcome, Ok):
            told = output.json_of(outcome.value)
        else:
            told = output.error_json(outcome)
        output.print_json({"node": self._names[number], **told})


COMMANDS = {
    "call": Command(_declare_one, _call, _CALL),
    "cast": Command(_declare_one, _cast, _CAST),
    "multicall": Command(_declare_many, _multicall, _MULTICALL),
}
