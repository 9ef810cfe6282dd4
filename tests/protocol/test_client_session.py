"""The calling end of a stream, with a server whose frames are made by hand."""

from collections.abc import Sequence

import pytest
from wire import (
    ALPHA,
    BETA,
    CLOSED,
    CookieAuthenticator,
    Wire,
    failure_of,
    make_call,
    make_client,
    make_server,
    replies,
    requests,
)

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.errors import BadRPC, BadTCP
from genrpc.protocol import frames
from genrpc.protocol.chunks import MAX_PARTS
from genrpc.protocol.client_session import ClientSession
from genrpc.protocol.events import (
    Answered,
    CallsEnded,
    CallsReturned,
    Closed,
    Drained,
    Opened,
)
from genrpc.protocol.outbox import MAX_CALLS_IN_FRAME
from genrpc.protocol.pending import (
    CAST,
    ENDED,
    ERROR,
    INLINE_BYTES,
    ORDERED_CAST,
    SENDING,
    SENT,
    THROWN,
    VALUE,
    WAITING,
    Call,
)
from genrpc.protocol.session import MAX_HANDSHAKE_FRAME, Limits, Phase

LARGE = bytes(INLINE_BYTES + 1)
SMALL_CHUNKS = Limits(chunk_bytes=100, window_bytes=100)


def ready(limits: Limits | None = None, **options: float) -> ClientSession:
    """Make a client whose handshake is over and told; its server grants what `limits` say."""
    client = make_client(limits, **options)  # type: ignore[arg-type]  # options by keyword
    Wire(client, make_server(limits)).open()
    return client


def submitted(client: ClientSession, *made: Call, now: float = 0.0) -> None:
    for call in made:
        client.submit(call, now)


def sent(client: ClientSession, *made: Call) -> None:
    submitted(client, *made)
    requests(client)


def go_away(message: str = "", reason: pb.ErrorReason.ValueType = 0) -> bytes:  # type: ignore[assignment]  # a number of the enum
    goes = pb.GoAway(reason=reason, message=message)
    return pb.ConnectResponse(go_away=goes).SerializeToString()


def pong(nonce: int) -> bytes:
    return pb.ConnectResponse(pong=pb.Pong(nonce=nonce)).SerializeToString()


def ends(client: ClientSession) -> list[Call]:
    """Take the events; returns the calls that ended."""
    return [c for e in client.take_events() if isinstance(e, CallsEnded) for c in e.calls]


# ---------------------------------------------------------------- the handshake


def test_repr_tells_route_phase_and_load() -> None:
    client = ready(Limits(cast_window=1))
    submitted(client, make_call(), make_call(kind=CAST))
    assert repr(client) == (f"<ClientSession {ALPHA} to {BETA} READY, 1 calls, 1 casts waiting>")


def test_hello_is_the_first_frame_and_the_only_one_before_the_challenge() -> None:
    client = make_client()
    client.submit(make_call(), 0.0)
    assert client.frame_to_send(0.0) is None
    client.opened(0.0)
    assert client.wants_to_send
    (request,) = requests(client)
    assert request.hello == pb.Hello(
        revision_max=1,
        revision_min=1,
        node=ALPHA,
        target_node=BETA,
        nonce=b"c" * 32,
        content_types=["application/x-python-pickle", "application/json"],
        shard_key="key",
        want_pickle=True,
    )
    assert not client.wants_to_send


def challenge(**changes: object) -> pb.Challenge:
    fields: dict[str, object] = {"revision": 1, "node": BETA, "nonce": b"s" * 32}
    return pb.Challenge(**{**fields, **changes})  # type: ignore[arg-type]  # fields by keyword


def welcomed(client: ClientSession, **fields: object) -> None:
    """Lead a client through the handshake; `fields` are those of the welcome."""
    client.opened(0.0)
    (hello,) = requests(client)
    answer = challenge()
    client.receive(pb.ConnectResponse(challenge=answer).SerializeToString(), 0.0)
    mac = CookieAuthenticator().server_proof(hello.hello, answer)
    welcome = pb.Welcome(**{"mac": mac, "session_id": "s-1", **fields})  # type: ignore[arg-type]  # by keyword
    client.receive(pb.ConnectResponse(welcome=welcome).SerializeToString(), 0.0)


def test_proof_tells_what_the_client_accepts() -> None:
    limits = Limits(window_bytes=5, max_frame_bytes=6, max_message_bytes=7, max_transfer_bytes=8)
    client = make_client(limits)
    welcomed(client)
    (request,) = requests(client)
    proof = request.auth_proof
    assert len(proof.mac) == 32
    assert (proof.window_bytes, proof.max_frame_bytes, proof.max_message_bytes) == (5, 6, 7)
    assert proof.max_transfer_bytes == 8


def test_client_is_ready_once_the_server_has_proved_itself() -> None:
    client = make_client()
    welcomed(client)
    assert client.phase is Phase.READY
    assert client.take_events() == [Opened("s-1", BETA)]


