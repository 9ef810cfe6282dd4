"""The called end of a stream, with a client whose frames are made by hand."""

from collections.abc import Sequence

import pytest
from wire import (
    ALPHA,
    BETA,
    CLOSED,
    TARGET,
    CookieAuthenticator,
    Wire,
    calls,
    make_client,
    make_server,
    responses,
)

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, BadTCP
from genrpc.protocol.chunks import PART_BYTES
from genrpc.protocol.events import (
    CallsArrived,
    CallsCancelled,
    Closed,
    Drained,
    Event,
    Opened,
    TransferRefused,
)
from genrpc.protocol.outbox import MAX_CALLS_IN_FRAME
from genrpc.protocol.pending import (
    BLOCK_CALL,
    CALL,
    CAST,
    ERROR,
    INLINE_BYTES,
    ORDERED_CAST,
    VALUE,
    IncomingCall,
)
from genrpc.protocol.server_session import (
    LEAVE_SECONDS,
    REPLY_BYTES,
    Identity,
    ServerSession,
)
from genrpc.protocol.session import MAX_HANDSHAKE_FRAME, MAX_TARGETS, Limits, Phase

LARGE = bytes(INLINE_BYTES + 1)
NAMED = [pb.Target(number=0, module="math", function="factorial")]
CORRUPT = Closed(BadTCP("corrupt_data"))


def ready(limits: Limits | None = None, **options: float) -> ServerSession:
    """Make a server whose handshake is over and told, with one target named as number 0."""
    server = make_server(limits, **options)
    Wire(make_client(limits), server).open()
    server.receive(calls(targets=NAMED), 0.0)
    return server


def begun(server: ServerSession, **fields: object) -> list[IncomingCall]:
    """Let a frame of calls come; returns the calls that arrived by it."""
    server.receive(calls(**fields), 0.0)
    events = server.take_events()
    return [call for e in events if isinstance(e, CallsArrived) for call in e.calls]


def one_call(server: ServerSession, call_id: int = 1, **fields: object) -> IncomingCall:
    (call,) = begun(server, call_ids=[call_id], payloads=[b"args"], **fields)
    return call


def chunk(call_id: int, **fields: object) -> bytes:
    return calls(chunk=pb.Chunk(call_id=call_id, **fields))  # type: ignore[arg-type]  # by keyword


def kinds(server: ServerSession) -> list[str | None]:
    """Take all frames; returns what each is."""
    return [response.WhichOneof("frame") for response in responses(server)]


# ---------------------------------------------------------------- the handshake


def hello(**changes: object) -> pb.Hello:
    fields: dict[str, object] = {
        "revision_max": 1,
        "revision_min": 1,
        "node": ALPHA,
        "target_node": BETA,
        "nonce": b"c" * 32,
        "shard_key": "key",
        "want_pickle": True,
    }
    return pb.Hello(**{**fields, **changes})  # type: ignore[arg-type]  # fields by keyword


def greeted(server: ServerSession, said: pb.Hello) -> list[pb.ConnectResponse]:
    server.receive(pb.ConnectRequest(hello=said).SerializeToString(), 0.0)
    return responses(server)


def proven(server: ServerSession, said: pb.Hello, **fields: object) -> None:
    """Lead a server through the handshake; `fields` are those of the client's proof."""
    (response,) = greeted(server, said)
    mac = CookieAuthenticator().client_proof(said, response.challenge)
    proof = pb.AuthProof(**{"mac": mac, **fields})  # type: ignore[arg-type]  # fields by keyword
    server.receive(pb.ConnectRequest(auth_proof=proof).SerializeToString(), 0.0)


def test_repr_tells_session_peer_phase_and_load() -> None:
    assert repr(make_server()) == "<ServerSession s-1 from nobody yet HANDSHAKE, 0 calls running>"
    server = ready()
    one_call(server)
    assert repr(server) == f"<ServerSession s-1 from {ALPHA} READY, 1 calls running>"


def test_server_proves_nothing_before_the_client_has() -> None:
    server = make_server()
    assert responses(server) == []
    (response,) = greeted(server, hello())
    assert response.challenge == pb.Challenge(
        revision=1, node=BETA, nonce=b"s" * 32, instance_id="i-1"
    )
    assert server.peer == ""
    assert server.take_events() == []


