"""TLS between nodes: who may talk to whom, what the refused are told, and files that change."""

import datetime
import logging
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from genrpc.errors import (
    BadTCP,
    CallError,
    ConfigurationError,
    NotAllowedError,
    TransportError,
    UnsafeConfigurationError,
)
from genrpc.local_node import Node
from genrpc.security import make_authority, make_certificate
from genrpc.settings import Settings
from genrpc.transport.channel import CONNECT
from genrpc.transport.tls import Certificates, certificate_fault, check_server

COOKIE = "a cookie for these tests"
WAIT = 10.0

Files = dict[str, str]
Start = Callable[..., Node]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts nodes, on free ports, that end with the test."""
    nodes: list[Node] = []

    def start(name: str, files: Files | None = None, **settings: object) -> Node:
        node = Node(
            name,
            Settings(**{"tcp_server_port": 0, "cookie": COOKIE, **(files or {}), **settings}),
        )
        nodes.append(node)
        return node.start()

    yield start
    for node in nodes:
        node.stop(0)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    make_authority(tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def other_authority(tmp_path: Path) -> Path:
    make_authority(tmp_path / "two")
    return tmp_path / "two"


def made(authority: Path, node: str) -> Files:
    """The settings of a new certificate, with a copy of its authority's."""
    certificate = make_certificate(authority, node, ca_directory=authority)
    ca = shutil.copy(authority / "ca.crt", authority / f"{node}.ca")
    return {
        "certfile": str(certificate.certificate),
        "keyfile": str(certificate.key),
        "cacertfile": str(ca),
    }


