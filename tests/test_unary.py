"""The unary methods: calls, casts, lists and status for programs that know nothing of Python."""

import asyncio
import json
import pickle
import queue
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from nodes import COOKIE, is_at_rest
from unary import Caller, Refused, mfa_for, plain, request_for, token_for
from waiting import SECONDS, until

import genrpc
from genrpc import BadRPC, BadTCP, security, unary_calls
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import ConfigurationError
from genrpc.neutral import documents
from genrpc.telemetry import Audit, Counters
from genrpc.transport import bearers, health, refusals
from genrpc.transport.refusals import RefusedError

HERE = __name__
GATE = threading.Event()
NOTES: list[object] = []
CANARY: list[object] = []

__version__ = "3"

needs_codecs = pytest.mark.skipif(
    not (documents.is_installed("msgpack") and documents.is_installed("cbor2")),
    reason="extras that are not installed",
)


@pytest.fixture(autouse=True)
def gate():
    GATE.clear()
    NOTES.clear()
    CANARY.clear()
    yield GATE
    GATE.set()


@pytest.fixture
def node(nodes):
    return nodes.start()


@pytest.fixture
def caller(node):
    with Caller(node) as caller:
        yield caller


# ---------------------------------------------------------------- what is called


def echo(value=None):
    return value


def echo_all(*args, **kwargs):
    return [list(args), kwargs]


def types_of(*values, **named):
    return [type(value).__name__ for value in [*values, *named.values()]]


def note(value):
    NOTES.append(value)
    return value


def noted_at_gate(value):
    NOTES.append(f"begin {value}")
    assert GATE.wait(SECONDS)
    NOTES.append(f"end {value}")
    return value


async def a_echo(value):
    await asyncio.sleep(0)
    return value


async def a_wait():
    NOTES.append("begin")
    try:
        await asyncio.sleep(SECONDS)
    except asyncio.CancelledError:
        NOTES.append("cancelled")
        raise


def wait_until_cancelled():
    NOTES.append("begin")
    until(genrpc.cancelled)
    NOTES.append("cancelled")


def throw(value):
    raise genrpc.Throw(value)


def fail():
    try:
        raise KeyError("inner")
    except KeyError as exc:
        raise ValueError("outer") from exc


def numbers():
    yield 1


def sized(size):
    return "x" * size


class Kit:
    @staticmethod
    def twice(x):
        return 2 * x


def trip():
    CANARY.append("a pickle was decoded")


class Trap:
    def __reduce__(self):
        return trip, ()


# ---------------------------------------------------------------- values


def test_json_like_values_come_back(caller):
    values = [0, -3, 2**53, 1.5, True, None, "grüße", [1, [None]], {"a": {"b": []}}]
    assert caller.value(HERE, "echo", [values]) == values
    response = caller.call(HERE, "echo_all", [7, "x"], kwargs={"k": [1]})
    assert plain(response.result.value) == [[7, "x"], {"k": [1]}]


def test_no_arguments_are_no_arguments(caller):
    assert caller.value(HERE, "echo_all") == [[], {}]
    assert caller.value(HERE, "echo_all", kwargs={"k": 1}) == [[], {"k": 1}]


def test_whole_numbers_arrive_as_ints(caller):
    kinds = caller.value(HERE, "types_of", [5, 2.0**53, 0.5, 1e300], kwargs={"k": 3})
    assert kinds == ["int", "int", "float", "float", "int"]


def test_terms_are_answered_in_terms(caller):
    terms = pb.Terms(
        args=[pb.Term(atom_value="ok"), pb.Term(bytes_value=b"\xff")],
        kwargs={"k": pb.Term(big_int_value=str(2**70))},
    )
    result = caller.call(HERE, "types_of", terms=terms).result
    kinds = [item.string_value for item in result.term.list_value.items]
    assert kinds == ["Atom", "bytes", "int"]
    result = caller.call(HERE, "echo", terms=pb.Terms(args=[pb.Term()])).result
    assert result.WhichOneof("encoding") == "term"
    assert result.term == pb.Term()


DOCUMENTS = {
    "json": b'[[7,"x"],{"k":"v"}]',
    "msgpack": b"\x92\x92\x07\xa1x\x81\xa1k\xa1v",
    "cbor": b"\x82\x82\x07\x61x\xa1\x61k\x61v",
}


@needs_codecs
@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_answered_in_kind(caller, name):
    encoded = pb.Encoded(content_type=f"application/{name}", data=DOCUMENTS[name])
    result = caller.call(HERE, "echo_all", encoded=encoded).result
    assert result.encoded == encoded


@needs_codecs
@pytest.mark.parametrize("name", [*DOCUMENTS, "value", "term"])
def test_the_reply_encoding_decides(caller, name):
    number = pb.ReplyEncoding.Value(f"REPLY_ENCODING_{name.upper()}")
    terms = pb.Terms(
        args=[pb.Term(int_value=7), pb.Term(string_value="x")],
        kwargs={"k": pb.Term(string_value="v")},
    )
    result = caller.call(HERE, "echo_all", terms=terms, reply_encoding=number).result
    if name == "value":
        assert plain(result.value) == [[7, "x"], {"k": "v"}]
    elif name == "term":
        assert result.term.list_value.items[0].list_value.items[0].int_value == 7
    else:
        assert result.encoded.content_type == f"application/{name}"
        assert result.encoded.data == DOCUMENTS[name]


def test_a_mebibyte_of_bytes(caller):
    data = bytes(range(256)) * 4096
    terms = pb.Terms(args=[pb.Term(bytes_value=data)])
    assert caller.call(HERE, "echo", terms=terms).result.term.bytes_value == data


def test_methods_coroutines_and_throws(caller):
    assert caller.value(HERE, "Kit.twice", [4]) == 8
    assert caller.value(HERE, "a_echo", ["co"]) == "co"
    assert caller.value(HERE, "a_echo", ["again"]) == "again"
    assert caller.value(HERE, "throw", [["thrown"]]) == ["thrown"]


def test_a_nonblocking_function_runs_on_a_worker_for_neutral_callers(nodes):
    node = nodes.start(nonblocking=["threading:get_ident"])
    loop = node._thread.ident
    genrpc.erpc.call(node.name, "threading", "get_ident", via=node)  # the node learns it
    assert genrpc.erpc.call(node.name, "threading", "get_ident", via=node) == loop
    with Caller(node) as caller:
        assert caller.value("threading", "get_ident") != loop


def test_the_answer_names_node_and_time(node, caller):
    response = caller.call("time", "sleep", [0.02])
    assert response.node == node.name
    assert 0.02 <= response.elapsed.ToTimedelta().total_seconds() < SECONDS