@pytest.mark.parametrize("pickle", [True, False])
def test_client_that_proves_itself_is_welcome(pickle: bool) -> None:
    server = make_server(
        Limits(
            max_frame_bytes=5,
            max_message_bytes=6,
            max_calls=7,
            window_bytes=8,
            cast_window=9,
            max_transfer_bytes=10,
        )
    )
    said = hello(want_pickle=pickle)
    proven(server, said)
    assert server.take_events() == [Opened("s-1", ALPHA)]
    assert (server.peer, server.shard_key, server.pickle_allowed) == (ALPHA, "key", pickle)
    (response,) = responses(server)
    welcome = response.welcome
    assert len(welcome.mac) == 32
    welcome.ClearField("mac")
    assert welcome == pb.Welcome(
        session_id="s-1",
        max_frame_bytes=5,
        max_message_bytes=6,
        max_calls=7,
        window_bytes=8,
        cast_window=9,
        max_transfer_bytes=10,
        pickle_allowed=pickle,
    )


def test_numbers_of_the_proof_are_kept_to_and_default_if_left_out() -> None:
    server = make_server()
    numbers = {"window_bytes": 50, "max_message_bytes": 70, "max_transfer_bytes": 80}
    proven(server, hello(), max_frame_bytes=1000, **numbers)
    assert (server.transfers.credit, server.transfers.chunk_bytes) == (50, 500)
    assert (server.peer_max_message_bytes, server.transfers.max_open_bytes) == (70, 80)
    server = make_server(Limits(window_bytes=3, max_message_bytes=4))
    proven(server, hello())
    assert server.transfers.credit == Limits().window_bytes
    assert server.peer_max_message_bytes == Limits().max_message_bytes
    assert server.transfers.max_open_bytes == Limits().max_transfer_bytes


@pytest.mark.parametrize("mac", [b"", bytes(31), bytes(32), bytes(33)])
def test_client_that_does_not_know_the_cookie_is_refused(mac: bytes) -> None:
    server = make_server()
    proven(server, hello(), mac=mac)
    assert server.wants_to_send
    (response,) = responses(server)
    assert response.go_away.reason == pb.ERROR_REASON_INVALID_COOKIE
    assert server.take_events() == [Closed(BadRPC("invalid_cookie"))]
    assert server.peer == ""


def test_client_that_looks_for_another_node_is_told() -> None:
    server = make_server()
    (response,) = greeted(server, hello(target_node="gamma@127.0.0.1"))
    assert response.go_away.reason == pb.ERROR_REASON_BAD_NODE
    assert server.take_events() == [Closed(BadRPC("badnode"))]


def test_malformed_hello_ends_the_session_without_a_word() -> None:
    server = make_server()
    assert greeted(server, hello(nonce=b"")) == []
    assert server.take_events() == [CORRUPT]


def test_client_with_the_certificate_of_another_node_ends_as_tls() -> None:
    class Certified(CookieAuthenticator):
        def hello_fault(self, hello: pb.Hello, node: str) -> tuple[str, str] | None:
            return "tls", "The certificate is another node's."

    server = ServerSession(Identity(BETA, "i-1", "s-1"), Certified(), Limits())
    assert greeted(server, hello()) == []
    assert server.take_events() == [Closed(BadTCP("tls"))]


@pytest.mark.parametrize("reason", ["overload", "draining"])
def test_owner_may_refuse_a_handshake(reason: str) -> None:
    server = make_server()
    server.refuse(reason, "Not now.")
    (response,) = responses(server)
    assert response.go_away.message == "Not now."
    assert server.take_events() == [Closed(BadRPC(reason))]


def test_handshake_that_takes_too_long_ends() -> None:
    server = make_server(handshake_deadline=5.0)
    assert server.next_deadline() == 5.0
    server.tick(4.0)
    assert server.take_events() == []
    server.tick(5.0)
    assert server.take_events() == [Closed(CLOSED)]
    assert server.next_deadline() is None


OUT_OF_TURN = {
    "first": ["auth_proof", "calls", "ping", "go_away", "nothing"],
    "challenged": ["hello", "calls", "ping", "go_away", "nothing"],
    "ready": ["hello", "auth_proof", "nothing"],
}


