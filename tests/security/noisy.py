"""A program that has everything about itself written down, for test_marks to look through.

As a script it runs two nodes with the cookie of the environment and all logging on, brings about
every kind of refusal and failure, and prints every object of theirs that has a secret in it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
import traceback

import grpc

import genrpc
from genrpc import Node, Settings, rpc, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

ARGUMENT = "MARKED-ARGUMENT-81c9"
ANOTHER = "another cookie of 16"


class Undecodable:
    def __reduce__(self):
        return (int, (ARGUMENT,))


def fail(*_: object) -> None:
    raise LookupError("of the function")


def main() -> None:
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    b = Node("b@127.0.0.1", Settings(tcp_server_port=0, max_calls=1, max_depth=3)).start()
    a = Node("a@127.0.0.1", Settings(tcp_server_port=None)).start()
    dest = f"b@127.0.0.1:{b.port}"
    for module, function, args in (
        ("builtins", "len", [ARGUMENT]),
        ("__main__", "fail", [ARGUMENT]),
        ("no_such_module", "f", [ARGUMENT]),
        ("math", "no_such_function", [ARGUMENT]),
        ("math", "sqrt", [ARGUMENT, 2]),
        ("builtins", "len", [Undecodable()]),
    ):
        show(rpc.call(dest, module, function, args, via=a))
        rpc.cast(dest, module, function, args, via=a)
        key = rpc.async_call(dest, module, function, args, via=a)
        show(key, rpc.yield_(key))
    waiting = [rpc.async_call(dest, "time", "sleep", [0.5], via=a) for _ in range(3)]
    show(*(rpc.yield_(key) for key in waiting))  # of which max_calls refuses two
    try:
        a.call(dest, "__main__", "fail", [ARGUMENT])
    except genrpc.CallError:
        traceback.print_exc()
    b.change_policy("whitelist", ["math"])
    show(rpc.call(dest, "builtins", "len", [ARGUMENT], via=a))
    show(rpc.call(dest, "math", "sqrt", [Undecodable()], via=a))
    stranger = Node("s@127.0.0.1", Settings(cookie=ANOTHER, tcp_server_port=None)).start()
    show(rpc.call(dest, "builtins", "len", [ARGUMENT], via=stranger))
    ask_by_tokens(b.port)
    speak_nonsense(b.port)
    show(a.status_of(dest), a.statistics(), b.statistics(), a.nodes())
    show(a, b, a.settings, b.settings, Settings(cookie=os.environ["GENRPC_COOKIE"]))
    show(b._reception, list(b._reception.streams), [each.session for each in b._reception.streams])
    show(b._reception.authenticator, vars(b._reception.authenticator).keys(), a._peers)
    show(security.load_cookie(b.settings))
    with contextlib.suppress(TypeError):
        pickle.dumps(security.load_cookie(b.settings))
    for node in (stranger, a, b):
        node.stop(0)


def show(*things: object) -> None:
    for thing in things:
        print(repr(thing), str(thing))


def ask_by_tokens(port: int | None) -> None:
    cookie, now = security.load_cookie(Settings()), time.time()
    good = security.make_token(cookie, now=now)
    # Told apart from what is looked for, which is written here and nowhere else.
    with open(os.environ["TOKENS"], "w") as file:
        for token in (
            good,
            security.make_token(cookie, ttl=1, now=now - 2),
            security.make_token(cookie, audience="x@127.0.0.1", now=now),
            f"{good}x",
        ):
            print(token, file=file)
            ask(port, token)
    show(security.check_token(cookie, good, node="b@127.0.0.1", now=now))
    with contextlib.suppress(security.TokenError):
        security.check_token(cookie, f"{good}x", node="b@127.0.0.1", now=now)
    try:
        security.check_token(cookie, good[:-1], node="b@127.0.0.1", now=now)
    except security.TokenError:
        traceback.print_exc()


def ask(port: int | None, token: str) -> None:
    call = pb.CallRequest(mfa=pb.Mfa(module="math", function="sqrt"))
    call.mfa.args.values.add(string_value=ARGUMENT)
    deep = pb.CallRequest(mfa=pb.Mfa(module="math", function="sqrt"))
    inner = deep.mfa.args
    for _ in range(5):
        inner = inner.values.add().list_value
    inner.values.add(string_value=ARGUMENT)
    pickled = pb.CallRequest(mfa=pb.Mfa(module="math", function="sqrt"))
    pickled.mfa.encoded.content_type = "application/x-python-pickle"
    pickled.mfa.encoded.data = pickle.dumps(ARGUMENT)
    metadata = [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for request in (call, deep, pickled):
            for method in ("Call", "Cast", "GetStatus", "ListFunctions"):
                ask_one = channel.unary_unary(f"/genrpc.v1.NodeService/{method}")
                try:
                    show(ask_one(request.SerializeToString(), metadata=metadata, timeout=20))
                except grpc.RpcError as error:
                    show(error.code(), error.details())


def speak_nonsense(port: int | None) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        connect = channel.stream_stream("/genrpc.v1.NodeService/Connect")
        said = pb.Hello(revision_max=1, revision_min=1, nonce=ARGUMENT.encode().ljust(32))
        for frame in (ARGUMENT.encode(), pb.ConnectRequest(hello=said).SerializeToString()):
            with contextlib.suppress(grpc.RpcError):
                show(list(connect(iter([frame]), timeout=20)))


if __name__ == "__main__":
    main()
