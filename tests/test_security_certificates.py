"""Certificates: made, loaded, checked, compared with node names; and where one may listen."""

import datetime
import logging
import os
import ssl
import stat
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from genrpc.errors import ConfigurationError, UnsafeConfigurationError
from genrpc.security import (
    Identities,
    MadeCertificate,
    check_key_file,
    check_listen_address,
    fingerprint,
    identities,
    load_tls,
    make_authority,
    make_certificate,
    names_node,
)
from genrpc.settings import Settings

NODE = "a@127.0.0.1"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the test alone."""
    for name in list(os.environ):
        if name.startswith("GENRPC_"):
            monkeypatch.delenv(name)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A directory with an authority."""
    make_authority(tmp_path)
    return tmp_path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def parsed(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def names_in(made: MadeCertificate) -> Identities:
    return identities(made.certificate.read_bytes())


# ---------------------------------------------------------------- making


def test_authority_can_sign_and_nothing_else(authority: Path) -> None:
    certificate = parsed(authority / "ca.crt")
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value == (
        x509.BasicConstraints(ca=True, path_length=0)
    )
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature


def test_keys_are_private_and_certificates_are_not(authority: Path) -> None:
    made = make_certificate(authority, NODE, ca_directory=authority)
    assert mode_of(authority / "ca.key") == mode_of(made.key) == 0o600
    assert mode_of(authority / "ca.crt") == mode_of(made.certificate) == 0o644
    assert sorted(os.listdir(authority)) == [
        "a@127.0.0.1.crt",
        "a@127.0.0.1.key",
        "ca.crt",
        "ca.key",
    ]


def test_certificate_names_its_node_and_its_loopback_host(authority: Path) -> None:
    made = make_certificate(authority, NODE, ca_directory=authority)
    assert names_in(made) == Identities(
        uris=("genrpc://a@127.0.0.1",), dns=("localhost",), ips=("127.0.0.1",)
    )


@pytest.mark.parametrize(
    ("node", "names", "expected"),
    [
        ("a@db.example", (), Identities(("genrpc://a@db.example",), ("db.example",))),
        ("a", (), Identities(("genrpc://a@127.0.0.1",), ("localhost",), ("127.0.0.1",))),
        (
            "a@localhost",
            (),
            Identities(("genrpc://a@localhost",), ("localhost",), ("127.0.0.1",)),
        ),
        (
            "a@[::1]",
            (),
            Identities(("genrpc://a@[::1]",), ("localhost",), ("::1", "127.0.0.1")),
        ),
        (
            "a@10.0.0.1",
            ("10.0.0.2", "db", "10.0.0.1"),
            Identities(("genrpc://a@10.0.0.1",), ("db",), ("10.0.0.1", "10.0.0.2")),
        ),
        ("ü@h", (), Identities(("genrpc://%C3%BC@h",), ("h",))),
    ],
)
def test_names_of_a_certificate(
    node: str, names: tuple[str, ...], expected: Identities, authority: Path
) -> None:
    made = make_certificate(authority, node, ca_directory=authority, names=names)
    assert names_in(made) == expected
    assert names_node(expected, node if "@" in node else f"{node}@127.0.0.1")


def test_certificate_is_good_for_both_ends_of_a_stream(authority: Path) -> None:
    certificate = parsed(make_certificate(authority, NODE, ca_directory=authority).certificate)
    purposes = certificate.extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
    assert isinstance(purposes, x509.ExtendedKeyUsage)
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_both_ends_accept_each_other_by_mutual_tls(authority: Path) -> None:
    """A handshake of the ssl module, in memory: it verifies chain, purpose and host."""
    made = make_certificate(authority, NODE, ca_directory=authority)

    def context(protocol: int) -> ssl.SSLContext:
        side = ssl.SSLContext(protocol)
        side.load_cert_chain(made.certificate, made.key)
        side.load_verify_locations(authority / "ca.crt")
        side.verify_mode = ssl.CERT_REQUIRED
        return side

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        to_client, to_server, server_hostname="127.0.0.1"
    )
    server = context(ssl.PROTOCOL_TLS_SERVER).wrap_bio(to_server, to_client, server_side=True)
    open_ends = [client, server]
    for _ in range(10):
        for end in list(open_ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            open_ends.remove(end)
    assert open_ends == []
    for end in (client, server):
        certificate = end.getpeercert(binary_form=True)
        assert certificate is not None
        assert names_node(identities(certificate), NODE)


def test_certificate_lasts_as_long_as_told(authority: Path) -> None:
    made = make_certificate(authority, NODE, ca_directory=authority, days=2)
    assert made.expires == parsed(made.certificate).not_valid_after_utc
    assert abs(made.expires - utc_now() - datetime.timedelta(days=2)) < datetime.timedelta(
        minutes=1
    )


def test_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, days=3)
    made = make_certificate(tmp_path, NODE, ca_directory=tmp_path, days=100)
    assert made.expires == authority.expires


