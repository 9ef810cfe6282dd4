"""The executor on a loop thread of its own; targets are the functions of this module."""

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import sys
import threading
import types

import pytest
from waiting import SECONDS, until

import genrpc
from genrpc import codec
from genrpc.errors import BadRPC, RemoteExit, Throw
from genrpc.executor import Executor, current
from genrpc.loops import LoopThread
from genrpc.policy import Policy
from genrpc.protocol.pending import CALL, CAST, ERROR, PICKLE, THROWN, IncomingCall

HERE = __name__
NODE = "the node"


class Bench:
    """An executor, and calls for it."""

    def __init__(self, **options):
        self.thread = LoopThread("test-executor")
        self.executor = Executor(
            self.thread.loop,
            NODE,
            Policy("disabled", []),
            **{"max_workers": 256, **options},
        )
        self.ended = queue.SimpleQueue()

    def post(self, item):
        """The sink of all calls."""
        self.ended.put(item)

    def new_call(self, function, *args, module=HERE, kwargs=None, **fields):
        head, buffers = codec.encode_arguments(args, kwargs, snapshot=True)
        version = fields.pop("version", "")
        call = IncomingCall(
            fields.pop("id", 1),
            (module, function, version),
            fields.pop("kind", CALL),
            fields.pop("encoding", PICKLE),
            fields.pop("deadline", None),
            head,
            buffers,
        )
        call.sink = self
        call.max_reply_bytes = 1_000_000
        for name, value in fields.items():
            setattr(call, name, value)
        return call

    def submit(self, call):
        self.thread.call(self.executor.submit, call)
        return call

    def next_outcome(self):
        """(call, value or BadRPC) of the call that ends next."""
        call, outcome, head, buffers = self.ended.get(timeout=SECONDS)
        if outcome == ERROR:
            return call, codec.decode_error(head)
        if call.is_cast:
            return call, None
        value = codec.decode_value(head, buffers)
        return call, Throw(value) if outcome == THROWN else value

    def run(self, function, *args, **options):
        self.submit(self.new_call(function, *args, **options))
        return self.next_outcome()[1]

    def on_loop(self, function, *args):
        async def work():
            return function(*args)

        return self.thread.run(work(), SECONDS)

    def workers(self):
        return self.executor.statistics()["workers"]

    def close(self):
        self.on_loop(self.executor.stop)
        self.thread.stop(SECONDS)


@pytest.fixture
def bench():
    with contextlib.closing(Bench()) as bench:
        yield bench


def new_bench(**options):
    return contextlib.closing(Bench(**options))


def exit_type(outcome):
    assert isinstance(outcome, BadRPC), outcome
    return outcome.reason.type if isinstance(outcome.reason, RemoteExit) else outcome.reason


# ---------------------------------------------------------------- targets


def add(a, b=1):
    return a + b


def thread_name():
    return threading.current_thread().name


async def thread_name_of_coroutine():
    return threading.current_thread().name


def running():
    found = current.get()
    return found.node if found is not None else None


def fail(error):
    raise error


def throw(value):
    raise Throw(value)


def gates(number):
    """A barrier that opens when `number` functions are at it at once."""
    GATES[number] = threading.Barrier(number)


GATES = {}


def meet(number):
    GATES[number].wait(SECONDS)
    return number


EVENTS = {}


def wait_for(name):
    assert EVENTS[name].wait(SECONDS)
    return name


def set_event(name):
    EVENTS[name].set()


LOG = []


def note(item):
    LOG.append(item)


def note_after(item, name):
    EVENTS[name].wait(SECONDS)
    LOG.append(item)


async def note_in_coroutine(item):
    await asyncio.sleep(0)
    LOG.append(item)


async def hang(name):
    EVENTS[name].set()
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        EVENTS[f"{name} ended"].set()


async def add_later(a, b):
    await asyncio.sleep(0)
    return a + b


async def fail_later(error):
    await asyncio.sleep(0)
    raise error


