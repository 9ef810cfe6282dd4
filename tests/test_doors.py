"""The three doors: the same functions with the same signatures, values here and exceptions there.

Every function of the contract's table is called through each door that has it.
"""

import asyncio
import inspect
import logging
import queue
import threading

import pytest
from waiting import SECONDS, until

import genrpc
from genrpc import BadRPC, BadTCP, CallError, Ok, aio, erpc, errors, rpc
from genrpc.errors import Throw
from genrpc.keys import Key

HERE = __name__
DEAD = "dead@127.0.0.1:1"
REFUSED = BadTCP("econnrefused")
NOTES = []
GATE = threading.Event()
ACTIVE = threading.Lock()


@pytest.fixture(autouse=True)
def clean():
    global NOTES
    NOTES = []  # a new one: functions of the last test may still be about to add to theirs
    GATE.clear()
    yield
    GATE.set()


@pytest.fixture
def a(nodes):
    return nodes.start("a")


@pytest.fixture
def b(nodes):
    return nodes.start("b")


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, SECONDS))


# ---------------------------------------------------------------- targets


def add(x, y=1):
    return x + y


async def add_later(x, y):
    await asyncio.sleep(0)
    return x + y


def fail(message="no"):
    raise ValueError(message)


def throw(value):
    raise Throw(value)


def note(value):
    NOTES.append(value)


def note_after_gate(value):
    notes = NOTES
    GATE.wait(SECONDS)
    notes.append(value)


def alone():
    """Fail if another of these runs at the same time."""
    assert ACTIVE.acquire(blocking=False)
    ran = threading.Event()
    ran.wait(0.01)
    ACTIVE.release()
    return True


def node_name():
    return genrpc.node()


def square(x, power=2):
    return x**power


def fail_at(x, bad):
    if x == bad:
        raise ValueError(f"at {x}")
    return x


class Shape:
    @staticmethod
    def corners():
        return 4


# ---------------------------------------------------------------- what is where

MODULE_LEVEL = [
    "call",
    "cast",
    "ordered_cast",
    "async_call",
    "yield_",
    "nb_yield",
    "multicall",
    "eval_everywhere",
    "abcast",
    "sbcast",
    "block_call",
    "parallel_eval",
    "pmap",
    "register",
    "unregister",
    "whereis",
    "apply",
]
ERPC_TOO = [
    "send_request",
    "receive_response",
    "wait_response",
    "check_response",
    "RequestCollection",
    "multicast",
    "run",
]


@pytest.mark.parametrize("name", MODULE_LEVEL)
def test_module_level_door_has_the_function_at_the_top(name):
    assert getattr(genrpc, name) is getattr(rpc, name)
    assert getattr(rpc, name).__doc__


@pytest.mark.parametrize("name", [*MODULE_LEVEL, *ERPC_TOO])
def test_raising_door_has_the_function(name):
    if name not in ("yield_", "nb_yield"):  # whose forms are result() and the responses
        assert name in erpc.__all__
        assert getattr(erpc, name).__doc__


@pytest.mark.parametrize("name", MODULE_LEVEL)
def test_awaitable_door_has_the_function(name):
    if name not in ("yield_", "nb_yield"):
        assert inspect.iscoroutinefunction(getattr(aio, name))
        assert getattr(aio, name).__doc__


@pytest.mark.parametrize("name", [*MODULE_LEVEL, "run"])
def test_signature_is_the_same_in_each_door(name):
    found = [getattr(door, name, None) for door in (rpc, erpc, aio)]
    signatures = {
        tuple(
            (each.name, each.kind, repr(each.default))
            for each in inspect.signature(function).parameters.values()
        )
        for function in found
        if function is not None
    }
    assert len(signatures) == 1


