"""`genrpc ping`, `status` and `list`: what a node tells of itself.

`status` and `list` go by the unary methods of the node, which any policy lets pass, with a token
that is made of the cookie for the one question.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from genrpc.cli import codes, output
from genrpc.cli.acting import acting, timeout_of
from genrpc.cli.arguments import Command, Parser, node
from genrpc.errors import CallError
from genrpc.names import parse_destination
from genrpc.settings import LIMITS

if TYPE_CHECKING:
    from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
    from genrpc.peers import Steps

_PING = """\
Times are those of one look, on a new stream: to find the address, to connect (with TLS, if it is
used, until the node's first word), to prove the cookie to each other, and one round trip.

example:
  genrpc ping worker@10.0.0.7 --timeout 2s
"""

_STATUS = """\
Calls are those since the node started, by outcome; limits are in seconds, bytes or counts, by the
names of their settings.

example:
  genrpc status worker@10.0.0.7 --json
"""

_LIST = """\
Under a whitelist these are all functions that may be called; else those of the modules that the
node has imported. PREFIX is compared with module.function.

example:
  genrpc list worker@10.0.0.7 jobs.
"""


def _declare(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", type=node, help="name@host, name@host:port, name")
    parser.add_timeout("the setting receive_timeout, 15s", "how long to wait for the answer")


def _declare_list(parser: Parser) -> None:
    _declare(parser)
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only these")


# ---------------------------------------------------------------- ping


def _ping(args: Namespace) -> int:
    with acting() as acting_node:
        round_trip = None
        try:
            round_trip = acting_node.ping(args.node, timeout_of(args))
        except CallError:
            if not args.json:
                _print_steps(acting_node.steps_to(args.node), None)
            raise
        steps = acting_node.steps_to(args.node)
    if args.json:
        seconds = {name: value for name, value in _named(steps, round_trip) if value is not None}
        name = parse_destination(args.node).node
        output.print_json({"node": name, "address": steps.address, **seconds})
    else:
        _print_steps(steps, round_trip)
    return codes.OK


def _named(steps: Steps, round_trip: float | None) -> list[tuple[str, float | None]]:
    return [
        ("resolve", steps.resolve),
        ("connect", steps.connect),
        ("handshake", steps.handshake),
        ("round_trip", round_trip),
    ]


def _print_steps(steps: Steps, round_trip: float | None) -> None:
    """Print the steps as far as they came."""
    if steps.address:
        print(f"{'address':<10}  {steps.address}")
    for name, seconds in _named(steps, round_trip):
        if seconds is not None:
            print(f"{name.replace('_', ' '):<10}  {seconds * 1e3:.3g} ms")


# ---------------------------------------------------------------- status


def _status(args: Namespace) -> int:
    with acting() as acting_node:
        status = acting_node.status_of(args.node, timeout_of(args))
    facts = _facts(status)
    if args.json:
        output.print_json(facts)
        return codes.OK
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, dict):
            print(name.replace("_", " "))
            inner = max(map(len, value), default=0)
            for counted, number in value.items():
                shown = "none" if number is None else f"{number:,}"
                print(f"  {counted:<{inner}}  {shown:>14}")
        else:
            print(f"{name.replace('_', ' '):<{width}}  {_in_words(name, value)}")
    return codes.OK


def _facts(status: pb.GetStatusResponse) -> dict[str, Any]:
    return {
        "node": status.node,
        "instance_id": status.instance_id,
        "genrpc_version": status.genrpc_version,
        "python_version": status.python_version,
        "uptime": status.uptime.ToTimedelta().total_seconds(),
        "peers": status.peers,
        "calls_running": status.calls_running,
        "calls_queued": status.calls_queued,
        "calls_total": dict(sorted(status.calls_total.items())),
        "limits": _limits(status),
    }


def _limits(status: pb.GetStatusResponse) -> dict[str, float | None]:
    """The limits by name; None for those that we know and the node does not hold callers to."""
    limits: dict[str, float | None] = dict.fromkeys(LIMITS)
    for name, value in status.limits.items():
        limits[name] = int(value) if value.is_integer() else value
    return dict(sorted(limits.items()))


def _in_words(name: str, value: object) -> str:
    if name != "uptime":
        return str(value)
    minutes, seconds = divmod(int(float(str(value))), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts)


# ---------------------------------------------------------------- list


def _list(args: Namespace) -> int:
    with acting() as acting_node:
        functions = acting_node.functions_of(args.node, args.prefix, timeout_of(args))
    for function in functions:
        if args.json:
            output.print_json(
                {
                    "module": function.module,
                    "function": function.function,
                    "signature": function.signature,
                    "summary": function.summary,
                }
            )
        else:
            line = f"{_joined(function)}{function.signature}  {function.summary}"
            print(line.rstrip())
    if not functions:
        output.say(f"{args.node} lets you call no function that begins with {args.prefix!r}")
    return codes.OK


def _joined(function: pb.FunctionInfo) -> str:
    """The target as `genrpc call` understands it."""
    mark = ":" if "." in function.function else "."
    return f"{function.module}{mark}{function.function}"


COMMANDS = {
    "ping": Command(_declare, _ping, _PING),
    "status": Command(_declare, _status, _STATUS),
    "list": Command(_declare_list, _list, _LIST),
}
