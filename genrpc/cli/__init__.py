"""The command line: `genrpc COMMAND …`.

Here are the commands' names, the help and the ways in which a command may end; each group of
commands is a module of its own, imported when one of its commands is asked for. Rules: results go
to standard output, all else to standard error; nothing heavy is imported for help or for a
mistake in usage; what a user can bring about ends in a sentence and an exit code (see `codes`),
never in a traceback. Everything runs on the main thread.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genrpc.cli import codes

if TYPE_CHECKING:
    from genrpc.cli.arguments import Command

_GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Run a node": {
        "serve": ("serve", "run a node, until it is stopped"),
        "demo": ("measuring", "show what genrpc does, with nodes of its own"),
    },
    "Call functions": {
        "call": ("calls", "call a function on a node and print its result"),
        "cast": ("calls", "have a function run on a node, without waiting for its result"),
        "multicall": ("calls", "call a function on several nodes at once"),
    },
    "Look at nodes": {
        "ping": ("looks", "tell whether a node answers, and how fast"),
        "list": ("looks", "list the functions that may be called on a node"),
        "status": ("looks", "show what a node is and how it does"),
        "bench": ("measuring", "measure how fast a node answers"),
    },
    "Secrets and the wire": {
        "cookie": ("secrets", "show where the cookie is kept; make it if there is none"),
        "cert": ("secrets", "make certificates for TLS between nodes"),
        "token": ("secrets", "make a token for grpcurl and other languages"),
        "proto": ("proto", "print the .proto file, or a ready grpcurl command"),
    },
}
"""The commands by group: module and summary of each."""

_COMMANDS = {name: found for group in _GROUPS.values() for name, found in group.items()}

_END_OF_HELP = """
Every command tells more: genrpc COMMAND --help. Settings are read from the environment
(GENRPC_RECEIVE_TIMEOUT=5) and from the TOML file named by GENRPC_CONFIG.

Try it:
  genrpc serve --name a &
  genrpc call a math.factorial 5"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without `argv`, that of `sys.argv`."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except SystemExit as exc:  # --help of a command
        return exc.code if isinstance(exc.code, int) else codes.OK
    except KeyboardInterrupt:
        print("genrpc: cancelled", file=sys.stderr)
        return codes.INTERRUPTED
    except BrokenPipeError:
        from genrpc.cli.output import give_up_stdout

        give_up_stdout()
        return codes.NOBODY_READS


def _main(words: list[str]) -> int:
    if not words:  # the help is then an answer to a mistake
        print(_help(), file=sys.stderr)
        return codes.USAGE
    name = words.pop(0)
    if name in ("-h", "--help") or (name == "help" and not words):
        print(_help(), flush=True)
        return codes.OK
    if name in ("-V", "--version"):
        from importlib.metadata import version  # takes 20 ms

        print(f"genrpc {version('genrpc')}", flush=True)
        return codes.OK
    if name == "help":
        name, words = words[0], ["--help"]
    if name not in _COMMANDS:
        from genrpc.cli.output import usage

        return usage(f"there is no command {name!r}{_nearest(name)}; see: genrpc --help")
    return _run(name, words)


def _run(name: str, words: list[str]) -> int:
    from genrpc.cli import output
    from genrpc.cli.arguments import Parser, UsageError

    module, summary = _COMMANDS[name]
    command: Command = importlib.import_module(f"genrpc.cli.{module}").COMMANDS[name]
    parser = Parser(name, summary, command)
    try:
        args = parser.parse(words)
    except UsageError as exc:
        return output.usage(f"{exc}; see: genrpc {name} --help", parser.usage_line)
    # Else gRPC writes a line to standard error for each stranger who fails to speak TLS.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    output.prepare(args)
    code = output.guarded(command.run, args)
    sys.stdout.flush()  # while a broken pipe can still be told
    return code


def _help() -> str:
    lines = ["usage: genrpc COMMAND …", "", "Call a Python function on another machine."]
    for group, commands in _GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<10}  {summary}" for name, (_, summary) in commands.items()]
    return "\n".join([*lines, _END_OF_HELP])


def _nearest(name: str) -> str:
    import difflib  # only for mistakes

    near = difflib.get_close_matches(name, _COMMANDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
