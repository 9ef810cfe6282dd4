"""The mutual proof of the cookie: its test vector, and all that must be refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb
from genrpc.security import handshake

COOKIE = b"0123456789abcdef0123456789abcdef"
KEY = handshake.derive_key(COOKIE)
ALPHA, BETA = "alpha@127.0.0.1", "beta@127.0.0.1"


def make_hello(**changes: object) -> pb.Hello:
    """The hello of the test vector in genrpc.proto, with changes."""
    fields: dict[str, object] = {
        "revision_min": 1,
        "revision_max": 1,
        "node": ALPHA,
        "target_node": BETA,
        "nonce": bytes(range(0x20)),
        "content_types": ["application/x-python-pickle", "application/json"],
        "want_pickle": True,
    }
    return pb.Hello(**{**fields, **changes})  # type: ignore[arg-type]  # fields by keyword


def make_challenge(**changes: object) -> pb.Challenge:
    """The challenge of the test vector in genrpc.proto, with changes."""
    fields: dict[str, object] = {
        "revision": 1,
        "node": BETA,
        "nonce": bytes(range(0x20, 0x40)),
        "instance_id": "i-1",
    }
    return pb.Challenge(**{**fields, **changes})  # type: ignore[arg-type]  # fields by keyword


TH = handshake.transcript(make_hello(), make_challenge())
CLIENT = handshake.client_proof(KEY, TH)
SERVER = handshake.server_proof(KEY, TH)


def test_vector_of_the_proto_holds() -> None:
    assert TH.hex() == "cdcf07bd8aba6ecc352110a670330edaf78a41e8ec600c2b6b902beb8f256cfd"
    assert CLIENT.hex() == "d52703e3ee66c2943e92580b17eec2dfd2a622d91b25deb30d4d5b7983d0fe8b"
    assert SERVER.hex() == "a271b4835b80a2187bc0764822ff42c5025d762f9c1cd028bf4c3903d0e4bc62"


def test_right_proofs_match() -> None:
    assert handshake.matches(CLIENT, handshake.client_proof(KEY, TH))
    assert handshake.matches(SERVER, handshake.server_proof(KEY, TH))


@pytest.mark.parametrize("length", [n for n in range(65) if n != 32])
def test_proof_of_another_length_is_refused(length: int) -> None:
    given_proof = (CLIENT + CLIENT)[:length]
    assert not handshake.matches(CLIENT, given_proof)
    assert not handshake.matches(given_proof, CLIENT)
    assert not handshake.matches(given_proof, given_proof)


@pytest.mark.parametrize("bit", range(256))
def test_proof_with_one_bit_flipped_is_refused(bit: int) -> None:
    altered = (int.from_bytes(CLIENT, "big") ^ (1 << bit)).to_bytes(32, "big")
    assert not handshake.matches(CLIENT, altered)


def test_clients_proof_reflected_as_the_servers_is_refused() -> None:
    assert not handshake.matches(SERVER, CLIENT)


def test_proof_of_another_cookie_is_refused() -> None:
    other = handshake.derive_key(COOKIE[:-1] + b"0")
    assert not handshake.matches(CLIENT, handshake.client_proof(other, TH))


HELLO_CHANGES: list[dict[str, object]] = [
    {"revision_min": 0},
    {"revision_max": 2},
    {"node": "gamma@127.0.0.1"},
    {"target_node": "gamma@127.0.0.1"},
    {"node": BETA, "target_node": ALPHA},
    {"nonce": bytes(32)},
    {"content_types": ["application/json"]},
    {"content_types": ["application/json", "application/x-python-pickle"]},
    {"want_pickle": False},
    {"shard_key": "k"},
]
CHALLENGE_CHANGES: list[dict[str, object]] = [
    {"revision": 2},
    {"node": "gamma@127.0.0.1"},
    {"nonce": bytes(32)},
    {"instance_id": "i-2"},
]


@pytest.mark.parametrize("changes", HELLO_CHANGES, ids=str)
def test_proof_replayed_under_another_hello_is_refused(changes: dict[str, object]) -> None:
    th = handshake.transcript(make_hello(**changes), make_challenge())
    assert not handshake.matches(handshake.client_proof(KEY, th), CLIENT)
    assert not handshake.matches(handshake.server_proof(KEY, th), SERVER)


@pytest.mark.parametrize("changes", CHALLENGE_CHANGES, ids=str)
def test_proof_replayed_under_another_challenge_is_refused(changes: dict[str, object]) -> None:
    th = handshake.transcript(make_hello(), make_challenge(**changes))
    assert not handshake.matches(handshake.client_proof(KEY, th), CLIENT)
    assert not handshake.matches(handshake.server_proof(KEY, th), SERVER)


def test_roles_cannot_be_swapped() -> None:
    """A server cannot use a client's proof towards that client's own listener."""
    hello = make_hello(node=BETA, target_node=ALPHA, nonce=bytes(range(0x20, 0x40)))
    challenge = make_challenge(node=ALPHA, nonce=bytes(range(0x20)))
    th = handshake.transcript(hello, challenge)
    for proof in (CLIENT, SERVER):
        assert not handshake.matches(handshake.client_proof(KEY, th), proof)
        assert not handshake.matches(handshake.server_proof(KEY, th), proof)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT))
def test_different_texts_have_different_transcripts(
    first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    def th(texts: tuple[str, str, str]) -> bytes:
        node, target, key = texts
        return handshake.transcript(
            make_hello(node=node, target_node=target, shard_key=key), make_challenge()
        )

    assert (th(first) == th(second)) == (first == second)


@given(st.binary(max_size=80))
def test_invented_proof_is_refused(proof: bytes) -> None:
    assert not handshake.matches(CLIENT, proof) or proof == CLIENT


def test_nonces_are_32_fresh_bytes() -> None:
    first, second = handshake.new_nonce(), handshake.new_nonce()
    assert len(first) == len(second) == 32
    assert first != second


# ---------------------------------------------------------------- faults


def reason(fault: tuple[str, str] | None) -> str | None:
    if fault is None:
        return None
    assert fault[1]
    return fault[0]


def test_good_hello_has_no_fault() -> None:
    assert handshake.hello_fault(make_hello(), BETA) is None


def test_hello_at_every_limit_has_no_fault() -> None:
    target = "b" * 245 + "@127.0.0.1"
    hello = make_hello(
        node="a" * 255,
        target_node=target,
        shard_key="k" * 256,
        content_types=["t" * 128] * 16,
        revision_min=0,
        revision_max=2**32 - 1,
    )
    assert handshake.hello_fault(hello, target) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": b""},
        {"nonce": bytes(31)},
        {"nonce": bytes(33)},
        {"revision_min": 0, "revision_max": 0},
        {"revision_min": 2, "revision_max": 3},
        {"revision_min": 2, "revision_max": 0},
        {"node": "a" * 256},
        {"target_node": "b" * 256},
        {"node": "a@h\nforged line"},
        {"node": "a@h\x1b[31m"},
        {"node": "a@h\u2028"},
        {"shard_key": "k" * 257},
        {"content_types": ["t"] * 17},
        {"content_types": ["t" * 129]},
        {"content_types": [""]},
        {"content_types": ["a,b"]},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_malformed_hello_is_corrupt(changes: dict[str, object]) -> None:
    assert reason(handshake.hello_fault(make_hello(**changes), BETA)) == "corrupt_data"


@pytest.mark.parametrize("own", [ALPHA, "", "Beta@127.0.0.1", "beta@127.0.0.1 "])
def test_hello_for_another_node_is_badnode(own: str) -> None:
    assert reason(handshake.hello_fault(make_hello(), own)) == "badnode"


def test_good_challenge_has_no_fault() -> None:
    assert handshake.challenge_fault(make_hello(), make_challenge()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": b""},
        {"nonce": bytes(31)},
        {"nonce": bytes(33)},
        {"nonce": bytes(range(0x20))},
        {"revision": 0},
        {"revision": 2},
        {"instance_id": "i" * 129},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_malformed_challenge_is_corrupt(changes: dict[str, object]) -> None:
    fault = handshake.challenge_fault(make_hello(), make_challenge(**changes))
    assert reason(fault) == "corrupt_data"


@pytest.mark.parametrize("name", ["", ALPHA, "n" * 100_000])
def test_challenge_of_another_node_is_badnode(name: str) -> None:
    fault = handshake.challenge_fault(make_hello(), make_challenge(node=name))
    assert fault is not None
    assert fault[0] == "badnode"
    assert len(fault[1]) < 1000