def test_a_message_may_come_in_pieces(caller):
    # As protobuf lets it: a message field that stands twice is merged.
    one = pb.CallRequest(mfa=pb.Mfa(module=HERE)).SerializeToString()
    two = pb.CallRequest(mfa=mfa_for("", "echo_all", [1])).SerializeToString()
    three = pb.CallRequest(mfa=mfa_for("", "", [2])).SerializeToString()
    assert plain(caller.ask("Call", one + two + three).result.value) == [[1, 2], {}]


# ---------------------------------------------------------------- failures of functions


def test_an_exception_is_an_error_that_anyone_can_read(caller):
    error = caller.error(HERE, "fail")
    assert error.reason == pb.ERROR_REASON_EXIT
    assert error.execution == pb.EXECUTION_FINISHED
    assert error.message == "builtins.ValueError: outer"
    shown = error.exception
    assert (shown.type, shown.message) == ("builtins.ValueError", "outer")
    assert "in fail" in shown.traceback
    assert [cause.type for cause in shown.causes] == ["builtins.KeyError"]
    assert not shown.HasField("encoded")


def test_tracebacks_stay_here_where_the_node_keeps_them(nodes):
    with Caller(nodes.start(send_tracebacks=False)) as caller:
        error = caller.error(HERE, "fail")
    assert error.exception.message == "outer"
    assert not error.exception.traceback


@pytest.mark.parametrize(
    ("module", "function"),
    [(HERE, "no_such_function"), ("no_such_module", "f"), (HERE, "Kit.nothing")],
)
def test_what_is_missing_is_an_error_that_did_not_start(caller, module, function):
    error = caller.error(module, function)
    assert error.reason == pb.ERROR_REASON_UNDEF
    assert error.execution == pb.EXECUTION_NOT_STARTED
    assert not error.exception.HasField("encoded")


