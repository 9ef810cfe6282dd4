import grpc
import pytest

from genrpc.errors import BadTCP
from genrpc.transport.status import failure_of

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

# As grpcio 1.78 to 1.85 say it.
TEXTS = [
    (
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1:"
        " Failed to connect to remote host: Connection refused",
        "econnrefused",
    ),
    ("failed to connect: connect: Connection refused (111)", "econnrefused"),
    ("DNS resolution failed for no.invalid: Domain name not found", "nxdomain"),
    ("DNS resolution failed for no.invalid:1: C-ares status is not ARES_SUCCESS", "nxdomain"),
    ("last error: UNKNOWN: ipv4:10.0.0.7:1: connect: No route to host", "ehostunreach"),
    ("last error: UNKNOWN: ipv4:10.0.0.7:1: connect: Network is unreachable", "enetunreach"),
    ("failed to connect to all addresses; last error: Tls handshake failed (TSI…)", "tls"),
    ("Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: WRONG_VERSION_NUMBER", "tls"),
    ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "tls"),
    ("Peer name b.example is not in peer certificate", "tls"),
    ("last error: Failed parsing HTTP/2; expected SETTINGS frame", "corrupt_data"),
    ("Trying to connect an http1.x server (HTTP status 400)", "corrupt_data"),
    (
        "last error: UNKNOWN: Connection attempt timed out before receiving SETTINGS",
        "connect_timeout",
    ),
    ("Socket closed", "closed"),
    ("Stream removed", "closed"),
    ("recvmsg: Connection reset by peer", "closed"),
    ("sendmsg: Broken pipe", "closed"),
    ("keepalive watchdog timeout", "closed"),
    ("a text that no release has had so far", "closed"),
    ("", "closed"),
    (None, "closed"),
]


def error(code, details):
    return grpc.aio.AioRpcError(code, None, None, details)


@pytest.mark.parametrize(("details", "reason"), TEXTS)
def test_texts_of_unavailable_are_understood(details, reason):
    assert failure_of(error(UNAVAILABLE, details)) == BadTCP(reason)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
def test_what_no_node_would_answer_is_corrupt_data_and_says_so(code):
    failure = failure_of(error(code, "details"))
    assert failure == BadTCP("corrupt_data")
    assert failure.message.endswith(".")


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_any_other_end_is_closed(code):
    assert failure_of(error(code, "details")) == BadTCP("closed")


@pytest.mark.parametrize("details", ["Internal error from Core", "Internal error from Core."])
def test_stream_that_was_lost_during_a_write_is_closed(details):
    """Found by killing peers: one in some thousand lost calls was "corrupt_data"."""
    assert failure_of(error(grpc.StatusCode.INTERNAL, details)) == BadTCP("closed")


def test_what_execution_a_call_had_is_left_to_its_session():
    assert failure_of(error(UNAVAILABLE, "Connection refused")).execution == "unknown"


def test_tls_failure_keeps_openssls_words():
    details = "failed to connect to all addresses; last error: the words of OpenSSL"
    failure = failure_of(error(UNAVAILABLE, "Tls handshake failed; " + details))
    assert failure.message.endswith("the words of OpenSSL.")


def test_peer_that_refuses_the_certificate_is_quoted_in_part():
    failure = failure_of(error(grpc.StatusCode.UNAUTHENTICATED, "tls: " + "x" * 10_000))
    assert failure == BadTCP("tls")
    assert "refused this node's certificate" in failure.message
    assert len(failure.message) < 1_000