@pytest.mark.parametrize("name", MODULE_LEVEL)
@pytest.mark.parametrize("door", [rpc, erpc, aio])
def test_functions_take_the_node_that_acts_by_keyword(door, name):
    function = getattr(door, name, None)
    if function is not None and name not in ("apply", "yield_", "nb_yield"):
        via = inspect.signature(function).parameters["via"]
        assert (via.kind, via.default) == (via.KEYWORD_ONLY, None)


ERRORS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type)
    and issubclass(value, BaseException)
    and value.__module__ == errors.__name__
]


@pytest.mark.parametrize("name", ERRORS)
def test_error_classes_are_at_the_top_and_call_errors_in_erpc(name):
    error = getattr(errors, name)
    assert getattr(genrpc, name) is error
    if issubclass(error, CallError):
        assert getattr(erpc, name) is error


# ---------------------------------------------------------------- one call


@pytest.mark.parametrize("function", ["add", "add_later"])
def test_call_gives_the_result(a, b, function):
    assert rpc.call(b.name, HERE, function, [2, 3], via=a) == 5
    assert erpc.call(b.name, HERE, function, [2], kwargs={"y": 3}, via=a) == 5
    assert run(aio.call(b.name, HERE, function, (2, 3), SECONDS, via=a)) == 5


@pytest.mark.parametrize("function", ["call", "block_call"])
def test_failed_call_is_a_value_or_an_exception(a, b, function):
    value = getattr(rpc, function)(b.name, HERE, "fail", via=a)
    assert value == BadRPC(genrpc.RemoteExit("builtins.ValueError", "no"))
    for raised in (
        pytest.raises(erpc.RemoteError, match="no"),
        pytest.raises(erpc.RemoteError, match="no"),
    ):
        with raised as caught:
            getattr(erpc, function)(b.name, HERE, "fail", via=a)
        assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(erpc.RemoteError, match="no"):
        run(getattr(aio, function)(b.name, HERE, "fail", via=a))


def test_lost_call_is_a_value_or_an_exception(a):
    assert rpc.call(DEAD, HERE, "add", [1], via=a) == REFUSED
    with pytest.raises(ConnectionError):
        erpc.call(DEAD, HERE, "add", [1], via=a)
    with pytest.raises(ConnectionError):
        run(aio.call(DEAD, HERE, "add", [1], via=a))


def test_thrown_value_is_returned_here_and_raised_there(a, b):
    assert rpc.call(b.name, HERE, "throw", [5], via=a) == 5
    with pytest.raises(Throw) as caught:
        erpc.call(b.name, HERE, "throw", [5], via=a)
    assert caught.value.value == 5
    with pytest.raises(Throw):
        run(aio.call(b.name, HERE, "throw", [5], via=a))


def test_class_and_version_can_be_named(a, b):
    assert rpc.call(b.name, HERE, "Shape.corners", via=a) == 4
    assert rpc.call(b.name, ("no_such", "1"), "f", via=a) == BadRPC("incompatible")


def test_closure_can_be_called_by_apply(a, b):
    number = 41
    for result in (
        rpc.call(b.name, "genrpc", "apply", [lambda x: x + number, [1]], via=a),
        erpc.call(b.name, "genrpc", "apply", [lambda x: x + number, [1]], via=a),
        run(aio.call(b.name, "genrpc", "apply", [lambda x: x + number, [1]], via=a)),
        rpc.apply(lambda x: x + number, [1]),
        erpc.apply(add, [40], {"y": 2}),
        run(aio.apply(add, [40], {"y": 2})),
    ):
        assert result == 42


# ---------------------------------------------------------------- casts


def test_cast_is_true_at_once_whatever_comes_of_it(a, b):
    for dest in (b.name, DEAD):
        assert rpc.cast(dest, HERE, "note", [1], via=a) is True
        assert erpc.cast(dest, HERE, "note", [1], via=a) is True
        assert run(aio.cast(dest, HERE, "note", [1], via=a)) is True
    until(lambda: NOTES == [1, 1, 1])
    until(lambda: a.statistics().get("casts_failed") == 3)