def test_numbers_left_out_of_the_welcome_stand_for_the_defaults() -> None:
    client = make_client(Limits(cast_window=3))
    welcomed(client)
    assert client.transfers.credit == Limits().window_bytes
    assert client.peer_max_message_bytes == Limits().max_message_bytes
    assert client.transfers.max_open_bytes == Limits().max_transfer_bytes
    assert client._cast_window == 3


def test_numbers_of_the_welcome_are_kept_to() -> None:
    client = make_client()
    numbers = {"window_bytes": 50, "max_message_bytes": 70, "max_transfer_bytes": 80}
    welcomed(client, max_frame_bytes=1000, cast_window=2, **numbers)
    assert client.transfers.credit == 50
    assert client.transfers.chunk_bytes == 500
    assert (client.peer_max_message_bytes, client.transfers.max_open_bytes) == (70, 80)
    assert client._cast_window == 2


@pytest.mark.parametrize(
    ("fields", "failure"),
    [({"node": "gamma@h"}, BadRPC("badnode")), ({"nonce": b""}, BadTCP("corrupt_data"))],
)
def test_challenge_with_a_fault_ends_the_session(
    fields: dict[str, object], failure: BadRPC | BadTCP
) -> None:
    client = make_client()
    call = make_call()
    client.submit(call, 0.0)
    client.opened(0.0)
    client.receive(pb.ConnectResponse(challenge=challenge(**fields)).SerializeToString(), 0.0)
    assert client.take_events() == [CallsEnded([call]), Closed(failure)]
    assert failure_of(call) == (failure, "not_started")


@pytest.mark.parametrize("mac", [b"", bytes(32), bytes(31)])
def test_server_that_does_not_know_the_cookie_gets_no_call(mac: bytes) -> None:
    client = make_client()
    call = make_call()
    client.submit(call, 0.0)
    welcomed(client, mac=mac)
    assert failure_of(call) == (BadRPC("invalid_cookie"), "not_started")
    assert [request.WhichOneof("frame") for request in requests(client)] == ["auth_proof"]


@pytest.mark.parametrize(
    ("reason", "failure"),
    [
        (pb.ERROR_REASON_INVALID_COOKIE, BadRPC("invalid_cookie")),
        (pb.ERROR_REASON_BAD_NODE, BadRPC("badnode")),
        (pb.ERROR_REASON_OVERLOAD, BadRPC("overload")),
        (pb.ERROR_REASON_DRAINING, BadRPC("draining")),
        (pb.ERROR_REASON_UNSPECIFIED, BadTCP("closed")),
    ],
)
def test_refusal_ends_the_calls_with_its_reason(
    reason: pb.ErrorReason.ValueType, failure: BadRPC | BadTCP
) -> None:
    client = make_client()
    call = make_call()
    client.submit(call, 0.0)
    client.opened(0.0)
    client.receive(go_away("Because.", reason), 0.0)
    assert client.take_events() == [CallsEnded([call]), Closed(failure)]
    assert failure_of(call) == (failure, "not_started")
    assert call.failure is not None
    assert "Because." in call.failure.message


def test_dialling_that_takes_too_long_ends_all_calls() -> None:
    client = make_client(connect_deadline=5.0)
    made = [make_call(), make_call(LARGE), make_call(kind=CAST)]
    submitted(client, *made)
    assert client.next_deadline() == 5.0
    client.tick(4.0)
    assert client.phase is Phase.CONNECTING
    client.tick(5.0)
    failure = BadTCP("connect_timeout")
    assert client.take_events() == [CallsEnded(made), Closed(failure)]
    assert {failure_of(call) for call in made} == {(failure, "not_started")}
    assert client.next_deadline() is None


def test_dialling_may_have_no_limit() -> None:
    client = make_client()
    assert client.next_deadline() is None
    client.tick(1e9)
    assert client.phase is Phase.CONNECTING


def test_stream_that_comes_after_the_end_changes_nothing() -> None:
    client = make_client()
    client.close(None)
    client.opened(1.0)
    assert client.phase is Phase.CLOSED
    assert requests(client) == []


def test_frame_before_the_stream_may_be_no_larger_than_in_the_handshake() -> None:
    client = make_client()
    client.receive(bytes(MAX_HANDSHAKE_FRAME + 1), 0.0)
    assert client.take_events() == [Closed(BadTCP("corrupt_data"))]


# ---------------------------------------------------------------- sending


def test_what_waits_goes_as_one_frame() -> None:
    client = ready()
    other = ("os", "getpid", "1.0")
    submitted(client, make_call(b"a"), make_call(b"b", target=other), make_call(b"c"))
    (request,) = requests(client)
    assert request.calls == pb.CallBatch(
        targets=[
            pb.Target(number=0, module="math", function="factorial"),
            pb.Target(number=1, module="os", function="getpid", module_version="1.0"),
        ],
        call_ids=[1, 2, 3],
        call_targets=[0, 1, 0],
        payloads=[b"a", b"b", b"c"],
    )


def test_targets_are_named_once() -> None:
    client = ready()
    sent(client, make_call())
    submitted(client, make_call())
    (request,) = requests(client)
    assert not request.calls.targets
    assert request.calls.call_targets == [0]


