"""Each refusal, limit and insecure override has its line in the audit log, and says who it was."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from nodes import COOKIE, Nodes
from raw_peer import RawPeer
from test_limits import payload, raw
from waiting import SECONDS, until

from genrpc import BadRPC, Node, rpc, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

Lines = Callable[..., list[dict[str, str]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Gives the lines of an event so far, as rows of their values."""
    found: list[dict[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', record.getMessage())
            found.append({k: json.loads(v) if v[0] == '"' else v for k, v in pairs})

    def of(event: str, **values: str) -> list[dict[str, str]]:
        wanted = {"event": event, **values}
        return [line for line in found if wanted.items() <= line.items()]

    logger, handler = logging.getLogger("genrpc.audit"), Handler()
    logger.addHandler(handler)
    yield of
    logger.removeHandler(handler)


def one(lines: Lines, event: str, **values: str) -> dict[str, str]:
    """Wait for the line, of which there is to be one."""
    until(lambda: lines(event, **values))
    (line,) = lines(event, **values)
    return line


def ask(node: Node, method: str, request: bytes, token: str | None) -> grpc.StatusCode:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = channel.unary_unary(f"/genrpc.v1.NodeService/{method}")
        try:
            call(request, metadata=metadata, timeout=SECONDS)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def token(**limits: object) -> str:
    return security.make_token(security.Cookie(COOKIE), now=time.time(), **limits)


def call_of(module: str, function: str, **parts: object) -> bytes:
    return pb.CallRequest(mfa=pb.Mfa(module=module, function=function, **parts)).SerializeToString()


# ---------------------------------------------------------------- who was refused


def test_wrong_cookie_is_told_of_with_what_the_stranger_says_that_it_is(nodes: Nodes, lines):
    b = nodes.start("b")
    stranger = nodes.start("s", cookie="another cookie of 16", tcp_server_port=None)
    assert rpc.call(b.name, "math", "sqrt", [4], via=stranger) == BadRPC("invalid_cookie")
    line = one(lines, "refused_authentication", node=b.name)
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert (line["identity"], line["reason"]) == (stranger.name, "invalid_cookie")
    assert re.fullmatch(r"[0-9a-f]{12}", line["session"])
    assert not lines("refused_authentication", node=stranger.name)  # it was refused itself


def test_caller_tells_of_a_server_that_is_another_node(nodes: Nodes, lines):
    b, a = nodes.start("b"), nodes.start("a")
    nodes.addresses["c@127.0.0.1"] = nodes.addresses[b.name]
    assert rpc.call("c@127.0.0.1", "math", "sqrt", [4], via=a) == BadRPC("badnode")
    assert one(lines, "refused_authentication", node=b.name)["identity"] == a.name


def test_garbage_before_the_handshake_is_a_refused_authentication(nodes: Nodes, lines):
    b = nodes.start("b")
    with grpc.insecure_channel(f"127.0.0.1:{b.port}") as channel:
        stream = channel.stream_stream("/genrpc.v1.NodeService/Connect")(iter([b"garbage"]))
        list(stream)
    line = one(lines, "refused_authentication")
    assert line["reason"] == "corrupt_data"
    assert "identity" not in line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "token_missing"),
        ("nonsense", "token_format"),
        (lambda: token(audience="x@127.0.0.1"), "token_audience"),
        (lambda: security.make_token(security.Cookie("x" * 16), now=time.time()), "token_proof"),
    ],
)
def test_token_that_is_refused_is_told_of_and_not_shown(nodes: Nodes, lines, text, reason):
    b = nodes.start("b")
    shown = text() if callable(text) else text
    assert ask(b, "GetStatus", b"", shown) is grpc.StatusCode.UNAUTHENTICATED
    line = one(lines, "refused_authentication")
    assert line["reason"] == reason
    assert not shown or shown not in str(line)


# ---------------------------------------------------------------- what was refused


def test_refused_names_and_what_they_led_to_are_told_of(nodes: Nodes, lines):
    b = nodes.start("b", rpc_module_control="whitelist", rpc_module_list=["textwrap"])
    a = nodes.start("a")
    for module, function in (("os", "getpid"), ("textwrap", "re")):
        rpc.call(b.name, module, function, ["true"], via=a)
        line = one(lines, "refused_target", target=f"{module}:{function}")
        assert (line["identity"], line["reason"]) == (a.name, "unauthorized")
        assert line["session"]
        assert "true" not in line.values()
    assert b.statistics()["refused_unauthorized"] == 2