def test_ordered_casts_run_in_order_and_delay_no_call(a, b):
    dest = (b.name, "key")
    assert rpc.ordered_cast(dest, HERE, "note_after_gate", [0], via=a) is True
    for number in range(1, 20, 2):
        assert erpc.ordered_cast(dest, HERE, "note", [number], via=a) is True
        assert run(aio.ordered_cast(dest, HERE, "note", [number + 1], via=a)) is True
    assert rpc.call(dest, HERE, "add", [1], via=a) == 2
    assert NOTES == []
    GATE.set()
    until(lambda: len(NOTES) == 21)
    assert list(range(21)) == NOTES


@pytest.mark.parametrize("dest", ["b@127.0.0.1", None, 5])
def test_ordered_cast_wants_a_key(a, dest):
    for cast in (rpc.ordered_cast, erpc.ordered_cast):
        with pytest.raises(TypeError, match="goes to"):
            cast(dest, HERE, "note", [1], via=a)
    with pytest.raises(TypeError, match="goes to"):
        run(aio.ordered_cast(dest, HERE, "note", [1], via=a))


# ---------------------------------------------------------------- keys and requests


def test_async_call_gives_a_key_or_a_task(a, b):
    key = rpc.async_call(b.name, HERE, "add", [2, 3], via=a)
    assert isinstance(key, Key)
    assert (rpc.yield_(key), rpc.nb_yield(key), key.result()) == (5, ("value", 5), 5)

    async def work():
        task = await aio.async_call(b.name, HERE, "add", [2, 3], via=a)
        assert isinstance(task, asyncio.Task)
        return await task

    assert run(work()) == 5


def test_yield_gives_failures_as_values(a, b):
    for key in (
        rpc.async_call(b.name, HERE, "fail", via=a),
        erpc.async_call(DEAD, HERE, "add", [1], via=a),
    ):
        value = rpc.yield_(key)
        assert isinstance(value, (BadRPC, BadTCP))
        assert rpc.nb_yield(key) == ("value", value)
        with pytest.raises(CallError):
            key.result()


def test_response_is_received_once(a, b):
    request = erpc.send_request(b.name, HERE, "add", [2, 3], via=a)
    assert erpc.wait_response(request, SECONDS) == ("response", 5)
    assert erpc.check_response(request) == ("response", 5)
    assert erpc.receive_response(request) == 5
    for again in (erpc.receive_response, erpc.wait_response, erpc.check_response):
        with pytest.raises(ValueError, match="already"):
            again(request)


def test_response_that_does_not_come_is_kept_or_abandoned(a, b):
    request = erpc.send_request(b.name, HERE, "note_after_gate", [1], via=a)
    assert erpc.wait_response(request) == erpc.check_response(request) == "no_response"
    assert erpc.wait_response(request, 0.01) == "no_response"
    with pytest.raises(erpc.CallTimeoutError, match="abandoned"):
        erpc.receive_response(request, 0.01)
    assert request.cancelled()
    with pytest.raises(ValueError, match="already"):
        erpc.receive_response(request)


def test_failed_request_raises_when_its_response_is_taken(a, b):
    for take in (erpc.receive_response, lambda request: erpc.wait_response(request, SECONDS)):
        with pytest.raises(erpc.RemoteError):
            take(erpc.send_request(b.name, HERE, "fail", via=a))


def test_collection_gives_responses_in_the_order_in_which_they_come(a, b):
    requests = erpc.RequestCollection()
    requests.add(erpc.send_request(b.name, HERE, "note_after_gate", [1], via=a), "slow")
    requests.add(erpc.send_request(b.name, HERE, "add", [2, 3], via=a), "quick")
    requests.add(erpc.send_request(b.name, HERE, "throw", [5], via=a), "thrown")
    assert len(requests) == 3
    first = {requests.receive(SECONDS), requests.wait(SECONDS)}
    assert first == {(5, "quick"), (5, "thrown")}
    assert (requests.wait(0), requests.wait(0.01), len(requests)) == (
        "no_response",
        "no_response",
        1,
    )
    GATE.set()
    assert requests.receive(SECONDS) == (None, "slow")
    assert requests.receive() == requests.wait() == "no_request"