def test_missing_directory_is_made_private(tmp_path: Path) -> None:
    make_authority(tmp_path / "new" / "tls")
    assert mode_of(tmp_path / "new" / "tls") == 0o700


@pytest.mark.parametrize("left", ["ca.crt", "ca.key"])
def test_authority_is_never_overwritten(left: str, tmp_path: Path) -> None:
    make_authority(tmp_path)
    content = (tmp_path / left).read_bytes()
    for name in {"ca.crt", "ca.key"} - {left}:
        (tmp_path / name).unlink()
    with pytest.raises(ConfigurationError, match="not overwritten") as caught:
        make_authority(tmp_path)
    assert left in str(caught.value)
    assert os.listdir(tmp_path) == [left]
    assert (tmp_path / left).read_bytes() == content


def test_certificate_is_never_overwritten(authority: Path) -> None:
    made = make_certificate(authority, NODE, ca_directory=authority)
    content = made.certificate.read_bytes(), made.key.read_bytes()
    with pytest.raises(ConfigurationError, match="not overwritten"):
        make_certificate(authority, NODE, ca_directory=authority)
    assert (made.certificate.read_bytes(), made.key.read_bytes()) == content


def test_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        make_authority(tmp_path / "file" / "tls")


def test_certificate_without_an_authority_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no certificate authority"):
        make_certificate(tmp_path, NODE, ca_directory=tmp_path)


def test_key_of_the_authority_that_others_can_read_is_refused(authority: Path) -> None:
    (authority / "ca.key").chmod(0o640)
    with pytest.raises(UnsafeConfigurationError, match=r"ca\.key"):
        make_certificate(authority, NODE, ca_directory=authority)


