"""TLS between nodes: the files as they are now, and who is at the other end.

Rules: TLS is mutual, 1.2 or newer; a certificate of the authority is not any node's, so each
side compares the names in what the other shows with the node that it speaks to. A server sees
the client's certificate on its stream (`ServerStream.certificate`). A client of gRPC in Python
does not see the server's: `check_server` therefore opens a TLS connection of its own first,
and gRPC is then dialled with the certificate that was seen there as the only one to trust.
So nobody else can answer in between, and what fails has a reason, which gRPC would not give.

Files that change are taken over at the next handshake, without a restart; open streams stay.
Any thread may use `Certificates`; `check_server` blocks and is for a thread of the Resolver.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from genrpc.errors import BadTCP, ConfigurationError, error_of
from genrpc.security import (
    Identities,
    TlsFiles,
    fingerprint,
    identities,
    load_tls,
    names_node,
)
from genrpc.settings import Settings

log = logging.getLogger("genrpc.tls")

# A client begins so, and may wait for the server's settings then (RFC 9113, section 3.4).
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

MAX_SHOWN = 300
"""Characters of a stranger's names that go into a message."""

_WORDS = {
    errno.ECONNREFUSED: "econnrefused",
    errno.EHOSTUNREACH: "ehostunreach",
    errno.ENETUNREACH: "enetunreach",
    errno.ETIMEDOUT: "connect_timeout",
}

# What OpenSSL says of an answer that is no TLS; its releases differ.
_NO_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "UNKNOWN_PROTOCOL",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNEXPECTED_MESSAGE",
    }
)

Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client shows, and the one server that it accepts."""

    certificate: bytes
    key: bytes = field(repr=False)
    address: str
    server: bytes
    """The server's certificate, PEM."""
    server_name: str
    """A name in it that gRPC can check."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The files as they were at one time, and what Python's ssl made of them."""

    files: TlsFiles
    context: ssl.SSLContext


