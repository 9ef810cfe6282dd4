"""What a node counts and tells: counters, logs that cannot be flooded, and the audit log.

Rules: counting must cost next to nothing, as every call is counted; what a stranger can bring
about at will is logged at a bounded rate, and his words are bounded, on one line, and never
a secret. Any thread may call all of it.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
import re
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Literal

log = logging.getLogger("genrpc.telemetry")

Direction = Literal["out", "in"]


# ------------------------------------------------------------------ counters


class Counters:
    """Integer counters by name; those of calls are named "direction.outcome": "out.timeout".

    Each thread counts in a dictionary of its own: 0.2 µs, where one lock for all took 0.4 µs
    without and more with a contender. No count is lost, also not when its thread ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._per_thread: list[tuple[threading.Thread, defaultdict[str, int]]] = []
        self._of_ended_threads: defaultdict[str, int] = defaultdict(int)
        self._own = threading.local()

    def add(self, name: str, n: int = 1) -> None:
        """Count `n` more of `name`."""
        try:
            self._own.counts[name] += n
        except AttributeError:  # the thread's first count
            self._enter_thread()[name] += n

    def snapshot(self) -> dict[str, int]:
        """Give all counts, sorted by name; what is counted meanwhile may be missing."""
        with self._lock:
            self._fold()
            total = self._of_ended_threads.copy()
            # copy() is one step in C, so the owner may go on counting.
            for _, counts in self._per_thread:
                for name, n in counts.copy().items():
                    total[name] += n
        return dict(sorted(total.items()))

    def _enter_thread(self) -> defaultdict[str, int]:
        counts: defaultdict[str, int] = defaultdict(int)
        with self._lock:
            self._fold()
            self._per_thread.append((threading.current_thread(), counts))
        self._own.counts = counts
        return counts

    def _fold(self) -> None:
        """Take the counts of ended threads over, so that threads that come and go leave nothing."""
        ended = [counts for thread, counts in self._per_thread if not thread.is_alive()]
        if not ended:
            return
        self._per_thread = [entry for entry in self._per_thread if entry[0].is_alive()]
        for counts in ended:
            for name, n in counts.items():
                self._of_ended_threads[name] += n


# ------------------------------------------------------------------ logging


class _Recent:
    """What was logged under one key."""

    __slots__ = ("left_out", "logged_at")

    def __init__(self, logged_at: float) -> None:
        self.logged_at = logged_at
        self.left_out = 0


class RateLimitedLog:
    """Logs at most `per_second` warnings a second for each key, and how many it left out.

    For what a stranger or a broken peer can bring about at will. At most `max_keys` keys are
    remembered; a forgotten one is as good as new.
    """

    def __init__(
        self,
        logger: logging.Logger,
        per_second: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = 1024,
    ) -> None:
        self._logger = logger
        self._interval = 1.0 / per_second
        self._clock = clock
        self._max_keys = max_keys
        self._lock = threading.Lock()
        # The key logged last stands last.
        self._recent: dict[Hashable, _Recent] = {}

    def warning(self, key: Hashable, message: str, *args: object) -> None:
        """Log as `Logger.warning` does, unless a line of this key was logged just now."""
        left_out = self.admit(key)
        if left_out is None:
            return
        if left_out:
            message, args = f"{message} (%d more like it left out)", (*args, left_out)
        self._logger.warning(message, *args, stacklevel=2)

    def admit(self, key: Hashable) -> int | None:
        """Count a line of this key: how many were left out since the last, None to leave it out."""
        with self._lock:
            return self._admit(key, self._clock())

    def flush(self) -> None:
        """Log what was left out and not yet told, for a node that stops."""
        with self._lock:
            recent, self._recent = self._recent, {}
        for key, state in recent.items():
            if state.left_out:
                self._logger.warning("%d more warnings left out of %s", state.left_out, key)

    def _admit(self, key: Hashable, now: float) -> int | None:
        """Decide whether to log: how many lines were left out before, or None not to."""
        state = self._recent.get(key)
        if state is not None and now - state.logged_at < self._interval:
            state.left_out += 1
            return None
        self._recent.pop(key, None)
        if len(self._recent) >= self._max_keys:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = _Recent(now)
        return state.left_out if state else 0


