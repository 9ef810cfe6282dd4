"""Keys: the ways to wait for a call, and to stop waiting."""

import asyncio
import concurrent.futures
import gc
import logging
import queue
import threading
import weakref

import pytest
from waiting import SECONDS, until

import genrpc
from genrpc import BadRPC, BadTCP, aio, erpc, keys, rpc
from genrpc.errors import Throw

HERE = __name__
GATE = threading.Event()
BEGUN = queue.SimpleQueue()
CANCELLED = queue.SimpleQueue()


@pytest.fixture(autouse=True)
def gate():
    GATE.clear()
    for items in (BEGUN, CANCELLED):
        while not items.empty():
            items.get()
    yield
    GATE.set()


@pytest.fixture
def caller(nodes):
    return nodes.start("a")


@pytest.fixture
def callee(nodes):
    return nodes.start("b")


@pytest.fixture
def begin(caller, callee):
    """Begin a call of a function here and give its key."""

    def begin(function, *args, **options):
        return erpc.async_call(callee.name, HERE, function, args, via=caller, **options)

    return begin


def wait_at_gate(value=None):
    BEGUN.put(value)
    assert GATE.wait(SECONDS)
    CANCELLED.put(genrpc.cancelled())
    return value


def echo(value):
    return value


def fail(error):
    raise error


def throw(value):
    raise Throw(value)


# ---------------------------------------------------------------- outcomes


def test_result_is_the_value(begin):
    key = begin("echo", 5)
    assert (key.result(SECONDS), key.exception(), key.done(), key.running()) == (
        5,
        None,
        True,
        False,
    )


def test_result_raises_what_the_function_raised(begin):
    key = begin("fail", ValueError("no"))
    with pytest.raises(erpc.RemoteError, match="no") as caught:
        key.result(SECONDS)
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(key.exception(), erpc.RemoteError)


def test_each_time_a_failure_is_raised_it_is_a_fresh_exception(begin):
    for key in (begin("fail", ValueError("no")), begin("throw", 5)):
        first, second = key.exception(SECONDS), key.exception()
        assert type(first) is type(second)
        assert first is not second


def test_thrown_value_is_raised_here_and_returned_by_yield(begin):
    key = begin("throw", 5)
    with pytest.raises(Throw):
        key.result(SECONDS)
    assert rpc.yield_(key) == 5


def test_result_that_is_not_there_yet_is_a_timeout_and_nothing_is_lost(begin):
    key = begin("wait_at_gate", 5)
    with pytest.raises(concurrent.futures.TimeoutError, match="it can still be waited for"):
        key.result(0.01)
    assert rpc.nb_yield(key) == rpc.nb_yield(key, 0.01) == "timeout"
    assert (key.done(), key.running()) == (False, True)
    GATE.set()
    assert rpc.nb_yield(key, SECONDS) == ("value", 5)
    assert rpc.nb_yield(key) == ("value", 5)


def test_timeout_of_the_call_is_an_outcome_and_no_timeout_of_waiting(begin):
    key = begin("wait_at_gate", timeout=0.01)
    assert rpc.nb_yield(key, SECONDS) == ("value", BadRPC("timeout"))
    with pytest.raises(erpc.CallTimeoutError):
        key.result()


def test_key_without_a_timeout_waits_for_ever(begin, monkeypatch):
    key = begin("wait_at_gate", 5)
    BEGUN.get(timeout=SECONDS)
    assert key._call.deadline is None
    GATE.set()
    assert key.result() == 5


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_timeout_that_is_none_is_refused(begin, timeout):
    key = begin("echo", 5)
    for wait in (rpc.nb_yield, erpc.receive_response, erpc.wait_response):
        with pytest.raises((TypeError, ValueError)):
            wait(key, timeout)
    with pytest.raises((TypeError, ValueError)):
        erpc.RequestCollection().wait(timeout)


