"""The node as a whole: starting and stopping, several in a process, what it tells of itself."""

import asyncio
import concurrent.futures
import gc
import logging
import queue
import socket
import subprocess
import sys
import threading
import weakref

import pytest
from nodes import COOKIE
from waiting import SECONDS, until

import genrpc
from genrpc import BadRPC, BadTCP, aio, calling, default, discovery, erpc, local_node, rpc
from genrpc.errors import CodecError, ConfigurationError, UnsafeConfigurationError
from genrpc.local_node import Node
from genrpc.testing import cluster

HERE = __name__
GATE = threading.Event()
BEGUN = queue.SimpleQueue()


@pytest.fixture(autouse=True)
def gate():
    GATE.clear()
    while not BEGUN.empty():
        BEGUN.get()
    yield
    GATE.set()


def echo(value):
    return value


def wait_at_gate(value=None):
    BEGUN.put(value)
    assert GATE.wait(SECONDS)
    return value


def call_after_gate(dest):
    BEGUN.put(dest)
    assert GATE.wait(SECONDS)
    return rpc.call(dest, HERE, "echo", ["nested"])


# ---------------------------------------------------------------- starting


def test_started_node_listens_at_its_port_and_shows_it(nodes):
    node = nodes.start()
    socket.create_connection(("127.0.0.1", node.port), SECONDS).close()
    assert repr(node) == f"<Node {node.name} port {node.port} started>"


def test_node_without_a_port_calls_and_is_not_called(nodes):
    a, b = nodes.start("a", tcp_server_port=None), nodes.start("b")
    assert a.port is None
    assert rpc.call(b.name, HERE, "echo", [5], via=a) == 5
    assert rpc.call(a.name, HERE, "echo", [5], via=a) == 5  # itself, always


def test_name_is_completed_and_checked(nodes):
    assert Node("x", nodes.settings()).name == "x@127.0.0.1"
    with pytest.raises(ValueError, match="names no node"):
        Node("x y", nodes.settings())


def test_node_is_started_once(nodes):
    node = nodes.start()
    with pytest.raises(RuntimeError, match="a node is started once"):
        node.start()
    node.stop(0)
    with pytest.raises(RuntimeError, match="a node is started once"):
        node.start()


def test_of_many_threads_that_start_a_node_one_does(nodes):
    node = Node(nodes.name("x"), nodes.settings())
    barrier = threading.Barrier(8)

    def start():
        barrier.wait(SECONDS)
        try:
            return node.start()
        except RuntimeError:
            return None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        started = [future.result() for future in [pool.submit(start) for _ in range(8)]]
    assert [found for found in started if found is not None] == [node]
    node.stop(0)


def test_port_that_was_asked_for_and_is_taken_is_an_os_error_and_can_be_tried_again(nodes):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = Node(nodes.name("x"), nodes.settings(tcp_server_port=port))
        with pytest.raises(OSError, match=str(port)):
            node.start()
        assert "new" in repr(node)
    with node.start():
        assert node.port == port


def test_default_port_that_is_taken_falls_back_to_a_free_one(nodes, monkeypatch):
    settings = nodes.settings()
    first = nodes.start("a")
    monkeypatch.setattr(type(settings), "is_given", lambda self, name: False)
    node = Node(nodes.name("x"), nodes.settings(tcp_server_port=first.port))
    with node.start():
        assert node.port not in (first.port, 0, None)


def test_failed_publishing_frees_the_port(nodes, monkeypatch):
    def refuse(name, host, port):
        raise UnsafeConfigurationError("the directory is another user's")

    node = Node(nodes.name("x"), nodes.settings(port_discovery="local"))
    listeners = []
    with monkeypatch.context() as patch:
        patch.setattr(discovery, "publish", refuse)
        start = local_node.Listener.start

        async def noted(self, host, port):
            await start(self, host, port)
            listeners.append(self)

        patch.setattr(local_node.Listener, "start", noted)
        with pytest.raises(UnsafeConfigurationError):
            node.start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listeners[0].port), SECONDS)
    assert node.port is None
    with node.start():
        socket.create_connection(("127.0.0.1", node.port), SECONDS).close()