@pytest.mark.parametrize(
    ("phase", "kind"), [(phase, kind) for phase in OUT_OF_TURN for kind in OUT_OF_TURN[phase]]
)
def test_frame_out_of_turn_ends_the_session(phase: str, kind: str) -> None:
    server = ready() if phase == "ready" else make_server()
    if phase == "challenged":
        greeted(server, hello())
    server.take_events()
    frame = {
        "hello": pb.ConnectRequest(hello=hello()),
        "auth_proof": pb.ConnectRequest(auth_proof=pb.AuthProof(mac=bytes(32))),
        "calls": pb.ConnectRequest(calls=pb.CallBatch(targets=NAMED, call_ids=[1], payloads=[b""])),
        "ping": pb.ConnectRequest(ping=pb.Ping()),
        "go_away": pb.ConnectRequest(go_away=pb.GoAway()),
        "nothing": pb.ConnectRequest(),
    }[kind]
    server.receive(frame.SerializeToString(), 0.0)
    assert server.take_events() == [CORRUPT]
    assert responses(server) == []


@pytest.mark.parametrize("extra", [0, 1])
def test_frame_before_the_handshake_has_a_limit(extra: int) -> None:
    said = hello(content_types=["t"])
    frame = pb.ConnectRequest(hello=said).SerializeToString()
    # An unknown field, which is passed over, fills the frame up.
    room = MAX_HANDSHAKE_FRAME + extra - len(frame) - 5
    frame += b"\xa2\x06" + bytes([room & 0x7F | 0x80, room >> 7 & 0x7F | 0x80, room >> 14])
    frame += bytes(room)
    assert len(frame) == MAX_HANDSHAKE_FRAME + extra
    server = make_server()
    server.receive(frame, 0.0)
    assert kinds(server) == ([] if extra else ["challenge"])
    assert server.take_events() == ([CORRUPT] if extra else [])


def test_frame_after_the_handshake_may_be_larger() -> None:
    server = ready()
    one_call(server)
    (call,) = begun(server, call_ids=[2], payloads=[bytes(MAX_HANDSHAKE_FRAME)])
    assert len(call.head) == MAX_HANDSHAKE_FRAME


# ---------------------------------------------------------------- calls arrive


def test_calls_arrive_with_all_that_was_said_of_them() -> None:
    server = ready()
    server.receive(
        calls(
            targets=[pb.Target(number=7, module="os", function="stat", module_version="2")],
            call_ids=[1, 2, 3, 4],
            call_targets=[0, 7, 0, 7],
            payloads=[b"a", b"b", b"c", b"d"],
            kinds=[CALL, CAST, ORDERED_CAST, BLOCK_CALL],
            timeouts_us=[0, 0, 0, 2_500_000],
            encodings=[0, 0, 1, 0],
        ),
        10.0,
    )
    event = server.take_events()[-1]
    assert isinstance(event, CallsArrived)
    assert [(c.id, c.target, c.head, c.kind) for c in event.calls] == [
        (1, TARGET, b"a", CALL),
        (2, ("os", "stat", "2"), b"b", CAST),
        (3, TARGET, b"c", ORDERED_CAST),
        (4, ("os", "stat", "2"), b"d", BLOCK_CALL),
    ]
    assert [c.deadline for c in event.calls] == [None, None, None, 12.5]
    assert [c.encoding for c in event.calls] == [0, 0, 1, 0]
    assert set(server.running) == {1, 4}


def test_number_that_is_named_again_has_the_new_target() -> None:
    server = ready()
    first = one_call(server, 1)
    second = one_call(server, 2, targets=[pb.Target(number=0, module="os", function="stat")])
    assert (first.target, second.target) == (TARGET, ("os", "stat", ""))


CALL_FAULTS: Sequence[tuple[str, dict[str, object]]] = [
    ("payloads", {"payloads": [b"x"]}),
    ("unknown target", {"payloads": [b"", b""], "call_targets": [0, 1]}),
    ("unknown kind", {"payloads": [b"", b""], "kinds": [CAST, 4]}),
    ("negative kind", {"payloads": [b"", b""], "kinds": [0, -1]}),
    ("targets", {"payloads": [b"", b""], "call_targets": [0]}),
    ("timeouts", {"payloads": [b"", b""], "timeouts_us": [0, 0, 0]}),
    ("encodings", {"payloads": [b"", b""], "encodings": [0]}),
    ("number", {"targets": [pb.Target(number=MAX_TARGETS)], "payloads": [b"", b""]}),
]