def test_collection_gives_errors_as_they_are_and_abandons_all_when_time_is_over(a, b):
    requests = erpc.RequestCollection()
    requests.add(erpc.send_request(b.name, HERE, "fail", via=a), "fails")
    error, label = requests.wait(SECONDS)
    assert (type(error), label) == (erpc.RemoteError, "fails")
    slow = erpc.send_request(b.name, HERE, "note_after_gate", [1], via=a)
    requests.add(slow, "slow")
    with pytest.raises(erpc.CallTimeoutError, match="abandoned"):
        requests.receive(0.01)
    assert (slow.cancelled(), len(requests), requests.receive()) == (True, 0, "no_request")
    with pytest.raises(ValueError, match="already"):
        requests.add(slow, "again")


# ---------------------------------------------------------------- many nodes


def test_multicall_gives_results_in_node_order_and_bad_nodes_as_given(a, b, nodes):
    c = nodes.start("c", rpc_module_control="whitelist", rpc_module_list=["math"])
    given = [DEAD, b.name, (b.name, "key"), c.name, "nobody@127.0.0.1", b.name]
    results, bad = rpc.multicall(given, HERE, "add", [2, 3], SECONDS, via=a)
    assert (results, bad) == ([5, 5, BadRPC("unauthorized"), 5], [DEAD, "nobody@127.0.0.1"])
    for outcomes in (
        erpc.multicall(given, HERE, "add", [2, 3], SECONDS, via=a),
        run(aio.multicall(given, HERE, "add", [2, 3], SECONDS, via=a)),
    ):
        values = [o.value for o in outcomes]
        assert values == [
            REFUSED,
            5,
            5,
            BadRPC("unauthorized"),
            BadTCP("nxdomain"),
            5,
        ]
        assert [isinstance(o, Ok) for o in outcomes] == [False, True, True, False, False, True]


def test_multicall_keeps_failed_functions_and_thrown_values_in_the_results(a, b):
    results, bad = rpc.multicall([b.name], HERE, "fail", via=a)
    assert (results, bad) == ([BadRPC(genrpc.RemoteExit("builtins.ValueError", "no"))], [])
    assert rpc.multicall([b.name], HERE, "throw", [5], via=a) == ([5], [])
    assert erpc.multicall([b.name], HERE, "throw", [5], via=a) == [Ok(5)]
    assert run(aio.multicall([b.name], HERE, "throw", [5], via=a)) == [Ok(5)]


def test_multicall_has_one_deadline_for_all(a, b):
    results, bad = rpc.multicall([b.name, b.name], HERE, "note_after_gate", [1], 0.05, via=a)
    assert (results, bad) == ([], [b.name, b.name])
    for outcomes in (
        erpc.multicall([b.name], HERE, "note_after_gate", [1], 0.05, via=a),
        run(aio.multicall([b.name], HERE, "note_after_gate", [1], 0.05, via=a)),
    ):
        assert [outcome.value for outcome in outcomes] == [BadRPC("timeout")]


def test_multicall_with_timeout_0_is_over_at_once_and_sends_nothing(a, b):
    assert rpc.multicall([b.name], HERE, "note", [1], 0, via=a) == ([], [b.name])
    for outcomes in (
        erpc.multicall([b.name], HERE, "note", [1], 0, via=a),
        run(aio.multicall([b.name], HERE, "note", [1], 0, via=a)),
    ):
        assert [outcome.execution for outcome in outcomes] == ["not_started"]
    assert "streams_accepted" not in b.statistics()


