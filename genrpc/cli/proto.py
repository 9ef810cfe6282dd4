"""`genrpc proto`: the wire's .proto file, and grpcurl commands that use it."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from genrpc.cli import codes, output
from genrpc.cli.arguments import Command, Parser, UsageError, node, target, values

if TYPE_CHECKING:
    from genrpc.settings import Settings

_DETAILS = """\
Without a node it prints genrpc.proto, from which other languages generate their code. With one,
it prints a grpcurl command that calls the function; run it where the cookie is, for the token.
Arguments that JSON of other languages would change, as 2**53 + 1, are written as terms.

examples:
  genrpc proto > genrpc.proto
  genrpc proto a math.factorial 5
  genrpc proto a math.factorial 5 | sh
"""


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "node", metavar="NODE", nargs="?", type=node, help="name@host, name@host:port, name"
    )
    parser.add_argument(
        "target", metavar="M.F", nargs="?", type=target, help="module.function to call there"
    )
    parser.add_argument("args", metavar="ARG", nargs="*", help="the arguments, as for call")
    parser.add_argument(
        "--kw", metavar="NAME=VALUE", action="append", default=[], help="a keyword argument"
    )


def _run(args: Namespace) -> int:
    if args.node is None:
        text = _proto_text()
        if args.json:
            output.print_json({"file": "genrpc/v1/genrpc.proto", "text": text})
        else:
            print(text, end="")
        return codes.OK
    if args.target is None:
        raise UsageError("a function is wanted after the node, math.factorial")
    words = _grpcurl(args)
    if args.json:
        output.print_json({"argv": words})
    else:
        print(" ".join(_for_shell(word) for word in words))
    return codes.OK


def _proto_text() -> str:
    from importlib import resources  # takes 10 ms

    package = resources.files("genrpc._generated.genrpc.v1")
    return package.joinpath("genrpc.proto").read_text("utf-8")


_TOKEN = "authorization: Bearer $(genrpc token)"


def _grpcurl(args: Namespace) -> list[str]:
    from genrpc import discovery
    from genrpc.errors import CallError, message_of
    from genrpc.names import bracketed, parse_destination
    from genrpc.settings import Settings

    settings = Settings()
    destination = parse_destination(args.node)
    try:
        host, port = discovery.find(destination, settings)
    except CallError as exc:
        raise UsageError(f"{args.node}: {message_of(exc.value)}") from None
    module, function = args.target
    positional, named = values(args.args, args.kw)
    mfa = {"module": module, "function": function, **_arguments(positional, named)}
    return [
        "grpcurl",
        *_transport(settings, destination.node),
        "-H",
        _TOKEN,
        "-d",
        json.dumps({"mfa": mfa}),
        f"{bracketed(host)}:{port}",
        "genrpc.v1.NodeService/Call",
    ]


def _arguments(positional: list[object], named: dict[str, object]) -> dict[str, object]:
    """Write them as JSON-like values if these hold them exactly, else as terms."""
    from genrpc import neutral
    from genrpc.errors import CodecError

    limits = {"max_depth": sys.getrecursionlimit(), "max_bytes": sys.maxsize}
    try:
        neutral.encode_value(neutral.VALUES, [positional, named], **limits)
    except CodecError:
        pass
    else:
        return {"args": positional, **({"kwargs": named} if named else {})}

    from google.protobuf import json_format

    from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

    def term(value: object) -> pb.Term:
        return pb.Term.FromString(neutral.encode_value(neutral.TERMS, value, **limits))

    try:
        terms = pb.Terms(
            args=[term(value) for value in positional],
            kwargs={name: term(value) for name, value in named.items()},
        )
    except CodecError:
        raise UsageError(
            "no grpcurl command has such arguments: they are nested too deep, or a text of them"
            " is no Unicode"
        ) from None
    return {"terms": json_format.MessageToDict(terms, preserving_proto_field_name=True)}


def _transport(settings: Settings, name: str) -> list[str]:
    if settings.certfile is None or settings.keyfile is None or settings.cacertfile is None:
        return ["-plaintext"]
    host = name.partition("@")[2].strip("[]")
    files = ["-cacert", settings.cacertfile, "-cert", settings.certfile, "-key", settings.keyfile]
    return [*files, "-authority", host]


def _for_shell(word: str) -> str:
    # The shell is to run `genrpc token`, and nothing else of it.
    return f'"{word}"' if word == _TOKEN else shlex.quote(word)


COMMANDS = {"proto": Command(_declare, _run, _DETAILS)}