class Certificates:
    """A node's certificate, its key and the authority, as its files have them now.

    Making one raises ConfigurationError if the files cannot be used. Files that become so
    later are logged, and the former ones stay in use.
    """

    def __init__(self, settings: Settings, node: str) -> None:
        self._settings = settings
        self._node = node
        self._lock = threading.Lock()
        self._complaint = ""
        self._stamps = self._look()  # before they are read: what changes meanwhile is read again
        self._loaded = self._load()

    def current(self) -> Loaded:
        """Return the files, read again if they have changed."""
        stamps = self._look()
        if stamps != self._stamps:
            with self._lock:
                self._reload(stamps)
        return self._loaded

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a listener, which asks for the files at each handshake."""
        shown = self._loaded

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            loaded = self.current()
            if loaded is shown:
                return None
            shown = loaded
            return _configuration(loaded)

        return grpc.dynamic_ssl_server_credentials(_configuration(shown), changed, True)

    def _look(self) -> Stamps:
        settings = self._settings
        return tuple(
            _stamp(path) for path in (settings.certfile, settings.keyfile, settings.cacertfile)
        )

    def _reload(self, stamps: Stamps) -> None:
        try:
            loaded = self._load()
        except ConfigurationError as error:
            # Perhaps only half of them are renewed by now: each handshake tries again.
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning(
                    "The TLS files of %s have changed and cannot be used, the former ones stay"
                    " in use: %s",
                    self._node,
                    error,
                )
            return
        self._stamps, self._complaint = stamps, ""
        if fingerprint(loaded.files) != fingerprint(self._loaded.files):
            self._loaded = loaded
            log.info(
                "The TLS files of %s have changed and are in use; the certificate ends on %s UTC",
                self._node,
                f"{loaded.files.expires:%Y-%m-%d %H:%M}",
            )

    def _load(self) -> Loaded:
        files = load_tls(self._settings)
        assert files is not None  # whoever makes Certificates has set them
        loaded = Loaded(files, _context(self._settings))
        if not names_node(_identities(files.certificate), self._node):
            # Peers refuse it; this node may still be of use within its process.
            log.warning(
                "The certificate %s does not name %s but %s, so every peer will refuse it: make"
                " one for this node (`genrpc cert new %s`), or start the node by that name",
                self._settings.certfile,
                self._node,
                _list(_identities(files.certificate)),
                self._node,
            )
        return loaded


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path or "")
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _configuration(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
    files = loaded.files
    return grpc.ssl_server_certificate_configuration(
        [(files.key, files.certificate)], files.authority
    )


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The host does not count, the node does: check_server compares it.
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As gRPC does: an authority in the file is trusted, also where another has signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    assert settings.certfile is not None
    try:
        # With a password, for OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.certfile, settings.keyfile, password="")
        context.load_verify_locations(settings.cacertfile)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The TLS files {settings.certfile}, {settings.keyfile} and {settings.cacertfile}"
            f" are refused by OpenSSL: {error}."
        ) from None
    return context


# ------------------------------------------------------------------ names


def certificate_fault(certificate: bytes, node: str) -> str | None:
    """Say why a client that showed this certificate is not `node`; None if it may be."""
    names = _identities(certificate)
    if names_node(names, node):
        return None
    return (
        f"the caller says that it is {node[:MAX_SHOWN]!r} but shows a certificate of"
        f" {_list(names)}: it needs one that was made for its name"
    )


def _identities(certificate: bytes) -> Identities:
    try:
        return identities(certificate)
    except ValueError:  # the TLS libraries could read it, but its names are no names
        return Identities()


def _list(names: Identities) -> str:
    return ", ".join((*names.uris, *names.dns, *names.ips))[:MAX_SHOWN] or "nobody"


# ------------------------------------------------------------------ looking at a server


def check_server(
    certificates: Certificates, node: str, addresses: Sequence[str], port: int, deadline: float
) -> ClientTls:
    """Find the first address where `node` proves to be, and return how to dial it.

    `deadline` is on the clock of `time.monotonic`. Raises TransportError: nobody is there, or
    TLS fails, or what is shown there is no certificate of `node`.
    """
    loaded = certificates.current()
    failures = []
    for position, address in enumerate(addresses):
        # An address that does not answer must leave time for those after it.
        share = (deadline - time.monotonic()) / (len(addresses) - position)
        found = _look_at(loaded, node, address, port, time.monotonic() + share)
        if isinstance(found, ClientTls):
            return found
        failures.append(found)
    # Where something speaks TLS, that it is the wrong one tells more than that others are absent.
    raise error_of(next((each for each in failures if each.reason == "tls"), failures[-1]))


def _look_at(
    loaded: Loaded, node: str, address: str, port: int, deadline: float
) -> ClientTls | BadTCP:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        with socket.create_connection((address, port), _left(deadline)) as plain:
            shown = _handshake(loaded.context, plain, where, deadline)
    except TimeoutError:
        return BadTCP("connect_timeout", "not_started")
    except OSError as error:
        word = _WORDS.get(error.errno or 0, "closed")
        return BadTCP(word, "not_started", f"{where}: {error}." if word == "closed" else "")
    if isinstance(shown, BadTCP):
        return shown
    names = _identities(shown)
    if not names_node(names, node):
        return _tls(
            f"{where} shows a certificate of {_list(names)}, not of {node}: correct the address,"
            " or give the node there a certificate of its name."
        )
    name = next(iter((*names.dns, *names.ips)), None) or _common_name(shown)
    if name is None:
        return _tls(
            f"The certificate of {node} has a URI only, and gRPC wants a DNS name, an IP address"
            " or a common name as well: make a new one (`genrpc cert new`)."
        )
    files = loaded.files
    server = ssl.DER_cert_to_PEM_cert(shown).encode()
    return ClientTls(files.certificate, files.key, address, server, name)


def _handshake(
    context: ssl.SSLContext, plain: socket.socket, where: str, deadline: float
) -> bytes | BadTCP:
    """Return the certificate that a server shows, DER, once it has accepted ours."""
    with context.wrap_socket(plain, do_handshake_on_connect=False) as line:
        line.settimeout(_left(deadline))
        try:
            line.do_handshake()
        except (ssl.SSLEOFError, ConnectionError):
            if line.cipher() is None:  # not even a hello came
                raise
            return _refused(where)
        except ssl.SSLError as error:
            return _tls_failure(where, error)
        shown = line.getpeercert(binary_form=True)
        assert shown is not None  # CERT_REQUIRED
        # In TLS 1.3 the server looks at our certificate only now. gRPC gives no alert then, it
        # hangs up.
        line.settimeout(_left(deadline))
        try:
            line.sendall(HTTP2_PREFACE)
            answered = bool(line.recv(1024))
        except TimeoutError:
            raise
        except OSError:
            answered = False
        return shown if answered else _refused(where)


def _left(deadline: float) -> float:
    """Seconds until then; never 0, with which a socket would not wait but fail at once."""
    return max(0.001, deadline - time.monotonic())


def _common_name(certificate: bytes) -> str | None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    subject = x509.load_der_x509_certificate(certificate).subject
    return next(
        (str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)), None
    )


def _tls(message: str) -> BadTCP:
    return BadTCP("tls", "not_started", message)


def _refused(where: str) -> BadTCP:
    return _tls(
        f"{where} hung up when it saw this node's certificate: most likely another authority has"
        " signed it, or it has expired. Both nodes need certificates of the same cacertfile."
    )


def _tls_failure(where: str, error: ssl.SSLError) -> BadTCP:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _tls(
            f"The certificate that {where} shows is not accepted here: {error.verify_message}."
            " Both nodes need certificates of the same cacertfile that have not expired."
        )
    if error.reason in _NO_TLS:
        return _tls(
            f"What answers at {where} does not speak TLS: set certfile, keyfile and cacertfile on"
            " the node there, or on neither."
        )
    if "ALERT" in (error.reason or ""):
        return _tls(f"{where} refuses this node in the TLS handshake: {error.reason}.")
    return _tls(f"The TLS handshake with {where} failed: {error.reason or error}.")
