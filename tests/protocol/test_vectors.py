"""The wire, byte for byte: tests/vectors/ has messages as JSON and as the bytes that they are.

What stands there is never changed, only added to: another program, or an older node, has these
bytes. `json` is protobuf's JSON of the message, `python` the value of a Term. A program in another
language may be tested against the same files.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from pages import ROOT
from wire import ALPHA, BETA, CookieAuthenticator

from genrpc import Atom, neutral, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.protocol import frames
from genrpc.protocol.client_session import ClientSession, Route
from genrpc.protocol.frames import ChunkOut
from genrpc.protocol.server_session import Identity, ServerSession
from genrpc.protocol.session import Limits, Session

VECTORS = ROOT / "tests/vectors"
MESSAGES: list[dict[str, Any]] = json.loads((VECTORS / "messages.json").read_text("utf-8"))
HANDSHAKE: dict[str, Any] = json.loads((VECTORS / "handshake.json").read_text("utf-8"))
FRAMES: list[dict[str, Any]] = HANDSHAKE["frames"]


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def parsed(vector: dict[str, Any]) -> Any:
    """The message of a vector, from its JSON."""
    return json_format.ParseDict(vector["json"], getattr(pb, vector["message"])())


def as_json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("vector", named(MESSAGES))
def test_message_is_written_as_these_bytes(vector: dict[str, Any]) -> None:
    assert parsed(vector).SerializeToString().hex() == vector["hex"]


@pytest.mark.parametrize("vector", named(MESSAGES))
def test_these_bytes_are_read_as_the_message(vector: dict[str, Any]) -> None:
    message = getattr(pb, vector["message"]).FromString(bytes.fromhex(vector["hex"]))
    assert as_json(message) == vector["json"]


BATCHES = [
    vector
    for vector in MESSAGES
    if isinstance(vector["json"], dict) and not {"calls", "replies"}.isdisjoint(vector["json"])
]


@pytest.mark.parametrize("vector", named(BATCHES))
def test_batch_is_written_by_hand_as_these_bytes(vector: dict[str, Any]) -> None:
    frame = parsed(vector)
    batch = getattr(frame, frame.WhichOneof("frame"))
    chunk = None
    if batch.HasField("chunk"):
        sent = batch.chunk
        start = sent.start if sent.HasField("start") else None
        chunk = ChunkOut(sent.call_id, [sent.data], start, sent.last, sent.abandoned)
    left = type(batch)()
    left.CopyFrom(batch)
    left.ClearField("chunk")
    # By hand a chunk's data is there even if it is empty: of another length, the same message.
    written = frames.encode_batch(left, chunk)
    assert type(frame).FromString(written) == frame
    if chunk is None or batch.chunk.data:
        assert written.hex() == vector["hex"]


@pytest.mark.parametrize("vector", named(BATCHES))
def test_batch_in_these_bytes_is_read_by_hand(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    decode = frames.decode_calls if "calls" in vector["json"] else frames.decode_replies
    batch, view = decode(data, frames.batch_begin(data))
    frame = parsed(vector)
    sent = getattr(frame, frame.WhichOneof("frame"))
    assert (view is not None) == sent.HasField("chunk")
    if view is not None:
        assert (view.call_id, bytes(view.data)) == (sent.chunk.call_id, sent.chunk.data)
        assert (view.last, view.abandoned) == (sent.chunk.last, sent.chunk.abandoned)
        assert view.start == (sent.chunk.start if sent.chunk.HasField("start") else None)
        sent.ClearField("chunk")
    assert batch == sent


TERMS = [vector for vector in MESSAGES if "python" in vector]


def value_of(text: str) -> object:
    if text.startswith("Atom("):
        return Atom(ast.literal_eval(text.removeprefix("Atom(").removesuffix(")")))
    if text.startswith("float("):
        return float(ast.literal_eval(text.removeprefix("float(").removesuffix(")")))
    return eval(text, {"__builtins__": {}})  # 2**63 is no literal


@pytest.mark.parametrize("vector", named(TERMS))
def test_value_is_written_as_this_term(vector: dict[str, Any]) -> None:
    value = value_of(vector["python"])
    written = neutral.encode_value(neutral.TERMS, value, max_depth=9, max_bytes=1000)
    assert written.hex() == vector["hex"]


@pytest.mark.parametrize("vector", named(TERMS))
def test_term_is_read_as_this_value(vector: dict[str, Any]) -> None:
    terms = pb.Terms(args=[pb.Term.FromString(bytes.fromhex(vector["hex"]))])
    args, _ = neutral.decode_arguments(neutral.TERMS, terms.SerializeToString(), max_depth=9)
    expected = value_of(vector["python"])
    assert args == (expected,)
    assert type(args[0]) is type(expected)


# ---------------------------------------------------------------- the handshake


def test_proofs_of_the_handshake_are_these_bytes() -> None:
    hello, challenge = parsed(FRAMES[0]).hello, parsed(FRAMES[1]).challenge
    key = security.derive_key(HANDSHAKE["cookie"].encode())
    th = security.transcript(hello, challenge)
    assert key.hex() == HANDSHAKE["key"]
    assert th.hex() == HANDSHAKE["transcript"]
    assert security.client_proof(key, th).hex() == HANDSHAKE["client_proof"]
    assert security.server_proof(key, th).hex() == HANDSHAKE["server_proof"]


def test_proto_tells_the_same_proofs() -> None:
    text = (ROOT / "protos/genrpc/v1/genrpc.proto").read_text("utf-8")
    for name in ("transcript", "client_proof", "server_proof"):
        assert f"= {HANDSHAKE[name]}\n" in text


def test_handshake_goes_over_the_wire_as_these_bytes() -> None:
    cookie, welcome = HANDSHAKE["cookie"].encode(), parsed(FRAMES[3]).welcome
    names = {field.name for field in dataclasses.fields(Limits)}
    told = {field.name: value for field, value in welcome.ListFields() if field.name in names}
    limits = Limits(**told)
    client = ClientSession(
        Route(ALPHA, BETA, ""), CookieAuthenticator(cookie, bytes(range(32))), limits
    )
    server = ServerSession(
        Identity(BETA, "i-1", "s-1"), CookieAuthenticator(cookie, bytes(range(32, 64))), limits
    )
    client.opened(0.0)
    sent = []
    ends: list[Session] = [client, server]
    for sender, receiver in (ends, ends[::-1], ends, ends[::-1]):
        frame = sender.frame_to_send(0.0)
        assert frame is not None
        sent.append(frame.hex())
        receiver.receive(frame, 0.0)
    assert sent == [frame["hex"] for frame in FRAMES]