def test_a_module_that_fails_to_import_is_an_error(caller, tmp_path, monkeypatch):
    (tmp_path / "broken_at_import.py").write_text("raise RuntimeError('at import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    error = caller.error("broken_at_import", "f")
    assert error.reason == pb.ERROR_REASON_EXIT
    assert error.execution == pb.EXECUTION_NOT_STARTED


@pytest.mark.parametrize(
    ("module", "function", "args", "words"),
    [
        ("math", "factorial", [30], "ask for term"),
        ("builtins", "bytes", [3], "ask for term"),
        ("builtins", "object", [], "no neutral form"),
        (HERE, "numbers", [], "generator"),
    ],
)
def test_results_that_do_not_fit_say_what_would(caller, module, function, args, words):
    error = caller.error(module, function, args)
    assert error.reason == pb.ERROR_REASON_BAD_RESULT
    assert error.execution == pb.EXECUTION_FINISHED
    assert words in error.message


def test_the_limit_of_messages_holds_below_that_of_frames(nodes):
    with Caller(nodes.start(max_message_bytes=1000)) as caller:
        data = pb.Terms(args=[pb.Term(string_value="x" * 900)])
        assert caller.call(HERE, "echo", terms=data).result.term.string_value == "x" * 900
        data.args[0].string_value = "x" * 1000
        words = refused(
            caller, HERE, "echo", terms=data, code="RESOURCE_EXHAUSTED", reason="TOO_LARGE"
        )
        assert "max_message_bytes (1000)" in words
        error = caller.error(HERE, "sized", [1001])
        assert error.reason == pb.ERROR_REASON_TOO_LARGE
        assert error.execution == pb.EXECUTION_FINISHED


def test_results_are_limited_in_size(nodes):
    limit = 65_536
    with Caller(nodes.start(max_frame_bytes=limit)) as caller:
        most = limit - unary_calls.ENVELOPE_BYTES - 4  # a Value's tag and length
        assert len(caller.value(HERE, "sized", [most])) == most
        error = caller.error(HERE, "sized", [most + 1])
        assert error.reason == pb.ERROR_REASON_TOO_LARGE
        assert error.execution == pb.EXECUTION_FINISHED
        with pytest.raises(Refused) as caught:
            caller.call(HERE, "echo", ["x" * limit])
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert caller.value(HERE, "echo", [1]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="nodes are tested on Linux")
def test_functions_in_worker_processes(nodes):
    with Caller(nodes.start(executor="process", port_discovery="manual")) as caller:
        response = caller.call("math", "factorial", [5])
        assert plain(response.result.value) == 120
        assert response.elapsed.ToNanoseconds() > 0
        terms = pb.Terms(args=[pb.Term(int_value=30)])
        assert caller.call("math", "factorial", terms=terms).result.term.big_int_value
        error = caller.error("os", "_exit", [7])
        assert error.reason == pb.ERROR_REASON_KILLED
        assert caller.value("math", "sqrt", [4]) == 2


# ---------------------------------------------------------------- calls that never ran


def refused(caller, *target, code, reason, **parts):
    with pytest.raises(Refused) as caught:
        caller.call(*target, **parts)
    assert caught.value.code == code
    assert caught.value.reason == reason
    return caught.value.text


def test_the_policy_holds(nodes):
    node = nodes.start(rpc_module_control="whitelist", rpc_module_list=["math"])
    with Caller(node) as caller:
        denied = {"code": "PERMISSION_DENIED", "reason": "UNAUTHORIZED"}
        assert "rpc_module_list" in refused(caller, "os", "getcwd", **denied)
        refused(caller, "no_such_module", "f", **denied)
        assert caller.value("math", "sqrt", [4]) == 2
        assert caller.value("genrpc", "node") == node.name
        with pytest.raises(Refused) as caught:
            caller.ask("Cast", pb.CastRequest(mfa=mfa_for("os", "getcwd")))
        assert caught.value.reason == "UNAUTHORIZED"


def test_the_tokens_list_holds(node):
    with Caller(node, allow=["math.*", f"{HERE}.echo"]) as caller:
        assert caller.value("math", "sqrt", [4]) == 2
        assert caller.value(HERE, "echo", [1]) == 1
        for module, function in ((HERE, "note"), ("mathx", "f"), ("genrpc", "ping")):
            text = refused(
                caller, module, function, code="PERMISSION_DENIED", reason="UNAUTHORIZED"
            )
            assert "--allow" in text
        with pytest.raises(Refused, match="PERMISSION_DENIED"):
            caller.ask("Cast", pb.CastRequest(mfa=mfa_for(HERE, "note", [1])))
    assert NOTES == []


def test_the_module_version_is_compared(caller):
    assert caller.value(HERE, "echo", [1], module_version="3") == 1
    for version, module in (("4", HERE), ("1", "no_such_module")):
        refused(
            caller,
            *(module, "echo"),
            module_version=version,
            code="FAILED_PRECONDITION",
            reason="INCOMPATIBLE",
        )


def test_each_token_has_its_calls(nodes):
    node = nodes.start(max_calls=1)
    with Caller(node) as caller, Caller(node) as other:
        request = request_for(HERE, "noted_at_gate", [1])
        begun = caller.begin("Call", request)
        until(lambda: NOTES)
        overload = {"code": "RESOURCE_EXHAUSTED", "reason": "OVERLOAD"}
        assert "max_calls" in refused(caller, HERE, "echo", **overload)
        assert other.value(HERE, "echo", [2]) == 2
        GATE.set()
        assert plain(caller.end(begun, pb.CallResponse).result.value) == 1
        assert caller.value(HERE, "echo", [3]) == 3


def test_a_node_that_stops_says_so_and_ends_what_runs(nodes):
    node = nodes.start()
    with Caller(node) as caller:
        begun = caller.begin("Call", request_for(HERE, "noted_at_gate", [1]))
        until(lambda: NOTES)
        stopping = threading.Thread(target=node.stop, args=(SECONDS,))
        stopping.start()
        until(lambda: node._reception.draining)
        text = refused(caller, HERE, "echo", code="UNAVAILABLE", reason="DRAINING")
        assert node.name in text
        GATE.set()
        assert plain(caller.end(begun, pb.CallResponse).result.value) == 1
        stopping.join(SECONDS)
        assert not stopping.is_alive()
        with pytest.raises(Refused, match="UNAVAILABLE"):
            caller.call(HERE, "echo")


def test_the_deadline_of_grpc_is_the_calls(nodes):
    node = nodes.start(max_workers=1)
    with Caller(node) as caller:
        with pytest.raises(Refused, match="DEADLINE_EXCEEDED"):
            caller.call(HERE, "wait_until_cancelled", timeout=0.2)
        until(lambda: NOTES == ["begin", "cancelled"])
        # The only worker is busy: this one is dropped before it has begun.
        blocker = caller.begin("Call", request_for(HERE, "noted_at_gate", ["blocker"]))
        until(lambda: len(NOTES) == 3)
        with pytest.raises(Refused, match="DEADLINE_EXCEEDED"):
            caller.call(HERE, "note", ["too late"], timeout=0.1)
        GATE.set()
        caller.end(blocker, pb.CallResponse)
        until(lambda: is_at_rest(node))
        assert "too late" not in NOTES


def test_a_caller_that_gives_up_cancels_a_coroutine(node, caller):
    begun = caller.begin("Call", request_for(HERE, "a_wait"))
    until(lambda: NOTES)
    begun.cancel()
    until(lambda: NOTES == ["begin", "cancelled"])
    until(lambda: is_at_rest(node))


def test_a_call_that_a_worker_finds_expired_is_a_status(node, caller, monkeypatch):
    # What gRPC ends by its own deadline hides it otherwise.
    def expired(call):
        call.deadline = 0.0
        submit(call)

    submit = node._executor.submit
    monkeypatch.setattr(node._executor, "submit", expired)
    refused(caller, HERE, "note", [1], code="DEADLINE_EXCEEDED", reason="TIMEOUT")
    assert NOTES == []


UNKNOWN = {"code": "INVALID_ARGUMENT", "reason": "BAD_ARGUMENTS"}


@pytest.mark.parametrize(
    ("content_type", "data", "words"),
    [
        ("application/json", b"{nonsense", "no JSON"),
        ("application/json", b"5", "args, kwargs"),
        ("application/unknown", b"x", "none of application/json"),
        ("", b"x", "none of"),
        pytest.param("application/msgpack", b"\xc1", "MessagePack", marks=needs_codecs),
        pytest.param("application/cbor", b"\xff", "(cbor)", marks=needs_codecs),
        ("application/x-python-pickle", pickle.dumps(([], {})), "Pickles are not taken"),
    ],
)
def test_documents_that_cannot_be_read(caller, content_type, data, words):
    encoded = pb.Encoded(content_type=content_type, data=data)
    assert words in refused(caller, HERE, "echo", encoded=encoded, **UNKNOWN)


def test_requests_that_contradict_themselves(caller):
    terms, encoded = pb.Terms(), pb.Encoded(content_type="application/json", data=b"[[],{}]")
    for words, parts in (
        ("kwargs go with args", {"terms": terms, "kwargs": {"k": 1}}),
        ("kwargs go with args", {"encoded": encoded, "kwargs": {"k": 1}}),
        (
            "Only a pickle has buffers",
            {"encoded": pb.Encoded(content_type="application/json", buffers=[b""])},
        ),
        ("no reply encoding 99", {"reply_encoding": 99}),
        ("Pickles are not", {"reply_encoding": pb.REPLY_ENCODING_PICKLE}),
    ):
        assert words in refused(caller, HERE, "echo", **parts, **UNKNOWN)
    both = request_for(HERE, "echo", terms=terms).SerializeToString()
    both += request_for(HERE, "echo", [1]).SerializeToString()
    with pytest.raises(Refused, match="more than one of args"):
        caller.ask("Call", both)


@pytest.mark.parametrize(
    ("module", "function"), [("", "f"), ("math", ""), ("math", "a.b.c"), ("math ", "sqrt")]
)
def test_names_that_are_no_names(caller, module, function):
    assert "names no function" in refused(caller, module, function, **UNKNOWN)


@pytest.mark.parametrize("method", ["Call", "Cast", "ListFunctions", "GetStatus"])
def test_bytes_that_are_no_request(caller, method):
    with pytest.raises(Refused, match=f"no genrpc.v1.{method}Request") as caught:
        caller.ask(method, b"\xff\xff\xff")
    assert caught.value.reason == "BAD_ARGUMENTS"


def test_values_nested_too_deep(caller):
    request = request_for(HERE, "note")
    term = request.mfa.terms.args.add()
    for _ in range(60):
        term = term.list_value.items.add()
    with pytest.raises(Refused, match="nested deeper") as caught:
        caller.ask("Call", request)
    assert caught.value.reason == "BAD_ARGUMENTS"
    assert NOTES == []


def test_a_missing_package_is_said(caller, monkeypatch):
    monkeypatch.setattr(documents, "is_installed", lambda package: False)
    encoded = pb.Encoded(content_type="application/cbor", data=b"\x82\x80\xa0")
    assert "genrpc[cbor]" in refused(caller, HERE, "echo", encoded=encoded, **UNKNOWN)
    number = pb.REPLY_ENCODING_MSGPACK
    assert "genrpc[msgpack]" in refused(caller, HERE, "echo", reply_encoding=number, **UNKNOWN)


def test_a_pickle_is_refused_by_its_name_in_any_case(caller):
    for content_type in ("application/x-python-pickle", " Application/X-Python-Pickle"):
        encoded = pb.Encoded(content_type=content_type, data=b".")
        assert "Pickles are not taken" in refused(caller, HERE, "echo", encoded=encoded, **UNKNOWN)


def test_no_pickle_is_decoded_whatever_field_it_is_in(caller):
    for protocol in (2, 5):
        trap = pickle.dumps(([Trap()], {}), protocol)
        for content_type in (
            "application/x-python-pickle",
            "application/x-python-pickle; charset=utf-8",
            "application/json",
            "",
        ):
            encoded = pb.Encoded(content_type=content_type, data=trap, buffers=[trap])
            with pytest.raises(Refused, match="INVALID_ARGUMENT"):
                caller.call(HERE, "echo", encoded=encoded)
        terms = pb.Terms(args=[pb.Term(bytes_value=trap)])
        assert caller.call(HERE, "echo", terms=terms).result.term.bytes_value == trap
    assert CANARY == []
    pickle.loads(trap)
    assert CANARY  # the trap works


# ---------------------------------------------------------------- what nobody expected


def test_unexpected_exceptions_stay_in_the_log(node, caller, monkeypatch, caplog):
    def break_down(call, peer):
        raise RuntimeError("secret path /etc/shadow")

    monkeypatch.setattr(node._reception, "refusal", break_down)
    with pytest.raises(Refused) as caught:
        caller.call(HERE, "echo")
    assert caught.value.code == "INTERNAL"
    assert "secret" not in caught.value.text
    assert "secret" in caplog.text


@pytest.mark.parametrize("broken", ["decode_arguments", "encode_value"])
def test_a_codec_that_breaks_is_no_words_for_the_caller(caller, monkeypatch, caplog, broken):
    def break_down(*args, **kwargs):
        raise RuntimeError("secret")

    monkeypatch.setattr(genrpc.neutral, broken, break_down)
    try:
        answer = str(caller.error(HERE, "echo"))
    except Refused as error:
        answer = error.text
    assert "secret" not in answer
    assert "secret" in caplog.text


def test_an_executor_that_breaks_is_no_words_for_the_caller(node, caller, monkeypatch, caplog):
    def break_down(call, outcome, value):
        raise RuntimeError("secret")

    monkeypatch.setattr(node._executor, "_answer_value", break_down)
    error = caller.error(HERE, "echo")
    assert error.execution == pb.EXECUTION_UNSPECIFIED
    assert "secret" not in str(error)
    assert "secret" in caplog.text


# ---------------------------------------------------------------- tokens


ONE_SENTENCE = "authorization: Bearer <token>"


def test_whoever_has_no_good_token_is_told_one_sentence(node, caplog):
    good = token_for(node)
    now = time.time()
    told = set()
    for metadata in (
        (),
        (("authorization", good),),
        (("authorization", f"Basic {good}"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {good}"), ("authorization", f"Bearer {good}")),
        (("authorization", f"Bearer {good}x"),),
        (("authorization", f"Bearer {token_for(node, ttl=1.0, now=now - 2)}"),),
        (("authorization", f"Bearer {token_for(node, audience='other@127.0.0.1')}"),),
        (("authorization", f"Bearer {token_for(node, cookie='another cookie of ours')}"),),
    ):
        with Caller(node) as caller:
            caller.metadata = metadata
            for method in ("Call", "Cast", "ListFunctions", "GetStatus"):
                with pytest.raises(Refused) as caught:
                    caller.ask(method, b"\xff")  # it is not even looked at
                assert caught.value.code == "UNAUTHENTICATED"
                assert caught.value.reason == "INVALID_COOKIE"
                told.add(caught.value.text)
    (sentence,) = told
    assert ONE_SENTENCE in sentence
    for word in ("missing", "scheme", "several", "proof", "expired", "audience"):
        assert f"reason=token_{word}" in caplog.text
    assert good not in caplog.text


def test_the_scheme_is_of_any_case_and_the_audience_may_be_this_node(node):
    with Caller(node, audience=node.name) as caller:
        caller.metadata = (("authorization", f"bEARER {caller.token}"),)
        assert caller.value(HERE, "echo", [1]) == 1


class Context:
    """What a gate asks of gRPC's context."""

    def __init__(self, peer, security_type=b"insecure"):
        self._peer = peer
        self._type = security_type

    def peer(self):
        return self._peer

    def auth_context(self):
        return {"transport_security_type": [self._type]}

    def invocation_metadata(self):
        return None

    async def abort(self, code, text, metadata):
        raise ConnectionAbortedError(code.name)


@pytest.mark.parametrize(
    ("peer", "security_type", "private"),
    [
        ("ipv4:127.0.0.1:5", b"insecure", True),
        ("ipv4:127.8.8.8:5", b"insecure", True),
        ("ipv6:[::1]:5", b"insecure", True),
        ("ipv6:%5B::1%5D:5", b"insecure", True),
        ("ipv6:[::ffff:127.0.0.1]:5", b"insecure", True),
        ("ipv6:[::ffff:10.0.0.1]:5", b"insecure", False),
        ("ipv4:10.0.0.1:5", b"insecure", False),
        ("ipv4:10.0.0.1:5", b"ssl", True),
        ("ipv6:[fe80::1%25eth0]:5", b"insecure", False),
        ("unix:/tmp/x", b"insecure", False),
        ("nonsense", b"insecure", False),
        ("ipv4:nonsense:5", b"insecure", False),
    ],
)
def test_tokens_are_taken_over_loopback_or_tls_only(peer, security_type, private):
    assert bearers.is_private(Context(peer, security_type)) is private


def test_a_token_in_the_clear_is_refused_before_it_is_read(caplog):
    audit = Audit("a@127.0.0.1", Counters())
    gate = bearers.Gate(security.Cookie("0123456789abcdef"), "a@127.0.0.1", audit)
    with pytest.raises(ConnectionAbortedError, match="UNAUTHENTICATED"):
        asyncio.run(gate.admit(Context("ipv4:10.0.0.1:5")))
    assert "reason=token_in_the_clear" in caplog.text
    with pytest.raises(ConnectionAbortedError, match="UNAUTHENTICATED"):
        asyncio.run(gate.admit(Context("ipv4:127.0.0.1:5")))
    assert "missing" in caplog.text


def test_a_refusal_for_which_there_is_no_status_is_internal():
    with pytest.raises(ConnectionAbortedError, match="INTERNAL"):
        asyncio.run(refusals.refuse(Context(""), RefusedError("badnode", "x")))


def test_an_abort_that_returns_is_no_answer():
    class Silent(Context):
        async def abort(self, code, text, metadata):
            return None

    with pytest.raises(AssertionError):
        asyncio.run(refusals.refuse(Silent(""), RefusedError("overload", "x")))


# ---------------------------------------------------------------- Cast


def cast(caller, function, *args, key="", module=HERE, timeout=20.0):
    request = pb.CastRequest(mfa=mfa_for(module, function, list(args)), ordering_key=key)
    return caller.ask("Cast", request, timeout)


def test_a_cast_is_answered_before_it_runs(node, caller):
    assert cast(caller, "noted_at_gate", 1).node == node.name
    until(lambda: NOTES == ["begin 1"])
    GATE.set()
    until(lambda: NOTES == ["begin 1", "end 1"])
    until(lambda: is_at_rest(node))


def test_casts_of_one_key_run_in_order(caller):
    for number in range(20):
        cast(caller, "noted_at_gate", number, key="k")
    cast(caller, "note", "other", key="other")
    until(lambda: "other" in NOTES)
    assert sorted(map(str, NOTES)) == ["begin 0", "other"]
    GATE.set()
    until(lambda: len(NOTES) == 41)
    ends = [text for text in NOTES if str(text).startswith("end")]
    assert ends == [f"end {number}" for number in range(20)]


def test_casts_are_limited_by_the_cast_window(nodes):
    node = nodes.start(cast_window=2)
    with Caller(node) as caller:
        cast(caller, "noted_at_gate", 1)
        cast(caller, "noted_at_gate", 2)
        with pytest.raises(Refused, match="cast_window") as caught:
            cast(caller, "note", 3)
        assert caught.value.reason == "OVERLOAD"
        GATE.set()
        until(lambda: is_at_rest(node))
        cast(caller, "note", 4)
        until(lambda: 4 in NOTES)
    assert 3 not in NOTES


def test_the_deadline_of_a_cast_is_for_the_answer_only(nodes):
    node = nodes.start(max_workers=1)
    with Caller(node) as caller:
        cast(caller, "noted_at_gate", 1)
        cast(caller, "note", 2, timeout=0.5)
        time.sleep(0.6)
        GATE.set()
        until(lambda: 2 in NOTES)


def test_casts_that_are_lost_are_logged(caller, caplog):
    cast(caller, "no_such_function")
    until(lambda: "was lost" in caplog.text)
    assert "no_such_function" in caplog.text
    cast(caller, "fail")
    until(lambda: "ValueError('outer')" in caplog.text)


def test_a_node_that_stops_runs_the_casts_that_it_accepted(nodes):
    node = nodes.start()
    with Caller(node) as caller:
        cast(caller, "noted_at_gate", 1)
        until(lambda: NOTES)
        stopping = threading.Thread(target=node.stop, args=(SECONDS,))
        stopping.start()
        until(lambda: node._reception.draining)
        GATE.set()
        stopping.join(SECONDS)
    assert NOTES == ["begin 1", "end 1"]


# ---------------------------------------------------------------- idempotency keys


def test_calls_of_one_key_run_once(caller):
    for _ in range(3):
        assert caller.value(HERE, "note", [1], idempotency_key="k") == 1
    assert NOTES == [1]
    assert caller.value(HERE, "note", [1], idempotency_key="other") == 1
    assert NOTES == [1, 1]


def test_calls_of_one_key_wait_for_each_other(caller):
    request = request_for(HERE, "noted_at_gate", [1], idempotency_key="k")
    begun = [caller.begin("Call", request) for _ in range(3)]
    until(lambda: NOTES)
    GATE.set()
    answers = {caller.end(each, pb.CallResponse).SerializeToString() for each in begun}
    assert len(answers) == 1
    assert NOTES == ["begin 1", "end 1"]


def test_a_call_under_a_key_goes_on_when_its_caller_hangs_up(caller):
    request = request_for(HERE, "noted_at_gate", [1], idempotency_key="k")
    first = caller.begin("Call", request)
    until(lambda: NOTES)
    first.cancel()
    second = caller.begin("Call", request)
    GATE.set()
    assert plain(caller.end(second, pb.CallResponse).result.value) == 1
    assert NOTES == ["begin 1", "end 1"]


def test_a_key_is_of_one_request_and_one_token(node, caller):
    assert caller.value(HERE, "note", [1], idempotency_key="k") == 1
    text = refused(caller, HERE, "note", [2], idempotency_key="k", **UNKNOWN)
    assert "another request" in text
    with Caller(node) as other:
        assert other.value(HERE, "note", [2], idempotency_key="k") == 2


def test_a_call_that_never_ran_may_come_again_under_its_key(nodes):
    node = nodes.start(max_calls=1)
    with Caller(node) as caller:
        begun = caller.begin("Call", request_for(HERE, "noted_at_gate", [1]))
        until(lambda: NOTES)
        overload = {"code": "RESOURCE_EXHAUSTED", "reason": "OVERLOAD"}
        refused(caller, HERE, "note", [2], idempotency_key="k", **overload)
        GATE.set()
        caller.end(begun, pb.CallResponse)
        assert caller.value(HERE, "note", [2], idempotency_key="k") == 2


def test_remembered_answers_are_bounded_and_expire(monkeypatch):
    monkeypatch.setattr(unary_calls, "MAX_REPEATS", 2)
    monkeypatch.setattr(unary_calls, "MAX_REPEAT_BYTES", 10)
    ran = []

    async def run():
        repeats = unary_calls._Repeats(asyncio.get_running_loop())
        waiting = asyncio.Event()

        async def answer(text):
            ran.append(text)
            return text

        async def later():
            await waiting.wait()
            return b"later"

        async def ask(key, text):
            return await repeats.once(("token", key), b"", lambda: answer(text))

        open_call = asyncio.ensure_future(repeats.once(("token", "open"), b"", later))
        await asyncio.sleep(0)
        await ask("a", b"a")
        await ask("a", b"a")
        assert ran == [b"a"]
        await ask("b", b"b")  # one too many: the oldest that has ended goes
        await ask("a", b"a")
        assert ran == [b"a", b"b", b"a"]
        await ask("large", bytes(11))
        assert ("token", "open") in repeats._kept
        assert repeats._bytes == 0
        waiting.set()
        assert await open_call == b"later"
        monkeypatch.setattr(unary_calls, "REPEAT_SECONDS", 0.0)
        await ask("c", b"c")
        await asyncio.sleep(0.01)
        assert ("token", "c") not in repeats._kept

    asyncio.run(run())


def test_open_calls_under_keys_are_never_forgotten(monkeypatch):
    monkeypatch.setattr(unary_calls, "MAX_REPEATS", 0)
    monkeypatch.setattr(unary_calls, "REPEAT_SECONDS", 0.0)

    async def run():
        repeats = unary_calls._Repeats(asyncio.get_running_loop())
        going = asyncio.Event()

        async def answer():
            return b"x"

        async def later():
            await going.wait()
            return b"later"

        async def fail():
            raise RefusedError("overload", "x")

        open_call = asyncio.ensure_future(repeats.once(("token", "open"), b"", later))
        await asyncio.sleep(0)
        assert await repeats.once(("token", "k"), b"", answer) == b"x"
        with pytest.raises(RefusedError):
            await repeats.once(("token", "f"), b"", fail)
        await asyncio.sleep(0.01)
        assert list(repeats._kept) == [("token", "open")]
        going.set()
        assert await open_call == b"later"

    asyncio.run(run())


# ---------------------------------------------------------------- ListFunctions


@pytest.fixture
def listed(nodes):
    """A node with a whitelist."""
    return nodes.start(
        rpc_module_control="whitelist",
        rpc_module_list=["math", f"{HERE}:echo", f"{HERE}:Kit.twice"],
    )


def names_of(functions):
    return [f"{each.module}.{each.function}" for each in functions]


def test_the_list_has_what_may_run(listed):
    with Caller(listed) as caller:
        response = caller.ask("ListFunctions", pb.ListFunctionsRequest())
        names = names_of(response.functions)
        assert not response.next_page_token
        assert {"genrpc.node", "genrpc.ping", "math.sqrt", f"{HERE}.echo"} <= set(names)
        assert f"{HERE}.Kit.twice" in names
        assert f"{HERE}.note" not in names
        (echoed,) = [each for each in response.functions if each.function == "echo"]
        assert echoed.signature == "(value=None)"


def test_the_list_keeps_to_the_token_and_the_prefix(listed):
    with Caller(listed, allow=["math.s*"]) as caller:
        request = pb.ListFunctionsRequest(prefix="math.sq")
        assert names_of(caller.ask("ListFunctions", request).functions) == ["math.sqrt"]
        names = names_of(caller.ask("ListFunctions", pb.ListFunctionsRequest()).functions)
        assert names
        assert all(name.startswith("math.s") for name in names)


def test_the_list_comes_in_pages(listed):
    with Caller(listed) as caller:
        whole = names_of(caller.ask("ListFunctions", pb.ListFunctionsRequest()).functions)
        request, pages = pb.ListFunctionsRequest(page_size=7), []
        while True:
            response = caller.ask("ListFunctions", request)
            pages.append(names_of(response.functions))
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        assert [name for page in pages for name in page] == whole
        assert {len(page) for page in pages[:-1]} == {7}


@pytest.mark.parametrize("parts", [{"page_size": -1}, {"page_token": "nonsense"}])
def test_pages_that_are_none(caller, parts):
    with pytest.raises(Refused) as caught:
        caller.ask("ListFunctions", pb.ListFunctionsRequest(**parts))
    assert caught.value.reason == "BAD_ARGUMENTS"


def test_a_list_that_fails_is_no_words_for_the_caller(caller, monkeypatch, caplog):
    def break_down(*args, **kwargs):
        raise RuntimeError("secret")

    monkeypatch.setattr(unary_calls.catalogue, "page_of", break_down)
    with pytest.raises(Refused, match="INTERNAL") as caught:
        caller.ask("ListFunctions", b"")
    assert "secret" not in caught.value.text
    assert "secret" in caplog.text


def test_a_caller_that_gives_up_a_list_leaves_the_node_in_order(caller, monkeypatch):
    def slow(*args, **kwargs):
        NOTES.append("begin")
        GATE.wait(SECONDS)
        NOTES.append("end")
        return [], None

    with monkeypatch.context() as patch:
        patch.setattr(unary_calls.catalogue, "page_of", slow)
        begun = caller.begin("ListFunctions", b"")
        until(lambda: NOTES)
        begun.cancel()
        time.sleep(0.1)  # the cancellation is on its way; nothing tells of its arrival
        GATE.set()
        until(lambda: len(NOTES) == 2)
    assert caller.ask("ListFunctions", b"").functions


# ---------------------------------------------------------------- GetStatus


def test_the_status_says_who_and_how(nodes):
    node = nodes.start(rpc_module_control="whitelist", rpc_module_list=["math"])
    with Caller(node) as caller:
        caller.value("math", "sqrt", [4])
        with pytest.raises(Refused):
            caller.call("os", "getcwd")
        status = caller.ask("GetStatus", b"")
    assert status.node == node.name
    assert status.instance_id == node._reception.instance_id
    assert status.genrpc_version
    assert status.python_version.startswith("3.")
    assert 0 < status.uptime.ToTimedelta().total_seconds() < 600
    assert status.calls_total == {"served": 1, "unauthorized": 1}
    assert status.peers == 0


def test_the_status_counts_peers_and_calls(nodes):
    a, b = nodes.start("a"), nodes.start("b", max_workers=1)
    key = genrpc.async_call(b.name, HERE, "noted_at_gate", [1], via=a)
    until(lambda: NOTES)
    with Caller(b) as caller:
        waiting = caller.begin("Call", request_for(HERE, "echo"))
        until(lambda: caller.ask("GetStatus", b"").calls_queued == 1)
        status = caller.ask("GetStatus", b"")
        assert (status.peers, status.calls_running) == (1, 1)
        GATE.set()
        caller.end(waiting, pb.CallResponse)
    assert genrpc.yield_(key) == 1


def test_the_version_is_unknown_in_a_checkout(monkeypatch):
    def missing(name):
        raise unary_calls.importlib.metadata.PackageNotFoundError(name)

    unary_calls._version.cache_clear()
    monkeypatch.setattr(unary_calls.importlib.metadata, "version", missing)
    assert unary_calls._version() == "unknown"
    unary_calls._version.cache_clear()


# ---------------------------------------------------------------- health and reflection


def check_health(caller, service=""):
    request = health_pb2.HealthCheckRequest(service=service)
    caller.metadata = ()
    begun = caller.begin("/grpc.health.v1.Health/Check", request)
    return caller.end(begun, health_pb2.HealthCheckResponse).status


def watch_health(caller, service=""):
    method = caller.channel.unary_stream("/grpc.health.v1.Health/Watch")
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    answers = method(request, timeout=SECONDS)
    return (health_pb2.HealthCheckResponse.FromString(answer).status for answer in answers)


SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


def test_health_is_open_and_per_service(caller):
    assert check_health(caller) == SERVING
    assert check_health(caller, "genrpc.v1.NodeService") == SERVING
    with pytest.raises(Refused, match="NOT_FOUND"):
        check_health(caller, "made.up.Service")


def test_health_says_that_a_node_is_stopping(nodes):
    node = nodes.start()
    with Caller(node) as caller:
        begun = caller.begin("Call", request_for(HERE, "noted_at_gate", [1]))
        until(lambda: NOTES)
        statuses = [watch_health(caller), watch_health(caller, "genrpc.v1.NodeService")]
        unknown = watch_health(caller, "made.up.Service")
        assert [next(each) for each in statuses] == [SERVING, SERVING]
        assert next(unknown) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        stopping = threading.Thread(target=node.stop, args=(SECONDS,))
        stopping.start()
        assert [list(each) for each in statuses] == [[NOT_SERVING], [NOT_SERVING]]
        assert list(unknown) == []
        assert check_health(caller) == NOT_SERVING
        GATE.set()
        caller.end(begun, pb.CallResponse)
        stopping.join(SECONDS)


def test_watchers_are_limited(caller, monkeypatch):
    monkeypatch.setattr(health, "MAX_WATCHERS", 1)
    first = watch_health(caller)
    assert next(first) == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        next(watch_health(caller))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.close()


def reflect(caller, version="v1", metadata=None, **asked):
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    method = caller.channel.stream_stream(path)
    requests = [reflection_pb2.ServerReflectionRequest(**asked).SerializeToString()]
    metadata = caller.metadata if metadata is None else metadata
    answers = list(method(iter(requests), timeout=SECONDS, metadata=metadata))
    return reflection_pb2.ServerReflectionResponse.FromString(answers[0])


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_shows_the_services_to_bearers_of_a_token(caller, version):
    response = reflect(caller, version, list_services="")
    services = {each.name for each in response.list_services_response.service}
    assert "genrpc.v1.NodeService" in services
    with pytest.raises(grpc.RpcError) as caught:
        reflect(caller, version, metadata=(), list_services="")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_reflection_shows_no_other_files_of_the_process(caller):
    for symbol in ("genrpc.v1.NodeService", "google.rpc.ErrorInfo"):
        response = reflect(caller, file_containing_symbol=symbol)
        assert response.file_descriptor_response.file_descriptor_proto
    # It is loaded, for Any stands in google.rpc.Status.
    response = reflect(caller, file_containing_symbol="google.rpc.Status")
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def account(caller, method, metadata=None, **asked):
    channelz_pb2 = pytest.importorskip("grpc_channelz.v1.channelz_pb2")
    path = f"/grpc.channelz.v1.Channelz/{method}"
    unary = caller.channel.unary_unary(path)
    request = getattr(channelz_pb2, f"{method}Request")(**asked).SerializeToString()
    metadata = caller.metadata if metadata is None else metadata
    answer = unary(request, timeout=SECONDS, metadata=metadata)
    return getattr(channelz_pb2, f"{method}Response").FromString(answer)


def test_channelz_is_off_unless_it_is_asked_for(caller):
    with pytest.raises(grpc.RpcError) as caught:
        account(caller, "GetServers")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    services = reflect(caller, list_services="").list_services_response.service
    assert "grpc.channelz.v1.Channelz" not in {each.name for each in services}


def test_channelz_tells_bearers_of_a_token(nodes):
    pytest.importorskip("grpc_channelz")
    nodes.start()
    with Caller(nodes.start(channelz=True)) as caller:
        (server,) = account(caller, "GetServers").server  # those of other nodes are not told of
        asked = {"server_id": server.ref.server_id}
        assert account(caller, "GetServer", **asked).server.data.calls_started == 2
        (socket,) = account(caller, "GetServerSockets", **asked).socket_ref
        assert "127.0.0.1" in socket.name
        with pytest.raises(grpc.RpcError) as caught:
            account(caller, "GetServer", metadata=(), **asked)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError, match="no channel, server or socket") as caught:
            account(caller, "GetServer", server_id=2**40)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        services = reflect(caller, list_services="").list_services_response.service
        assert "grpc.channelz.v1.Channelz" in {each.name for each in services}
        for symbol in ("grpc.channelz.v1.Channelz", "google.protobuf.Int64Value"):
            response = reflect(caller, file_containing_symbol=symbol)
            assert response.file_descriptor_response.file_descriptor_proto


def test_channelz_without_its_package_is_said(nodes, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"install genrpc\[channelz\]"):
        nodes.start(channelz=True)


def test_other_methods_are_unimplemented(caller):
    for path in ("/genrpc.v1.NodeService/Other", "/other.Service/Call"):
        with pytest.raises(Refused, match="UNIMPLEMENTED"):
            caller.end(caller.begin(path, b""), pb.CallResponse)


# ---------------------------------------------------------------- a crowd


def test_thousands_of_calls_at_once_are_all_answered(node, caller):
    request = request_for(HERE, "echo", [1])
    begun = [caller.begin("Call", request, 50.0) for _ in range(4000)]
    for each in begun:
        assert each.code() is grpc.StatusCode.OK
    until(lambda: is_at_rest(node))


# ---------------------------------------------------------------- asking another node


def test_a_node_asks_another_for_its_status(nodes):
    a, b = nodes.start("a", tcp_server_port=None), nodes.start("b")
    assert a.status_of(b.name).node == b.name
    assert a.status_of(b.name).instance_id == b._reception.instance_id
    assert a.status_of(a.name).node == a.name
    assert a.status_of(f"{b.name}:{b.port}", None).node == b.name


def test_a_node_asks_another_for_its_functions(nodes, monkeypatch):
    a, b = (
        nodes.start(each, rpc_module_control="whitelist", rpc_module_list=["math"]) for each in "ab"
    )
    asked = a.functions_of(b.name, "math.s")
    assert "math.sqrt" in names_of(asked)
    assert a.functions_of(a.name, "math.s") == asked
    monkeypatch.setattr(unary_calls.catalogue, "MAX_PAGE", 2)
    assert a.functions_of(b.name, "math.s") == asked
    assert a.functions_of(a.name, "math.s") == asked


def failing(function, *args):
    with pytest.raises(genrpc.CallError) as caught:
        function(*args)
    return caught.value.value


def test_asking_fails_with_the_words_of_calls(nodes):
    a, b = nodes.start("a"), nodes.start("b")
    stranger = nodes.start("s", cookie="another cookie of ours")
    for function in (a.status_of, a.functions_of):
        assert failing(function, "nobody@127.0.0.1:1") == BadTCP("econnrefused")
        assert failing(function, f"other@127.0.0.1:{b.port}") == BadRPC("invalid_cookie")
        assert failing(function, stranger.name) == BadRPC("invalid_cookie")
        assert failing(function, "x@no-such-host.invalid:5") == BadTCP("nxdomain")
        assert failing(function, "unknown@127.0.0.1") == BadTCP("nxdomain")
    assert failing(a.status_of, b.name, 0) == BadRPC("timeout")
    a.stop(0)
    with pytest.raises(RuntimeError, match="does not run"):
        a.status_of(b.name)


def test_asking_what_does_not_answer_ends_in_time(nodes):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        name = f"mute@127.0.0.1:{mute.getsockname()[1]}"
        a = nodes.start("a", connect_timeout=0.2)
        assert failing(a.status_of, name, 20) == BadTCP("connect_timeout")
        assert failing(a.status_of, name, 0.1) == BadRPC("timeout")


def test_asking_a_node_that_is_slow_ends_in_time(nodes, monkeypatch):
    a, b = nodes.start("a"), nodes.start("b")

    def slow(*args, **kwargs):
        GATE.wait(SECONDS)
        return [], None

    monkeypatch.setattr(unary_calls.catalogue, "page_of", slow)
    assert failing(a.functions_of, b.name, "", 0.3) == BadRPC("timeout")
    GATE.set()


def test_asking_what_is_no_genrpc_node(nodes):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        a = nodes.start("a")
        assert failing(a.status_of, f"b@127.0.0.1:{port}") == BadTCP("corrupt_data")
    finally:
        server.stop(0)


def test_asking_a_node_that_is_draining(nodes, monkeypatch):
    a, b = nodes.start("a"), nodes.start("b")

    async def refuse(*args):
        raise RefusedError("draining", "b is stopping.")

    monkeypatch.setattr(b._services.desk, "functions", refuse)
    assert failing(a.functions_of, b.name) == BadRPC("draining")


def test_no_token_goes_over_a_network_in_the_clear(nodes):
    a = nodes.start("a")
    failure = failing(a.status_of, "b@192.0.2.1:5")
    assert failure == BadRPC("invalid_cookie")
    assert "in the clear" in failure.message


def test_asking_over_tls(nodes, tmp_path):
    security.make_authority(tmp_path)
    a, b = (nodes.start(each, **certificate(tmp_path, nodes.name(each))) for each in "ab")
    assert a.status_of(b.name).node == b.name
    assert failing(nodes.start("c").status_of, b.name).reason in ("closed", "tls")
    assert nodes.start("d", **certificate(tmp_path, nodes.name("d")), connect_timeout=None)


def certificate(directory, name):
    made = security.make_certificate(directory, name, ca_directory=directory)
    return {
        "certfile": str(made.certificate),
        "keyfile": str(made.key),
        "cacertfile": str(directory / "ca.crt"),
    }


class StatusError(grpc.RpcError):
    """A status whose details are somebody else's."""

    def __init__(self, metadata):
        self._metadata = metadata

    def trailing_metadata(self):
        return self._metadata


def status_with(detail):
    status = status_pb2.Status(code=3)
    status.details.add().Pack(detail)
    return status.SerializeToString()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (("other", "x"),),
        ((refusals.DETAILS, b"\xff\xff"),),
        ((refusals.DETAILS, status_pb2.Status(code=3).SerializeToString()),),
        ((refusals.DETAILS, status_with(error_details_pb2.ErrorInfo(domain="other"))),),
        ((refusals.DETAILS, status_with(error_details_pb2.RetryInfo())),),
    ],
)
def test_statuses_of_others_have_no_reason_of_ours(metadata):
    assert refusals.reason_in(StatusError(metadata)) is None