def test_kinds_encodings_and_timeouts_go_along() -> None:
    client = ready()
    json = pb.PAYLOAD_ENCODING_JSON
    submitted(client, make_call(kind=CAST, encoding=json), make_call(deadline=2.5), make_call())
    (request,) = requests(client, now=0.5)
    assert request.calls.kinds == [0, 0, CAST]
    assert request.calls.encodings == [0, 0, json]
    assert request.calls.timeouts_us == [2_000_000, 0, 0]


@pytest.mark.parametrize(
    ("deadline", "microseconds"),
    [(0.0, 1), (-5.0, 1), (1e-7, 1), (1e-5, 10), (1e15, 10**19), (1e300, 10**19)],
)
@pytest.mark.parametrize("head", [b"", LARGE], ids=["small", "large"])
def test_any_deadline_can_be_said(deadline: float, microseconds: int, head: bytes) -> None:
    client = ready()
    submitted(client, make_call(head, deadline=deadline))
    (request,) = requests(client)
    batch = request.calls
    said = batch.chunk.start.timeout_us if head else batch.timeouts_us[0]
    assert said == microseconds


def test_frame_takes_so_many_calls_and_the_next_the_rest() -> None:
    client = ready()
    submitted(client, *(make_call() for _ in range(MAX_CALLS_IN_FRAME + 1)))
    assert [len(r.calls.call_ids) for r in requests(client)] == [MAX_CALLS_IN_FRAME, 1]


def test_call_that_ended_while_it_waited_is_not_sent() -> None:
    client = ready()
    first, second = make_call(LARGE), make_call()
    submitted(client, first, second)
    client.cancel(first)
    client.cancel(second)
    assert requests(client) == []
    assert failure_of(first) == failure_of(second) == (BadRPC("cancelled"), "not_started")


def test_request_over_the_peers_limit_is_not_sent() -> None:
    client = ready(Limits(max_message_bytes=INLINE_BYTES))
    call = make_call(LARGE, deadline=9.0)
    submitted(client, call)
    assert requests(client) == []
    assert ends(client) == [call]
    assert failure_of(call) == (BadRPC("too_large"), "not_started")
    assert not client.in_flight


def test_request_at_the_peers_limit_is_sent() -> None:
    client = ready(Limits(max_message_bytes=INLINE_BYTES + 1))
    call = make_call(LARGE)
    sent(client, call)
    assert call.state is SENT


@pytest.mark.parametrize("kind", [CAST, ORDERED_CAST])
def test_cast_over_the_peers_limit_ends_and_holds_up_nobody(kind: pb.CallKind.ValueType) -> None:
    client = ready(Limits(max_message_bytes=INLINE_BYTES))
    large, small = make_call(LARGE, kind=kind), make_call(kind=kind)
    sent(client, large, small)
    assert ends(client) == [large]
    assert failure_of(large) == (BadRPC("too_large"), "not_started")
    assert small.state is SENT


@pytest.mark.parametrize("count", [MAX_PARTS - 1, MAX_PARTS])
def test_request_with_too_many_buffers_ends_alone(count: int) -> None:
    client = ready()
    call, other = make_call(b"", [b""] * count), make_call()
    sent(client, call, other)
    assert other.state is SENT
    if count < MAX_PARTS:
        assert call.state is SENT
    else:
        assert failure_of(call) == (BadRPC("too_large"), "not_started")


# ---------------------------------------------------------------- casts


def test_casts_beyond_the_window_wait_until_others_are_over() -> None:
    client = ready(Limits(cast_window=2))
    made = [make_call(kind=CAST) for _ in range(4)]
    sent(client, *made)
    assert [call.state for call in made] == [SENT, SENT, WAITING, WAITING]
    assert client.has_unsent_casts
    client.receive(replies(casts_done=1), 0.0)
    requests(client)
    assert [call.state for call in made] == [SENT, SENT, SENT, WAITING]
    client.receive(replies(casts_done=2), 0.0)
    requests(client)
    assert not client.has_unsent_casts
    assert client.in_flight
    client.receive(replies(casts_done=1), 0.0)
    assert not client.in_flight
    assert ends(client) == []


def test_server_that_counts_casts_which_were_not_sent_breaks_the_protocol() -> None:
    client = ready()
    sent(client, make_call(kind=CAST))
    client.receive(replies(casts_done=2), 0.0)
    assert client.take_events() == [Closed(BadTCP("corrupt_data"))]


@pytest.mark.parametrize("limits", [Limits(max_queued_casts=2), Limits(max_queued_bytes=8)])
def test_casts_over_the_queues_limit_are_dropped(limits: Limits) -> None:
    client = make_client(limits)
    made = [make_call(kind=CAST) for _ in range(3)]
    submitted(client, *made)
    assert ends(client) == [made[2]]
    assert failure_of(made[2]) == (BadRPC("overload"), "not_started")


