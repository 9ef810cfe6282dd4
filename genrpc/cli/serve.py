"""`genrpc serve`: a node in a process of its own, until a signal ends it.

The main thread starts the node and then waits for SIGINT, SIGTERM or SIGHUP; the node's own
threads do the work. The first signal stops the node with a grace, the second ends the process.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import traceback
from argparse import ArgumentTypeError, Namespace
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from genrpc.cli import codes, output, tuning
from genrpc.cli.arguments import Command, Parser, UsageError, duration
from genrpc.names import DEFAULT_HOST, check_entry, node_name, program_name

if TYPE_CHECKING:
    from genrpc.local_node import Node

SWITCH_INTERVAL = 0.0002
"""Seconds; keeps small calls quick beside CPU-bound functions (Python's own 0.005 makes each
wait for that long)."""

MAX_GRACE = 86_400.0
"""Seconds; what `--grace none` comes to, for whoever does not send a second signal."""

_DETAILS = """\
Without MODULE, what may be called is up to the settings rpc_module_control and rpc_module_list.
The node ends with Ctrl-C or SIGTERM: calls that run get the grace, a second signal ends it at once.

examples:
  genrpc serve --name a                          a@127.0.0.1, for tries on this machine
  genrpc serve jobs reports --name worker@10.0.0.7
  genrpc serve jobs --port 0 --json              for programs: one line when it is ready
"""


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "modules",
        metavar="MODULE",
        nargs="*",
        type=_entry,
        help="a module (or module:function) to import; then nothing else may be called",
    )
    parser.add_argument(
        "--name",
        type=_name,
        help=f"the node's name, name@host (default: genrpc@{DEFAULT_HOST})",
    )
    parser.add_argument(
        "--port",
        type=_port,
        help="the port to listen on, 0 for any free one (default: 5369, or a free one)",
    )
    parser.add_argument(
        "--grace",
        metavar="DURATION",
        type=duration,
        default=2.0,
        help="how long running calls may go on when it is stopped (default: 2s)",
    )


def _entry(text: str) -> str:
    try:
        return check_entry(text)
    except ValueError as exc:
        raise ArgumentTypeError(str(exc)) from None


def _name(text: str) -> str:
    try:
        return node_name(text)
    except ValueError as exc:
        raise ArgumentTypeError(str(exc)) from None


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is no port: 0 (any free port) to 65535 is allowed")


def _run(args: Namespace) -> int:
    signals = _Signals()
    out = _own_stdout() if args.json else None
    _import_all(args.modules)
    changes: dict[str, object] = {}
    if args.port is not None:
        changes["tcp_server_port"] = args.port
    if args.modules:
        changes.update(rpc_module_control="whitelist", rpc_module_list=args.modules)
    # Imported as late as it can be: it brings gRPC.
    from genrpc.default import replaced_by
    from genrpc.local_node import Node
    from genrpc.settings import Settings

    settings = Settings(**changes)
    if not settings.is_given("switch_interval"):
        settings = settings.changed(switch_interval=SWITCH_INTERVAL)
    node = Node(args.name or f"{program_name()}@{DEFAULT_HOST}", settings)
    try:
        node.start()
    except OSError as exc:
        output.say(f"{exc}: stop that program, or choose a port with --port (0: any free one)")
        return codes.CANNOT_SERVE
    tuning.for_serving()
    with replaced_by(node, serves=True):
        if out is not None:
            _print_ready(node, out)
        else:
            _tell_ready(node)
        received = signals.wait()
        output.say(f"{node.name} is stopping ({received})")
        node.stop(MAX_GRACE if args.grace is None else args.grace)
    output.say(f"{node.name} has stopped")
    return codes.OK


def _import_all(entries: list[str]) -> None:
    """Import modules, from the current directory too, as `python -m` does."""
    here = os.path.abspath(".")
    if not getattr(sys.flags, "safe_path", False) and here not in sys.path:
        sys.path.insert(0, here)
    for entry in entries:
        module = entry.partition(":")[0]
        try:
            importlib.import_module(module)
        except BaseException as exc:  # a module may raise anything, SystemExit too
            raise UsageError(_why_not(module, exc)) from None


def _why_not(module: str, error: BaseException) -> str:
    told = f"the module {module} cannot be imported: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        if module.endswith(".py"):
            return f"{told}; did you mean {module.removesuffix('.py')}?"
        if error.name == module:
            return f"{told}; it is looked for in {os.path.abspath('.')} and on Python's path"
    # The frame where it happened; those of importlib and of this module say nothing.
    *_, frame = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or frame.filename.startswith("<frozen"):
        return told
    return f"{told} ({frame.filename}, line {frame.lineno})"


def _own_stdout() -> TextIO:
    """Keep standard output for the ready line; what functions print goes to standard error."""
    kept = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper
    return kept


def _print_ready(node: Node, out: TextIO) -> None:
    import json

    event = {"event": "ready", "node": node.name, "port": node.port, "pid": os.getpid()}
    print(json.dumps(event), file=out, flush=True)


def _tell_ready(node: Node) -> None:
    from genrpc.security import cookie_path

    settings = node.settings
    found_by_name = settings.port_discovery == "local" or node.port == settings.tcp_client_port
    dest = node.name if found_by_name else f"{node.name}:{node.port}"
    if settings.cookie is not None:
        cookie = f"from the {settings.source_of('cookie')}"
    else:
        cookie = f"in {cookie_path(settings)}"
    where = "nowhere" if node.port is None else f"{settings.listen_address}, port {node.port}"
    tls = "TLS" if settings.certfile is not None else "no TLS"
    lines = [
        f"{node.name} is ready; process {os.getpid()}",
        f"  listens   {where}; {tls}",
        f"  allows    {_policy_in_words(node)}",
        f"  cookie    {cookie}",
        f"  try       genrpc call {dest} genrpc.node",
        "  stop      Ctrl-C, or SIGTERM",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


def _policy_in_words(node: Node) -> str:
    settings = node.settings
    entries = ", ".join(settings.rpc_module_list)
    return {
        "whitelist": f"only {entries} (whitelist)" if entries else "nothing (an empty whitelist)",
        "blacklist": f"all but {entries or 'none'} (blacklist); callers with the cookie can do all"
        " that you can",
        "disabled": "every function; callers with the cookie can do all that you can",
    }[settings.rpc_module_control]


class _Signals:
    """SIGINT, SIGTERM and SIGHUP, from now on: the first is waited for, the second is the end."""

    def __init__(self) -> None:
        # Its put may interrupt its get: an Event's lock could be held by whom it interrupts.
        self._received: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._count = 0
        for number in self._wanted():
            signal.signal(number, self._receive)

    @staticmethod
    def _wanted() -> list[int]:
        wanted = [signal.SIGINT, signal.SIGTERM]
        hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # not with nohup
            wanted.append(hang_up)
        return list(wanted)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            os._exit(128 + number)
        self._received.put(number)

    def wait(self) -> str:
        """Wait for the first signal; gives its name."""
        return signal.Signals(self._received.get()).name


COMMANDS = {"serve": Command(_declare, _run, _DETAILS)}
