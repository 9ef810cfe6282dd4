"""TLS files: make them (`genrpc cert`), load and check them, and compare names with nodes.

Rules: TLS is mutual, so a node has a certificate, its key and the authority that it trusts;
a key that others can use is refused; nothing is ever overwritten. A node's certificate carries
its name as the URI `genrpc://name@host`; where there is no such URI, it speaks for every node
of the hosts that it names. Wildcards are not understood.

cryptography, ipaddress and urllib are imported by the functions that need them: most nodes
have no TLS, and `import genrpc` must stay cheap.
Files and the clock are read here, so this belongs into a starting thread, not on the loop.
Over 400 lines, since what is made has to pass what is checked: the rules stand side by side.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genrpc.errors import ConfigurationError, UnsafeConfigurationError
from genrpc.names import check_host, node_name, split_node
from genrpc.security.private_files import (
    make_private_directory,
    make_private_file,
    read_private_file,
)
from genrpc.settings import Settings

if TYPE_CHECKING:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

log = logging.getLogger("genrpc.security")

AUTHORITY = "ca"
"""The authority's files are ca.crt and ca.key."""

_URI_SCHEME = "genrpc://"
# Clocks of two machines differ; a certificate made a moment ago must be good on both.
_CLOCK_TOLERANCE = datetime.timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class MadeCertificate:
    """Where a new certificate and its key are, and when it ends (UTC)."""

    certificate: Path
    key: Path
    expires: datetime.datetime


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The content of the three TLS files, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    expires: datetime.datetime
    """When the node's own certificate ends (UTC)."""


@dataclass(frozen=True, slots=True)
class Identities:
    """The subject alternative names of a certificate; IP addresses in their usual spelling."""

    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()


# ------------------------------------------------------------------ making


def make_authority(
    directory: str | os.PathLike[str], *, name: str = "genrpc CA", days: int = 3650
) -> MadeCertificate:
    """Make a certificate authority: `ca.crt` and, with mode 0600, `ca.key`.

    `directory` is made, with mode 0700, if it is missing. Raises ConfigurationError if there is
    an authority already, or if the files cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key.public_key(), _end(days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    return _sign_and_write(Path(directory), AUTHORITY, builder, key, key)


def make_certificate(
    directory: str | os.PathLike[str],
    node: str,
    *,
    ca_directory: str | os.PathLike[str],
    days: int = 397,
    names: Sequence[str] = (),
) -> MadeCertificate:
    """Make a certificate for `node`, `<node>.crt`, and its key, `<node>.key` with mode 0600.

    It is good for both ends of a stream, for the node's host and for the further host names
    and addresses in `names`. It ends after `days`, but not after its authority. Raises
    ValueError for what is no name, ConfigurationError if the files are there already or cannot
    be written, or if there is no usable authority in `ca_directory`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    node = node_name(node)
    ca, ca_key = _load_authority(Path(ca_directory))
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    end = min(_end(days), ca.not_valid_after_utc)
    builder = (
        _builder(_subject(node), ca.subject, key.public_key(), end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(node, names)), critical=False)
    )
    return _sign_and_write(Path(directory), node, builder, key, ca_key)


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    # X.520 gives a common name 64 characters; nobody compares it, the names above count.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _end(days: int) -> datetime.datetime:
    if days < 1:
        raise ValueError(f"A certificate is good for 1 day or more, not {days}.")
    return _now() + datetime.timedelta(days=days)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _CLOCK_TOLERANCE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(node: str, names: Sequence[str]) -> list[x509.GeneralName]:
    from cryptography import x509

    _, host = split_node(node)
    hosts = [host, *(check_host(name) for name in names)]
    if _is_loopback(host):
        hosts += ["localhost", "127.0.0.1"]
    found: list[x509.GeneralName] = [x509.UniformResourceIdentifier(_uri(node))]
    for name in dict.fromkeys(hosts):
        address = _address(name)
        if address is not None:
            found.append(x509.IPAddress(address))
        elif name.isascii():
            found.append(x509.DNSName(name))
        else:
            raise ValueError(f"{name!r} cannot stand in a certificate: write its xn-- form.")
    return found