def test_queue_has_room_again_when_casts_were_sent() -> None:
    client = ready(Limits(max_queued_casts=1, max_queued_bytes=4))
    made = [make_call(kind=CAST) for _ in range(3)]
    for call in made:
        sent(client, call)
    assert ends(client) == []


def test_ordered_casts_wait_for_a_large_one() -> None:
    client = ready(SMALL_CHUNKS)
    large, later = make_call(LARGE, kind=ORDERED_CAST), make_call(kind=ORDERED_CAST)
    sent(client, large, later)
    assert (large.state, later.state) == (SENDING, WAITING)
    client.receive(replies(credit=10**6), 0.0)
    requests(client)
    assert (large.state, later.state) == (SENT, SENT)


def test_casts_and_calls_share_a_frame_without_order() -> None:
    client = ready()
    submitted(client, make_call(b"cast", kind=CAST), make_call(b"call"))
    (request,) = requests(client)
    assert request.calls.payloads == [b"call", b"cast"]


# ---------------------------------------------------------------- deadlines and cancelling


def test_call_that_was_sent_may_have_started_when_its_deadline_passes() -> None:
    client = ready()
    call = make_call(deadline=5.0)
    sent(client, call)
    assert client.next_deadline() == 5.0
    client.tick(4.9)
    assert call.state is SENT
    client.tick(5.0)
    assert ends(client) == [call]
    assert failure_of(call) == (BadRPC("timeout"), "unknown")
    (request,) = requests(client)
    assert request.calls.cancels == [call.id]


def test_call_that_waited_too_long_has_not_started() -> None:
    client = make_client()
    call = make_call(deadline=5.0)
    submitted(client, call)
    client.tick(5.0)
    assert failure_of(call) == (BadRPC("timeout"), "not_started")


def test_large_call_whose_time_was_up_before_its_first_chunk_is_never_sent() -> None:
    client = ready(SMALL_CHUNKS)
    first, second = make_call(LARGE), make_call(LARGE, deadline=5.0)
    sent(client, first, second)  # the first takes all the credit
    assert second.state is WAITING
    client.tick(5.0)
    assert failure_of(second) == (BadRPC("timeout"), "not_started")
    client.receive(replies(credit=10**6), 5.0)
    assert {request.calls.chunk.call_id for request in requests(client)} == {first.id}
    assert second.state is ENDED


def test_large_call_given_up_halfway_has_not_started_and_its_rest_is_abandoned() -> None:
    client = ready(SMALL_CHUNKS)
    call = make_call(LARGE)
    sent(client, call)
    assert call.state is SENDING
    client.cancel(call)
    assert failure_of(call) == (BadRPC("cancelled"), "not_started")
    (request,) = requests(client)
    assert request.calls.chunk == pb.Chunk(call_id=call.id, abandoned=True, data=b"")
    assert not request.calls.cancels


def test_send_timeout_runs_from_the_last_progress() -> None:
    client = ready(SMALL_CHUNKS)
    call = make_call(LARGE, send_timeout=3.0, deadline=100.0)
    client.submit(call, 0.0)
    requests(client, now=2.0)
    assert call.state is SENDING
    client.tick(3.0)
    assert client.next_deadline() == 5.0
    client.tick(5.0)
    assert failure_of(call) == (BadTCP("send_timeout"), "not_started")


def test_send_timeout_does_not_run_while_the_node_is_dialled() -> None:
    client = make_client()
    call = make_call(send_timeout=3.0)
    client.submit(call, 0.0)
    client.tick(3.0)
    client.tick(6.0)
    assert call.state is WAITING
    Wire(client).open()
    assert call.state is SENT


def test_send_timeout_is_over_once_all_was_sent() -> None:
    client = ready()
    call = make_call(send_timeout=3.0)
    sent(client, call)
    client.tick(50.0)
    assert call.state is SENT
    assert client.next_deadline() is None


def test_call_that_ended_cannot_be_cancelled() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    client.receive(replies(call_ids=[call.id], payloads=[b"x"]), 0.0)
    client.cancel(call)
    assert ends(client) == [call]
    assert call.failure is None
    assert requests(client) == []


def test_cancelling_reaches_no_call_of_another_session() -> None:
    client = ready()
    call, stranger = make_call(), make_call()
    sent(client, call)
    stranger.id = call.id
    client.cancel(stranger)
    assert call.state is SENT
    assert stranger.state is WAITING


def test_cancels_go_a_frames_worth_at_a_time() -> None:
    client = ready()
    made = [make_call() for _ in range(MAX_CALLS_IN_FRAME + 1)]
    sent(client, *made)
    for call in made:
        client.cancel(call)
    assert [len(r.calls.cancels) for r in requests(client)] == [MAX_CALLS_IN_FRAME, 1]


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize("outcome", [VALUE, ERROR, THROWN])
def test_reply_ends_its_call(outcome: pb.OutcomeKind.ValueType) -> None:
    client = ready()
    call = make_call(b"args")
    sent(client, call)
    client.receive(replies(call_ids=[call.id], payloads=[b"x"], outcomes=[outcome]), 0.0)
    assert ends(client) == [call]
    assert (call.state, call.failure) == (ENDED, None)
    assert (call.outcome, call.head, call.buffers) == (outcome, b"x", ())