async def leave_a_bomb():
    async def explode():
        raise SystemExit(3)

    task = asyncio.ensure_future(explode())
    await asyncio.wait([task])
    return type(task.exception()).__name__


def maybe_coroutine(wanted):
    return add_later(1, 2) if wanted else threading.current_thread().name


def numbers():
    yield 1


async def numbers_later():
    yield 1


def zeros(size):
    return bytes(size)


def cancelled():
    return genrpc.cancelled()


@genrpc.nonblocking
def quick_thread():
    return threading.get_ident()


@genrpc.nonblocking
def slow_thread():
    if EVENTS["slow"].is_set():
        return threading.get_ident()
    EVENTS["slow"].wait(0.02)
    return threading.get_ident()


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit

    __repr__ = __str__


class Unpicklable:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class Bomb:
    """Goes off where it is decoded."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return fail, (self.error,)


class Shape:
    @staticmethod
    def corners():
        return 4


not_callable = 5


@pytest.fixture
def event():
    made = []

    def make(name):
        made.append(name)
        EVENTS[name] = threading.Event()
        return EVENTS[name]

    yield make
    for name in made:
        EVENTS[name].set()  # nothing hangs after a test


@pytest.fixture
def notes():
    LOG.clear()
    return LOG


@pytest.fixture
def odd_module():
    """A module as users may write them."""
    module = types.ModuleType("odd_module_of_tests")
    module.__spec__ = types.SimpleNamespace(_initializing=False)
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


# ---------------------------------------------------------------- plain functions


def test_function_runs_on_a_worker_with_its_arguments(bench):
    assert bench.run("add", 2, kwargs={"b": 3}) == 5
    assert bench.run("thread_name").startswith("genrpc-worker-")


def test_function_knows_the_node_that_runs_it_and_nothing_outside_does(bench):
    assert (bench.run("running"), running()) == (NODE, None)


def test_method_of_a_class_of_the_module_can_be_called(bench):
    assert bench.run("Shape.corners") == 4


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(5),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        RecursionError("deep"),
        MemoryError(),
        Unprintable(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("function", ["fail", "fail_later"])
def test_whatever_a_function_raises_becomes_a_reply(bench, function, error):
    outcome = bench.run(function, error)
    if function == "fail_later" and isinstance(error, StopIteration):
        assert exit_type(outcome) == "builtins.RuntimeError"  # Python's doing (PEP 479)
    else:
        assert exit_type(outcome).endswith(type(error).__qualname__)
    assert outcome.execution == "finished"
    assert bench.run("add", 1) == 2
    assert bench.run("add_later", 1, 2) == 3


def test_thrown_value_arrives_as_thrown(bench):
    outcome = bench.run("throw", 5)
    assert isinstance(outcome, Throw)
    assert outcome.value == 5


@pytest.mark.parametrize(
    ("module", "function", "error"),
    [
        (HERE, "nothing_of_the_kind", "builtins.AttributeError"),
        ("no_such_module_at_all", "f", "builtins.ModuleNotFoundError"),
        (HERE, "not_callable", "builtins.TypeError"),
        (HERE, "asyncio.sleep", "builtins.AttributeError"),
    ],
)
def test_what_is_no_function_is_told_and_not_started(bench, module, function, error):
    outcome = bench.run(function, module=module)
    assert (exit_type(outcome), outcome.execution) == (error, "not_started")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, RuntimeError])
def test_module_that_raises_when_it_is_asked_for_a_name_is_survived(bench, odd_module, error):
    odd_module.__getattr__ = lambda name: fail(error("no"))
    outcome = bench.run("anything", module=odd_module.__name__)
    assert (exit_type(outcome), outcome.execution) == (f"builtins.{error.__name__}", "not_started")
    assert bench.run("add", 1) == 2


def test_module_that_raises_when_it_is_imported_is_survived(bench, tmp_path, monkeypatch):
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = bench.run("anything", module="module_that_exits")
    assert (exit_type(outcome), outcome.execution) == ("builtins.SystemExit", "not_started")


def test_version_decides_whether_a_function_runs(bench, odd_module):
    odd_module.add = add
    odd_module.__version__ = 2
    name = odd_module.__name__
    assert bench.run("add", 1, module=name, version="2") == 2
    outcome = bench.run("add", 1, module=name, version="3")
    assert (outcome, outcome.execution) == (BadRPC("incompatible"), "not_started")
    assert "version 2" in outcome.message
    assert "no __version__" in bench.run("add", 1, version="3").message
    assert bench.run("f", module="no_such_module_at_all", version="1") == BadRPC("incompatible")


def test_version_that_cannot_be_shown_is_survived(bench, odd_module):
    odd_module.add = add
    odd_module.__version__ = Unprintable()
    outcome = bench.run("add", 1, module=odd_module.__name__, version="3")
    assert (exit_type(outcome), outcome.execution) == ("builtins.SystemExit", "not_started")
    assert bench.run("add", 1) == 2


def test_arguments_that_raise_when_they_are_decoded_are_bad_arguments(bench):
    outcome = bench.run("add", Bomb(SystemExit(3)))
    assert (outcome, outcome.execution) == (BadRPC("bad_arguments"), "not_started")
    assert bench.run("add", 1) == 2


def test_what_a_former_policy_allowed_is_not_remembered(bench, monkeypatch):
    """The policy changes just when a worker has found that the one before allows a function."""
    admits = Policy.admits

    def admits_and_changes(policy, *found):
        allowed = admits(policy, *found)
        bench.executor.change_policy("whitelist", ["math"])
        return allowed

    monkeypatch.setattr(Policy, "admits", admits_and_changes)
    assert bench.run("add", 1) == 2
    assert bench.run("add", 1) == BadRPC("unauthorized")


def test_unknown_encoding_is_bad_arguments(bench):
    outcome = bench.run("add", 1, encoding=99)
    assert (outcome, outcome.execution) == (BadRPC("bad_arguments"), "not_started")


@pytest.mark.parametrize("function", ["numbers", "numbers_later"])
def test_generator_is_refused_with_a_sentence(bench, function):
    outcome = bench.run(function)
    assert (outcome, outcome.execution) == (BadRPC("bad_result"), "finished")
    assert "generator" in outcome.message


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_result_that_raises_when_it_is_encoded_is_a_bad_result(bench, error):
    result = types.SimpleNamespace(make=lambda: Unpicklable(error))
    LOG[:] = [result]
    outcome = bench.run("call_noted")
    assert (outcome, outcome.execution) == (BadRPC("bad_result"), "finished")
    assert bench.run("add", 1) == 2


def call_noted():
    return LOG[0].make()


def test_result_over_the_callers_limit_is_too_large(bench):
    outcome = bench.run("zeros", 2_000_000)
    assert (outcome, outcome.execution) == (BadRPC("too_large"), "finished")


def test_result_of_a_cast_is_dropped_unseen(bench, odd_module):
    odd_module.make = lambda: Unpicklable(ValueError())
    assert bench.run("make", module=odd_module.__name__, kind=CAST) is None


def test_cast_that_raises_is_logged_even_if_it_cannot_be_shown(bench, caplog):
    with caplog.at_level(logging.WARNING, "genrpc"):
        bench.run("fail", Unprintable(), kind=CAST)
    assert f"A cast of {HERE}:fail raised <unprintable Unprintable>" in caplog.text


def test_fault_of_the_executor_itself_is_answered_and_logged(bench, caplog, monkeypatch):
    monkeypatch.setattr(bench.executor, "_answer_value", lambda *args: fail(AssertionError("ours")))
    with caplog.at_level(logging.ERROR, "genrpc"):
        outcome = bench.run("add", 1)
    assert (exit_type(outcome), outcome.execution) == ("builtins.AssertionError", "unknown")
    assert "went wrong" in caplog.text
    outcome = bench.run("add_later", 1, 2)
    assert (exit_type(outcome), outcome.execution) == ("builtins.AssertionError", "unknown")
    monkeypatch.undo()
    assert bench.run("add", 1) == 2


# ---------------------------------------------------------------- time and cancelling


def test_call_whose_time_is_over_is_not_started(bench):
    outcome = bench.run("add", 1, deadline=0.0)
    assert (outcome, outcome.execution) == (BadRPC("timeout"), "not_started")


def test_call_that_is_cancelled_while_it_waits_is_not_started(notes, event):
    event("go")
    with new_bench(max_workers=1) as bench:
        bench.submit(bench.new_call("wait_for", "go"))
        waiting = bench.submit(bench.new_call("note", 1))
        bench.on_loop(bench.executor.cancel, waiting)
        EVENTS["go"].set()
        assert bench.next_outcome()[1] == "go"
        assert bench.next_outcome() == (waiting, BadRPC("timeout"))
    assert notes == []


def test_running_function_is_told_that_nobody_waits(bench, event):
    begun, go = event("begun"), event("go")
    call = bench.submit(bench.new_call("see_cancelled"))
    assert begun.wait(SECONDS)
    bench.on_loop(bench.executor.cancel, call)
    go.set()
    assert bench.next_outcome() == (call, (False, True))


def see_cancelled():
    before = genrpc.cancelled()
    EVENTS["begun"].set()
    EVENTS["go"].wait(SECONDS)
    return before, genrpc.cancelled()


def test_running_coroutine_is_cancelled(bench, event):
    begun, ended = event("hang"), event("hang ended")
    call = bench.submit(bench.new_call("hang", "hang"))
    assert begun.wait(SECONDS)
    bench.on_loop(bench.executor.cancel, call)
    assert ended.wait(SECONDS)
    assert exit_type(bench.next_outcome()[1]) == "asyncio.exceptions.CancelledError"


def test_coroutine_that_is_cancelled_before_it_begins_never_does(bench, event):
    begun = event("hang")
    event("hang ended")
    call = bench.new_call("hang", "hang")

    def submit_and_cancel():
        bench.executor._await(call, hang("hang"))
        bench.executor.cancel(call)

    call.cancelled = True
    bench.on_loop(submit_and_cancel)
    assert exit_type(bench.next_outcome()[1]) == "asyncio.exceptions.CancelledError"
    assert not begun.is_set()


# ---------------------------------------------------------------- coroutines


def test_coroutine_runs_on_the_loop_of_coroutines_and_knows_its_node(bench):
    assert bench.run("thread_name_of_coroutine") == "genrpc-coroutines"
    assert bench.run("thread_name_of_coroutine") == "genrpc-coroutines"  # the known route
    assert bench.run("add_later", 1, 2) == 3


def test_background_task_that_exits_does_not_end_the_loop_of_coroutines(bench):
    assert bench.run("leave_a_bomb") == "SystemExit"
    assert bench.run("add_later", 1, 2) == 3


def test_function_that_once_gave_a_coroutine_still_runs_on_a_worker(bench):
    assert bench.run("maybe_coroutine", True) == 3
    assert bench.run("maybe_coroutine", False).startswith("genrpc-worker-")


# ---------------------------------------------------------------- non-blocking functions


def test_nonblocking_function_runs_on_the_loop_thread_from_its_second_call_on(bench):
    assert bench.run("quick_thread") != bench.thread.ident
    assert bench.run("quick_thread") == bench.thread.ident


@pytest.mark.parametrize("entry", ["operator", "operator:add"])
def test_setting_declares_functions_non_blocking(entry):
    with new_bench(nonblocking=frozenset([entry])) as bench:
        assert bench.run("add", 1, 2, module="operator") == 3
        assert bench.run("add", 1, 2, module="operator") == 3
        assert bench.executor._routes == {("operator", "add"): "nonblocking"}


def test_nonblocking_function_that_blocks_is_logged_once_and_runs_on_a_worker(bench, event, caplog):
    event("slow").set()
    bench.run("slow_thread")
    EVENTS["slow"].clear()
    with caplog.at_level(logging.WARNING, "genrpc"):
        assert bench.run("slow_thread") == bench.thread.ident
        assert bench.run("slow_thread") != bench.thread.ident
        assert bench.run("slow_thread") != bench.thread.ident
    assert caplog.text.count("was declared non-blocking and took") == 1


def test_nonblocking_function_that_has_gone_is_looked_for_by_a_worker(bench, odd_module):
    odd_module.quick = quick_thread
    name = odd_module.__name__
    bench.run("quick", module=name)
    assert bench.run("quick", module=name) == bench.thread.ident
    del odd_module.quick
    assert exit_type(bench.run("quick", module=name)) == "builtins.AttributeError"


# ---------------------------------------------------------------- workers


@pytest.mark.parametrize("number", [2, 100])
def test_functions_that_wait_for_each_other_all_find_a_worker(bench, number):
    gates(number)
    for _ in range(number):
        bench.submit(bench.new_call("meet", number))
    assert [bench.next_outcome()[1] for _ in range(number)] == [number] * number


def test_there_are_never_more_workers_than_allowed(event):
    event("go")
    with new_bench(max_workers=3) as bench:
        for _ in range(20):
            bench.submit(bench.new_call("wait_for", "go"))
        until(lambda: bench.workers() == 3)
        bench.submit(bench.new_call("set_event", "go"))
        EVENTS["go"].set()
        assert bench.workers() == 3
        for _ in range(21):
            bench.next_outcome()


def test_small_calls_need_one_worker_only(bench):
    for _ in range(200):
        bench.run("add", 1)
    assert bench.workers() <= 2


def test_a_lone_call_for_an_idle_worker_sets_no_timer(bench):
    bench.run("add", 1)
    pool = bench.executor._threads
    until(lambda: all(worker.idle for worker in pool.workers))
    until(lambda: pool._look is None)
    call = bench.new_call("add", 1)

    def submit():
        bench.executor.submit(call)
        return pool._look

    assert bench.on_loop(submit) is None
    assert bench.next_outcome()[1] == 2


def test_what_an_idle_worker_could_not_take_after_all_is_seen_to(bench):
    """It took other work just before, and still looked idle: nobody looks at the queue."""
    gates(2)
    bench.run("add", 1)
    put = bench.executor._threads._queue.put
    for _ in range(2):
        put(bench.new_call("meet", 2))
    assert [bench.next_outcome()[1] for _ in range(2)] == [2, 2]


def test_frame_full_of_calls_runs_with_and_without_coroutines_among_them(bench):
    for _ in range(2):
        calls = [bench.new_call("add", 1), bench.new_call("add_later", 1, 2)]
        bench.on_loop(bench.executor.submit_all, calls)
        assert sorted(bench.next_outcome()[1] for _ in calls) == [2, 3]


def test_surplus_workers_retire(bench, monkeypatch):
    monkeypatch.setattr("genrpc.pool.RETIRE_SECONDS", 0.002)
    gates(10)
    for _ in range(10):
        bench.submit(bench.new_call("meet", 10))
    for _ in range(10):
        bench.next_outcome()
    until(lambda: bench.workers() == 1)
    assert bench.run("add", 1) == 2


def test_callback_that_raises_does_not_take_its_worker_along(bench, caplog):
    bench.thread.call(bench.executor.put, lambda: fail(SystemExit(3)))
    assert bench.run("thread_name") == "genrpc-worker-1"
    assert "A callback of a call raised" in caplog.text


def test_worker_that_cannot_be_started_is_tried_again(bench, monkeypatch, caplog):
    refused = []
    start = threading.Thread.start

    def refuse_twice(thread):
        if thread.name.startswith("genrpc-worker") and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_twice)
    assert bench.run("add", 1) == 2
    assert len(refused) == 2
    assert "No further worker could be started: can't start new thread" in caplog.text


def test_statistics_tell_how_busy_the_workers_are(event):
    event("go")
    with new_bench(max_workers=1) as bench:
        for _ in range(3):
            bench.submit(bench.new_call("wait_for", "go"))
        until(lambda: bench.executor.statistics() == {"workers": 1, "running": 1, "queued": 2})
        EVENTS["go"].set()
        for _ in range(3):
            bench.next_outcome()


# ---------------------------------------------------------------- lanes


def test_calls_of_one_lane_run_one_after_the_other_in_order(bench, notes, event):
    event("go")
    bench.submit(bench.new_call("note_after", 0, "go", lane="x"))
    for number in range(1, 20):
        bench.submit(bench.new_call("note", number, lane="x"))
    assert bench.run("add", 1) == 2  # others pass
    assert notes == []
    EVENTS["go"].set()
    for _ in range(20):
        bench.next_outcome()
    assert notes == list(range(20))
    assert bench.executor._lanes == {}


def test_coroutines_of_one_lane_keep_their_order(bench, notes):
    for number in range(10):
        function = "note_in_coroutine" if number % 2 else "note"
        bench.submit(bench.new_call(function, number, lane="x"))
    for _ in range(10):
        bench.next_outcome()
    assert notes == list(range(10))


def test_lane_goes_on_after_a_call_that_was_dropped_or_failed(bench, notes, event):
    event("go")
    bench.submit(bench.new_call("note_after", 0, "go", lane="x"))
    dropped = bench.submit(bench.new_call("note", 1, lane="x"))
    bench.submit(bench.new_call("fail", ValueError("no"), lane="x"))
    bench.submit(bench.new_call("nothing_of_the_kind", lane="x"))
    bench.submit(bench.new_call("note", 2, lane="x"))
    bench.on_loop(bench.executor.cancel, dropped)
    EVENTS["go"].set()
    for _ in range(5):
        bench.next_outcome()
    assert notes == [0, 2]


def test_lane_is_not_held_up_by_workers_that_block(notes, event):
    """The next of a lane was put into the queue by a coroutine, with no worker on its way."""
    event("go")
    with new_bench() as bench:
        bench.run("add_later", 1, 2)
        bench.submit(bench.new_call("note_in_coroutine", 0, lane="x"))
        bench.submit(bench.new_call("wait_for", "go"))
        bench.submit(bench.new_call("note", 1, lane="x"))
        assert bench.next_outcome()[1] is None
        assert bench.next_outcome()[1] is None
        EVENTS["go"].set()
        assert bench.next_outcome()[1] == "go"
    assert notes == [0, 1]


# ---------------------------------------------------------------- stopping


def worker_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("genrpc-worker", "genrpc-cor"))]


def test_stop_lets_all_threads_go():
    before = worker_threads()
    with new_bench() as bench:
        gates(5)
        for _ in range(5):
            bench.submit(bench.new_call("meet", 5))
        for _ in range(5):
            bench.next_outcome()
        bench.run("add_later", 1, 2)
    for thread in worker_threads():
        if thread not in before:
            thread.join(SECONDS)
            assert not thread.is_alive()


def test_stop_cancels_coroutines(event):
    begun, ended = event("hang"), event("hang ended")
    bench = Bench()
    bench.submit(bench.new_call("hang", "hang"))
    assert begun.wait(SECONDS)
    bench.close()
    assert ended.wait(SECONDS)
    assert exit_type(bench.next_outcome()[1]) == "asyncio.exceptions.CancelledError"


def test_coroutine_of_a_function_that_returns_after_stop_is_answered_for(event):
    event("go")
    bench = Bench()
    bench.submit(bench.new_call("coroutine_after", "go"))
    bench.on_loop(bench.executor.stop)
    EVENTS["go"].set()
    assert exit_type(bench.next_outcome()[1]) == "builtins.RuntimeError"
    bench.thread.stop(SECONDS)


def coroutine_after(name):
    EVENTS[name].wait(SECONDS)
    return add_later(1, 2)


def test_callback_that_comes_after_stop_is_still_called():
    called = threading.Event()
    bench = Bench()
    bench.run("add", 1)
    bench.on_loop(bench.executor.stop)
    bench.on_loop(bench.executor.put, called.set)
    assert called.wait(SECONDS)
    bench.thread.stop(SECONDS)
    for thread in worker_threads():
        thread.join(SECONDS)
    assert worker_threads() == []
