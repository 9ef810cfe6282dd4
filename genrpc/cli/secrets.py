"""`genrpc cookie`, `cert` and `token`: what lets nodes and other programs in.

A secret is printed only where it was asked for by name: `cookie --show`, `token`.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from genrpc.cli import codes, output
from genrpc.cli.arguments import Command, Parser, UsageError, node, positive_duration

if TYPE_CHECKING:
    from genrpc.security import MadeCertificate

_COOKIE = """\
Nodes with the same cookie can call each other. The cookie is made at first use; copy the file to
the other machines of a cluster (mode 0600), or name another file with GENRPC_COOKIE_FILE.
Exit code 78: others can read or write the file, or the cookie is too short.

examples:
  genrpc cookie                       where it is, and whether it is safe
  scp -p "$(genrpc cookie --path)" host:.config/genrpc/cookie
"""

_CERT = """\
Make the authority once, keep its key (ca.key) offline, and make a certificate for each node. Then
give every node the settings certfile, keyfile and cacertfile. Nothing is ever overwritten.

examples:
  genrpc cert ca --dir certs
  genrpc cert new worker@10.0.0.7 --dir certs
  genrpc cert new worker@db.example.org --host 10.0.0.7 --days 90 --dir certs
"""

_TOKEN = """\
A token is made of the cookie; its bearer may call what it allows and the node's policy admits,
until it ends. It never carries the right to send pickles. An entry of --allow is
module.function, 'module.*' or '*'.

examples:
  genrpc token --ttl 1h --allow 'math.*' --allow jobs.resize
  grpcurl -plaintext -H "authorization: Bearer $(genrpc token)" …      (see: genrpc proto)
"""


# ---------------------------------------------------------------- cookie


def _declare_cookie(parser: Parser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--path", action="store_true", help="print the path of its file alone")
    choice.add_argument("--show", action="store_true", help="print the cookie itself: a secret")


def _cookie(args: Namespace) -> int:
    from genrpc import security
    from genrpc.settings import Settings

    settings = Settings()
    in_file = settings.cookie is None
    if args.path and not in_file:
        raise UsageError(f"the cookie is in no file but in the {settings.source_of('cookie')}")
    # Made if it is missing; raises if it is not safe.
    cookie = security.cookie_text(settings)
    where = str(security.cookie_path(settings)) if in_file else settings.source_of("cookie")
    if args.json:
        facts = {"path" if in_file else "source": where, "safe": True}
        output.print_json({**facts, "cookie": cookie} if args.show else facts)
    elif args.show:
        print(cookie)
    elif args.path:
        print(where)
    elif in_file:
        print(f"{where}  (safe: only its owner can read or write it)")
    else:
        print(f"{where}  (it goes before any file)")
    return codes.OK


# ---------------------------------------------------------------- cert


def _declare_cert(parser: Parser) -> None:
    parser.add_argument(
        "what", choices=("ca", "new"), help="a certificate authority, or a node's certificate"
    )
    parser.add_argument(
        "node", metavar="NAME", nargs="?", type=node, help="the node's name, for `new`"
    )
    parser.add_argument(
        "--dir", type=Path, default=Path(), help="where the files go (default: here)"
    )
    parser.add_argument(
        "--ca-dir", type=Path, help="where ca.crt and ca.key are, for `new` (default: --dir)"
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        help="a further host name or address of the node, for `new`; may be given several times",
    )
    parser.add_argument(
        "--days", type=_days, help="how long it is good (default: 3650 for ca, 397 for new)"
    )


def _days(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 36_500:
        return int(text)
    raise ArgumentTypeError(f"{text!r}: 1 to 36500 days are allowed")


def _cert(args: Namespace) -> int:
    from genrpc import security

    days = {} if args.days is None else {"days": args.days}
    if args.what == "ca":
        if args.node is not None:
            raise UsageError("an authority takes no node's name: genrpc cert ca --dir DIR")
        made = security.make_authority(args.dir, **days)
        authority = made.certificate
    else:
        if args.node is None:
            raise UsageError("a node's name is wanted: genrpc cert new worker@10.0.0.7")
        ca_dir = args.dir if args.ca_dir is None else args.ca_dir
        authority = ca_dir / "ca.crt"
        try:
            made = security.make_certificate(
                args.dir, args.node, ca_directory=ca_dir, names=args.host, **days
            )
        except ValueError as exc:
            raise UsageError(str(exc)) from None
    _tell_made(made, authority, args)
    return codes.OK


def _tell_made(made: MadeCertificate, authority: Path, args: Namespace) -> None:
    expires = f"{made.expires:%Y-%m-%d}"
    paths = {"certificate": os.path.abspath(made.certificate), "key": os.path.abspath(made.key)}
    if args.json:
        output.print_json({**paths, "expires": made.expires.isoformat()})
        return
    if args.what == "ca":
        print(f"{paths['certificate']}\n{paths['key']}")
        output.say(f"good until {expires}; who has {made.key.name} can make certificates")
        return
    print(f"certfile = {_quoted(paths['certificate'])}")
    print(f"keyfile = {_quoted(paths['key'])}")
    print(f"cacertfile = {_quoted(os.path.abspath(authority))}")
    output.say(f"good until {expires}; these lines go into the node's table [genrpc]")


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)  # TOML's strings are written as JSON's


# ---------------------------------------------------------------- token


def _declare_token(parser: Parser) -> None:
    parser.add_argument(
        "--ttl",
        metavar="DURATION",
        type=positive_duration,
        default=600.0,
        help="how long it lives: 90, 500ms, 10m (default: 10m)",
    )
    parser.add_argument(
        "--allow",
        metavar="PATTERN",
        action="append",
        default=[],
        help="what may be called (default: all that the node's policy admits); may be repeated",
    )
    parser.add_argument(
        "--node", metavar="NAME", type=node, help="the only node that takes it (default: all)"
    )


def _token(args: Namespace) -> int:
    import time

    from genrpc import security
    from genrpc.names import node_name, program_name
    from genrpc.settings import Settings

    cookie = security.load_cookie(Settings())
    try:
        audience = "" if args.node is None else node_name(args.node)
        token = security.make_token(
            cookie,
            ttl=args.ttl,
            allow=args.allow,
            audience=audience,
            issuer=program_name(),
            now=time.time(),
        )
    except ValueError as exc:
        raise UsageError(str(exc)) from None
    if args.json:
        output.print_json({"token": token, "expires_in": args.ttl, "allow": args.allow})
    else:
        print(token)
    return codes.OK


COMMANDS = {
    "cookie": Command(_declare_cookie, _cookie, _COOKIE),
    "cert": Command(_declare_cert, _cert, _CERT),
    "token": Command(_declare_token, _token, _TOKEN),
}