# ---------------------------------------------------------------- terms on the stream


class Stream:
    """A stream by hand, from the proto's comments alone."""

    def __init__(self, node, want_pickle=False):
        self._frames = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{node.port}")
        method = self._channel.stream_stream(
            "/genrpc.v1.NodeService/Connect",
            pb.ConnectRequest.SerializeToString,
            pb.ConnectResponse.FromString,
        )
        self._answers = method(iter(self._frames.get, None), timeout=SECONDS)
        key = security.Cookie(COOKIE).key
        hello = pb.Hello(
            revision_max=1,
            revision_min=1,
            node="stranger@127.0.0.1",
            target_node=node.name,
            nonce=bytes(range(32)),
            want_pickle=want_pickle,
        )
        self.send(hello=hello)
        transcript = security.transcript(hello, next(self._answers).challenge)
        proof = security.client_proof(key, transcript)
        limits = {"max_frame_bytes": 2**22, "max_message_bytes": 2**29, "window_bytes": 2**21}
        self.send(auth_proof=pb.AuthProof(mac=proof, **limits))
        welcome = next(self._answers).welcome
        assert welcome.mac == security.server_proof(key, transcript)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._frames.put(None)
        self._channel.close()

    def send(self, **frame):
        self._frames.put(pb.ConnectRequest(**frame))

    def calls(self, function, payloads, encoding, module=HERE):
        """Call a function with each payload in one frame; gives outcomes and payloads."""
        count = len(payloads)
        batch = pb.CallBatch(
            targets=[pb.Target(number=1, module=module, function=function)],
            call_ids=range(1, count + 1),
            call_targets=[1] * count,
            payloads=payloads,
            encodings=[encoding] * count,
        )
        self.send(calls=batch)
        found = {}
        while len(found) < count:
            replies = next(self._answers).replies
            outcomes = list(replies.outcomes) or [0] * len(replies.call_ids)
            for call_id, outcome, data in zip(
                replies.call_ids, outcomes, replies.payloads, strict=True
            ):
                found[call_id] = (outcome, data)
        return [found[call_id] for call_id in range(1, count + 1)]