@pytest.mark.parametrize("take", [rpc.yield_, rpc.nb_yield, erpc.receive_response])
def test_what_is_no_key_is_refused(take):
    with pytest.raises(TypeError, match=r"a (key|request) is what"):
        take(5)


def test_key_shows_its_target_and_state(begin):
    key = begin("wait_at_gate")
    assert repr(key) == f"<Key {HERE}:wait_at_gate pending>"
    GATE.set()
    key.result(SECONDS)
    assert repr(key) == f"<Key {HERE}:wait_at_gate finished>"


def test_many_threads_that_wait_for_one_key_get_the_same_value(begin):
    key = begin("wait_at_gate", [1])
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(rpc.yield_, key) for _ in range(20)]
        until(lambda: all(future.running() for future in waiting))
        GATE.set()
        values = [future.result(SECONDS) for future in waiting]
    assert all(value is values[0] for value in values)


def test_outcome_is_decoded_once_by_whoever_asks_first(begin):
    key = begin("echo", bytes(100_000))
    assert key.result(SECONDS) is key.result()
    assert key._call.head == b""  # and let go of


# ---------------------------------------------------------------- cancelling


def test_cancelled_key_ends_at_once_and_the_callee_is_told(begin):
    key = begin("wait_at_gate")
    BEGUN.get(timeout=SECONDS)
    assert key.cancel()
    assert key.cancel()  # it still is
    assert (key.cancelled(), key.done(), key.running()) == (True, True, False)
    with pytest.raises(concurrent.futures.CancelledError):
        key.result()
    assert rpc.yield_(key) == BadRPC("cancelled")
    # A later call on the same stream arrives after the cancellation.
    assert begin("echo", 5).result(SECONDS) == 5
    GATE.set()
    assert CANCELLED.get(timeout=SECONDS)


def test_key_with_an_outcome_cannot_be_cancelled(begin):
    key = begin("echo", 5)
    key.result(SECONDS)
    assert not key.cancel()
    assert key.result() == 5


def test_call_that_is_cancelled_before_its_first_dial_never_runs(caller, callee):
    for number in range(20):
        dest = (callee.name, number)
        key = erpc.async_call(dest, HERE, "wait_at_gate", [number], via=caller)
        assert key.cancel()
        assert rpc.call(dest, HERE, "echo", [5], via=caller) == 5
    assert BEGUN.empty()


def test_of_many_threads_that_cancel_an_ending_call_all_see_one_outcome(begin):
    for _ in range(20):
        key = begin("echo", 5)
        start = threading.Barrier(4)

        def cancel(key=key, start=start):
            start.wait(SECONDS)
            return key.cancel()

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = {future.result() for future in [pool.submit(cancel) for _ in range(4)]}
        assert len(answers) == 1
        assert rpc.yield_(key) == (BadRPC("cancelled") if answers.pop() else 5)


# ---------------------------------------------------------------- a future like others


def test_callbacks_run_on_a_worker_of_the_node(begin):
    called = queue.SimpleQueue()
    key = begin("wait_at_gate", 5)
    key.add_done_callback(lambda key: called.put((key.result(), threading.current_thread().name)))
    GATE.set()
    value, name = called.get(timeout=SECONDS)
    assert (value, name.startswith("genrpc-worker")) == (5, True)


def test_callback_may_call_another_node(begin, caller, callee):
    called = queue.SimpleQueue()
    key = begin("wait_at_gate", 5)
    key.add_done_callback(
        lambda key: called.put(rpc.call(callee.name, HERE, "echo", [key.result()], via=caller))
    )
    GATE.set()
    assert called.get(timeout=SECONDS) == 5


def test_callback_of_a_key_with_an_outcome_runs_at_once(begin):
    key, called = begin("echo", 5), []
    key.result(SECONDS)
    key.add_done_callback(called.append)
    assert called == [key]