def test_nodes_may_be_left_out_or_named_or_be_any_iterable(a, b):
    rpc.call(b.name, HERE, "add", [1], via=a)
    both = sorted([a.name, b.name])
    assert sorted(rpc.multicall(HERE, "node_name", via=a)[0]) == both
    assert rpc.multicall((HERE, "1"), "node_name", via=a)[0] == [BadRPC("incompatible")] * 2
    assert rpc.multicall(HERE, "node_name", nodes=[b.name], via=a) == ([b.name], [])
    assert rpc.multicall((name for name in both), HERE, "node_name", via=a) == (both, [])
    assert rpc.multicall(tuple(both), HERE, "node_name", [], via=a) == (both, [])
    assert rpc.multicall(
        nodes=[b.name], module=HERE, function="add", args=[2, 3], timeout=SECONDS, via=a
    ) == ([5], [])
    assert [o.value for o in erpc.multicall(HERE, "node_name", via=a)] == [a.name, b.name]
    assert [o.value for o in run(aio.multicall(HERE, "node_name", via=a))] == [a.name, b.name]
    for nothing in ([], ()):
        assert rpc.multicall(nothing, HERE, "node_name", [], via=a) == ([], [])
        assert erpc.multicall(nothing, HERE, "node_name", [], via=a) == []


@pytest.mark.parametrize(
    ("positional", "named", "words"),
    [
        ((["b@h"], "m", "f", [], 1, 2), {}, "too many"),
        ((["b@h"], "m"), {}, "function is missing"),
        ((["b@h"], "m", "f"), {"function": "g"}, "given twice"),
        (("m", "f"), {"nodes": "b@h"}, "list of destinations"),
        (("m", "f"), {"nodes": 5}, "list of destinations"),
        (([5], "m", "f"), {}, "a destination is"),
    ],
)
def test_multicall_that_is_called_wrongly_raises(a, positional, named, words):
    for multicall in (rpc.multicall, erpc.multicall):
        with pytest.raises(TypeError, match=words):
            multicall(*positional, via=a, **named)
    with pytest.raises(TypeError, match=words):
        run(aio.multicall(*positional, via=a, **named))


def test_eval_everywhere_casts_once_for_each_element(a, b):
    given = [b.name, DEAD, b.name]
    assert rpc.eval_everywhere(given, HERE, "note", [1], via=a) == "abcast"
    assert erpc.eval_everywhere(given, HERE, "note", [1], via=a) == "abcast"
    assert run(aio.eval_everywhere(given, HERE, "note", [1], via=a)) == "abcast"
    assert erpc.multicast(given, HERE, "note", [1], via=a) is None
    until(lambda: NOTES == [1] * 8)


def test_block_calls_run_one_at_a_time_whoever_calls(a, b, nodes):
    c = nodes.start("c")
    keys = [
        threading.Thread(
            target=lambda via=via: NOTES.append(
                rpc.block_call(b.name, HERE, "alone", [], SECONDS, via=via)
            )
        )
        for via in (a, c) * 4
    ]
    for key in keys:
        key.start()
    for key in keys:
        key.join(SECONDS)
    assert NOTES == [True] * 8
    assert erpc.block_call(b.name, HERE, "alone", via=a) is True
    assert run(aio.block_call(b.name, HERE, "alone", via=a)) is True


def test_parallel_eval_spreads_over_all_nodes_and_keeps_the_order(a, b):
    rpc.call(b.name, HERE, "add", [1], via=a)
    calls = [(HERE, "square", [n]) for n in range(10)]
    squares = [n * n for n in range(10)]
    assert rpc.parallel_eval(calls, via=a) == squares
    assert erpc.parallel_eval(iter(calls), via=a) == squares
    assert run(aio.parallel_eval(calls, via=a)) == squares
    where = rpc.parallel_eval([(HERE, "node_name", [])] * 4, via=a)
    assert where == [a.name, b.name] * 2