def test_authority_with_another_kind_of_key_is_refused(authority: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (authority / "ca.key").write_bytes(private_pem(key))
    with pytest.raises(ConfigurationError, match="EC"):
        make_certificate(authority, NODE, ca_directory=authority)


@pytest.mark.parametrize(
    ("node", "names", "days"),
    [
        ("@h", (), 1),
        ("a@h:1", (), 1),
        (NODE, ("a b",), 1),
        (NODE, ("hö",), 1),
        (NODE, (), 0),
        ("a@hö", (), 1),
    ],
)
def test_impossible_certificate_raises_value_error(
    node: str, names: tuple[str, ...], days: int, authority: Path
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        make_certificate(authority, node, ca_directory=authority, names=names, days=days)
    assert not isinstance(caught.value, ConfigurationError)
    assert sorted(os.listdir(authority)) == ["ca.crt", "ca.key"]


# ---------------------------------------------------------------- loading


def private_pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption(),
    )


class Files:
    """The three TLS files of a node, and the settings that name them."""

    def __init__(self, directory: Path) -> None:
        make_authority(directory)
        made = make_certificate(directory, NODE, ca_directory=directory)
        self.certificate, self.key, self.authority = (
            made.certificate,
            made.key,
            directory / "ca.crt",
        )
        self.expires = made.expires

    @property
    def settings(self) -> Settings:
        return Settings(
            certfile=str(self.certificate), keyfile=str(self.key), cacertfile=str(self.authority)
        )

    def issue(
        self,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> None:
        """Put a certificate of another authority in the node's place."""
        leaf = trustme.CA().issue_cert("127.0.0.1", not_before=not_before, not_after=not_after)
        self.certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
        self.key.write_bytes(leaf.private_key_pem.bytes())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Files that are good."""
    return Files(tmp_path)


def test_settings_without_tls_load_nothing() -> None:
    assert load_tls(Settings()) is None


def test_good_files_are_loaded(files: Files) -> None:
    loaded = load_tls(files.settings)
    assert loaded is not None
    assert loaded.certificate == files.certificate.read_bytes()
    assert loaded.key == files.key.read_bytes()
    assert loaded.authority == files.authority.read_bytes()
    assert loaded.expires == files.expires


def test_repr_shows_no_key(files: Files) -> None:
    assert "PRIVATE" not in repr(load_tls(files.settings))


def test_certificate_made_elsewhere_is_loaded(files: Files) -> None:
    files.issue()
    loaded = load_tls(files.settings)
    assert loaded is not None
    assert identities(loaded.certificate).ips == ("127.0.0.1",)


@pytest.mark.parametrize("mode", [0o644, 0o620])
def test_key_that_others_can_use_is_refused(mode: int, files: Files) -> None:
    files.key.chmod(mode)
    with pytest.raises(UnsafeConfigurationError, match=f"{mode:04o}") as loading:
        load_tls(files.settings)
    with pytest.raises(UnsafeConfigurationError, match=f"{mode:04o}") as checking:
        check_key_file(files.key)
    assert str(files.key) in str(loading.value)
    assert str(files.key) in str(checking.value)


def test_private_key_file_passes_the_check(files: Files) -> None:
    check_key_file(files.key)


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
def test_missing_file_is_named(which: str, files: Files) -> None:
    path: Path = getattr(files, which)
    path.unlink()
    with pytest.raises(ConfigurationError) as caught:
        load_tls(files.settings)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
@pytest.mark.parametrize(
    "content", [b"", b"secret text", b"-----BEGIN X-----\nAA\n-----END X-----\n"]
)
def test_file_of_something_else_is_named_but_not_shown(
    which: str, content: bytes, files: Files
) -> None:
    path: Path = getattr(files, which)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="holds no") as caught:
        load_tls(files.settings)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_key_of_another_certificate_is_refused(files: Files) -> None:
    files.key.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ConfigurationError, match="does not belong"):
        load_tls(files.settings)


def test_encrypted_key_is_refused_with_advice(files: Files) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    files.key.write_bytes(private_pem(key, b"password"))
    with pytest.raises(ConfigurationError, match="openssl pkey"):
        load_tls(files.settings)


def test_expired_certificate_is_refused(files: Files) -> None:
    files.issue(not_after=utc_now() - datetime.timedelta(days=1))
    with pytest.raises(ConfigurationError, match="expired"):
        load_tls(files.settings)


def test_certificate_of_the_future_is_refused(files: Files) -> None:
    files.issue(
        not_before=utc_now() + datetime.timedelta(days=1),
        not_after=utc_now() + datetime.timedelta(days=2),
    )
    with pytest.raises(ConfigurationError, match="clock"):
        load_tls(files.settings)


def expired_authority() -> bytes:
    leaf = trustme.CA().issue_cert("old", not_after=utc_now() - datetime.timedelta(days=1))
    return leaf.cert_chain_pems[0].bytes()


def test_expired_authority_is_refused(files: Files) -> None:
    files.authority.write_bytes(expired_authority())
    with pytest.raises(ConfigurationError, match="expired"):
        load_tls(files.settings)


def test_expired_authority_beside_its_successor_is_accepted(files: Files) -> None:
    files.authority.write_bytes(expired_authority() + files.authority.read_bytes())
    assert load_tls(files.settings) is not None


def test_fingerprint_changes_with_each_file_and_with_nothing_else(files: Files) -> None:
    seen = set()
    for path in (None, files.authority, files.certificate, files.key):
        if path is not None:
            path.write_bytes(path.read_bytes() + b"\n")
        first, again = load_tls(files.settings), load_tls(files.settings)
        assert first is not None
        assert again is not None
        assert fingerprint(first) == fingerprint(again)
        seen.add(fingerprint(first))
    assert len(seen) == 4


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "node"),
    [
        (Identities(uris=("genrpc://a@h",)), "a@h"),
        (Identities(uris=("genrpc://b@h", "genrpc://a@h")), "a@h"),
        (Identities(uris=("spiffe://a",), dns=("h",)), "a@h"),
        (Identities(dns=("other", "H.example")), "a@h.Example"),
        (Identities(ips=("127.0.0.1",)), "any@127.0.0.1"),
        (Identities(ips=("::1",)), "a@[::1]"),
        (Identities(ips=("::1",)), "a@[0:0::1]"),
    ],
)
def test_certificate_speaks_for_the_node(names: Identities, node: str) -> None:
    assert names_node(names, node)


@pytest.mark.parametrize(
    ("names", "node"),
    [
        (Identities(), "a@h"),
        (Identities(uris=("genrpc://b@h",), dns=("h",)), "a@h"),
        (Identities(uris=("GENRPC://b@h",), dns=("h",)), "a@h"),
        (Identities(uris=("genrpc://a@h/",)), "a@h"),
        (Identities(uris=("genrpc://a@h",)), "A@h"),
        (Identities(uris=("genrpc://a@h",)), "a@h "),
        (Identities(dns=("*.example",)), "a@h.example"),
        (Identities(dns=("h",)), "a@h@h"),
        (Identities(dns=("h",)), "h"),
        (Identities(dns=("",)), "a@"),
        (Identities(dns=("127.0.0.1",)), "a@127.0.0.1"),
        (Identities(ips=("127.0.0.1",)), "a@127.0.0.2"),
        (Identities(uris=("genrpc://?",)), "\udcff"),
    ],
)
def test_certificate_does_not_speak_for_the_node(names: Identities, node: str) -> None:
    assert not names_node(names, node)


def test_identities_of_der_and_pem_are_equal(files: Files) -> None:
    der = parsed(files.certificate).public_bytes(serialization.Encoding.DER)
    assert identities(der) == identities(files.certificate.read_bytes())


def test_certificate_without_names_has_no_identities(files: Files) -> None:
    assert identities(files.authority.read_bytes()) == Identities()


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_identities_of_no_certificate_raise_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        identities(data)


# ---------------------------------------------------------------- where to listen


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_loopback_may_be_listened_on(address: str) -> None:
    check_listen_address(Settings(listen_address=address))


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "db.example", "127.1", "localhost.example"],
)
def test_other_address_without_tls_is_refused_with_both_ways_out(address: str) -> None:
    with pytest.raises(UnsafeConfigurationError) as caught:
        check_listen_address(Settings(listen_address=address))
    for word in (address, "TLS", "certfile", "genrpc cert", "insecure_listen=True"):
        assert word in str(caught.value)


def test_other_address_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="genrpc"):
        check_listen_address(Settings(listen_address="0.0.0.0", insecure_listen=True))
    assert "0.0.0.0" in caplog.text


def test_other_address_with_tls_is_allowed_in_silence(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    check_listen_address(files.settings.changed(listen_address="0.0.0.0"))
    assert caplog.text == ""


def test_node_that_does_not_listen_may_have_any_address() -> None:
    check_listen_address(Settings(listen_address="0.0.0.0", tcp_server_port=None))
