"""No way around a whitelist: not by names, not by what a module holds, not by pickles, by no door.

The list has one module, `guarded` (see targets), which holds about everything that careless
modules hold. What must stay shut leaves a trace in the node's process when it is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
import os
import pickle
import string
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest
from nodes import COOKIE
from raw_peer import RawPeer
from scale import count, patient, seeded
from victim import TARGETS, Victim, victim
from waiting import SECONDS, until

from genrpc import (
    BadResultError,
    BadRPC,
    NotAllowedError,
    RemoteExit,
    Throw,
    aio,
    codec,
    erpc,
    rpc,
    security,
)
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.default import replaced_by

NAMES = count(10_000, 100_000)
UNAUTHORIZED = (BadRPC("unauthorized"), "not_started")
NOTHING = pickle.dumps([[], {}])
AT_ONCE = 400
"""Calls in a frame, which is to fit into what HTTP/2 lets through unasked."""

sys.path.append(TARGETS)  # what is pickled by reference must be importable here, too


@pytest.fixture(scope="module")
def node() -> Iterator[Victim]:
    with victim(rpc_module_control="whitelist", rpc_module_list=["guarded"]) as node:
        assert rpc.call(node.dest, "guarded", "add", [1, 2], via=node.peer) == 3
        assert rpc.call(node.dest, "guarded", "PublicClass.double", [4], via=node.peer) == 8
        node.ask("arm")
        yield node


@pytest.fixture(autouse=True)
def nothing_was_opened(node: Victim) -> Iterator[None]:
    yield
    report = node.ask("report")
    assert report["canary"] is None
    assert report["imported"] == []


# ---------------------------------------------------------------- by names

OF_THE_MODULE = [
    # what it only imported, even where its __all__ says otherwise
    *("system", "run_it", "reduce", "partial_system", "Box", "box", "Box.reach", "box.open"),
    *("functools", "os", "subprocess", "canary_box", "functools.reduce", "os.system"),
    # what it keeps to itself
    *("_private", "not_in_all", "__getattr__", "dynamic", "__import__", "__builtins__"),
    *("__loader__", "__spec__", "__dict__", "__class__", "__reduce__", "__all__"),
    # what can be reached from what it offers
    *("PublicClass.attribute", "PublicClass.prop", "PublicClass._hidden", "PublicClass.Inner"),
    *("PublicClass.__init__", "PublicClass.__class__", "PublicClass.__subclasses__"),
    *("PublicClass.mro", "PublicClass.__reduce__", "PublicClass.__getattribute__"),
    *("add.__call__", "add.__globals__", "add.__code__", "call_it.__get__"),
]
ELSEWHERE = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "run"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "__import__"),
    ("builtins", "getattr"),
    ("functools", "reduce"),
    ("importlib", "import_module"),
    ("canary_box", "open_it"),
    ("canary", "sing"),
    ("genrpc", "apply"),
    ("genrpc", "deliver"),
    ("genrpc", "call"),
    ("genrpc.erpc", "call"),
    ("genrpc.local_node", "Node"),
    ("guarded.os", "system"),
    ("guarded.canary_box", "open_it"),
    ("__main__", "serve"),
]
LOOK_ALIKES = [
    *(("Guarded", "add"), ("GUARDED", "add"), ("guarded", "Add"), ("guarded", "ADD")),
    # Full width, and Cyrillic: import would make the first of them what they look like.
    *(("\uff47uarded", "add"), ("gu\u0430rded", "add")),
    *(("guarded", "\uff41dd"), ("guarded", "\u0430dd")),
    *(("guarded\0", "add"), ("guarded", "add\0"), (" guarded", "add"), ("guarded ", "add")),
    *(("guarded.", "add"), (".guarded", "add"), ("guarded..x", "add"), ("guarded:add", "add")),
    *(("guarded", "add "), ("guarded", ".add"), ("guarded", "add."), ("guarded", "")),
    *(("", "add"), ("", ""), ("guarded/add", "add"), ("./guarded", "add"), ("guarded.py", "add")),
    *(("guarded", "PublicClass.Inner.reach"), ("guarded", "os.path.join"), ("*", "*")),
    *(("guarded", "*"), ("guarded", "__builtins__.eval"), ("guarded\n", "add")),
]


@pytest.mark.parametrize(
    ("module", "function"), [*(("guarded", name) for name in OF_THE_MODULE), *ELSEWHERE]
)
def test_what_is_not_offered_is_refused(node, module, function):
    outcome = rpc.call(node.dest, module, function, ["true"], via=node.peer)
    assert (outcome, outcome.execution) == UNAUTHORIZED


def test_names_that_no_caller_of_ours_would_send_are_refused_too(node):
    with RawPeer(node.address) as peer:
        for module, function in (*LOOK_ALIKES, *ELSEWHERE):
            reason, execution = peer.refusal(module, function, NOTHING)
            assert is_refusal(reason, module, function), (module, function)
            assert execution == "not_started"


def is_refusal(reason: object, module: str, function: str) -> bool:
    """Whether it is the right answer: in the listed module a name may just not be there."""
    parts = function.split(".")
    if module == "guarded" and all(p.isidentifier() and not p.startswith("_") for p in parts):
        missing = isinstance(reason, RemoteExit) and reason.type == "builtins.AttributeError"
        return missing or reason == "unauthorized"
    return reason == "unauthorized"


@patient
def test_names_at_random_are_refused(node):
    draw = seeded("names")
    loaded = sorted(sys.modules)
    letters = string.ascii_letters + string.digits + "_._"

    def name() -> str:
        return "".join(draw.choices(letters, k=draw.randint(1, 12)))

    names = []
    for _ in range(NAMES):
        module = draw.choice((name(), draw.choice(loaded), "guarded", "guarded"))
        function = draw.choice((name(), draw.choice(dir(sys.modules.get(module, os)) or ["x"])))
        if (module, function) not in OFFERED:
            names.append((module, function))
    with RawPeer(node.address) as peer:
        for begin in range(0, len(names), AT_ONCE):
            some = names[begin : begin + AT_ONCE]
            targets = [
                pb.Target(number=number, module=module, function=function)
                for number, (module, function) in enumerate(some)
            ]
            ids = list(range(begin + 1, begin + 1 + len(some)))
            payloads = [NOTHING] * len(some)
            numbers = list(range(len(some)))
            peer.send_calls(targets=targets, call_ids=ids, call_targets=numbers, payloads=payloads)
            assert_all_refused(peer, dict(zip(ids, some, strict=True)))


OFFERED = {
    *(("guarded", name) for name in ("add", "call_it", "PublicClass", "PublicClass.double")),
    *(("genrpc", "node"), ("genrpc", "ping")),
}


def assert_all_refused(peer: RawPeer, names: dict[int, tuple[str, str]]) -> None:
    while names:
        replies = peer.hear().replies
        for call_id, data in zip(replies.call_ids, replies.payloads, strict=True):
            failure = codec.decode_error(data, pickles=False)
            name = names.pop(call_id)
            assert is_refusal(failure.reason, *name), name
            assert failure.execution == "not_started"


# ---------------------------------------------------------------- by arguments


class Reduces:
    """Is decoded by a call of whatever it was made with."""

    def __init__(self, *reduced: object) -> None:
        self._reduced = reduced

    def __reduce__(self):
        return self._reduced


def opens():
    import canary_box

    return canary_box.open_it()


@pytest.mark.parametrize(
    "argument",
    [
        os.system,
        subprocess.check_output,
        eval,
        functools.reduce,
        functools.partial(os.system, "true"),
        operator.attrgetter("__globals__"),
        operator.methodcaller("__class__"),
        Reduces(os.system, ("true",)),
        Reduces(eval, ("__import__('canary').sing()",)),
        Reduces(functools.reduce, (os.system, ["true"])),
        Reduces(getattr, (os, "system")),
        Reduces(map, (os.system, ["true"])),
        opens,
        lambda: opens(),
        sys.modules["os"],
    ],
    ids=lambda argument: getattr(argument, "__name__", type(argument).__name__),
)
def test_no_forbidden_function_comes_by_an_argument(node, argument):
    """`call_it` is offered, and calls what it is given."""
    outcome = rpc.call(node.dest, "guarded", "call_it", [argument, "true"], via=node.peer)
    assert (outcome, outcome.execution) == (BadRPC("bad_arguments"), "not_started")


PICKLES = [
    b"cos\nsystem\n(S'true'\ntR.",
    b"cposix\nsystem\n(S'true'\ntR.",
    b"ccanary_box\nopen_it\n(tR.",
    b"cguarded\ncanary_box.open_it\n(tR.",
    b"cguarded\nsystem\n(S'true'\ntR.",
    b"cguarded\n_private\n(tR.",
    b"cguarded\nnot_in_all\n(tR.",
    b"cguarded\ncall_it\n(ccanary_box\nopen_it\ntR.",
    b"cguarded\ncall_it\n(cguarded\nsystem\nS'true'\ntR.",
    b"cguarded\nPublicClass.attribute\n(S'true'\ntR.",
    b"cguarded\nadd.__globals__\n.",
    b"\x80\x02cguarded\nBox\n)\x81(tR.",
    b"(S'true'\nios\nsystem\n.",
    b"(cos\nsystem\nS'true'\no.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"c__builtin__\neval\n(S'1'\ntR.",
    b"cgenrpc\napply\n(cos\nsystem\n(lS'true'\natR.",
    b"cgenrpc.codec.rebuild\nmake_exception\n(cos\nsystem\n(S'true'\ntR.",
    b"cdill._dill\n_create_function\n(tR.",
    b"ccopyreg\n_reconstructor\n(cguarded\nBox\nc__builtin__\nobject\nNtR.",
    b"\x80\x02\x82\x01.",
    b"Pcanary\n.",
]


@pytest.mark.parametrize("data", PICKLES, ids=range(len(PICKLES)))
def test_no_pickle_reaches_what_is_not_listed(node, data):
    with RawPeer(node.address) as peer:
        assert peer.refusal("guarded", "add", data) == ("bad_arguments", "not_started")
        assert peer.call("guarded", "add", pickle.dumps([[1, 2], {}])) == pickle.dumps(3, 5)


# ---------------------------------------------------------------- by every door

OPEN = ("guarded", "not_in_all")


def test_every_door_that_answers_refuses(node):
    via = node.peer
    one = [node.dest]
    refused = BadRPC("unauthorized")
    assert rpc.call(node.dest, *OPEN, via=via) == refused
    assert rpc.block_call(node.dest, *OPEN, [], SECONDS, via=via) == refused
    assert rpc.yield_(rpc.async_call(node.dest, *OPEN, via=via)) == refused
    assert rpc.multicall(one, *OPEN, via=via) == ([refused], [])
    assert rpc.sbcast(one, "name", "message", via=via) == ([], one)
    assert rpc.call(node.dest, "genrpc", "apply", [opens, []], via=via) == refused
    with pytest.raises(NotAllowedError):
        erpc.call(node.dest, *OPEN, via=via)
    with replaced_by(via, serves=False), pytest.raises(NotAllowedError):
        erpc.run(node.dest, opens)
    with pytest.raises(NotAllowedError):
        erpc.receive_response(erpc.send_request(node.dest, *OPEN, via=via), SECONDS)
    (outcome,) = erpc.multicall(one, *OPEN, via=via)
    assert isinstance(outcome, NotAllowedError)

    async def ask() -> None:
        with pytest.raises(NotAllowedError):
            await aio.call(node.dest, *OPEN, via=via)

    asyncio.run(ask())


def test_every_door_that_does_not_answer_runs_nothing(node):
    via = node.peer
    assert rpc.cast(node.dest, *OPEN, via=via) is True
    assert rpc.ordered_cast((node.dest, "key"), *OPEN, via=via) is True
    assert rpc.eval_everywhere([node.dest], *OPEN, via=via) == "abcast"
    assert rpc.abcast([node.dest], "name", "message", via=via) == "abcast"
    erpc.multicast([node.dest], *OPEN, via=via)
    # Behind them on the same stream, so that they have been looked at by then.
    assert node.is_alive()
    assert rpc.ordered_cast((node.dest, "key"), "guarded", "add", [1, 2], via=via) is True
    assert rpc.call((node.dest, "key"), "guarded", "add", [1, 2], via=via) == 3
    assert node.ask("report")["canary"] is None


NAMES_TO_TRY = [*(("guarded", name) for name in OF_THE_MODULE), *ELSEWHERE]


def test_unary_methods_refuse_too(node):
    token = security.make_token(security.Cookie(COOKIE), now=time.time())
    options = {"metadata": [("authorization", f"Bearer {token}")], "timeout": SECONDS}
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = channel.unary_unary("/genrpc.v1.NodeService/Call")
        cast = channel.unary_unary("/genrpc.v1.NodeService/Cast")
        for module, function in NAMES_TO_TRY:
            mfa = pb.Mfa(module=module, function=function)
            with pytest.raises(grpc.RpcError) as caught:
                call(pb.CallRequest(mfa=mfa).SerializeToString(), **options)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, (module, function)
            # A cast is accepted by its name, and judged by what that leads to when it runs.
            with contextlib.suppress(grpc.RpcError):
                cast(pb.CastRequest(mfa=mfa).SerializeToString(), **options)


def test_a_nodes_own_calls_go_by_its_list(nodes):
    own = nodes.start("own", rpc_module_control="whitelist", rpc_module_list=["guarded"])
    assert rpc.call(own.name, "guarded", "add", [1, 2], via=own) == 3
    for module, function in (OPEN, *ELSEWHERE):
        outcome = rpc.call(own.name, module, function, ["true"], via=own)
        assert (outcome, outcome.execution) == UNAUTHORIZED
    assert rpc.parallel_eval([(*OPEN, [])], via=own) == [BadRPC("unauthorized")]
    with pytest.raises(NotAllowedError):
        rpc.pmap(OPEN, [], [1], via=own)
    assert "CANARY" not in os.environ


# ---------------------------------------------------------------- by results


SUNG: list[str] = []


def sing(text):
    SUNG.append(text)


def sends_a_canary():
    return Reduces(sing, ("a result",))


def throws_a_canary():
    raise Throw(Reduces(sing, ("what was thrown",)))


def raises_a_canary():
    error = ValueError("raised")
    error.detail = Reduces(sing, ("an exception",))
    raise error


def gives_plain_data():
    return {"a": [1, (2.5, b"3")]}


HERE = __name__


def test_no_result_reaches_what_is_not_listed(nodes):
    """Who is called must not be able to do here what it could not by a call."""
    b = nodes.start("b")
    a = nodes.start("a", rpc_module_control="whitelist", rpc_module_list=["guarded"])
    bad = BadRPC("bad_result")
    one = [b.name]
    for function in ("sends_a_canary", "throws_a_canary"):
        outcome = rpc.call(b.name, HERE, function, via=a)
        assert (outcome, outcome.execution) == (bad, "finished")
        assert rpc.yield_(rpc.async_call(b.name, HERE, function, via=a)) == bad
        assert rpc.multicall(one, HERE, function, via=a) == ([bad], [])
        assert rpc.block_call(b.name, HERE, function, [], SECONDS, via=a) == bad

        async def ask(function: str = function) -> None:
            with pytest.raises(BadResultError):
                await aio.call(b.name, HERE, function, via=a)

        asyncio.run(ask())
    outcome = rpc.call(b.name, HERE, "raises_a_canary", via=a)
    assert outcome.reason == RemoteExit("builtins.ValueError", "raised")
    assert outcome.reason.exception is None
    assert SUNG == []
    assert rpc.call(b.name, HERE, "gives_plain_data", via=a) == gives_plain_data()
    # It does sing without a list.
    a.change_policy("disabled", [])
    until(lambda: a.unpickle is None)
    rpc.call(b.name, HERE, "sends_a_canary", via=a)
    rpc.call(b.name, HERE, "raises_a_canary", via=a)
    assert SUNG == ["a result", "an exception"]
    SUNG.clear()