def test_parallel_eval_has_failures_inline_or_raises_the_first(a):
    calls = [(HERE, "square", [2]), (HERE, "fail", ["1"]), (HERE, "fail", ["2"])]
    results = rpc.parallel_eval(calls, via=a)
    assert results[0] == 4
    assert [result.reason.message for result in results[1:]] == ["1", "2"]
    with pytest.raises(erpc.RemoteError, match="1"):
        erpc.parallel_eval(calls, via=a)
    with pytest.raises(erpc.RemoteError):
        run(aio.parallel_eval(calls, via=a))


@pytest.mark.parametrize("calls", [["abc"], [("m", "f")], [5]])
def test_parallel_eval_wants_triples(a, calls):
    for parallel_eval in (rpc.parallel_eval, erpc.parallel_eval):
        with pytest.raises(TypeError, match="a call is"):
            parallel_eval(calls, via=a)


def test_pmap_keeps_the_order_and_raises_any_failure(a, b):
    rpc.call(b.name, HERE, "add", [1], via=a)
    cubes = [n**3 for n in range(10)]
    for pmap in (rpc.pmap, erpc.pmap):
        assert pmap((HERE, "square"), [3], range(10), via=a) == cubes
        with pytest.raises(erpc.RemoteError, match="at 5"):
            pmap((HERE, "fail_at"), [5], range(10), via=a)
        with pytest.raises(TypeError, match="pmap wants"):
            pmap("square", [3], range(10), via=a)
    assert run(aio.pmap((HERE, "square"), [3], range(10), via=a)) == cubes
    with pytest.raises(erpc.RemoteError, match="at 5"):
        run(aio.pmap((HERE, "fail_at"), [5], range(10), via=a))


def test_pmap_that_failed_gives_the_rest_up(a):
    with pytest.raises(erpc.RemoteError):
        erpc.pmap((HERE, "fail_or_wait"), [], range(3), via=a)
    until(lambda: NOTES == ["begun", "begun", "cancelled", "cancelled"])


def fail_or_wait(number):
    if number == 0:
        until(lambda: len(NOTES) == 2)
        raise ValueError
    NOTES.append("begun")
    until(genrpc.cancelled)
    NOTES.append("cancelled")


# ---------------------------------------------------------------- named handlers


def test_messages_reach_what_is_registered(a, b):
    inbox = queue.Queue()
    for register in (rpc.register, erpc.register):
        assert register("inbox", inbox, via=b) is None
    assert rpc.whereis("inbox", via=b) is erpc.whereis("inbox", via=b) is inbox
    given = [b.name, a.name, DEAD]
    for number, sbcast in enumerate((rpc.sbcast, erpc.sbcast)):
        assert sbcast(given, "inbox", number, via=a) == ([b.name], [a.name, DEAD])
        assert inbox.get(timeout=SECONDS) == number
    for number, abcast in enumerate((rpc.abcast, erpc.abcast)):
        assert abcast(given, "inbox", number, via=a) == "abcast"
        assert inbox.get(timeout=SECONDS) == number
    rpc.unregister("inbox", via=b)
    assert erpc.whereis("inbox", via=b) is None


def test_messages_can_be_sent_from_an_event_loop(a, b):
    async def work():
        inbox = asyncio.Queue()
        await aio.register("inbox", inbox, via=b)
        assert await aio.whereis("inbox", via=b) is inbox
        assert await aio.sbcast([b.name, DEAD], "inbox", 1, via=a) == ([b.name], [DEAD])
        assert await aio.abcast([b.name], "inbox", 2, via=a) == "abcast"
        received = [await inbox.get(), await inbox.get()]
        await aio.unregister("inbox", via=b)
        assert await aio.whereis("inbox", via=b) is None
        return received

    assert run(work()) == [1, 2]


