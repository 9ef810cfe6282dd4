"""How this library sets gRPC up, on both sides of a connection."""

from __future__ import annotations

from dataclasses import dataclass

from genrpc._generated.genrpc.v1 import genrpc_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["NodeService"].full_name
CONNECT = f"/{SERVICE}/Connect"

Options = list[tuple[str, int | str]]


@dataclass(frozen=True, slots=True)
class Line:
    """What a connection is held to. Seconds, None for no limit, and bytes.

    A frozen peer is noticed after keepalive_interval + keepalive_timeout at the latest. The rest
    is for listeners: a connection must have spoken TLS and HTTP/2 within handshake_timeout, and
    is closed when it had no stream for inactivity_timeout; after max_age it takes no further
    stream and ends with the last; one over max_connections is closed as soon as it is accepted.
    With `channelz` gRPC keeps account of it.
    """

    max_frame_bytes: int
    keepalive_interval: float | None
    keepalive_timeout: float | None
    handshake_timeout: float = 5.0
    inactivity_timeout: float | None = None
    max_age: float | None = None
    max_connections: int | None = None
    channelz: bool = False


_FOR_EVER = 2**31 - 1

MAX_HANDSHAKE_SECONDS = 3600.0

PENDING_REQUESTS, MAX_PENDING_REQUESTS = 12_000, 16_000
"""Requests that gRPC has read and the node has not seen: from the first on it refuses some, from
the second on all. One caller may have max_calls, 10,000 by default, at once. A stranger's request,
on a connection of its own, costs some 25 kB until the node has turned it away."""

KEPT_FILES = 256
"""Descriptors that strangers cannot have: for the node's own streams and its users' files."""


def _milliseconds(seconds: float | None) -> int:
    return _FOR_EVER if seconds is None else min(_FOR_EVER, max(1, int(seconds * 1000)))


def _common(line: Line) -> Options:
    timeout = _milliseconds(line.keepalive_timeout)
    return [
        ("grpc.max_receive_message_length", line.max_frame_bytes),
        # None but "identity". Up to 1.83.0, at least, gRPC inflates a message before it looks at
        # its size: 300 kB from a stranger became 300 MB.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_channelz", int(line.channelz)),
        ("grpc.keepalive_time_ms", _milliseconds(line.keepalive_interval)),
        ("grpc.keepalive_timeout_ms", timeout),
        # Without this one a frozen peer is noticed only after a minute.
        ("grpc.http2.ping_timeout_ms", timeout),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def client_options(line: Line) -> Options:
    """Options of a channel that carries one stream."""
    return [
        *_common(line),
        # Else two channels to one address share a connection, and a key has none of its own.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
    ]


def _connections(wanted: int | None) -> int:
    """How many connections may come in: never so many that the process has no files left."""
    most = _FOR_EVER - 1  # gRPC ends the process for one more
    limit = most if wanted is None else min(wanted, most)
    try:
        import resource  # not on Windows
    except ImportError:  # pragma: no cover
        return limit
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return limit
    return max(1, min(limit, max(files // 2, files - KEPT_FILES)))


def server_options(line: Line) -> Options:
    """Options of a listener."""
    return [
        # With more gRPC takes no connection at all.
        (
            "grpc.server_handshake_timeout_ms",
            _milliseconds(min(line.handshake_timeout, MAX_HANDSHAKE_SECONDS)),
        ),
        ("grpc.max_connection_idle_ms", _milliseconds(line.inactivity_timeout)),
        ("grpc.max_connection_age_ms", _milliseconds(line.max_age)),
        ("grpc.max_allowed_incoming_connections", _connections(line.max_connections)),
        *_common(line),
        # gRPC shares ports silently: a second node would take half of the calls.
        ("grpc.so_reuseport", 0),
        # Else gRPC itself answers CANCELLED to unary calls, at random from 1,000 that wait on.
        ("grpc.server.max_pending_requests", PENDING_REQUESTS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
        # Clients ping as often as their own settings say; that is no abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", 100),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