def test_late_and_unknown_replies_reach_nobody() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    client.cancel(call)
    assert ends(client) == [call]
    for fields in ({}, {"outcomes": [ERROR, VALUE]}):
        client.receive(replies(call_ids=[call.id, 99], payloads=[b"x", b"y"], **fields), 0.0)
    assert client.take_events() == []
    assert failure_of(call) == (BadRPC("cancelled"), "unknown")


def test_second_reply_reaches_nobody() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    client.receive(replies(call_ids=[call.id, call.id], payloads=[b"x", b"y"]), 0.0)
    assert ends(client) == [call]
    assert call.head == b"x"


REPLY_FAULTS: Sequence[tuple[str, dict[str, object]]] = [
    ("payloads", {"payloads": [b"x"]}),
    ("outcomes", {"payloads": [b"x", b"y"], "outcomes": [0]}),
    ("outcome", {"payloads": [b"x", b"y"], "outcomes": [0, 3]}),
    ("negative", {"payloads": [b"x", b"y"], "outcomes": [0, -1]}),
]


@pytest.mark.parametrize("fault", REPLY_FAULTS, ids=[name for name, _ in REPLY_FAULTS])
def test_broken_replies_end_the_session_and_every_call_once(
    fault: tuple[str, dict[str, object]],
) -> None:
    client = ready()
    first, second, third = make_call(), make_call(), make_call()
    sent(client, first, second)
    client.submit(third, 0.0)
    client.receive(replies(call_ids=[first.id, second.id], **fault[1]), 0.0)
    assert client.take_events() == [
        CallsEnded([first, second, third]),
        Closed(BadTCP("corrupt_data")),
    ]
    assert failure_of(first) == failure_of(second) == (BadTCP("corrupt_data"), "unknown")
    assert failure_of(third) == (BadTCP("corrupt_data"), "not_started")


def test_reply_frame_with_a_field_of_a_later_revision_is_read() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    client.receive(replies(call_ids=[call.id], payloads=[b"x"]) + b"\xa2\x06\x03new", 0.0)
    assert ends(client) == [call]
    assert call.head == b"x"


def large_reply(call: Call, **chunk: object) -> bytes:
    return replies(chunk=pb.Chunk(call_id=call.id, **chunk))  # type: ignore[arg-type]  # by keyword


def test_large_reply_ends_its_call_when_all_of_it_has_come() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    start = pb.TransferStart(part_sizes=[1, 2], writable_parts=[1], outcome=THROWN)
    client.receive(large_reply(call, start=start, data=b"a"), 0.0)
    assert ends(client) == []
    client.receive(large_reply(call, data=b"bc", last=True), 0.0)
    assert ends(client) == [call]
    assert (call.outcome, call.head, call.buffers) == (THROWN, b"a", [bytearray(b"bc")])


def test_large_reply_over_this_nodes_limit_ends_its_call_alone() -> None:
    client = ready(Limits(max_message_bytes=3))
    call, other = make_call(), make_call()
    sent(client, call, other)
    client.receive(large_reply(call, start=pb.TransferStart(part_sizes=[2, 2]), data=b"ab"), 0.0)
    assert ends(client) == [call]
    assert failure_of(call) == (BadRPC("too_large"), "finished")
    client.receive(large_reply(call, data=b"cd", last=True), 0.0)
    client.receive(large_reply(other, start=pb.TransferStart(part_sizes=[3]), data=b"abc"), 0.0)
    assert client.phase is Phase.READY


def test_replies_over_the_limit_together_end_the_call_that_does_not_fit() -> None:
    client = ready(Limits(max_transfer_bytes=1000))
    first, second, third = make_call(), make_call(), make_call()
    sent(client, first, second, third)
    start = pb.TransferStart(part_sizes=[600])
    client.receive(large_reply(first, start=start, data=b"a"), 0.0)
    client.receive(large_reply(second, start=start, data=b"a"), 0.0)
    assert ends(client) == [second]
    assert failure_of(second) == (BadRPC("too_large"), "finished")
    assert "max_transfer_bytes" in second.failure.message
    client.receive(large_reply(first, data=bytes(599), last=True), 0.0)
    client.receive(large_reply(third, start=start, data=bytes(600), last=True), 0.0)
    assert ends(client) == [first, third]


def test_late_large_reply_reaches_nobody_but_is_counted_and_granted() -> None:
    client = ready(Limits(window_bytes=10))
    call = make_call()
    sent(client, call)
    start = pb.TransferStart(part_sizes=[9])
    client.receive(large_reply(call, start=start, data=b"abc"), 0.0)
    client.cancel(call)
    assert ends(client) == [call]
    client.receive(large_reply(call, data=b"def"), 0.0)
    (request,) = requests(client)
    assert request.calls.credit == 6
    client.receive(large_reply(call, abandoned=True), 0.0)
    assert client.take_events() == []