def written(directory: Path, leaf: trustme.LeafCert, ca: trustme.CA) -> Files:
    """The settings of a certificate of trustme's."""
    directory.mkdir()
    leaf.private_key_pem.write_to_path(directory / "key")
    (directory / "key").chmod(0o600)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(directory / "certificate", append=True)
    ca.cert_pem.write_to_path(directory / "ca")
    return {
        "certfile": str(directory / "certificate"),
        "keyfile": str(directory / "key"),
        "cacertfile": str(directory / "ca"),
    }


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def with_uri_only(
    directory: Path,
    node: str,
    subject: list[x509.NameAttribute],
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> Files:
    """The settings of a certificate that no host stands in, and that is its own authority."""
    directory.mkdir()
    now = datetime.datetime.now(datetime.timezone.utc)
    uri = x509.UniformResourceIdentifier(f"genrpc://{node}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "certificate").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key").touch(0o600)
    (directory / "key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return {
        "certfile": str(directory / "certificate"),
        "keyfile": str(directory / "key"),
        "cacertfile": str(directory / "certificate"),
    }


def at(node: Node, name: str | None = None) -> str:
    return f"{name or node.name}:{node.port}"


def ask(caller: Node, dest: object) -> object:
    return caller.call(dest, "operator", "add", [2, 3], WAIT)


def refused(caller: Node, dest: object) -> BadTCP:
    """The failure of a call, which certainly has not run."""
    with pytest.raises(TransportError) as caught:
        ask(caller, dest)
    failure = caught.value.value
    assert isinstance(failure, BadTCP)
    assert failure.execution == "not_started"
    return failure


def replace(files: Files, by: Files) -> None:
    """Put the content of other files in place of these, as a renewal does."""
    for name, path in files.items():
        draft = f"{path}.new"
        shutil.copy(by[name], draft)
        os.replace(draft, path)


def client_context(files: Files, *, shows: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files["cacertfile"])
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if shows:
        context.load_cert_chain(files["certfile"], files["keyfile"])
    return context


def server_context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certfile"], files["keyfile"])
    context.load_verify_locations(files["cacertfile"])
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def first_words(context: ssl.SSLContext, port: int) -> bytes:
    """What a server says first on a TLS connection; b"": it hung up."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), WAIT) as plain,
            context.wrap_socket(plain) as line,
        ):
            return line.recv(100)
    except (ssl.SSLEOFError, ConnectionResetError):
        return b""


@contextmanager
def server(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that is no node: `serve` is given each connection. The port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                line.settimeout(WAIT)
                with suppress(OSError):  # the client hung up
                    serve(line)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # Closing alone would leave `accept` waiting.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(WAIT)


# ---------------------------------------------------------------- who may talk


def test_nodes_of_one_authority_call_each_other(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    assert ask(a, at(b)) == 5
    assert ask(b, at(a)) == 5


def test_large_calls_go_through_tls(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    data = os.urandom(9_000_000)
    assert a.call(at(b), "builtins", "bytes", [data], WAIT) == data


def test_nothing_goes_over_the_wire_in_clear(start, authority):
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    heard = bytearray()

    def pass_on(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                heard.extend(data)
                other.sendall(data)
        with suppress(OSError):  # the other way may have been cut before
            other.shutdown(socket.SHUT_RDWR)

    def listen_in(line: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", b.port), WAIT) as onward:
            back = threading.Thread(target=pass_on, args=(onward, line), daemon=True)
            back.start()
            pass_on(line, onward)
            back.join(WAIT)

    with server(listen_in) as port:
        text = "a marked argument"
        assert a.call(f"b@127.0.0.1:{port}", "builtins", "str", [text], WAIT) == text
        a.stop(0)
    assert b"b@127.0.0.1" not in heard.replace(b"genrpc://b@127.0.0.1", b"")
    assert text.encode() not in heard


def test_a_node_calls_itself_without_a_connection(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"), tcp_server_port=None)
    assert ask(a, a.name) == 5


def test_the_cookie_is_wanted_under_tls_too(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"), cookie="another cookie, as long")
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    with pytest.raises(NotAllowedError) as caught:
        ask(a, at(b))
    assert caught.value.reason == "invalid_cookie"


def test_node_with_a_host_name(start, authority):
    # The name has two addresses, and on one of them nobody listens.
    a = start("a@localhost", made(authority, "a@localhost"))
    b = start("b@localhost", made(authority, "b@localhost"))
    assert ask(a, at(b)) == 5


def test_without_a_uri_the_host_counts(start, tmp_path):
    ca = trustme.CA()
    a = start("a@127.0.0.1", written(tmp_path / "a", ca.issue_cert("127.0.0.1"), ca))
    b = start("b@localhost", written(tmp_path / "b", ca.issue_cert("localhost"), ca))
    assert ask(a, at(b)) == 5
    assert ask(b, at(a)) == 5


def test_without_a_uri_another_host_is_another_node(start, tmp_path):
    ca = trustme.CA()
    a = start("a@127.0.0.1", written(tmp_path / "a", ca.issue_cert("127.0.0.1"), ca))
    b = start("b@127.0.0.1", written(tmp_path / "b", ca.issue_cert("10.0.0.1", "db.test"), ca))
    assert "shows a certificate of db.test, 10.0.0.1, not of b@127.0" in refused(a, at(b)).message
    assert refused(b, at(a)).reason == "tls"


def test_a_chain_with_an_intermediate_is_followed(start, tmp_path):
    root = trustme.CA()
    a = written(tmp_path / "a", root.create_child_ca().issue_cert("127.0.0.1"), root)
    b = written(tmp_path / "b", root.create_child_ca().issue_cert("127.0.0.1"), root)
    assert ask(start("a@127.0.0.1", a), at(start("b@127.0.0.1", b))) == 5


def test_a_certificate_with_a_uri_and_a_common_name_will_do(start, tmp_path):
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, "b node")]
    files = with_uri_only(tmp_path / "b", "b@127.0.0.1", subject, new_key())
    b = start("b@127.0.0.1", files)
    a = start("a@127.0.0.1", files)
    # Its own certificate is the only authority, so `a` shows b's: b refuses it, later.
    failure = refused(a, at(b))
    assert "says that it is 'a@127.0.0.1'" in failure.message


def test_a_certificate_with_nothing_but_a_uri_is_told_of(start, tmp_path):
    subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nobody")]
    files = with_uri_only(tmp_path / "b", "b@127.0.0.1", subject, new_key())
    b = start("b@127.0.0.1", files)
    failure = refused(start("a@127.0.0.1", files), at(b))
    assert failure.reason == "tls"
    assert "has a URI only" in failure.message


# ---------------------------------------------------------------- who may not


def test_certificate_of_another_authority(start, authority, other_authority):
    a = start("a@127.0.0.1", made(other_authority, "a@127.0.0.1"))
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    failure = refused(a, at(b))
    assert failure.reason == "tls"
    assert "same cacertfile" in failure.message


def test_server_refuses_a_certificate_of_another_authority(
    start, authority, other_authority, tmp_path
):
    both = tmp_path / "both"
    both.write_bytes(
        (authority / "ca.crt").read_bytes() + (other_authority / "ca.crt").read_bytes()
    )
    files = {**made(other_authority, "a@127.0.0.1"), "cacertfile": str(both)}
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    failure = refused(start("a@127.0.0.1", files), at(b))
    assert failure.reason == "tls"
    assert "hung up when it saw this node's certificate" in failure.message


def test_server_with_the_certificate_of_another_node(start, authority, caplog):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    b = start("b@127.0.0.1", made(authority, "c@127.0.0.1"))
    failure = refused(a, at(b))
    assert failure.reason == "tls"
    assert "shows a certificate of genrpc://c@127.0.0.1" in failure.message
    assert "does not name b@127.0.0.1 but genrpc://c@127.0.0.1" in caplog.text


def test_another_node_answers_at_the_address(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    assert refused(a, at(b, "c@127.0.0.1")).reason == "tls"


def test_client_with_the_certificate_of_another_node(start, authority, caplog):
    a = start("a@127.0.0.1", made(authority, "c@127.0.0.1"))
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    failure = refused(a, at(b))
    assert failure.reason == "tls"
    assert "says that it is 'a@127.0.0.1' but shows a certificate of genrpc://c@" in failure.message
    assert b.statistics()["streams_tls"] == 1
    assert "reason=tls detail=\"the caller says that it is 'a@127.0.0.1'" in caplog.text


@pytest.mark.parametrize("shows", [True, False], ids=["of another authority", "none"])
def test_client_without_a_certificate_is_not_heard(shows, start, authority, other_authority):
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    files = {**made(other_authority, "a@127.0.0.1"), "cacertfile": str(authority / "ca.crt")}
    assert first_words(client_context(files, shows=shows), b.port) == b""
    assert "streams_accepted" not in b.statistics()


def test_grpc_client_without_a_certificate_is_not_heard(start, authority):
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    credentials = grpc.ssl_channel_credentials((authority / "ca.crt").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{b.port}", credentials) as channel:
        replies = channel.stream_stream(CONNECT)(iter([b""]), timeout=WAIT)
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_expired_client_certificate_is_not_heard(start, tmp_path):
    ca = trustme.CA()
    b = start("b@127.0.0.1", written(tmp_path / "b", ca.issue_cert("127.0.0.1"), ca))
    old = ca.issue_cert("127.0.0.1", not_after=expired())
    assert first_words(client_context(written(tmp_path / "a", old, ca)), b.port) == b""
    good = ca.issue_cert("127.0.0.1")
    assert first_words(client_context(written(tmp_path / "c", good, ca)), b.port) != b""


def shaking_hands(context: ssl.SSLContext) -> Callable[[socket.socket], object]:
    """Serve by a TLS handshake, whatever comes of it, and no more."""

    def serve(line: socket.socket) -> None:
        talk = context.wrap_socket(line, server_side=True, do_handshake_on_connect=False)
        with suppress(OSError):
            talk.do_handshake()
        with socket.socket(fileno=talk.detach()) as plain:
            plain.settimeout(WAIT)
            finish(plain)

    return serve


def finish(line: socket.socket) -> None:
    """End a connection so that what was sent is read: unread bytes would make it a reset."""
    line.shutdown(socket.SHUT_WR)
    while line.recv(65536):
        pass


def test_expired_server_certificate(start, tmp_path):
    ca = trustme.CA()
    a = start("a@127.0.0.1", written(tmp_path / "a", ca.issue_cert("127.0.0.1"), ca))
    old = ca.issue_cert("127.0.0.1", not_after=expired())
    context = server_context(written(tmp_path / "b", old, ca))
    with server(shaking_hands(context)) as port:
        failure = refused(a, f"b@127.0.0.1:{port}")
    assert failure.reason == "tls"
    assert "expired" in failure.message


def expired() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)


def test_tls_to_a_plaintext_node(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    failure = refused(a, at(start("b@127.0.0.1")))
    assert failure.reason == "tls"
    assert "does not speak TLS" in failure.message


def test_plaintext_to_a_tls_node(start, authority):
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    assert refused(start("a@127.0.0.1"), at(b)).reason in ("closed", "tls")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_older_than_1_2_is_refused(version, start, authority):
    files = made(authority, "b@127.0.0.1")
    b = start("b@127.0.0.1", files)
    context = client_context(files)
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")  # else this side does not even try
    assert first_words(context, b.port) == b""


def test_tls_1_2_is_good_enough(start, authority):
    files = made(authority, "b@127.0.0.1")
    b = start("b@127.0.0.1", files)
    context = client_context(files)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert first_words(context, b.port)


# ---------------------------------------------------------------- what else may be there


def test_alert_in_the_handshake_is_told_of(start, authority, other_authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    context = server_context(
        {**made(authority, "b@127.0.0.1"), "cacertfile": str(other_authority / "ca.crt")}
    )
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with server(shaking_hands(context)) as port:
        failure = refused(a, f"b@127.0.0.1:{port}")
    assert failure.reason == "tls"
    assert "ALERT_UNKNOWN_CA" in failure.message


def test_alert_after_the_handshake_is_told_of(start, authority, other_authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    context = server_context(
        {**made(authority, "b@127.0.0.1"), "cacertfile": str(other_authority / "ca.crt")}
    )
    with server(shaking_hands(context)) as port:
        failure = refused(a, f"b@127.0.0.1:{port}")
    assert failure.reason == "tls"
    assert "hung up" in failure.message


def test_server_that_hangs_up_in_the_handshake(start, authority):
    # As gRPC does with TLS 1.2 when it does not like the client's certificate.
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    context = server_context(made(authority, "b@127.0.0.1"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def hello_and_no_more(line: socket.socket) -> None:
        hers, ours = ssl.MemoryBIO(), ssl.MemoryBIO()
        talk = context.wrap_bio(hers, ours, server_side=True)
        hers.write(line.recv(65536))
        with pytest.raises(ssl.SSLWantReadError):
            talk.do_handshake()
        line.sendall(ours.read())
        finish(line)

    with server(hello_and_no_more) as port:
        failure = refused(a, f"b@127.0.0.1:{port}")
    assert failure.reason == "tls"
    assert "hung up" in failure.message


def test_handshake_that_cannot_succeed(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))

    def garbled(line: socket.socket) -> None:
        line.recv(65536)
        line.sendall(b"\x16\x03\x03\x00\x04\x02\x00\x00\x00")  # a ServerHello without content
        line.recv(65536)

    with server(garbled) as port:
        failure = refused(a, f"b@127.0.0.1:{port}")
    assert failure.reason == "tls"
    assert "failed" in failure.message


def test_peer_that_closes_without_a_word(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    with server(lambda line: line.recv(65536)) as port:
        assert refused(a, f"b@127.0.0.1:{port}").reason == "closed"


def test_peer_that_says_nothing(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"), connect_timeout=0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert refused(a, f"b@127.0.0.1:{port}").reason == "connect_timeout"


def test_peer_that_says_nothing_after_the_handshake(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"), connect_timeout=0.5)
    context = server_context(made(authority, "b@127.0.0.1"))

    def fall_silent(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as talk:
            while talk.recv(65536):
                pass

    with server(fall_silent) as port:
        assert refused(a, f"b@127.0.0.1:{port}").reason == "connect_timeout"


def test_nobody_listens(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"), connect_timeout=None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refused(a, f"b@127.0.0.1:{port}").reason == "econnrefused"


def test_no_such_host(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    assert refused(a, "b@nowhere.invalid").reason == "nxdomain"


def test_refused_dials_leave_nothing_open(start, authority, other_authority):
    a = start("a@127.0.0.1", made(other_authority, "a@127.0.0.1"))
    b = start("b@127.0.0.1", made(authority, "b@127.0.0.1"))
    process = psutil.Process()

    def dials() -> int:
        for key in range(5):
            refused(a, (at(b), key))
        return sum(c.raddr != () and c.raddr.port == b.port for c in process.net_connections())

    assert dials() == 0
    assert not [t for t in threading.enumerate() if t.name == "genrpc-resolve" and t.is_alive()]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_key_that_others_can_use_is_refused(mode, start, authority):
    files = made(authority, "a@127.0.0.1")
    os.chmod(files["keyfile"], mode)
    with pytest.raises(UnsafeConfigurationError, match="chmod 600"):
        start("a@127.0.0.1", files)


def test_key_of_another_certificate_is_refused(start, authority):
    files = {
        **made(authority, "a@127.0.0.1"),
        "keyfile": made(authority, "b@127.0.0.1")["keyfile"],
    }
    with pytest.raises(ConfigurationError, match="does not belong"):
        start("a@127.0.0.1", files)


def test_files_that_openssl_does_not_take_are_refused(start, tmp_path):
    weak = rsa.generate_private_key(65537, 1024)
    files = with_uri_only(tmp_path / "a", "a@127.0.0.1", [], weak)
    with pytest.raises(ConfigurationError, match=r"refused by OpenSSL: .*KEY_TOO_SMALL"):
        start("a@127.0.0.1", files)


def test_renewed_files_of_a_server_are_taken_over(start, authority, other_authority, caplog):
    caplog.set_level(logging.INFO, "genrpc")
    files = made(authority, "b@127.0.0.1")
    b = start("b@127.0.0.1", files)
    old = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    new = start("a@127.0.0.1", made(other_authority, "a@127.0.0.1"))
    assert ask(old, at(b)) == 5
    assert refused(new, at(b)).reason == "tls"
    replace(files, made(other_authority, "b@127.0.0.1"))
    assert ask(new, at(b)) == 5
    assert refused(old, (at(b), "a new stream")).reason == "tls"
    assert ask(old, at(b)) == 5  # on the stream that was open
    assert caplog.text.count("have changed and are in use") == 1


def test_renewed_files_of_a_client_are_taken_over(start, authority, other_authority):
    files = made(authority, "a@127.0.0.1")
    a = start("a@127.0.0.1", files)
    b = start("b@127.0.0.1", made(other_authority, "b@127.0.0.1"))
    assert refused(a, at(b)).reason == "tls"
    replace(files, made(other_authority, "a@127.0.0.1"))
    assert ask(a, at(b)) == 5


def test_files_that_are_written_anew_without_a_change_are_not_told_of(start, authority, caplog):
    caplog.set_level(logging.INFO, "genrpc")
    files = made(authority, "b@127.0.0.1")
    b = start("b@127.0.0.1", files)
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    replace(files, {**files})
    assert ask(a, at(b)) == 5
    assert "have changed" not in caplog.text


def test_former_files_stay_in_use_while_the_new_ones_are_broken(
    start, authority, other_authority, caplog
):
    caplog.set_level(logging.INFO, "genrpc")
    files = made(authority, "b@127.0.0.1")
    b = start("b@127.0.0.1", files)
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    renewed = made(other_authority, "b@127.0.0.1")
    replace({"certfile": files["certfile"]}, renewed)  # the key follows later
    for key in range(3):
        assert ask(a, (at(b), key)) == 5
    assert caplog.text.count("cannot be used, the former ones stay") == 1
    os.remove(files["keyfile"])
    assert ask(a, (at(b), "no key")) == 5
    assert "There is no key file" in caplog.text
    replace(files, renewed)
    assert refused(a, (at(b), "renewed")).reason == "tls"
    assert "are in use; the certificate ends on" in caplog.text


def certificates_of(files: Files, node: str) -> Certificates:
    return Certificates(Settings(cookie=COOKIE, **files), node)


def test_current_files_are_read_again_when_they_change(authority, other_authority):
    files = made(authority, "b@127.0.0.1")
    certificates = certificates_of(files, "b@127.0.0.1")
    former = certificates.current()
    assert certificates.current() is former
    replace(files, made(other_authority, "b@127.0.0.1"))
    renewed = certificates.current()
    assert renewed.files.certificate == Path(files["certfile"]).read_bytes()
    assert renewed.files.certificate != former.files.certificate
    replace(files, files)
    assert certificates.current() is renewed


def test_broken_files_are_told_of_once_until_they_change(authority, caplog):
    files = made(authority, "b@127.0.0.1")
    certificates = certificates_of(files, "b@127.0.0.1")
    former = certificates.current()
    key = Path(files["keyfile"]).read_bytes()
    for content in (b"no key", b"no key at all"):
        Path(files["keyfile"]).write_bytes(content)
        assert certificates.current() is former
        assert certificates.current() is former
    assert caplog.text.count("holds no private key") == 1
    os.remove(files["keyfile"])
    assert certificates.current() is former
    assert "There is no key file" in caplog.text
    Path(files["keyfile"]).touch(0o600)
    Path(files["keyfile"]).write_bytes(key)
    assert certificates.current() is former  # their content is what it was
    os.chmod(files["keyfile"], 0o644)
    Path(files["keyfile"]).write_bytes(key + b"\n")
    assert certificates.current() is former
    assert "chmod 600" in caplog.text


def test_certificate_that_cannot_be_read_is_nobodys():
    assert "a certificate of nobody" in (certificate_fault(b"garbage", "a@127.0.0.1") or "")


def test_key_never_shows(start, authority):
    files = made(authority, "a@127.0.0.1")
    a = start("a@127.0.0.1", files)
    certificates = certificates_of(files, "a@127.0.0.1")
    found = check_server(certificates, a.name, ["127.0.0.1"], a.port, time.monotonic() + WAIT)
    secret = Path(files["keyfile"]).read_text().splitlines()[1]
    assert secret not in repr(found)
    assert secret not in repr(certificates.current())


def test_failure_can_be_raised_and_shown(start, authority):
    a = start("a@127.0.0.1", made(authority, "a@127.0.0.1"))
    b = start("b@127.0.0.1")
    with pytest.raises(CallError, match="set certfile, keyfile and cacertfile") as caught:
        ask(a, at(b))
    assert isinstance(caught.value, ConnectionError)