def test_message_goes_to_this_node_and_its_peers_where_no_nodes_are_named(a, b):
    rpc.call(b.name, HERE, "add", [1], via=a)
    inboxes = {node.name: queue.Queue() for node in (a, b)}
    for node in (a, b):
        rpc.register("inbox", inboxes[node.name], via=node)
    assert rpc.sbcast("inbox", 5, via=a) == ([a.name, b.name], [])
    assert [inbox.get(timeout=SECONDS) for inbox in inboxes.values()] == [5, 5]


@pytest.mark.parametrize("given", [("inbox",), (["b@h"], 5, 5), (["b@h"], "inbox", 5, 5)])
def test_message_without_a_name_is_refused(a, given):
    for send in (rpc.abcast, erpc.sbcast):
        with pytest.raises(TypeError, match="a name and a message"):
            send(*given, via=a)


# ---------------------------------------------------------------- run


def test_run_ships_a_function_by_name_or_by_value(a, b, monkeypatch):
    number = 41
    monkeypatch.setattr("genrpc.erpc.acting_node", lambda via=None: a)
    monkeypatch.setattr("genrpc.aio.acting_node", lambda via=None: a)
    assert erpc.run(b.name, add, 2, y=3) == 5
    assert erpc.run(b.name, lambda x: x + number, 1) == 42
    assert erpc.run(b.name, Shape.corners) == 4
    assert run(aio.run(b.name, add, 2, y=3)) == 5
    assert run(aio.run(b.name, lambda x: x + number, 1)) == 42
    with pytest.raises(TypeError, match="run wants a callable"):
        erpc.run(b.name, 5)
    with pytest.raises(erpc.RemoteError, match="no"):
        erpc.run(b.name, fail)
    with pytest.raises(erpc.RemoteError, match="no"):
        run(aio.run(b.name, fail))


def test_run_ships_a_function_by_value_where_the_node_does_not_have_it(a, b, monkeypatch):
    monkeypatch.setattr("genrpc.erpc.acting_node", lambda via=None: a)
    monkeypatch.setattr("genrpc.aio.acting_node", lambda via=None: a)
    # The node looks its modules up anew; here it is the same process, so it must lose this one.
    calls = []
    original = a.call

    def call(dest, module, function, *rest, **options):
        calls.append(module)
        if module == HERE:
            function = "nothing_of_the_kind"
        return original(dest, module, function, *rest, **options)

    async def call_soon(dest, module, function, *rest, **options):
        return await asyncio.to_thread(call, dest, module, function, *rest, **options)

    monkeypatch.setattr(a, "call", call)
    monkeypatch.setattr(a, "call_soon", call_soon)
    assert erpc.run(b.name, add, 2, 3) == 5
    assert run(aio.run(b.name, add, 2, 3)) == 5
    assert calls == [HERE, "genrpc"] * 2


# ---------------------------------------------------------------- tasks


def test_cancelled_task_cancels_its_call(a, b):
    async def work():
        task = asyncio.ensure_future(aio.call(b.name, HERE, "note_after_gate", [1], via=a))
        while not b._reception.running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await aio.call(b.name, HERE, "add", [1], via=a)

    assert run(work()) == 2


def test_calls_of_several_event_loops_share_the_streams(a, b):
    def work():
        async def many():
            return await asyncio.gather(
                *(aio.call(b.name, HERE, "add", [n], via=a) for n in range(100))
            )

        NOTES.append(run(many()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert [list(range(1, 101))] * 4 == NOTES
    assert b.statistics()["streams_in"] == 1


def test_task_that_nobody_awaits_leaves_no_noise_when_its_call_went_well(a, b, caplog):
    async def work():
        for _ in range(10):
            await aio.async_call(b.name, HERE, "add", [1], via=a)
        return await aio.call(b.name, HERE, "add", [1], via=a)

    assert run(work()) == 2
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_gathered_failures_leave_no_noise(a, caplog):
    async def work():
        with pytest.raises(CallError):
            await aio.parallel_eval([(HERE, "fail", [])] * 20, via=a)

    run(work())
    assert "never retrieved" not in caplog.text
