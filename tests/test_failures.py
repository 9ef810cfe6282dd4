"""Every row of the table of failures, by real peers that are refused, frozen, killed or wrong.

A case arranges a peer and says which call to make; all three doors make it at the same time, and
then, where it is part of the case, the peer is struck. What comes back is compared with the row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import strangers
from waiting import SECONDS, until

import genrpc
from genrpc import BadRPC, BadTCP, Node, aio, erpc, errors, rpc
from genrpc.testing import cluster

HERE = __name__
GATE = threading.Event()
DOORS = ("rpc", "erpc", "aio")


# ---------------------------------------------------------------- targets


def echo(value):
    return value


def fail():
    raise ValueError("no")


def leave():
    raise SystemExit(3)


def begin_and_wait(folder):
    """Leave a file, so that whoever waits for it in another process knows; then wait."""
    Path(folder, f"{threading.get_ident()}").touch()
    GATE.wait(60)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def numbers():
    yield 1


def zeros(size):
    return bytes(size)


class Undecodable:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ValueError("not here")


class World:
    """What cases need: nodes here, nodes as processes, a folder."""

    def __init__(self, nodes, cluster, folder) -> None:
        self.nodes = nodes
        self.cluster = cluster
        self.folder = folder
        self.calls: list[Future[object]] = []

    def have_begun(self, number: int = len(DOORS)) -> bool:
        return len(list(Path(self.folder).iterdir())) >= number


@dataclass
class Request:
    """The call to make, and what to do to the peer when it is under way."""

    dest: object
    function: str = "echo"
    args: list[object] = field(default_factory=lambda: [5])
    module: object = HERE
    timeout: float | None = SECONDS
    options: dict[str, object] = field(default_factory=dict)
    via: Node | None = None


# ---------------------------------------------------------------- cases


CASES = {}


def case(value, execution, error):
    """The decorated generator arranges, yields a Request, and strikes when the call is made."""

    def note(arrange):
        found = contextlib.contextmanager(arrange)
        CASES[arrange.__name__] = found, value, execution, error
        return arrange

    return note


def stranger(server, **settings):
    @contextlib.contextmanager
    def arrange(world):
        with server() as port:
            caller = world.nodes.start("a", **settings)
            yield Request(f"b@127.0.0.1:{port}", via=caller)
            wait(world.calls, SECONDS)  # while the server is still there

    return arrange


def add_stranger(name, server, value, execution, **settings):
    CASES[name] = stranger(server, **settings), value, execution, erpc.TransportError


add_stranger("nobody_listens", strangers.closed_port, BadTCP("econnrefused"), "not_started")
add_stranger(
    "a_mute_server", strangers.mute, BadTCP("connect_timeout"), "not_started", connect_timeout=0.3
)
add_stranger("a_server_of_garbage", strangers.garbage, BadTCP("corrupt_data"), "not_started")
add_stranger("a_web_server", strangers.http_1, BadTCP("corrupt_data"), "not_started")
add_stranger("another_grpc_server", strangers.other_grpc, BadTCP("corrupt_data"), "not_started")
add_stranger("a_stream_without_a_word", strangers.grpc_that_closes, BadTCP("closed"), "not_started")
add_stranger("spoiled_bytes", strangers.grpc_that_spoils, BadTCP("corrupt_data"), "not_started")
add_stranger("a_failing_server", strangers.grpc_that_fails, BadTCP("corrupt_data"), "not_started")


@case(BadTCP("nxdomain"), "not_started", erpc.TransportError)
def an_unknown_host(world):
    caller = world.nodes.start("a", port_discovery="manual")
    yield Request("b@no-such-host.invalid", via=caller)


@case(BadTCP("nxdomain"), "not_started", erpc.TransportError)
def a_node_that_discovery_does_not_know(world):
    yield Request("nobody@127.0.0.1", via=world.nodes.start("a"))


@case(BadRPC("badnode"), "not_started", erpc.NotAllowedError)
def a_node_of_another_name(world):
    port = world.nodes.start("b").port
    yield Request(f"c@127.0.0.1:{port}", via=world.nodes.start("a"))


@case(BadRPC("invalid_cookie"), "not_started", erpc.NotAllowedError)
def a_node_with_another_cookie(world):
    peer = world.nodes.start("b", cookie="another cookie of 16")
    yield Request(peer.name, via=world.nodes.start("a"))


@case(BadTCP("closed"), "unknown", erpc.TransportError)
def a_peer_that_is_killed(world):
    yield Request(world.cluster.names[1], "begin_and_wait", [str(world.folder)], timeout=None)
    until(world.have_begun)
    world.cluster.kill(1)


@case(BadRPC("timeout"), "unknown", erpc.CallTimeoutError)
def a_frozen_peer(world):
    assert genrpc.call(world.cluster.names[2], HERE, "echo", [5], SECONDS) == 5
    world.cluster.freeze(2)
    yield Request(world.cluster.names[2], timeout=0.3)
    world.thaw = lambda: world.cluster.thaw(2)


@case(BadTCP("closed"), "unknown", erpc.TransportError)
def a_frozen_peer_that_keepalive_finds(world):
    settings = genrpc.default.acting_node().settings
    caller = Node("keepalive", settings.changed(keepalive_interval=0.2, keepalive_timeout=0.2))
    with caller.start():
        dest = world.cluster.names[2]
        assert genrpc.call(dest, HERE, "echo", [5], SECONDS, via=caller) == 5
        world.cluster.freeze(2)
        world.thaw = lambda: world.cluster.thaw(2)
        yield Request(dest, timeout=None, via=caller)
        until(lambda: caller.nodes() == [])


@case(BadTCP("send_timeout"), "not_started", erpc.TransportError)
def a_frozen_peer_that_takes_no_more(world):
    dest = world.cluster.names[2]
    assert genrpc.call(dest, HERE, "echo", [5], SECONDS) == 5
    world.cluster.freeze(2)
    world.thaw = lambda: world.cluster.thaw(2)
    yield Request(dest, args=[bytes(50_000_000)], options={"send_timeout": 0.3})


@case(BadTCP("closed"), "unknown", erpc.TransportError)
def a_peer_that_is_stopped(world):
    peer = world.nodes.start("b")
    yield Request(
        peer.name,
        "begin_and_wait",
        [str(world.folder)],
        timeout=None,
        via=world.nodes.start("a"),
    )
    until(world.have_begun)
    peer.stop(0)


@case(BadRPC("draining"), "not_started", erpc.DrainingError)
def a_peer_that_is_stopping(world):
    peer, caller = world.nodes.start("b"), world.nodes.start("a")
    running = erpc.async_call(peer.name, HERE, "begin_and_wait", [str(world.folder)], via=caller)
    until(lambda: world.have_begun(1))
    stopping = threading.Thread(target=peer.stop, args=(SECONDS,))
    stopping.start()
    until(lambda: peer._reception.draining)
    yield Request(peer.name, via=caller)
    until(lambda: peer.statistics().get("refused_draining") == len(DOORS))
    GATE.set()
    assert running.result(SECONDS) is None
    stopping.join(SECONDS)


@case(BadRPC("timeout"), "unknown", erpc.CallTimeoutError)
def a_function_that_takes_too_long(world):
    peer, caller = world.nodes.start("b"), world.nodes.start("a")
    yield Request(peer.name, "begin_and_wait", [str(world.folder)], timeout=0.3, via=caller)


@case(BadRPC(errors.RemoteExit("builtins.ValueError", "no")), "finished", erpc.RemoteError)
def a_function_that_raises(world):
    yield Request(world.nodes.start("b").name, "fail", [], via=world.nodes.start("a"))


@case(BadRPC(errors.RemoteExit("builtins.SystemExit", "3")), "finished", erpc.RemoteError)
def a_function_that_exits(world):
    yield Request(world.nodes.start("b").name, "leave", [], via=world.nodes.start("a"))


@case(
    BadRPC(
        errors.RemoteExit("builtins.AttributeError", f"module '{HERE}' has no attribute 'nothing'")
    ),
    "not_started",
    erpc.RemoteError,
)
def a_missing_function(world):
    yield Request(world.nodes.start("b").name, "nothing", via=world.nodes.start("a"))


@case(
    BadRPC(errors.RemoteExit("builtins.ModuleNotFoundError", "No module named 'no_such_module'")),
    "not_started",
    erpc.RemoteError,
)
def a_missing_module(world):
    peer = world.nodes.start("b")
    yield Request(peer.name, module="no_such_module", via=world.nodes.start("a"))


@case(BadRPC("unauthorized"), "not_started", erpc.NotAllowedError)
def a_policy_that_forbids(world):
    peer = world.nodes.start("b", rpc_module_control="whitelist", rpc_module_list=["math"])
    yield Request(peer.name, via=world.nodes.start("a"))


@case(BadRPC("incompatible"), "not_started", erpc.IncompatibleError)
def a_module_of_another_version(world):
    yield Request(world.nodes.start("b").name, module=(HERE, "2"), via=world.nodes.start("a"))


@case(BadRPC("overload"), "not_started", erpc.OverloadError)
def a_peer_with_too_many_calls(world):
    peer, caller = world.nodes.start("b", max_calls=1), world.nodes.start("a")
    erpc.async_call(peer.name, HERE, "begin_and_wait", [str(world.folder)], via=caller)
    until(lambda: world.have_begun(1))
    yield Request(peer.name, via=caller)


@case(BadRPC("too_large"), "not_started", erpc.TooLargeError)
def a_request_over_the_limit(world):
    peer = world.nodes.start("b", max_message_bytes=100_000)
    yield Request(peer.name, args=[bytes(200_000)], via=world.nodes.start("a"))


@case(BadRPC("too_large"), "finished", erpc.TooLargeError)
def a_result_over_the_limit(world):
    caller = world.nodes.start("a", max_message_bytes=100_000)
    yield Request(world.nodes.start("b").name, "zeros", [200_000], via=caller)


@case(BadRPC("bad_arguments"), "not_started", erpc.BadArgumentsError)
def arguments_that_cannot_be_decoded_there(world):
    peer = world.nodes.start("b")
    yield Request(peer.name, args=[Undecodable()], via=world.nodes.start("a"))


@case(BadRPC("bad_result"), "finished", erpc.BadResultError)
def a_generator_as_the_result(world):
    yield Request(world.nodes.start("b").name, "numbers", [], via=world.nodes.start("a"))


@case(BadRPC("bad_result"), "finished", erpc.BadResultError)
def a_result_that_cannot_be_decoded_here(world):
    peer = world.nodes.start("b")
    yield Request(peer.name, "undecodable", [], via=world.nodes.start("a"))


def undecodable():
    return Undecodable()


@case(BadRPC("killed"), "started", erpc.WorkerKilledError)
def a_worker_process_that_dies(world):
    peer = world.nodes.start("b", executor="process", port_discovery="manual")
    yield Request(peer.name, "die", [], timeout=60, via=world.nodes.start("a"))


# ---------------------------------------------------------------- the test


@pytest.fixture(scope="module")
def processes():
    with cluster(3) as processes:
        yield processes


@pytest.fixture
def world(nodes, processes, tmp_path) -> Iterator[World]:
    GATE.clear()
    world = World(nodes, processes, tmp_path)
    world.thaw = lambda: None
    yield world
    GATE.set()
    world.thaw()


def outcome_by(door, request):
    """What a door gives, as a value; and the exception that it raised, if it is one that does."""
    positional = (request.dest, request.module, request.function, request.args, request.timeout)
    options = {**request.options, "via": request.via}
    if door == "rpc":
        return rpc.call(*positional, **options), None
    try:
        if door == "erpc":
            return erpc.call(*positional, **options), None
        return asyncio.run(aio.call(*positional, **options)), None
    except errors.CallError as exc:
        return exc.value, exc


@pytest.mark.parametrize("name", CASES)
def test_failure_is_the_same_through_every_door(world, name):
    arrange, value, execution, error = CASES[name]
    with ThreadPoolExecutor(len(DOORS)) as pool:
        with arrange(world) as request:
            world.calls = [pool.submit(outcome_by, door, request) for door in DOORS]
        outcomes = [future.result(SECONDS) for future in world.calls]
    for door, (outcome, raised) in zip(DOORS, outcomes, strict=True):
        assert (outcome, outcome.execution) == (value, execution), door
        assert_is_a_sentence(outcome)
        if door != "rpc":
            assert isinstance(raised, error)
            is_os_error = error in (erpc.TransportError, erpc.CallTimeoutError)
            assert isinstance(raised, OSError) == is_os_error
    assert rpc.call(world.cluster.names[0], HERE, "echo", [5], SECONDS) == 5


def assert_is_a_sentence(outcome):
    words = errors.message_of(outcome)
    if isinstance(outcome.reason, errors.RemoteExit):
        assert words == outcome.reason.headline
    else:
        assert words.endswith((".", ".)")), words
        assert len(words.split()) > 3, words


def test_killed_peer_can_be_called_again_when_it_was_restarted(world):
    dest = world.cluster.names[1]
    world.cluster.restart(1)
    assert rpc.call(dest, HERE, "echo", [5], SECONDS) == 5


def test_cancelled_call_is_a_value_and_an_exception(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    GATE.clear()
    key = erpc.async_call(b.name, "time", "sleep", [0.2], via=a)
    key.cancel()
    assert rpc.yield_(key) == BadRPC("cancelled")
    assert_is_a_sentence(rpc.yield_(key))


def test_expired_result_is_a_value_and_an_exception(nodes):
    a, b = nodes.start("a", async_call_inactivity_timeout=0.01), nodes.start("b")
    key = erpc.async_call(b.name, HERE, "echo", [5], via=a)
    until(lambda: key._outcome is not None)
    outcome = rpc.yield_(key)
    assert (outcome, outcome.execution) == (BadRPC("expired"), "finished")
    assert_is_a_sentence(outcome)
    with pytest.raises(erpc.ExpiredError):
        key.result()


def test_function_that_returns_a_failure_has_succeeded(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    for value in (BadRPC("timeout"), BadTCP("closed")):
        assert erpc.call(b.name, HERE, "echo", [value], via=a) == value


@pytest.mark.parametrize("number", range(3))
def test_after_a_stranger_the_same_destination_can_be_good(nodes, number):
    """No state of the bad peer is left with the destination."""
    a = nodes.start("a")
    server = (strangers.garbage, strangers.other_grpc, strangers.grpc_that_spoils)[number]
    name = nodes.name("b")
    with server() as port:
        nodes.addresses[name] = ("127.0.0.1", port)
        assert rpc.call(name, HERE, "echo", [5], via=a) == BadTCP("corrupt_data")
    nodes.start("b")
    assert rpc.call(name, HERE, "echo", [5], via=a) == 5
