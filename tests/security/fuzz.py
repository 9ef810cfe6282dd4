"""Coverage-guided fuzzing of every decoder of ours, by atheris: `python fuzz.py NAME [options]`.

NAME is one of TARGETS; options and folders of inputs are libFuzzer's. What a decoder may raise is
said beside it; anything else, and any difference between two readings that should agree, ends the
process with a report.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["genrpc"]):
    from genrpc import neutral, security
    from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
    from genrpc.codec import decode_error
    from genrpc.errors import BadRPC, CodecError, ConfigurationError
    from genrpc.protocol import frames
    from genrpc.protocol.chunks import Assembly
    from genrpc.protocol.events import ProtocolError
    from genrpc.protocol.pending import VALUE
    from genrpc.protocol.server_session import Identity, ServerSession
    from genrpc.protocol.session import Limits, Phase
    from genrpc.settings import Settings
    from genrpc.transport import unary_messages
    from genrpc.transport.refusals import RefusedError

COOKIE = security.Cookie("0123456789abcdef")
NODE, CALLER = "b@127.0.0.1", "a@127.0.0.1"
LIMITS = Limits(max_message_bytes=10_000, window_bytes=10_000, max_transfer_bytes=20_000)


# ---------------------------------------------------------------- frames


class Believes:
    """Takes every hello and every proof: what comes after them is to be reached."""

    def new_nonce(self) -> bytes:
        return bytes(32)

    def hello_fault(self, hello: object, node: str) -> None:
        return None

    def challenge_fault(self, hello: object, challenge: object) -> None:
        return None

    def client_proof(self, hello: object, challenge: object) -> bytes:
        return bytes(32)

    server_proof = client_proof

    def matches(self, expected: bytes, given: bytes) -> bool:
        return True


def frames_of(data: bytes) -> None:
    """A session takes any frames, and is READY, LEAVING or CLOSED after them; it raises nothing."""
    provider = atheris.FuzzedDataProvider(data)
    session = ServerSession(Identity(NODE, "i", "s"), Believes(), LIMITS)
    session.receive(pb.ConnectRequest(hello=pb.Hello(node=CALLER)).SerializeToString(), 0.0)
    session.receive(pb.ConnectRequest(auth_proof=pb.AuthProof()).SerializeToString(), 0.0)
    assert session.phase is Phase.READY
    while provider.remaining_bytes():
        size = provider.ConsumeIntInRange(0, 300)
        session.receive(provider.ConsumeBytes(size), 0.0)
        for call in list(session.running.values()):
            session.reply(call, VALUE, b"reply")
        while session.frame_to_send(0.0) is not None:
            pass
    assert session.phase >= Phase.READY
    assert session._assembly_bytes <= max(LIMITS.max_transfer_bytes, 16_384 * 256 + 10_000)


def chunks_of(data: bytes) -> None:
    """The reader by hand agrees with protobuf, and both raise ProtocolError alone."""
    for decode, kind, field in (
        (frames.decode_calls, pb.ConnectRequest, "calls"),
        (frames.decode_replies, pb.ConnectResponse, "replies"),
    ):
        try:
            begin = frames.batch_begin(data)
            batch, chunk = decode(data, begin) if begin else (None, None)
        except ProtocolError:
            continue
        if batch is None:
            continue
        try:
            said = kind.FromString(data)
        except Exception:  # protobuf looks into what the reader by hand only passes on
            continue
        expected = getattr(said, field)
        if chunk is None:
            assert not expected.HasField("chunk")
            continue
        assert expected.HasField("chunk")
        assert chunk.call_id == expected.chunk.call_id
        assert bytes(chunk.data) == expected.chunk.data
        assert (chunk.last, chunk.abandoned) == (expected.chunk.last, expected.chunk.abandoned)
        assert chunk.start == (expected.chunk.start if expected.chunk.HasField("start") else None)
        if chunk.start is not None and sum(chunk.start.part_sizes) <= 10_000:
            with contextlib.suppress(ProtocolError):
                assembly = Assembly(chunk.start)
                assembly.write(chunk.data)
                assembly.parts()


# ---------------------------------------------------------------- values


def neutral_of(data: bytes) -> None:
    """Neutral values, errors and requests raise CodecError and RefusedError alone."""
    if not data:
        return
    kind, body = data[0] % 8, data[1:]
    encodings = (neutral.TERMS, neutral.VALUES, neutral.JSON, neutral.MSGPACK, neutral.CBOR)
    if kind < len(encodings):
        buffers = [body[len(body) // 2 :]] if kind == 1 and data[0] > 127 else []
        with contextlib.suppress(CodecError):
            args, kwargs = neutral.decode_arguments(encodings[kind], body, buffers, max_depth=20)
            assert isinstance(args, (list, tuple))
            assert all(isinstance(name, str) for name in kwargs)
    elif kind == 5:
        assert isinstance(decode_error(body, pickles=False), BadRPC)
    else:
        message = unary_messages.CallRequest if kind == 6 else unary_messages.CastRequest
        with contextlib.suppress(RefusedError):
            unary_messages.parse(message, body)


GOOD = security.make_token(COOKIE, allow=["math.*"], audience=NODE, now=0.0)


def token_of(data: bytes) -> None:
    """A token that was not made here is refused with TokenError, and nothing else."""
    text = data.decode("utf-8", "surrogateescape")
    if data[:1] == b"\0":  # signed nonsense: its claims are reached
        signed = f"g1.{security.tokens._encode(data[1:])}"
        text = f"{signed}.{security.tokens._encode(security.tokens._mac(COOKIE, signed))}"
    with contextlib.suppress(security.TokenError):
        token = security.check_token(COOKIE, text, node=NODE, now=0.0)
        assert data[:1] == b"\0" or text == GOOD  # only who knows the cookie comes so far
        assert token.expires > 0.0
        token.allows("math", "sqrt")
        token.allows(text[:50], text[50:])


# ---------------------------------------------------------------- settings

_NAMES = [known.name for known in Settings.describe()]
_FILE = Path(tempfile.mkdtemp()) / "settings.toml"


def settings_of(data: bytes) -> None:
    """The environment and the file raise ConfigurationError alone, without the cookie in it."""
    provider = atheris.FuzzedDataProvider(data)
    name = provider.PickValueInList(_NAMES)
    text = provider.ConsumeUnicodeNoSurrogates(200).replace("\0", "")
    environment = dict(os.environ)
    try:
        if provider.ConsumeBool():
            os.environ[f"GENRPC_{name.upper()}"] = text
        else:
            _FILE.write_bytes(f"[genrpc]\n{name} = {text}".encode())
            _FILE.chmod(0o600)
            os.environ["GENRPC_CONFIG"] = str(_FILE)
        told = ""
        try:
            made = Settings()
            told = repr(made)
            assert made == made.changed()
        except ConfigurationError as error:
            told = str(error)
        if name == "cookie" and len(text) > 8:
            assert text not in told
    finally:
        os.environ.clear()
        os.environ.update(environment)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames_of,
    "chunks": chunks_of,
    "neutral": neutral_of,
    "token": token_of,
    "settings": settings_of,
}


# ---------------------------------------------------------------- where it begins


def seeds(name: str) -> list[bytes]:
    """Good inputs, to begin with."""
    start = pb.TransferStart(part_sizes=[3, 4], writable_parts=[1], target=0)
    chunk = pb.Chunk(call_id=1, start=start, data=b"abcdefg", last=True)
    batch = pb.CallBatch(
        chunk=chunk,
        targets=[pb.Target(number=0, module="m", function="f")],
        call_ids=[2, 3],
        payloads=[b"x", b"y"],
        kinds=[0, 1],
        encodings=[0, 2],
        timeouts_us=[0, 9],
        cancels=[2],
        credit=5,
    )
    calls = pb.ConnectRequest(calls=batch).SerializeToString()
    if name == "chunks":
        replies = pb.ReplyBatch(chunk=chunk, call_ids=[1], payloads=[b"x"], outcomes=[1])
        return [calls, pb.ConnectResponse(replies=replies).SerializeToString()]
    if name == "frames":
        ping = pb.ConnectRequest(ping=pb.Ping(nonce=1)).SerializeToString()
        # The sizes are taken from the end.
        return [said + bytes([len(said), 0]) for said in (calls, ping)]
    if name == "neutral":
        terms = pb.Terms(args=[pb.Term(big_int_value="-12345678901234567890")])
        terms.args.add().map_value.entries.add(key=pb.Term(int_value=1))
        terms.args.add().set_value.items.add(atom_value="a")
        call = pb.CallRequest(mfa=pb.Mfa(module="math", function="sqrt", terms=terms))
        error = pb.RpcError(reason=1, exception=pb.RemoteException(type="x.Y", message="m"))
        return [
            b"\0" + terms.SerializeToString(),
            b'\2[[1,2.5,"x",{"a":null}],{"k":[true]}]',
            b"\3\x92\x93\x01\xa1x\x81\xa1k\x02\x80",
            b"\4\x82\x83\x01\x61\x78\xc2\x41\x01\xa0",
            b"\5" + error.SerializeToString(),
            b"\6" + call.SerializeToString(),
        ]
    if name == "token":
        claims = {"allow": ["math.*"], "aud": "", "exp": 9.0, "id": "i", "iss": "i"}
        return [GOOD.encode(), b"\0" + json.dumps(claims).encode()]
    return [b'"0123456789abcdef"\1\2', b'["math", "os:system"]\3\0', b'{"a@h" = 1}\4\1', b"1.5\5"]


def main() -> None:
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