@pytest.mark.parametrize("end", ["last", "abandoned"])
def test_transfers_that_nobody_wants_are_passed_over_to_their_end(end: str) -> None:
    client = ready()
    start = pb.TransferStart(part_sizes=[2])
    stranger = make_call()
    for _ in range(2):  # what has ended is forgotten: the same again is passed over anew
        client.receive(large_reply(stranger, start=start, data=b"a"), 0.0)
        client.receive(large_reply(stranger, data=b"b", **{end: True}), 0.0)
        client.receive(large_reply(stranger, start=start, data=b"ab", last=True), 0.0)
    assert client.take_events() == []
    client.receive(large_reply(stranger, data=b"b"), 0.0)
    assert client.take_events() == [Closed(BadTCP("corrupt_data"))]


def test_reply_that_the_server_gives_up_ends_its_call_alone() -> None:
    client = ready()
    call, other = make_call(), make_call()
    sent(client, call, other)
    client.receive(large_reply(call, start=pb.TransferStart(part_sizes=[9]), data=b"abc"), 0.0)
    client.receive(large_reply(call, abandoned=True), 0.0)
    assert ends(client) == [call]
    assert failure_of(call) == (BadRPC("bad_result"), "finished")
    assert other.state is SENT


def test_call_answered_twice_over_ends_once() -> None:
    client = ready()
    made = [make_call(), make_call()]
    sent(client, *made)
    for call in made:
        client.receive(large_reply(call, start=pb.TransferStart(part_sizes=[2]), data=b"a"), 0.0)
    client.receive(replies(call_ids=[c.id for c in made], payloads=[b"x", b"x"]), 0.0)
    client.receive(large_reply(made[0], data=b"b", last=True), 0.0)
    client.receive(large_reply(made[1], abandoned=True), 0.0)
    assert ends(client) == made
    assert [call.head for call in made] == [b"x", b"x"]


CHUNK_FAULTS: Sequence[tuple[str, list[dict[str, object]]]] = [
    ("never began", [{"data": b"a"}]),
    ("began twice", [{"start": pb.TransferStart(part_sizes=[5])}] * 2),
    ("ends early", [{"start": pb.TransferStart(part_sizes=[5]), "data": b"a", "last": True}]),
    ("too much", [{"start": pb.TransferStart(part_sizes=[1]), "data": b"ab"}]),
    ("no parts", [{"start": pb.TransferStart()}]),
    ("outcome", [{"start": pb.TransferStart(part_sizes=[1], outcome=9)}]),  # type: ignore[arg-type]  # no such outcome
    ("over the window", [{"start": pb.TransferStart(part_sizes=[99]), "data": bytes(11)}]),
]


@pytest.mark.parametrize("fault", CHUNK_FAULTS, ids=[name for name, _ in CHUNK_FAULTS])
def test_broken_chunks_end_the_session_and_every_call_once(
    fault: tuple[str, list[dict[str, object]]],
) -> None:
    client = ready(Limits(window_bytes=10))
    call = make_call()
    sent(client, call)
    for chunk in fault[1]:
        client.receive(large_reply(call, **chunk), 0.0)
    assert client.take_events() == [CallsEnded([call]), Closed(BadTCP("corrupt_data"))]
    assert failure_of(call) == (BadTCP("corrupt_data"), "unknown")


@pytest.mark.parametrize("answer", ["small", "large", "too large", "abandoned"])
def test_call_answered_before_all_of_it_was_sent_is_sent_no_further(answer: str) -> None:
    client = ready(SMALL_CHUNKS)
    call, other = make_call(LARGE), make_call()
    sent(client, call, other)
    assert call.state is SENDING
    if answer == "small":
        client.receive(replies(call_ids=[call.id, other.id], payloads=[b"x", b"y"]), 0.0)
    elif answer == "large":
        start = pb.TransferStart(part_sizes=[1])
        client.receive(large_reply(call, start=start, data=b"x", last=True), 0.0)
    elif answer == "too large":
        start = pb.TransferStart(part_sizes=[10**12])
        client.receive(large_reply(call, start=start, data=b"x", last=True), 0.0)
    else:
        client.receive(large_reply(call, start=pb.TransferStart(part_sizes=[1])), 0.0)
        client.receive(large_reply(call, abandoned=True), 0.0)
    assert ends(client)[0] is call
    client.receive(replies(credit=10**6), 0.0)
    assert [r.calls.chunk.abandoned for r in requests(client)] == [True]
    assert call.state is ENDED


def test_call_given_up_while_its_early_answer_comes_ends_once() -> None:
    client = ready(SMALL_CHUNKS)
    call = make_call(LARGE)
    sent(client, call)
    client.receive(large_reply(call, start=pb.TransferStart(part_sizes=[2]), data=b"a"), 0.0)
    client.cancel(call)
    client.receive(large_reply(call, data=b"b", last=True), 0.0)
    assert ends(client) == [call]
    assert failure_of(call) == (BadRPC("cancelled"), "not_started")


# ---------------------------------------------------------------- pings