@pytest.mark.parametrize("fault", CALL_FAULTS, ids=[name for name, _ in CALL_FAULTS])
def test_nothing_of_a_broken_frame_arrives(fault: tuple[str, dict[str, object]]) -> None:
    server = ready()
    server.take_events()
    server.receive(calls(call_ids=[1, 2], **fault[1]), 0.0)
    assert server.take_events() == [CORRUPT]
    assert not server.in_flight


def test_highest_number_of_a_target_is_taken() -> None:
    server = ready()
    target = pb.Target(number=MAX_TARGETS - 1, module="os", function="stat")
    assert one_call(server, targets=[target], call_targets=[MAX_TARGETS - 1]).target[0] == "os"


@pytest.mark.parametrize("ids", [[1, 2], [2, 2]], ids=["of another frame", "of this frame"])
def test_call_that_comes_twice_ends_the_session(ids: list[int]) -> None:
    server = ready()
    call = one_call(server)
    server.receive(calls(call_ids=[3, *ids], payloads=[b""] * 3, kinds=[0, 0, CALL]), 0.0)
    assert server.take_events() == [CallsCancelled([call]), CORRUPT]


def test_cast_may_have_the_id_of_a_call_that_a_broken_frame_leaves_alone() -> None:
    server = ready()
    call = one_call(server)
    server.receive(calls(call_ids=[1, 1], payloads=[b"", b""], kinds=[CAST, CALL]), 0.0)
    assert server.take_events() == [CallsCancelled([call]), CORRUPT]


def test_frame_with_a_field_of_a_later_revision_is_read() -> None:
    server = ready()
    server.take_events()
    server.receive(calls(call_ids=[1], payloads=[b"x"]) + b"\xa2\x06\x03new", 0.0)
    (event,) = server.take_events()
    assert isinstance(event, CallsArrived)
    assert [call.head for call in event.calls] == [b"x"]


# ---------------------------------------------------------------- large calls


def start(*sizes: int, **fields: object) -> pb.TransferStart:
    return pb.TransferStart(part_sizes=sizes, **fields)  # type: ignore[arg-type]  # by keyword


@pytest.mark.parametrize("kind", [CALL, CAST, ORDERED_CAST, BLOCK_CALL])
def test_large_call_arrives_when_all_of_it_has_come(kind: pb.CallKind.ValueType) -> None:
    server = ready()
    server.take_events()
    begin = start(1, 2, writable_parts=[1], kind=kind, timeout_us=10**6, encoding=1)
    server.receive(chunk(1, start=begin, data=b"a"), 5.0)
    assert server.take_events() == []
    assert server.in_flight
    server.receive(chunk(1, data=b"bc", last=True), 9.0)
    (event,) = server.take_events()
    assert isinstance(event, CallsArrived)
    (call,) = event.calls
    assert (call.id, call.target, call.kind, call.encoding) == (1, TARGET, kind, 1)
    assert (call.head, call.buffers) == (b"a", [bytearray(b"bc")])
    assert call.deadline == 6.0  # its time runs from the first chunk
    assert server.in_flight


def test_large_call_may_name_its_target_in_its_own_frame_and_have_no_limit() -> None:
    server = ready()
    named = pb.Target(number=5, module="os", function="stat")
    first = pb.Chunk(call_id=1, start=start(1, target=5), data=b"a", last=True)
    (call,) = begun(server, chunk=first, targets=[named])
    assert call.target == ("os", "stat", "")
    assert call.deadline is None


@pytest.mark.parametrize("kind", [CALL, CAST])
def test_call_over_the_limit_is_refused_at_its_first_chunk(kind: pb.CallKind.ValueType) -> None:
    server = ready(Limits(max_message_bytes=3))
    server.take_events()
    server.receive(chunk(1, start=start(2, 2, kind=kind), data=b"a"), 0.0)
    (event,) = server.take_events()
    assert isinstance(event, TransferRefused)
    assert (event.call.id, event.reason) == (1, "too_large")
    assert event.limit == "max_message_bytes"
    server.receive(chunk(1, data=b"bcd", last=True), 0.0)
    assert server.take_events() == []
    server.reply(event.call, ERROR, b"refused")
    (response,) = responses(server)
    if kind == CALL:
        assert response.replies.call_ids == [1]
    else:
        assert response.replies.casts_done == 1
    assert not server.in_flight