def test_callbacks_run_when_a_key_is_cancelled_and_when_its_node_is_stopped(begin, caller):
    called = queue.SimpleQueue()
    first, second = begin("wait_at_gate"), begin("wait_at_gate")
    first.add_done_callback(called.put)
    second.add_done_callback(called.put)
    first.cancel()
    assert called.get(timeout=SECONDS) is first
    caller.stop(0)
    assert called.get(timeout=SECONDS) is second
    assert rpc.yield_(second) == BadTCP("closed")


def test_callback_that_raises_harms_nobody(begin, caplog):
    called = queue.SimpleQueue()
    key = begin("wait_at_gate")
    key.add_done_callback(fail)
    key.add_done_callback(called.put)
    GATE.set()
    assert called.get(timeout=SECONDS) is key
    assert begin("echo", 5).result(SECONDS) == 5


def test_as_completed_gives_keys_as_their_calls_end(begin):
    slow, quick = begin("wait_at_gate"), begin("echo", 5)
    completed = concurrent.futures.as_completed([slow, quick], SECONDS)
    assert next(completed) is quick
    GATE.set()
    assert next(completed) is slow


@pytest.mark.parametrize("function", ["fail", "throw"])
def test_wait_returns_at_the_first_exception(begin, function):
    slow, failing = begin("wait_at_gate"), begin(function, ValueError("no"))
    done, waiting = concurrent.futures.wait(
        [slow, failing], SECONDS, concurrent.futures.FIRST_EXCEPTION
    )
    assert (done, waiting) == ({failing}, {slow})


def test_wait_is_told_of_a_cancelled_key(begin):
    key = begin("wait_at_gate")
    threading.Timer(0.01, key.cancel).start()
    assert concurrent.futures.wait([key], SECONDS).done == {key}


def test_key_can_be_awaited_as_a_wrapped_future(begin):
    async def wait():
        with pytest.raises(erpc.RemoteError):
            await asyncio.wrap_future(begin("fail", ValueError("no")))
        return await asyncio.wrap_future(begin("echo", 5))

    assert asyncio.run(asyncio.wait_for(wait(), SECONDS)) == 5


def test_watchers_are_told_in_the_order_in_which_outcomes_come(begin):
    told = queue.SimpleQueue()
    slow, quick = begin("wait_at_gate"), begin("echo", 5)
    for key in (slow, quick):
        key.when_done(told.put)
    assert told.get(timeout=SECONDS) is quick
    GATE.set()
    assert told.get(timeout=SECONDS) is slow
    slow.when_done(told.put)
    assert told.get(timeout=SECONDS) is slow


def test_waiting_for_a_key_on_the_loop_thread_is_refused_and_looking_is_not(begin, caller):
    key = begin("wait_at_gate")
    BEGUN.get(timeout=SECONDS)

    async def wait():
        assert rpc.nb_yield(key) == "timeout"
        key.result()

    with pytest.raises(RuntimeError, match="declared non-blocking"):
        caller._running_thread().run(wait(), SECONDS)


def test_lock_that_was_never_released_does_not_stop_the_loop_thread(begin, monkeypatch, caplog):
    """As when Ctrl-C takes a thread out of Condition.__enter__."""
    monkeypatch.setattr(keys, "LOCK_SECONDS", 0.01)
    key = begin("wait_at_gate", 5)
    thread = threading.Thread(target=key._condition.acquire)
    thread.start()
    thread.join()
    GATE.set()
    until(key.done)
    assert key.result() == 5
    assert begin("echo", 5).result(SECONDS) == 5
    assert "The lock of <Key" in caplog.text


# ---------------------------------------------------------------- what is left behind