def _uri(node: str) -> str:
    """Spell a node as a URI; what is no ASCII letter in its name is percent-encoded."""
    import urllib.parse

    return _URI_SCHEME + urllib.parse.quote(node, safe="@[]:!$*+~", errors="replace")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    import ipaddress

    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host.lower() == "localhost"
    # Before Python 3.13, ::ffff:127.0.0.1 does not count as loopback.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _sign_and_write(
    directory: Path,
    name: str,
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signing_key: ec.EllipticCurvePrivateKey,
) -> MadeCertificate:
    from cryptography.hazmat.primitives import hashes, serialization

    certificate = builder.sign(signing_key, hashes.SHA256())
    stem = re.sub(r"[^\w.@+-]", "_", name)
    made = MadeCertificate(
        directory / f"{stem}.crt", directory / f"{stem}.key", certificate.not_valid_after_utc
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_pair(made, certificate.public_bytes(serialization.Encoding.PEM), key_pem)
    return made


def _write_pair(made: MadeCertificate, certificate_pem: bytes, key_pem: bytes) -> None:
    """Write both files or, with ConfigurationError, none."""
    try:
        make_private_directory(made.key.parent)
        _write_new(made.key, key_pem)
        try:
            _write_new(made.certificate, certificate_pem)
            made.certificate.chmod(0o644)
        except BaseException:
            made.key.unlink()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"The files {made.certificate} and {made.key} cannot be written: "
            f"{error.strerror or error}."
        ) from error


def _write_new(path: Path, content: bytes) -> None:
    if not make_private_file(path, content):
        raise ConfigurationError(
            f"{path} exists and is not overwritten: remove it, or choose another directory."
        )


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography.hazmat.primitives.asymmetric import ec

    certificate_path, key_path = directory / f"{AUTHORITY}.crt", directory / f"{AUTHORITY}.key"
    if not certificate_path.exists():
        raise ConfigurationError(
            f"There is no certificate authority in {directory}, no {AUTHORITY}.crt: make one first."
        )
    (certificate, *_) = _certificates(_read(certificate_path), certificate_path)
    key = _private_key(_read_key(key_path), key_path)
    # One that was made elsewhere may have an RSA key, which would sign as well; but then
    # its owner has the tools to sign with it.
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"The key {key_path} is not of the kind that genrpc makes (EC).")
    _check_pair(certificate, certificate_path, key, key_path)
    return certificate, key


# ------------------------------------------------------------------ loading


def load_tls(settings: Settings) -> TlsFiles | None:
    """Read and check the TLS files of these settings; None if they name none.

    Raises UnsafeConfigurationError if others can use the key, ConfigurationError if a file
    cannot be read or parsed, if key and certificate do not belong together, or if the
    certificate or every authority is expired.
    """
    if settings.certfile is None or settings.keyfile is None or settings.cacertfile is None:
        return None  # Settings sees to it that it is all or none
    certificate_path, key_path = Path(settings.certfile), Path(settings.keyfile)
    authority_path = Path(settings.cacertfile)
    key_pem = _read_key(key_path)
    certificate_pem, authority_pem = _read(certificate_path), _read(authority_path)
    (certificate, *_) = _certificates(certificate_pem, certificate_path)
    _check_pair(certificate, certificate_path, _private_key(key_pem, key_path), key_path)
    authorities = _certificates(authority_pem, authority_path)
    # A bundle may keep an old authority beside its successor: the last to expire counts.
    _check_dates(max(authorities, key=lambda ca: ca.not_valid_after_utc), authority_path)
    return TlsFiles(certificate_pem, key_pem, authority_pem, certificate.not_valid_after_utc)


def check_key_file(path: str | os.PathLike[str]) -> None:
    """Raise UnsafeConfigurationError if others can use this key file."""
    _read_key(Path(path))


def fingerprint(files: TlsFiles) -> str:
    """Tell apart different contents of the three files, so that a reload notices new ones."""
    parts = (files.certificate, files.key, files.authority)
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The certificate file {path} cannot be read: {error.strerror or error}."
        ) from error