def test_call_at_the_limit_is_taken() -> None:
    server = ready(Limits(max_message_bytes=3))
    first = pb.Chunk(call_id=1, start=start(2, 1), data=b"abc", last=True)
    assert len(begun(server, chunk=first)) == 1


def test_transfers_over_the_limit_together_are_refused_until_one_has_ended() -> None:
    room = 2 * (3 + PART_BYTES)
    server = ready(Limits(max_transfer_bytes=room))
    server.take_events()
    for number in (1, 2):
        server.receive(chunk(number, start=start(3), data=b"a"), 0.0)
    assert server.take_events() == []  # both at the limit
    server.receive(chunk(3, start=start(0), last=True), 0.0)
    (event,) = server.take_events()
    assert isinstance(event, TransferRefused)
    assert (event.call.id, event.reason, event.limit) == (3, "overload", "max_transfer_bytes")
    server.receive(chunk(1, data=b"bc", last=True), 0.0)
    server.receive(chunk(2, abandoned=True), 0.0)
    server.receive(chunk(4, start=start(room), data=b"a"), 0.0)  # one alone may be of any size
    (event,) = server.take_events()
    assert isinstance(event, CallsArrived)
    assert [call.id for call in event.calls] == [1]
    server.receive(calls(cancels=[4]), 0.0)
    server.receive(chunk(5, start=start(3), data=b"abc", last=True), 0.0)
    (event,) = server.take_events()
    assert isinstance(event, CallsArrived)


def test_refused_transfers_that_never_end_break_the_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("genrpc.protocol.session.MAX_DISCARDED", 2)
    server = ready(Limits(max_message_bytes=3))
    for number in (1, 2):
        server.receive(chunk(number, start=start(4), data=b"a"), 0.0)
    assert server.phase is Phase.READY
    server.receive(chunk(3, start=start(4), data=b"a"), 0.0)
    assert server.phase is Phase.CLOSED


def test_call_that_its_caller_abandons_never_arrives() -> None:
    server = ready()
    server.take_events()
    server.receive(chunk(1, start=start(5), data=b"a"), 0.0)
    server.receive(chunk(1, abandoned=True), 0.0)
    assert server.take_events() == []
    assert not server.in_flight


def test_call_that_is_cancelled_while_it_comes_never_arrives() -> None:
    server = ready()
    server.take_events()
    server.receive(chunk(1, start=start(5), data=b"a"), 0.0)
    server.receive(calls(cancels=[1]), 0.0)
    server.receive(chunk(1, data=b"bcde", last=True), 0.0)
    assert server.take_events() == []
    assert not server.in_flight


CHUNK_FAULTS: Sequence[tuple[str, list[dict[str, object]]]] = [
    ("never began", [{"data": b"a"}]),
    ("began twice", [{"start": start(5)}] * 2),
    ("ends early", [{"start": start(5), "data": b"a", "last": True}]),
    ("too much", [{"start": start(1), "data": b"ab"}]),
    ("no parts", [{"start": start()}]),
    ("unknown target", [{"start": start(1, target=9)}]),
    ("unknown kind", [{"start": start(1, kind=4)}]),
    ("negative kind", [{"start": start(1, kind=-1)}]),
    ("over the window", [{"start": start(99), "data": bytes(11)}]),
]


@pytest.mark.parametrize("fault", CHUNK_FAULTS, ids=[name for name, _ in CHUNK_FAULTS])
def test_nothing_of_broken_chunks_arrives(fault: tuple[str, list[dict[str, object]]]) -> None:
    server = ready(Limits(window_bytes=10))
    server.take_events()
    for fields in fault[1]:
        server.receive(chunk(1, **fields), 0.0)
    assert server.take_events() == [CORRUPT]
    assert not server.in_flight


@pytest.mark.parametrize("size", [2, 101], ids=["taken", "too large"])
def test_large_call_with_the_id_of_a_running_one_ends_the_session(size: int) -> None:
    server = ready(Limits(max_message_bytes=100))
    call = one_call(server, 1)
    server.receive(chunk(1, start=start(size), data=b"a"), 0.0)
    server.receive(chunk(1, data=b"b", last=True), 0.0)
    assert server.take_events() == [CallsCancelled([call]), CORRUPT]


