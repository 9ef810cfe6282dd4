"""Many threads, many keys, many nodes, deep nesting."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import strangers
from nodes import is_at_rest
from waiting import SECONDS, until

from genrpc import BadTCP, erpc, errors, rpc
from genrpc.default import acting_node
from genrpc.testing import cluster

HERE = __name__
GATES = {}


def echo(value):
    return value


def meet(number):
    """Return when so many are here at once."""
    GATES[number].wait(SECONDS)
    return number


def descend(names, depth):
    """Call the next node, which calls the next, and so on; give the way that it took."""
    here = acting_node()
    if not depth:
        return [here.name]
    following = names[(names.index(here.name) + 1) % len(names)]
    return [here.name, *erpc.call(following, HERE, "descend", [names, depth - 1], SECONDS)]


async def descend_later(names, depth):
    from genrpc import aio

    here = acting_node()
    if not depth:
        return [here.name]
    following = names[(names.index(here.name) + 1) % len(names)]
    deeper = await aio.call(following, HERE, "descend_later", [names, depth - 1], SECONDS)
    return [here.name, *deeper]


@pytest.mark.slow
def test_five_thousand_calls_from_fifty_threads_get_each_its_own_answer(nodes):
    a, b = nodes.start("a"), nodes.start("b")

    def work(thread):
        dice = random.Random(thread)
        for number in range(100):
            value = (thread, number, "x" * dice.randrange(2_000))
            if rpc.call(b.name, HERE, "echo", [value], None, via=a) != value:
                return (thread, number)
        return None

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(work, range(50))) == [None] * 50
    until(lambda: is_at_rest(b))
    assert b.statistics()["calls_served"] == 5_000


def test_multicall_of_twenty_nodes_with_two_dead_ones_answers_in_node_order(nodes):
    a = nodes.start("a")
    names = [nodes.start(f"n{number}").name for number in range(18)]
    with strangers.closed_port() as closed, strangers.mute() as mute:
        names.insert(3, f"closed@127.0.0.1:{closed}")
        names.insert(11, f"mute@127.0.0.1:{mute}")
        begun = time.monotonic()
        results, bad = rpc.multicall(names, "genrpc", "node", [], 3.0, via=a)
        seconds = time.monotonic() - begun
    good = [name for name in names if name not in (names[3], names[11])]
    assert (results, bad) == (good, [names[3], names[11]])
    assert seconds < 8.0  # the deadline of 3 s, and what a loaded machine adds


@pytest.mark.slow
def test_thousand_keys_to_a_closed_port_all_fail_with_one_reason(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    with strangers.closed_port() as port:
        dest = f"closed@127.0.0.1:{port}"
        begun = time.monotonic()
        keys = [
            erpc.async_call((dest, number), HERE, "echo", [number], via=a)
            for number in range(1_000)
        ]
        outcomes = [rpc.yield_(key) for key in keys]
    assert outcomes == [BadTCP("econnrefused")] * 1_000
    assert {outcome.execution for outcome in outcomes} == {"not_started"}
    assert time.monotonic() - begun < 3 * SECONDS
    assert rpc.call(b.name, HERE, "echo", [5], via=a) == 5


@pytest.mark.slow
def test_three_hundred_keys_to_one_node_have_a_stream_each(nodes):
    a, b = nodes.start("a", connect_timeout=None), nodes.start("b", handshake_timeout=60)
    keys = [
        erpc.async_call((b.name, number), HERE, "echo", [number], via=a) for number in range(300)
    ]
    assert [key.result(3 * SECONDS) for key in keys] == list(range(300))
    assert b.statistics()["streams_in"] == 300
    assert a.nodes() == [b.name]


@pytest.mark.parametrize("function", ["descend", "descend_later"])
@pytest.mark.parametrize("depth", [1, 12])
def test_nodes_call_each_other_back_however_deep(nodes, function, depth):
    a, b = nodes.start("a"), nodes.start("b")
    names = [a.name, b.name]
    way = erpc.call(a.name, HERE, function, [names, depth], SECONDS, via=b)
    assert way == [names[step % 2] for step in range(depth + 1)]


def test_many_callers_nest_deep_at_the_same_time(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    keys = [
        erpc.async_call(a.name, HERE, "descend", [[a.name, b.name], 8], via=b) for _ in range(20)
    ]
    assert {len(key.result(2 * SECONDS)) for key in keys} == {9}
    until(lambda: is_at_rest(a) and is_at_rest(b))


def test_hundred_functions_that_block_run_together_while_small_calls_pass(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    GATES[101] = threading.Barrier(101)
    blocking = [erpc.async_call(b.name, HERE, "meet", [101], via=a) for _ in range(100)]
    # All hundred are blocked until one more comes, after these.
    for number in range(20):
        assert rpc.call(b.name, HERE, "echo", [number], SECONDS, via=a) == number
    assert not any(key.done() for key in blocking)
    assert rpc.call(b.name, HERE, "meet", [101], SECONDS, via=a) == 101
    assert [key.result(SECONDS) for key in blocking] == [101] * 100


def test_large_payloads_do_not_hold_small_calls_up(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    large = erpc.async_call(b.name, "builtins", "len", [bytes(100_000_000)], via=a)
    small = 0
    while not large.done():
        assert rpc.call(b.name, HERE, "echo", [small], SECONDS, via=a) == small
        small += 1
    assert large.result(SECONDS) == 100_000_000
    assert small > 3


@pytest.mark.slow
def test_peer_that_is_killed_at_any_moment_hangs_doubles_and_invents_nothing():
    # A dead node is looked for at tcp_client_port, where on this machine anybody may listen.
    with strangers.closed_port() as port, cluster(2, tcp_client_port=port) as processes:
        for turn in range(3):
            dest = processes.names[0]
            stop, outcomes = threading.Event(), []

            def work(thread, dest=dest, stop=stop, outcomes=outcomes):
                number = 0
                while not stop.is_set():
                    value = (thread, number)
                    got = rpc.call(dest, HERE, "echo", [value], SECONDS)
                    outcomes.append((value, got))
                    number += 1

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            until(lambda outcomes=outcomes, turn=turn: len(outcomes) > 50 * (turn + 1))
            processes.kill(0)
            until(lambda outcomes=outcomes: isinstance(outcomes[-1][1], BadTCP))
            processes.restart(0)
            until(lambda outcomes=outcomes: outcomes[-1][0] == outcomes[-1][1])
            stop.set()
            for thread in threads:
                thread.join(2 * SECONDS)
                assert not thread.is_alive()
            lost = [got for value, got in outcomes if got != value]
            assert lost
            reasons = {got.reason: errors.message_of(got) for got in lost}
            assert set(reasons) <= {"closed", "econnrefused"}, reasons