def test_key_that_nobody_takes_leaves_no_noise(begin, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            begin("fail", ValueError("no"))
        assert begin("echo", 5).result(SECONDS) == 5
        gc.collect()
    assert caplog.text == ""


def test_key_that_is_let_go_of_is_freed_when_its_call_has_ended(begin):
    key = begin("wait_at_gate")
    reference = weakref.ref(key)
    del key
    GATE.set()
    until(lambda: gc.collect() is not None and reference() is None)


def test_outcome_that_nobody_takes_in_time_expires(nodes, callee):
    caller = nodes.start("c", async_call_inactivity_timeout=0.01)
    key = erpc.async_call(callee.name, HERE, "echo", [bytes(100_000)], via=caller)
    until(lambda: key._outcome is not None)
    assert rpc.yield_(key) == rpc.yield_(key) == BadRPC("expired")
    assert (key.done(), key._call.head, key.exception().execution) == (True, b"", "finished")
    with pytest.raises(erpc.ExpiredError):
        key.result()


def test_failure_that_expires_keeps_what_is_known_of_its_execution(nodes):
    caller = nodes.start("c", async_call_inactivity_timeout=0.01)
    for options in ({}, {"timeout": 0}):
        key = erpc.async_call("nowhere@127.0.0.1:1", HERE, "echo", [5], via=caller, **options)
        until(lambda key=key: key._outcome is not None)
        assert (rpc.yield_(key), key.exception().execution) == (BadRPC("expired"), "not_started")


def test_outcome_that_was_taken_does_not_expire(nodes, callee):
    caller = nodes.start("c", async_call_inactivity_timeout=0.05)
    key = erpc.async_call(callee.name, HERE, "echo", [5], via=caller)
    assert key.result(SECONDS) == 5
    expired = threading.Event()
    caller._running_thread().loop.call_soon_threadsafe(
        caller._running_thread().loop.call_later, 0.1, expired.set
    )
    assert expired.wait(SECONDS)
    assert key.result() == 5


def test_running_call_never_expires(nodes, callee):
    caller = nodes.start("c", async_call_inactivity_timeout=0.01)
    key = erpc.async_call(callee.name, HERE, "wait_at_gate", [5], via=caller)
    assert rpc.nb_yield(key, 0.05) == "timeout"
    GATE.set()
    assert key.result(SECONDS) == 5


def test_key_that_is_let_go_of_does_not_wait_for_its_expiry(nodes, callee):
    caller = nodes.start("c", async_call_inactivity_timeout=3600)
    key = erpc.async_call(callee.name, HERE, "echo", [5], via=caller)
    assert key.result(SECONDS) == 5
    reference = weakref.ref(key)
    del key
    until(lambda: gc.collect() is not None and reference() is None)


# ---------------------------------------------------------------- event loops


def test_event_loops_that_are_closed_are_forgotten(caller, callee):
    async def call():
        return await aio.call(callee.name, HERE, "echo", [5], via=caller)

    for _ in range(10):
        assert asyncio.run(call()) == 5
    assert sum(loop.is_closed() for loop in keys._loops) <= 1


def test_loop_that_is_closed_while_a_call_is_out_harms_nobody(caller, callee, caplog):
    loop = asyncio.new_event_loop()
    task = loop.create_task(aio.call(callee.name, HERE, "wait_at_gate", via=caller))
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    BEGUN.get(timeout=SECONDS)
    loop.close()
    GATE.set()
    CANCELLED.get(timeout=SECONDS)
    assert rpc.call(callee.name, HERE, "echo", [5], via=caller) == 5
    task._log_destroy_pending = False  # it is, and on purpose
    loud = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert [each for each in loud if "genrpc" in each.getMessage() + each.name] == []


def test_task_that_was_cancelled_as_its_call_ended_stays_cancelled(caller, callee):
    async def race():
        outcomes = []
        for _ in range(50):
            task = asyncio.ensure_future(aio.call(callee.name, HERE, "echo", [5], via=caller))
            await asyncio.sleep(0)
            task.cancel()
            outcomes.append((await asyncio.gather(task, return_exceptions=True))[0])
        return outcomes

    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in asyncio.run(race()))