def test_configuration_that_is_not_safe_starts_nothing(nodes):
    with pytest.raises(ConfigurationError):
        Node(nodes.name("x"), nodes.settings(listen_address="0.0.0.0")).start()


def test_switch_interval_is_set_where_it_is_asked_for(nodes):
    before = sys.getswitchinterval()
    try:
        nodes.start("a", switch_interval=0.001)
        assert sys.getswitchinterval() == pytest.approx(0.001)
    finally:
        sys.setswitchinterval(before)


def test_local_nodes_find_each_other_by_name(nodes):
    with (
        Node(nodes.name("x"), nodes.settings(port_discovery="local")).start() as x,
        Node(nodes.name("y"), nodes.settings(port_discovery="local")).start() as y,
    ):
        assert rpc.call(y.name, HERE, "echo", [5], via=x) == 5
        assert y.name in discovery.local_nodes()
    assert y.name not in discovery.local_nodes()


# ---------------------------------------------------------------- stopping


def test_with_starts_and_stops(nodes):
    with Node(nodes.name("x"), nodes.settings()) as node:
        port = node.port
    assert node.is_stopped
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), SECONDS)


@pytest.mark.parametrize("grace", [-1, "1", float("nan")])
def test_grace_is_a_duration(nodes, grace):
    node = nodes.start()
    with pytest.raises((TypeError, ValueError)):
        node.stop(grace)
    assert not node.is_stopped


@pytest.mark.parametrize("grace", [None, float("inf"), 1e30])
def test_grace_may_be_for_ever(nodes, grace):
    a, b = nodes.start("a"), nodes.start("b")
    rpc.call(b.name, HERE, "echo", [5], via=a)
    b.stop(grace)
    assert b.is_stopped


def test_stopping_twice_or_before_the_start_does_nothing(nodes):
    fresh = Node(nodes.name("x"), nodes.settings())
    fresh.stop()
    with fresh.start():
        pass
    fresh.stop()


def test_what_runs_within_the_grace_can_still_call_others(nodes):
    a, b, c = nodes.start("a"), nodes.start("b"), nodes.start("c")
    key = erpc.async_call(b.name, HERE, "call_after_gate", [c.name], via=a)
    BEGUN.get(timeout=SECONDS)
    stopping = threading.Thread(target=b.stop, args=(SECONDS,))
    stopping.start()
    until(lambda: b._reception.draining)
    GATE.set()
    assert key.result(SECONDS) == "nested"
    stopping.join(SECONDS)


@pytest.mark.parametrize("known", [False, True])
def test_node_that_is_not_running_refuses_with_a_sentence(nodes, known):
    a, b = nodes.start("a"), nodes.start("b")
    if known:
        assert rpc.call(b.name, HERE, "echo", [5], via=a) == 5
    a.stop(0)
    for via, words in ((a, "is stopped"), (Node(nodes.name("x"), nodes.settings()), "not started")):
        with pytest.raises(RuntimeError, match=words):
            rpc.call(b.name, HERE, "echo", [5], via=via)
        with pytest.raises(RuntimeError, match=words):
            rpc.cast(b.name, HERE, "echo", [5], via=via)
        with pytest.raises(RuntimeError, match=words):
            rpc.async_call(b.name, HERE, "echo", [5], via=via)
        with pytest.raises(RuntimeError, match=words):
            asyncio.run(aio.call(b.name, HERE, "echo", [5], via=via))


def test_callers_that_wait_in_all_ways_are_let_go_when_their_node_stops(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    closed = BadTCP("closed")

    async def wait():
        with pytest.raises(erpc.TransportError) as caught:
            await aio.call(b.name, HERE, "wait_at_gate", via=a)
        return caught.value.value

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        key = erpc.async_call(b.name, HERE, "wait_at_gate", via=a)
        waiting = [
            pool.submit(rpc.call, b.name, HERE, "wait_at_gate", [], None, via=a),
            pool.submit(rpc.yield_, key),
            pool.submit(asyncio.run, wait()),
            pool.submit(rpc.multicall, [b.name], HERE, "wait_at_gate", [], None, via=a),
        ]
        for _ in waiting:
            BEGUN.get(timeout=SECONDS)
        a.stop(0)
        outcomes = [future.result(SECONDS) for future in waiting]
    assert outcomes == [closed, closed, closed, ([], [b.name])]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["callee", "caller"])