def test_ping_is_answered_after_so_many_seconds() -> None:
    client = ready()
    client.ping(7, 1.0)
    assert client.in_flight
    (request,) = requests(client)
    assert request.ping.nonce == 7
    client.receive(pong(8), 1.5)
    client.receive(pong(7), 3.0)
    client.receive(pong(7), 4.0)
    assert client.take_events() == [Answered(2.0)]
    assert not client.in_flight


@pytest.mark.parametrize("kind", ["challenge", "welcome", "nothing"])
def test_frame_out_of_turn_ends_the_session(kind: str) -> None:
    client = ready()
    frame = {
        "challenge": pb.ConnectResponse(challenge=challenge()),
        "welcome": pb.ConnectResponse(welcome=pb.Welcome()),
        "nothing": pb.ConnectResponse(),
    }[kind]
    client.receive(frame.SerializeToString(), 0.0)
    assert client.take_events() == [Closed(BadTCP("corrupt_data"))]


# ---------------------------------------------------------------- leaving and closing


def test_idle_stream_is_left_after_its_time() -> None:
    client = ready(idle_timeout=10.0)
    assert client.next_deadline() == 10.0
    client.tick(9.0)
    assert client.phase is Phase.READY
    client.tick(10.0)
    assert client.phase is Phase.LEAVING
    assert client.take_events() == [Drained()]


def test_stream_is_not_idle_while_anything_is_in_flight() -> None:
    client = ready(idle_timeout=10.0)
    call = make_call()
    sent(client, call)
    assert client.next_deadline() is None
    client.tick(100.0)
    client.receive(replies(call_ids=[call.id], payloads=[b"x"]), 100.0)
    assert client.next_deadline() == 110.0
    client.submit(make_call(kind=CAST), 109.0)
    client.tick(110.0)
    assert client.phase is Phase.READY


def test_stream_that_was_left_asks_for_no_further_time() -> None:
    client = ready(idle_timeout=10.0)
    client.tick(10.0)
    assert client.next_deadline() is None
    client.tick(11.0)
    assert client.take_events() == [Drained()]
    client.close(None)
    assert client.next_deadline() is None


def test_server_that_leaves_returns_what_it_was_not_given() -> None:
    client = ready(Limits(chunk_bytes=100, window_bytes=100, cast_window=2))
    known = [make_call(), make_call(LARGE), make_call(kind=CAST)]
    sent(client, *known)
    returned = [
        make_call(),
        make_call(LARGE),
        make_call(LARGE, kind=ORDERED_CAST),
        make_call(kind=ORDERED_CAST),
    ]
    sent(client, returned[1], returned[2])
    submitted(client, returned[3], returned[0])
    client.receive(go_away(), 0.0)
    (event,) = client.take_events()
    assert isinstance(event, CallsReturned)
    assert event.calls == [returned[1], returned[0], returned[2], returned[3]]
    assert {call.state for call in returned} == {WAITING}
    assert not client.has_unsent_casts
    client.receive(replies(credit=10**6), 0.0)
    assert {r.calls.chunk.call_id for r in requests(client)} == {known[1].id}
    client.receive(
        replies(call_ids=[known[0].id, known[1].id], payloads=[b"", b""], casts_done=1), 0.0
    )
    assert client.take_events() == [CallsEnded(known[:2]), Drained()]


def test_large_cast_of_which_a_part_was_sent_goes_on() -> None:
    client = ready(SMALL_CHUNKS)
    cast, later = make_call(LARGE, kind=ORDERED_CAST), make_call(kind=ORDERED_CAST)
    sent(client, cast, later)
    client.receive(go_away(), 0.0)
    assert client.take_events() == [CallsReturned([later])]
    assert client.has_unsent_casts
    client.receive(replies(credit=10**6), 0.0)
    requests(client)
    assert cast.state is SENT
    client.receive(replies(casts_done=1), 0.0)
    assert client.take_events() == [Drained()]


def test_second_goodbye_changes_nothing() -> None:
    client = ready()
    client.receive(go_away(), 0.0)
    assert client.take_events() == [CallsReturned([]), Drained()]
    client.receive(go_away(), 0.0)
    assert client.take_events() == []


def test_session_that_is_leaving_is_drained_by_whatever_comes_last() -> None:
    client = ready()
    first, second = make_call(), make_call(deadline=5.0)
    sent(client, first, second)
    client.ping(1, 0.0)
    client.receive(go_away(), 0.0)
    client.receive(replies(call_ids=[first.id], payloads=[b""]), 0.0)
    client.tick(5.0)
    assert client.take_events() == [
        CallsReturned([]),
        CallsEnded([first]),
        CallsEnded([second]),
    ]
    client.receive(pong(1), 6.0)
    assert client.take_events() == [Answered(6.0), Drained()]


def test_session_that_is_leaving_is_drained_by_a_cancelled_call() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    client.receive(go_away(), 0.0)
    client.cancel(call)
    assert Drained() in client.take_events()