def test_small_call_with_the_id_of_one_that_is_coming_ends_the_session() -> None:
    server = ready()
    server.receive(chunk(1, start=start(2), data=b"a"), 0.0)
    call = one_call(server, 1)
    server.receive(chunk(1, data=b"b", last=True), 0.0)
    assert server.take_events() == [CallsCancelled([call]), CORRUPT]


# ---------------------------------------------------------------- replies


def test_replies_that_wait_go_as_one_frame() -> None:
    server = ready()
    made = begun(server, call_ids=[1, 2], payloads=[b"", b""])
    server.reply(made[1], VALUE, b"two")
    server.reply(made[0], VALUE, b"one")
    (response,) = responses(server)
    assert response.replies == pb.ReplyBatch(call_ids=[2, 1], payloads=[b"two", b"one"])
    assert not server.in_flight


def test_all_that_ended_is_answered_but_what_nobody_waits_for() -> None:
    server = ready()
    batch = {"call_ids": [1, 2, 3, 4], "payloads": [b""] * 4, "kinds": [0, 0, CAST, 0]}
    one, two, cast, large = begun(server, **batch)
    two.cancelled = True
    answer: tuple[int, bytes, tuple[bytes, ...]] = (VALUE, b"x", ())
    ended = [(one, *answer), (two, *answer), (one, *answer), (cast, VALUE, b"", ())]
    server.reply_all([*ended, (large, VALUE, LARGE, ())])
    first, *_ = responses(server)
    assert list(first.replies.call_ids) == [1]
    assert first.replies.casts_done == 1
    assert first.replies.chunk.call_id == 4
    assert not server.running


def test_reply_to_a_client_that_is_gone_is_let_go() -> None:
    server = ready()
    (call,) = begun(server, call_ids=[1], payloads=[b""])
    server.close(None)
    server.reply_all([(call, VALUE, b"x", ())])
    assert responses(server) == []


def test_outcomes_and_encodings_go_along() -> None:
    server = ready()
    made = begun(server, call_ids=[1, 2], payloads=[b"", b""], encodings=[0, 2])
    server.reply(made[0], ERROR, b"")
    server.reply(made[1], VALUE, b"")
    (response,) = responses(server)
    assert response.replies.outcomes == [ERROR, VALUE]
    assert response.replies.encodings == [0, 2]


def test_frame_takes_so_many_replies_and_the_next_the_rest() -> None:
    server = ready()
    count = MAX_CALLS_IN_FRAME + 1
    for call in begun(server, call_ids=range(1, count + 1), payloads=[b""] * count):
        server.reply(call, VALUE, b"")
    assert [len(r.replies.call_ids) for r in responses(server)] == [MAX_CALLS_IN_FRAME, 1]


def test_large_reply_goes_in_chunks() -> None:
    server = ready(Limits(chunk_bytes=INLINE_BYTES))
    server.reply(one_call(server, encodings=[2]), ERROR, LARGE, [b"more"])
    first, second = (response.replies.chunk for response in responses(server))
    assert first.start == pb.TransferStart(part_sizes=[len(LARGE), 4], encoding=2, outcome=ERROR)
    assert (len(first.data), first.last) == (INLINE_BYTES, False)
    assert (len(second.data), second.last) == (5, True)
    assert not server.in_flight


def test_call_is_answered_once() -> None:
    server = ready()
    call = one_call(server)
    server.reply(call, VALUE, b"one")
    server.reply(call, VALUE, b"two")
    (response,) = responses(server)
    assert response.replies.payloads == [b"one"]


def test_reply_after_the_end_goes_nowhere() -> None:
    server = ready()
    call = one_call(server)
    server.close(CLOSED)
    assert server.take_events() == [CallsCancelled([call]), Closed(CLOSED)]
    server.reply(call, VALUE, b"")
    assert responses(server) == []
    assert not server.in_flight


def test_cancelled_call_is_not_answered() -> None:
    server = ready()
    call = one_call(server)
    server.receive(calls(cancels=[1, 99]), 0.0)
    assert server.take_events() == [CallsCancelled([call])]
    assert server.in_flight  # until the executor has answered for it
    call.cancelled = True
    server.reply(call, VALUE, b"")
    assert responses(server) == []
    assert not server.in_flight