def test_what_a_token_does_not_allow_is_told_of(nodes: Nodes, lines):
    b = nodes.start("b")
    limited = token(allow=["math.sqrt"])
    assert ask(b, "Call", call_of("os", "getpid"), limited) is grpc.StatusCode.PERMISSION_DENIED
    line = one(lines, "refused_target", target="os:getpid")
    assert line["reason"] == "token"
    assert line["identity"].startswith("token ")
    encoded = pb.Encoded(content_type="application/x-python-pickle", data=b"N.")
    request = call_of("math", "sqrt", encoded=encoded)
    assert ask(b, "Call", request, limited) is grpc.StatusCode.INVALID_ARGUMENT
    assert one(lines, "refused_target", target="math:sqrt")["reason"] == "pickle"


def test_pickle_on_a_stream_that_did_not_ask_for_them_is_told_of(nodes: Nodes, lines):
    b = nodes.start("b")
    peer = RawPeer(("127.0.0.1", b.port), target=b.name, pickles=False)
    assert peer.call("math", "sqrt", payload(4)) == BadRPC("bad_arguments")
    line = one(lines, "refused_target", target="math:sqrt")
    assert (line["identity"], line["reason"]) == ("raw@127.0.0.1", "pickle")


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"ctextwrap\ndedent\n(S'true'\ntR.",
        b"cgenrpc.errors\nOk\n}b.",
        b"cnumpy\nndarray\n(I3\ntR.",
    ],
    ids=["a name", "a call", "a change", "numpy"],
)
def test_pickle_that_reaches_for_more_than_the_list_is_told_of(nodes: Nodes, lines, data):
    b = nodes.start("b", rpc_module_control="whitelist", rpc_module_list=["textwrap"])
    peer = raw(b)
    assert peer.call("textwrap", "dedent", data) == BadRPC("bad_arguments")
    line = one(lines, "refused_target", target="textwrap:dedent")
    assert (line["identity"], line["reason"]) == ("raw@127.0.0.1", "pickle")
    assert "true" not in json.dumps(line)


# ---------------------------------------------------------------- which limit was hit


def test_limit_is_told_of_with_who_hit_it(nodes: Nodes, lines):
    b = nodes.start("b", max_message_bytes=70_000)
    peer = raw(b)
    start = pb.TransferStart(part_sizes=[70_001])
    targets = [pb.Target(number=0, module="math", function="sqrt")]
    peer.send_calls(targets=targets, chunk=pb.Chunk(call_id=1, start=start, data=b"x"))
    assert peer.reply_to(1) == BadRPC("too_large")
    line = one(lines, "limit_hit")
    assert line["reason"] == "max_message_bytes"
    assert (line["identity"], line["target"]) == ("raw@127.0.0.1", "math:sqrt")
    assert line["session"] == peer.welcome.session_id


def test_result_that_is_too_large_for_a_unary_answer_hits_the_limit_of_frames(nodes: Nodes, lines):
    b = nodes.start("b", max_frame_bytes=65_536)
    request = pb.CallRequest(mfa=pb.Mfa(module="builtins", function="bytes"))
    request.mfa.args.values.add(number_value=100_000)
    request.reply_encoding = pb.REPLY_ENCODING_TERM
    assert ask(b, "Call", request.SerializeToString(), token()) is grpc.StatusCode.OK
    assert one(lines, "limit_hit")["reason"] == "max_frame_bytes"


# ---------------------------------------------------------------- what is insecure


def test_insecure_listen_is_told_of_at_every_start(nodes: Nodes, lines):
    b = nodes.start("b", listen_address="0.0.0.0", insecure_listen=True)
    line = one(lines, "insecure_override")
    assert (line["node"], line["reason"]) == (b.name, "insecure_listen")
    assert line["detail"] == "0.0.0.0 without TLS"


def test_nothing_is_told_of_what_is_as_it_should_be(nodes: Nodes, lines):
    b, a = nodes.start("b", insecure_listen=True), nodes.start("a")
    assert rpc.call(b.name, "math", "sqrt", [4], via=a) == 2
    assert ask(b, "GetStatus", b"", token()) is grpc.StatusCode.OK
    assert not any(name.startswith("audit") for name in (*a.statistics(), *b.statistics()))