def test_drained_session_says_nothing_more() -> None:
    client = ready(Limits(window_bytes=4))
    call = make_call()
    sent(client, call)
    client.receive(go_away(), 0.0)
    start = pb.TransferStart(part_sizes=[4])
    client.receive(large_reply(call, start=start, data=b"abcd", last=True), 0.0)
    assert client.take_events() == [CallsReturned([]), CallsEnded([call]), Drained()]
    assert client.window.owes
    assert requests(client) == []


def test_lost_stream_ends_every_call_at_once() -> None:
    client = ready(SMALL_CHUNKS)
    known = make_call()
    halfway, unknown, cast = make_call(LARGE), make_call(LARGE), make_call(LARGE, kind=CAST)
    gone = make_call(kind=CAST)
    sent(client, known, halfway, unknown, cast, gone)
    late, queued = make_call(), make_call(kind=CAST)
    submitted(client, late, queued)
    client.close(CLOSED)
    events = client.take_events()
    assert events[-1] == Closed(CLOSED)
    assert isinstance(events[0], CallsEnded)
    assert set(events[0].calls) == {known, halfway, unknown, cast, late, queued}
    assert len(events[0].calls) == 6
    assert failure_of(known) == (CLOSED, "unknown")
    for call in (halfway, unknown, cast, late, queued):
        assert failure_of(call) == (CLOSED, "not_started")
    assert requests(client) == []


def test_call_that_was_sent_never_ends_as_not_started() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    client.close(BadTCP("econnrefused", "not_started"))
    assert failure_of(call) == (BadTCP("econnrefused"), "unknown")


def test_session_closes_once_and_takes_nothing_afterwards() -> None:
    client = ready()
    client.close(None)
    client.close(CLOSED)
    client.receive(pong(1), 1.0)
    client.receive(b"nonsense", 1.0)
    client.tick(5.0)
    assert client.take_events() == [Closed(None)]


def test_calls_end_as_closed_where_nothing_better_is_known() -> None:
    client = ready()
    call = make_call()
    submitted(client, call)
    client.close(None)
    assert failure_of(call) == (CLOSED, "not_started")


# ---------------------------------------------------------------- finishing


def test_finishing_fails_calls_and_sends_what_was_cast() -> None:
    client = ready(Limits(cast_window=1, chunk_bytes=100, window_bytes=100))
    known, large = make_call(), make_call(LARGE)
    casts = [make_call(kind=CAST), make_call(LARGE, kind=CAST), make_call(kind=CAST)]
    sent(client, known, large, casts[0])
    submitted(client, *casts[1:])
    client.finish(CLOSED)
    assert ends(client) == [known, large]
    assert failure_of(known) == (CLOSED, "unknown")
    assert failure_of(large) == (CLOSED, "not_started")
    assert client.phase is Phase.LEAVING
    for _ in range(2):
        requests(client)
        assert client.take_events() == []
        client.receive(replies(casts_done=1, credit=10**6), 0.0)
    requests(client)
    assert client.take_events() == [Drained()]
    assert {cast.state for cast in casts} == {SENT}


def test_finishing_ends_no_call_that_was_sent_as_not_started() -> None:
    client = ready()
    call = make_call()
    sent(client, call)
    client.finish(BadTCP("closed", "not_started"))
    assert failure_of(call) == (CLOSED, "unknown")
    assert client.take_events() == [CallsEnded([call]), Drained()]


def test_finishing_waits_for_the_stream_only_if_something_was_cast() -> None:
    client = make_client()
    call = make_call()
    submitted(client, call)
    client.finish(CLOSED)
    assert client.take_events() == [CallsEnded([call]), Closed(CLOSED)]


def test_finishing_before_the_handshake_sends_what_was_cast_after_it() -> None:
    client = make_client()
    call, cast = make_call(), make_call(kind=CAST)
    submitted(client, call, cast)
    client.finish(CLOSED)
    assert client.take_events() == [CallsEnded([call])]
    wire = Wire(client).open()
    assert [incoming.id for incoming in wire.arrived] == [cast.id]
    assert wire.client_events == [Opened("s-1", BETA), Drained()]


def test_finishing_twice_or_after_the_end_changes_nothing() -> None:
    client = ready()
    client.finish(CLOSED)
    client.finish(CLOSED)
    assert client.take_events() == [Drained()]
    client.close(None)
    client.finish(CLOSED)
    assert client.take_events() == [Closed(None)]


def test_session_notes_how_far_the_handshake_came_and_when() -> None:
    client = make_client()
    assert (client.challenged_at, client.was_ready) == (None, False)
    client.opened(2.0)
    assert client.opened_at == 2.0
    client.receive(pb.ConnectResponse(challenge=challenge()).SerializeToString(), 3.0)
    assert (client.challenged_at, client.was_ready) == (3.0, False)
    client = ready()
    client.close(None)
    assert client.was_ready


def test_frame_is_the_same_whoever_reads_it() -> None:
    client = ready()
    submitted(client, make_call(LARGE), make_call(b"x"))
    frame = client.frame_to_send(0.0)
    assert frame is not None
    batch, chunk = frames.decode_calls(frame, frames.batch_begin(frame))
    assert batch.payloads == [b"x"]
    assert chunk is not None
    assert bytes(chunk.data) == LARGE