def test_large_reply_that_is_cancelled_halfway_is_abandoned() -> None:
    server = ready(Limits(chunk_bytes=100, window_bytes=100))
    server.reply(one_call(server), VALUE, LARGE)
    assert len(responses(server)) == 1
    server.receive(calls(cancels=[1]), 0.0)
    assert server.take_events() == []
    (response,) = responses(server)
    assert response.replies.chunk.abandoned
    assert not server.in_flight


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("extra", [0, 1])
def test_caller_that_does_not_read_its_replies_is_cut_off(large: bool, extra: int) -> None:
    payload = LARGE if large else b"0123456789"
    unread = 2 * (len(payload) + REPLY_BYTES)
    server = ready(Limits(max_unread_reply_bytes=unread - extra))
    made = begun(server, call_ids=[1, 2, 3], payloads=[b""] * 3)
    server.reply(made[0], VALUE, payload)
    server.reply(made[1], VALUE, payload)
    if extra:
        assert server.take_events() == [CallsCancelled([made[2]]), Closed(CLOSED)]
        assert server.limit_hit == "max_unread_reply_bytes"
    else:
        assert server.take_events() == []


def test_replies_without_a_byte_are_unread_too() -> None:
    server = ready(Limits(max_unread_reply_bytes=100 * REPLY_BYTES))
    ids = list(range(1, 102))
    made = begun(server, call_ids=ids, payloads=[b""] * 101)
    for call in made[:100]:
        server.reply(call, VALUE, b"")
    assert server.phase is Phase.READY
    server.reply(made[100], VALUE, b"")
    assert server.phase is Phase.CLOSED


@pytest.mark.parametrize("way", ["sent", "cancelled"])
def test_replies_that_are_gone_are_unread_no_more(way: str) -> None:
    server = ready(Limits(max_unread_reply_bytes=3 * len(LARGE), window_bytes=10))
    for number in range(1, 20):
        small, large = begun(server, call_ids=[2 * number, 2 * number + 1], payloads=[b"", b""])
        server.reply(large, VALUE, LARGE, [b"x"])
        server.reply(small, VALUE, LARGE[:-1])
        responses(server)
        if way == "sent":
            server.receive(calls(credit=len(LARGE) + 1), 0.0)
        else:
            server.receive(calls(cancels=[large.id], credit=10), 0.0)
        responses(server)
        assert server.phase is Phase.READY


# ---------------------------------------------------------------- casts


def test_casts_are_counted_back_when_none_is_left_running() -> None:
    server = ready()
    made = begun(server, call_ids=[1, 2], payloads=[b"", b""], kinds=[CAST, ORDERED_CAST])
    assert server.in_flight
    server.reply(made[0], VALUE, b"")
    assert responses(server) == []
    server.reply(made[1], VALUE, b"")
    (response,) = responses(server)
    assert response.replies == pb.ReplyBatch(casts_done=2)
    assert not server.in_flight


def test_casts_are_counted_back_by_quarters_of_the_window() -> None:
    server = ready(Limits(cast_window=8))
    made = begun(server, call_ids=[1, 2, 3], payloads=[b""] * 3, kinds=[CAST] * 3)
    server.reply(made[0], VALUE, b"")
    assert responses(server) == []
    server.reply(made[1], VALUE, b"")
    assert [r.replies.casts_done for r in responses(server)] == [2]


def test_count_of_casts_rides_on_any_frame() -> None:
    server = ready()
    call, cast, _ = begun(server, call_ids=[1, 2, 3], payloads=[b""] * 3, kinds=[0, CAST, CAST])
    server.reply(cast, VALUE, b"")
    server.reply(call, VALUE, b"x")
    (response,) = responses(server)
    assert response.replies == pb.ReplyBatch(call_ids=[1], payloads=[b"x"], casts_done=1)


# ---------------------------------------------------------------- credit


def test_half_a_window_is_granted_back_at_once() -> None:
    server = ready(Limits(window_bytes=10))
    server.receive(chunk(1, start=start(99), data=bytes(4)), 0.0)
    assert responses(server) == []
    server.receive(chunk(1, data=b"a"), 0.0)
    (response,) = responses(server)
    assert response.replies == pb.ReplyBatch(credit=5)