def test_frozen_peer_does_not_keep_a_node_from_stopping(frozen):
    with cluster(1) as processes:
        (peer,) = processes.names
        settings = default.acting_node().settings.changed(tcp_server_port=0)
        node = Node(f"here-{frozen}", settings).start()
        if frozen == "callee":
            assert rpc.call(peer, "math", "factorial", [5], SECONDS, via=node) == 120
            processes.freeze(0)
            key = rpc.async_call(peer, "math", "factorial", [5], via=node)
            rpc.cast(peer, "builtins", "len", [bytes(30_000_000)], via=node)
        else:
            back = [node.name, "math", "factorial", [5]]
            assert rpc.call(peer, "genrpc", "call", back, SECONDS) == 120
            rpc.cast(peer, "genrpc", "call", [node.name, "builtins", "bytes", [30_000_000]])
            until(lambda: node.statistics()["calls_served"] == 2)
            processes.freeze(0)
        stopping = threading.Thread(target=node.stop, args=(0.1,))
        stopping.start()
        stopping.join(SECONDS)
        assert not stopping.is_alive()
        if frozen == "callee":
            assert rpc.yield_(key) == BadTCP("closed")


def test_stop_is_called_at_the_programs_end():
    code = """
import genrpc, genrpc.default
def report(stop=genrpc.Node.stop):
    def reported(self, grace=2.0):
        print("stopped with", grace)
        stop(self, grace)
    return reported
genrpc.Node.stop = report()
genrpc.start("x", tcp_server_port=0, cookie="0123456789abcdef", port_discovery="manual")
print(genrpc.call("x", "math", "factorial", [5]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (run.stdout.split("\n")[:2], run.stderr) == (["120", "stopped with 1.0"], "")


def test_stopped_node_leaves_no_threads_and_no_memory(nodes):
    async def noop():
        return 5

    before = set(threading.enumerate())
    for _ in range(3):
        a = Node(nodes.name("x"), nodes.settings()).start()
        assert erpc.call(a.name, HERE, "echo", [5], via=a) == 5
        assert erpc.call(a.name, "genrpc", "apply", [noop, []], via=a) == 5
        a.stop(0)
        reference = weakref.ref(a)
        del a
        until(lambda reference=reference: gc.collect() is not None and reference() is None)
    until(lambda: {t for t in threading.enumerate() if t.name != "genrpc-loop"} <= before)


# ---------------------------------------------------------------- several nodes


def test_nodes_of_one_process_call_each_other_and_themselves(nodes):
    a, b, c = nodes.start("a"), nodes.start("b"), nodes.start("c")
    for caller in (a, b, c):
        for callee in (a, b, c):
            assert erpc.call(callee.name, "genrpc", "node", via=caller) == callee.name
    assert a.nodes() == sorted([b.name, c.name])


def test_own_node_is_called_without_the_network(nodes):
    a = nodes.start()
    assert erpc.call(a.name, HERE, "echo", [{1: b"x" * 100_000}], via=a) == {1: b"x" * 100_000}
    assert {inbound.address for inbound in a._reception.streams} == {"this process"}
    assert a.nodes() == []


def test_arguments_are_taken_by_value_at_the_moment_of_the_call(nodes):
    a = nodes.start()
    value = [bytearray(100_000), [1]]
    for dest in (a.name, nodes.start("b").name):
        key = erpc.async_call(dest, HERE, "echo", [value], via=a)
        value[0][:] = b"y" * 100_000
        value[1].append(2)
        assert key.result(SECONDS)[1] == [1]
        assert bytes(key.result()[0]) == bytes(100_000)
        value[0][:], value[1][:] = bytes(100_000), [1]


def test_calls_to_own_node_do_not_share_memory(nodes):
    a = nodes.start()
    value = [1]
    assert erpc.call(a.name, HERE, "echo", [value], via=a) is not value


# ---------------------------------------------------------------- mistakes of the caller


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dest": 5}, TypeError),
        ({"dest": ""}, ValueError),
        ({"dest": ("b@127.0.0.1", [])}, TypeError),
        ({"module": None}, TypeError),
        ({"module": "a b"}, ValueError),
        ({"module": ("math", "\ud800")}, ValueError),
        ({"function": 5}, TypeError),
        ({"function": "a.b.c"}, ValueError),
        ({"args": 5}, TypeError),
        ({"args": "text"}, TypeError),
        ({"args": {1: 2}}, TypeError),
        ({"kwargs": [1]}, TypeError),
        ({"kwargs": {1: 2}}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"send_timeout": -1}, ValueError),
        ({"args": [(item for item in ())]}, CodecError),
    ],
)
def test_mistake_of_the_caller_raises_before_anything_is_sent(nodes, options, error):
    a, b = nodes.start("a"), nodes.start("b")
    good = {"dest": b.name, "module": HERE, "function": "echo", "args": [5], "via": a}
    wrong = {**good, **options}

    async def await_it(call):
        await call(**wrong)

    for call in (rpc.call, erpc.call, rpc.async_call, rpc.block_call):
        with pytest.raises(error):
            call(**wrong)
    for call in (aio.call, aio.async_call):
        with pytest.raises(error):
            asyncio.run(await_it(call))
    if "timeout" not in options:
        with pytest.raises(error):
            rpc.cast(**wrong)
    assert "streams_accepted" not in b.statistics()


def test_via_is_a_node(nodes):
    with pytest.raises(TypeError, match=r"via is a genrpc\.Node"):
        rpc.call("b@127.0.0.1", HERE, "echo", [5], via="a@127.0.0.1")


# ---------------------------------------------------------------- timeouts


def test_timeout_0_is_over_at_once_and_nothing_is_sent(nodes):
    a = nodes.start("a")
    timeout = BadRPC("timeout")
    for outcome in (
        rpc.call("b@127.0.0.1", HERE, "echo", [5], 0, via=a),
        rpc.yield_(rpc.async_call("b@127.0.0.1", HERE, "echo", [5], 0, via=a)),
    ):
        assert (outcome, outcome.execution) == (timeout, "not_started")
    with pytest.raises(erpc.CallTimeoutError):
        asyncio.run(aio.call("b@127.0.0.1", HERE, "echo", [5], 0, via=a))
    assert next(iter(a._peers.values()))._pump is None


def test_timeout_that_is_left_out_is_the_setting(nodes):
    a, b = nodes.start("a", receive_timeout=0.05), nodes.start("b")
    assert rpc.call(b.name, HERE, "wait_at_gate", via=a) == BadRPC("timeout")
    assert rpc.multicall([b.name], HERE, "wait_at_gate", via=a) == ([], [b.name])


def test_late_reply_reaches_nobody(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    assert rpc.call(b.name, HERE, "wait_at_gate", ["late"], 0.05, via=a) == BadRPC("timeout")
    GATE.set()
    for number in range(20):
        assert rpc.call(b.name, HERE, "echo", [number], via=a) == number


def test_loop_thread_that_does_not_answer_is_told(nodes, monkeypatch):
    monkeypatch.setattr(calling, "WAKE_SLACK_SECONDS", 0.01)
    a, b = nodes.start("a"), nodes.start("b")
    hold = threading.Event()
    a._running_thread().call(hold.wait, SECONDS)
    for ask in (rpc.call, rpc.multicall):
        dest = b.name if ask is rpc.call else [b.name]
        with pytest.raises(RuntimeError, match="does not answer"):
            ask(dest, HERE, "echo", [5], 0.01, via=a)
    hold.set()
    assert rpc.call(b.name, HERE, "echo", [5], via=a) == 5


def test_blocking_call_in_a_non_blocking_function_raises_at_once(nodes):
    a = nodes.start("a")
    for _ in range(2):  # at first, nobody knows that it is one
        outcome = rpc.call(a.name, HERE, "call_without_blocking", [a.name], via=a)
    assert outcome.reason.type == "builtins.RuntimeError"
    assert "declared non-blocking" in outcome.reason.message


@genrpc.nonblocking
def call_without_blocking(dest):
    return rpc.call(dest, HERE, "echo", [5])


# ---------------------------------------------------------------- casts


def test_cast_that_cannot_be_delivered_is_counted_and_logged_once(nodes, caplog):
    a = nodes.start("a")
    nodes.addresses["b@127.0.0.1"] = ("127.0.0.1", 1)
    with caplog.at_level(logging.WARNING, "genrpc"):
        for _ in range(5):
            assert rpc.cast("b@127.0.0.1", HERE, "echo", [5], via=a) is True
        until(lambda: a.statistics().get("casts_failed") == 5)
    assert caplog.text.count(f"A cast of {HERE}:echo to b@127.0.0.1 was lost") == 1


# ---------------------------------------------------------------- named handlers


def test_handlers_are_callables_and_queues(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    messages = queue.Queue()
    for name, handler in (("callable", messages.put), ("queue", messages)):
        b.handlers.register(name, handler)
        assert b.handlers.whereis(name) is handler or b.whereis(name) == handler
        assert rpc.sbcast([b.name], name, name, via=a) == ([b.name], [])
        assert messages.get(timeout=SECONDS) == name
        b.handlers.unregister(name)
        b.handlers.unregister(name)
        assert b.handlers.whereis(name) is None
        assert rpc.sbcast([b.name], name, name, via=a) == ([], [b.name])


def test_queue_of_an_event_loop_gets_messages_on_its_loop(nodes):
    a, b = nodes.start("a"), nodes.start("b")

    async def receive():
        messages = asyncio.Queue()
        await aio.register("inbox", messages, via=b)
        assert await aio.abcast([b.name], "inbox", 5, via=a) == "abcast"
        return await asyncio.wait_for(messages.get(), SECONDS)

    assert asyncio.run(receive()) == 5
    # Its loop is closed by now: that is the handler's trouble, not the sender's.
    assert rpc.sbcast([b.name], "inbox", 5, via=a) == ([b.name], [])


@pytest.mark.parametrize(
    ("name", "handler", "words"),
    [
        ("", print, "under a name"),
        (5, print, "under a name"),
        ("x", 5, "a handler is a callable"),
        ("x", asyncio.Queue(), "from within its event loop"),
    ],
)
def test_what_is_no_handler_is_refused(nodes, name, handler, words):
    with pytest.raises(TypeError, match=words):
        nodes.start("a").handlers.register(name, handler)


def test_handler_that_raises_is_logged_and_its_sender_is_not_told(nodes, caplog):
    a = nodes.start("a")

    def fail(message):
        raise ValueError(message)

    a.handlers.register("x", fail)
    assert rpc.sbcast([a.name], "x", "no", via=a) == ([a.name], [])
    assert "The handler registered as 'x' raised" in caplog.text


# ---------------------------------------------------------------- what is known


def test_policy_of_a_node_that_is_not_running_cannot_be_changed(nodes):
    with pytest.raises(RuntimeError, match="is not started"):
        Node(nodes.name("x"), nodes.settings()).change_policy("disabled", [])


def test_statistics_count_what_happened(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    for _ in range(3):
        rpc.call(b.name, HERE, "echo", [5], via=a)
    numbers = b.statistics()
    assert (numbers["calls_served"], numbers["streams_accepted"], numbers["streams_in"]) == (
        3,
        1,
        1,
    )
    assert (a.statistics()["streams_opened"], a.statistics()["streams_out"]) == (1, 1)


def test_node_that_was_not_started_has_statistics_too(nodes):
    assert Node(nodes.name("x"), nodes.settings()).statistics() == {}


def test_aliases_are_bounded(nodes, monkeypatch):
    monkeypatch.setattr(calling, "MAX_ALIASES", 5)
    a = nodes.start("a")
    for number in range(20):
        assert rpc.call((a.name, number), HERE, "echo", [number], via=a) == number
    assert len(a._aliases) <= 5


def test_cookie_does_not_show(nodes):
    node = nodes.start()
    assert COOKIE not in repr(node) + repr(node.settings) + repr(vars(node))


def test_default_shows_itself_in_signatures():
    assert repr(calling.DEFAULT) == "default"