def test_terms_on_the_stream_batched(node):
    requests = [pb.Terms(args=[pb.Term(int_value=n)]).SerializeToString() for n in range(500)]
    with Stream(node) as stream:
        replies = stream.calls("echo", requests, pb.PAYLOAD_ENCODING_TERMS)
    terms = [pb.Term.FromString(data) for outcome, data in replies if outcome == 0]
    assert [term.int_value for term in terms] == list(range(500))


def test_documents_thrown_values_and_errors_on_the_stream(node):
    with Stream(node) as stream:
        ((outcome, data),) = stream.calls("throw", [b'[[{"a":1}],{}]'], pb.PAYLOAD_ENCODING_JSON)
        assert outcome == pb.OUTCOME_KIND_THROWN
        assert json.loads(data) == {"a": 1}
    with Stream(node) as stream:
        ((outcome, data),) = stream.calls("fail", [b"[[],{}]"], pb.PAYLOAD_ENCODING_JSON)
        assert outcome == pb.OUTCOME_KIND_ERROR
        error = pb.RpcError.FromString(data)
        assert error.exception.type == "builtins.ValueError"
        assert not error.exception.HasField("encoded")


@pytest.mark.parametrize(
    ("encoding", "payload"),
    [
        (pb.PAYLOAD_ENCODING_JSON, b"nonsense"),
        (pb.PAYLOAD_ENCODING_UNSPECIFIED, pickle.dumps(((Trap(),), {}))),
        (99, b""),
        (-1, b""),  # the number of values, which are not on the stream
    ],
)
def test_payloads_that_a_neutral_stream_may_not_send(node, encoding, payload):
    with Stream(node) as stream:
        ((outcome, data),) = stream.calls("note", [payload], encoding)
    assert outcome == pb.OUTCOME_KIND_ERROR
    error = pb.RpcError.FromString(data)
    assert error.reason == pb.ERROR_REASON_BAD_ARGUMENTS
    assert error.execution == pb.EXECUTION_NOT_STARTED
    assert NOTES == []
    assert CANARY == []


def test_a_stream_that_asked_for_pickles_may_send_them(node):
    with Stream(node, want_pickle=True) as stream:
        payload = pickle.dumps(((5,), {}))
        ((outcome, data),) = stream.calls("echo", [payload], pb.PAYLOAD_ENCODING_UNSPECIFIED)
    assert outcome == 0
    assert pickle.loads(data) == 5