def test_less_is_granted_back_with_any_frame() -> None:
    server = ready(Limits(window_bytes=10))
    call = one_call(server)
    server.receive(chunk(2, start=start(99), data=b"a"), 0.0)
    server.reply(call, VALUE, b"")
    (response,) = responses(server)
    assert response.replies.credit == 1


# ---------------------------------------------------------------- pings


def test_ping_is_answered() -> None:
    server = ready()
    server.receive(pb.ConnectRequest(ping=pb.Ping(nonce=7)).SerializeToString(), 0.0)
    (response,) = responses(server)
    assert response.pong.nonce == 7


def test_client_that_asks_faster_than_it_reads_is_not_answered_for_ever() -> None:
    server = ready()
    ping = pb.ConnectRequest(ping=pb.Ping(nonce=7)).SerializeToString()
    for _ in range(MAX_CALLS_IN_FRAME + 5):
        server.receive(ping, 0.0)
    assert len(responses(server)) == MAX_CALLS_IN_FRAME
    server.receive(ping, 0.0)
    assert len(responses(server)) == 1


# ---------------------------------------------------------------- leaving


def test_idle_stream_is_left_after_its_time() -> None:
    server = ready(idle_timeout=10.0)
    server.take_events()
    assert server.next_deadline() == 10.0
    server.tick(9.0)
    assert server.phase is Phase.READY
    server.tick(10.0)
    assert server.phase is Phase.LEAVING
    assert kinds(server) == ["go_away"]
    assert server.next_deadline() == 10.0 + LEAVE_SECONDS
    server.tick(10.0 + LEAVE_SECONDS)
    assert server.take_events() == [Drained()]
    assert server.next_deadline() is None


def test_stream_is_not_idle_while_a_call_runs() -> None:
    server = ready(idle_timeout=10.0)
    call = one_call(server)
    assert server.next_deadline() is None
    server.tick(1000.0)
    server.reply(call, VALUE, b"")
    assert server.frame_to_send(50.0) is not None
    assert server.next_deadline() == 60.0


def test_old_stream_is_left_whatever_runs_on_it() -> None:
    server = ready(max_age=100.0, idle_timeout=200.0)
    call = one_call(server)
    assert server.next_deadline() == 100.0
    server.tick(100.0)
    assert server.phase is Phase.LEAVING
    assert server.next_deadline() is None
    assert one_call(server, 2).id == 2  # what comes meanwhile is still served
    server.tick(1000.0)
    assert server.take_events() == []
    for running in (call, server.running[2]):
        server.reply(running, VALUE, b"")
    assert kinds(server) == ["go_away", "replies"]
    server.tick(1000.0)
    assert server.take_events() == [Drained()]


@pytest.mark.parametrize("how", ["twice", "before the handshake", "after the end"])
def test_leaving_is_for_open_streams(how: str) -> None:
    server = make_server() if how == "before the handshake" else ready()
    if how == "twice":
        server.leave("Bye.", 0.0)
        assert kinds(server) == ["go_away"]
    if how == "after the end":
        server.close(None)
    server.leave("Bye.", 1.0)
    assert kinds(server) == []


def test_stream_that_ends_while_it_is_left_asks_for_no_further_time() -> None:
    server = ready()
    server.leave("Bye.", 0.0)
    server.close(None)
    assert server.next_deadline() is None
    server.take_events()
    server.tick(1e9)
    assert server.take_events() == []


def test_client_may_leave_and_is_still_served() -> None:
    server = ready(idle_timeout=10.0, max_age=10.0)
    server.receive(pb.ConnectRequest(go_away=pb.GoAway()).SerializeToString(), 0.0)
    assert server.phase is Phase.LEAVING
    assert server.next_deadline() is None
    server.reply(one_call(server), VALUE, b"x")
    assert kinds(server) == ["replies"]


def test_end_cancels_what_runs_and_forgets_what_comes() -> None:
    server = ready()
    call = one_call(server)
    server.receive(chunk(2, start=start(5), data=b"a"), 0.0)
    server.close(CLOSED)
    events: list[Event] = server.take_events()
    assert events == [CallsCancelled([call]), Closed(CLOSED)]
    assert list(server.running) == [1]
    assert not server._arriving
