"""The command line: `genrpc COMMAND …`.

Here are the commands' names, their help and what becomes of failures; each group of commands is
a module of its own, imported when one of its commands is asked for. Rules: results go to standard
output, all else to standard error; nothing heavy is imported for help or for a mistake in usage;
what a user can bring about ends in a sentence and an exit code (see `output`), never in a
traceback. Everything runs on the main thread.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from genrpc.cli import output
from genrpc.cli.arguments import Command, Parser, UsageError

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without `argv`, that of `sys.argv`."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except SystemExit as exc:  # --help
        return exc.code if isinstance(exc.code, int) else output.OK
    except KeyboardInterrupt:
        output.say("cancelled")
        return output.INTERRUPTED
    except BrokenPipeError:
        output.give_up_stdout()
        return output.NOBODY_READS


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        if words[1:] and words[0] == "help":
            return _run([words[1], "--help"])
        # Without a word, the help is an answer to a mistake.
        print(_help(), file=sys.stdout if words else sys.stderr)
        return output.OK if words else output.USAGE
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version  # takes 20 ms

        print(f"genrpc {version('genrpc')}")
        return output.OK
    name = words[0]
    if name not in _COMMANDS:
        return output.usage(f"there is no command {name!r}{_nearest(name)}; see: genrpc --help")
    module, summary = _COMMANDS[name]
    command: Command = importlib.import_module(f"genrpc.cli.{module}").COMMANDS[name]
    parser = Parser(name, summary, command)
    try:
        args = parser.parse(words[1:])
    except UsageError as exc:
        return output.usage(f"{exc}; see: genrpc {name} --help", parser.usage_line)
    with output.prepared(args):
        return output.guarded(command.run, args)


def _help() -> str:
    lines = [
        "usage: genrpc COMMAND …",
        "",
        "Call a Python function on another machine.",
    ]
    for group, commands in _GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<10}  {summary}" for name, (_, summary) in commands.items()]
    lines += [
        "",
        "Every command tells more: genrpc COMMAND --help. Settings are read from the environment",
        "(GENRPC_RECEIVE_TIMEOUT=5) and from the TOML file named by GENRPC_CONFIG.",
        "",
        "Try it:",
        "  genrpc serve --name a &",
        "  genrpc call a math.factorial 5",
    ]
    return "\n".join(lines)


def _nearest(name: str) -> str:
    import difflib  # only for mistakes

    near = difflib.get_close_matches(name, _COMMANDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