def _read_key(path: Path) -> bytes:
    try:
        return read_private_file(path, "key file")
    except FileNotFoundError as error:
        raise ConfigurationError(f"There is no key file {path}.") from error


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigurationError(f"The file {path} holds no certificate in PEM form.") from error


def _private_key(pem: bytes, path: Path) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise ConfigurationError(
            f"The key in {path} is encrypted, and genrpc has no way to ask for its password. "
            f"Decrypt it into a file of mode 0600, for example with `openssl pkey`."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        # Without the cause: parsers like to quote what they could not parse.
        raise ConfigurationError(f"The file {path} holds no private key in PEM form.") from None


def _check_pair(
    certificate: x509.Certificate, certificate_path: Path, key: PrivateKeyTypes, key_path: Path
) -> None:
    if _public_bytes(certificate.public_key()) != _public_bytes(key.public_key()):
        raise ConfigurationError(
            f"The key {key_path} does not belong to the certificate {certificate_path}."
        )
    _check_dates(certificate, certificate_path)


def _public_bytes(key: PublicKeyTypes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_dates(certificate: x509.Certificate, path: Path) -> None:
    start, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, _now()
    if now > end:
        raise ConfigurationError(
            f"The certificate {path} expired on {end:%Y-%m-%d %H:%M} UTC. Make a new one: "
            "`genrpc cert`."
        )
    if now < start:
        raise ConfigurationError(
            f"The certificate {path} is good from {start:%Y-%m-%d %H:%M} UTC only. "
            "Is this machine's clock right?"
        )


# ------------------------------------------------------------------ names


def identities(certificate: bytes) -> Identities:
    """Return the names in a certificate, PEM (the first, if it is a chain) or DER.

    Raises ValueError if it cannot be parsed.
    """
    from cryptography import x509

    try:
        if certificate.lstrip().startswith(b"-----BEGIN"):
            parsed = x509.load_pem_x509_certificate(certificate)
        else:
            parsed = x509.load_der_x509_certificate(certificate)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Identities()
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"This is no certificate that can be read: {error}") from error
    return Identities(
        uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
        dns=tuple(names.get_values_for_type(x509.DNSName)),
        ips=tuple(str(ip) for ip in names.get_values_for_type(x509.IPAddress)),
    )


def names_node(identities: Identities, node: str) -> bool:
    """Tell whether a certificate with these names speaks for `node`, a full name@host.

    With any genrpc:// URI, one of them must be this node's; without, the node's host must be
    among the DNS names or IP addresses. The text of `node` may be a stranger's.
    """
    uris = [uri for uri in identities.uris if uri.lower().startswith(_URI_SCHEME)]
    if uris:
        return _uri(node) in uris
    host = node.partition("@")[2]
    address = _address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if address is not None:
        return str(address) in identities.ips
    return bool(host) and host.lower() in (name.lower() for name in identities.dns)


# ------------------------------------------------------------------ where to listen


def is_open_to_others(settings: Settings) -> bool:
    """Tell whether other machines can connect to a node of these settings, without TLS."""
    listens = settings.tcp_server_port is not None
    return listens and settings.certfile is None and not _is_loopback(settings.listen_address)


def check_listen_address(settings: Settings) -> None:
    """Refuse to listen, without TLS, where other machines can connect.

    The cookie is proved without being sent, but calls and results would be readable and could
    be changed on their way. Raises UnsafeConfigurationError; with `insecure_listen` it warns.
    """
    if not is_open_to_others(settings):
        return
    address = settings.listen_address
    if not settings.insecure_listen:
        raise UnsafeConfigurationError(
            f"The listen_address {address} is open to other machines, and without TLS they can "
            "read and change every call. Set certfile, keyfile and cacertfile (`genrpc cert` "
            "makes them), or allow it with insecure_listen=True where the network is trusted."
        )
    log.warning(
        "listening on %s without TLS (insecure_listen): others on the network can read and "
        "change every call",
        address,
    )
