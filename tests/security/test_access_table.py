"""Who reaches what: the table of methods, tokens and certificates, compared with a real node.

A stream is reached by whoever proves the cookie, which is tested elsewhere; here it is asked only
how far a caller comes with another certificate.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from nodes import COOKIE

from genrpc import Node, Settings, security
from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

NAME = "guard@127.0.0.1"
CALLER = "caller@127.0.0.1"
SECONDS = 20.0

OK, NO_TOKEN, DENIED = "OK", "UNAUTHENTICATED", "PERMISSION_DENIED"
CHALLENGED, NOT_THAT_NODE, NO_TLS = "challenge", "UNAUTHENTICATED", "UNAVAILABLE"

TOKENS = ("none", "expired", "foreign", "of another node", "limited", "good")

# The answer to each method for the tokens above, over loopback in the clear.
TABLE = {
    "Call math.sqrt": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, OK, OK),
    "Call math.cos": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, DENIED, OK),
    "Call os.getpid": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, DENIED, DENIED),
    "Cast math.sqrt": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, OK, OK),
    "Cast math.cos": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, DENIED, OK),
    "Cast os.getpid": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, DENIED, DENIED),
    "ListFunctions": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, OK, OK),
    "GetStatus": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, OK, OK),
    "reflection v1": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, OK, OK),
    "reflection v1alpha": (NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, OK, OK),
    "health Check": (OK, OK, OK, OK, OK, OK),
    "health Watch": (OK, OK, OK, OK, OK, OK),
    # The stream looks at no token.
    "Connect": (CHALLENGED,) * 6,
}

# What a TLS node answers to whoever shows such a certificate: this table, or always the same.
CERTIFICATES = {
    "good": TABLE,
    # Not to be that node in a stream; with a token, a bearer like others.
    "of another name": {**TABLE, "Connect": (NOT_THAT_NODE,) * 6},
    "none": dict.fromkeys(TABLE, (NO_TLS,) * 6),
    "of another authority": dict.fromkeys(TABLE, (NO_TLS,) * 6),
    "expired": dict.fromkeys(TABLE, (NO_TLS,) * 6),
    "in the clear": dict.fromkeys(TABLE, (NO_TLS,) * 6),
}


# ---------------------------------------------------------------- the node and its callers


class Authority:
    """Certificates of every kind; those that must be good were made by genrpc itself."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = self._authority("one")
        other = self._authority("two")
        yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        key = (self._ca / "ca.key").read_bytes()
        expired = trustme.CA.from_pem((self._ca / "ca.crt").read_bytes(), key).issue_cert(
            "127.0.0.1", not_after=yesterday
        )
        self._shown = {
            "good": self._pair(self._ca, CALLER),
            "of another name": self._pair(self._ca, "other@127.0.0.1"),
            "none": (None, None),
            "of another authority": self._pair(other, CALLER),
            "expired": (expired.private_key_pem.bytes(), expired.cert_chain_pems[0].bytes()),
        }

    def _authority(self, name: str) -> Path:
        security.make_authority(self._directory / name)
        return self._directory / name

    def _pair(self, authority: Path, node: str) -> tuple[bytes, bytes]:
        made = security.make_certificate(authority, node, ca_directory=authority)
        return made.key.read_bytes(), made.certificate.read_bytes()

    def settings(self) -> dict[str, str]:
        """The files of the node."""
        made = security.make_certificate(self._ca, NAME, ca_directory=self._ca)
        return {
            "certfile": str(made.certificate),
            "keyfile": str(made.key),
            "cacertfile": str(self._ca / "ca.crt"),
        }

    def channel(self, node: Node, certificate: str) -> grpc.Channel:
        address = f"127.0.0.1:{node.port}"
        if certificate == "in the clear":
            return grpc.insecure_channel(address)
        trusted = (self._ca / "ca.crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(trusted, *self._shown[certificate])
        return grpc.secure_channel(address, credentials)


def token(kind: str) -> str | None:
    now, cookie = time.time(), security.Cookie(COOKIE)
    return {
        "none": lambda: None,
        "expired": lambda: security.make_token(cookie, ttl=1, now=now - 2),
        "foreign": lambda: security.make_token(security.Cookie("another cookie of 16"), now=now),
        "of another node": lambda: security.make_token(cookie, audience="x@127.0.0.1", now=now),
        "limited": lambda: security.make_token(cookie, allow=["math.sqrt"], now=now),
        "good": lambda: security.make_token(cookie, now=now),
    }[kind]()


def mfa(name: str) -> pb.Mfa:
    module, _, function = name.rpartition(".")
    made = pb.Mfa(module=module, function=function)
    made.args.CopyFrom(struct_pb2.ListValue())
    if module == "math":
        made.args.values.add(number_value=4)
    return made


def answer(channel: grpc.Channel, method: str, kind: str) -> str:
    """What a caller with a token of this kind is told: a status, or the kind of the first frame."""
    text = token(kind)
    options = {
        "metadata": [("authorization", f"Bearer {text}")] if text else [],
        "timeout": SECONDS,
        "wait_for_ready": False,
    }
    try:
        return asked(channel, method, options)
    except grpc.RpcError as error:
        return error.code().name


def asked(channel: grpc.Channel, method: str, options: dict[str, object]) -> str:
    service = "/genrpc.v1.NodeService"
    word, _, target = method.partition(" ")
    if word in ("Call", "Cast"):
        request = {"Call": pb.CallRequest, "Cast": pb.CastRequest}[word](mfa=mfa(target))
        channel.unary_unary(f"{service}/{word}")(request.SerializeToString(), **options)
    elif word in ("ListFunctions", "GetStatus"):
        channel.unary_unary(f"{service}/{word}")(b"", **options)
    elif word == "reflection":
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        path = f"/grpc.reflection.{target}.ServerReflection/ServerReflectionInfo"
        next(channel.stream_stream(path)(iter([request.SerializeToString()]), **options))
    elif word == "health":
        request = health_pb2.HealthCheckRequest()
        path = f"/grpc.health.v1.Health/{target}"
        if target == "Check":
            channel.unary_unary(path)(request.SerializeToString(), **options)
        else:
            next(channel.unary_stream(path)(request.SerializeToString(), **options))
    else:
        return first_frame(channel, options)
    return OK


def first_frame(channel: grpc.Channel, options: dict[str, object]) -> str:
    hello = pb.Hello(
        revision_max=1,
        revision_min=1,
        node=CALLER,
        target_node=NAME,
        nonce=bytes(range(32)),
    )
    said = pb.ConnectRequest(hello=hello).SerializeToString()
    stream = channel.stream_stream("/genrpc.v1.NodeService/Connect")(iter([said]), **options)
    return str(pb.ConnectResponse.FromString(next(stream)).WhichOneof("frame"))


def start(**changes: object) -> Node:
    settings = Settings(
        cookie=COOKIE,
        tcp_server_port=0,
        rpc_module_control="whitelist",
        rpc_module_list=["math"],
        **changes,
    )
    return Node(NAME, settings)


@pytest.fixture(scope="module")
def plain_node() -> Iterator[Node]:
    with start() as node:
        yield node


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_node(authority: Authority) -> Iterator[Node]:
    with start(**authority.settings()) as node:
        yield node


def found(channel: grpc.Channel) -> dict[str, tuple[str, ...]]:
    return {method: tuple(answer(channel, method, kind) for kind in TOKENS) for method in TABLE}


# ---------------------------------------------------------------- the comparisons


def test_table_holds_in_the_clear_on_loopback(plain_node):
    with grpc.insecure_channel(f"127.0.0.1:{plain_node.port}") as channel:
        assert found(channel) == TABLE


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_table_holds_with_each_certificate(tls_node, authority, certificate):
    with authority.channel(tls_node, certificate) as channel:
        assert found(channel) == CERTIFICATES[certificate]


def test_every_method_of_the_proto_is_in_the_table():
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["NodeService"].methods}
    assert methods <= {name.partition(" ")[0] for name in TABLE}