# ------------------------------------------------------------------ audit

MAX_AUDIT_LINES = 50
"""Lines a second in all. Strangers may come from many addresses: 127.0.0.0/8 has millions."""

MAX_AUDIT_VALUE = 200
"""Characters of a value, which may be a stranger's text."""

_PLAIN = re.compile(r"[\w.:@/+*\[\]<>-]+", re.ASCII)


def origin_of(peer: str) -> str:
    """Say for whom an address of gRPC's stands: what one stranger can have many of is one.

    The IPv4 address without the port, the /64 of an IPv6 address, "loopback" for all of those.
    """
    family, _, rest = urllib.parse.unquote(peer).partition(":")
    if family not in ("ipv4", "ipv6"):
        return peer
    try:
        address = ipaddress.ip_address(rest.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return peer
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return "loopback"
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Audit:
    """The audit log of one node: who was refused what, which limit was hit, what is insecure.

    Each line goes to the logger "genrpc.audit", as a warning, and is a row of key=value: `event`,
    `time` (UTC), `node`, and what is known of `peer` (its address), `identity` (in a refused
    authentication what it says that it is, else what it has proved), `session`, `target`,
    `reason` (a word; of a limit, its setting) and `detail`. A value with other than plain
    characters is JSON text. Lines that differ in no more than time and session are written once a
    second, `left_out` says how many were not; all events are counted, as "audit_" and the event.
    """

    def __init__(
        self, node: str, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._node = node
        self._counters = counters
        self._clock = clock
        self._logger = logging.getLogger("genrpc.audit")
        self._limit = RateLimitedLog(self._logger, clock=clock)
        self._second = 0
        self._lines = 0  # in that second

    def refused_authentication(
        self, peer: str, reason: str, *, identity: str = "", session: str = "", detail: str = ""
    ) -> None:
        """Somebody could not show who it is, or is not who it should be."""
        self._tell("refused_authentication", peer, identity, session, "", reason, detail)

    def refused_target(
        self, peer: str, reason: str, target: str, *, identity: str = "", session: str = ""
    ) -> None:
        """Somebody asked for what it may not have; `target` is module:function."""
        self._tell("refused_target", peer, identity, session, target, reason, "")

    def limit_hit(
        self, peer: str, limit: str, *, identity: str = "", session: str = "", target: str = ""
    ) -> None:
        """Somebody met a limit; `limit` is the name of the setting."""
        self._counters.add(f"limit_{limit}")
        self._tell("limit_hit", peer, identity, session, target, limit, "")

    def insecure_override(self, setting: str, detail: str) -> None:
        """The node starts although a setting takes a protection away."""
        self._tell("insecure_override", "", "", "", "", setting, detail)

    def _tell(
        self,
        event: str,
        peer: str,
        identity: str,
        session: str,
        target: str,
        reason: str,
        detail: str,
    ) -> None:
        self._counters.add(f"audit_{event}")
        # Not by the identity: a stranger has as many as it likes.
        left_out = self._limit.admit((event, origin_of(peer), target, reason))
        if left_out is None or not self._has_room():
            self._counters.add("audit_left_out")
            return
        now = datetime.datetime.now(datetime.timezone.utc)
        values = {
            "event": event,
            "time": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03}Z",
            "node": self._node,
            "peer": urllib.parse.unquote(peer),
            "identity": identity,
            "session": session,
            "target": target,
            "reason": reason,
            "detail": detail,
            "left_out": str(left_out or ""),
        }
        self._logger.warning(
            "%s", " ".join(f"{name}={_shown(value)}" for name, value in values.items() if value)
        )

    def _has_room(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= MAX_AUDIT_LINES


def _shown(value: str) -> str:
    """Write a value so that it stays one value on one line, whatever is in it."""
    if len(value) > MAX_AUDIT_VALUE:
        value = f"{value[:MAX_AUDIT_VALUE]}…"
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
