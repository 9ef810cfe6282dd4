"""Counters, hooks, the log that cannot be flooded, and the audit log."""

import json
import logging
import re
import threading
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrpc.telemetry import (
    MAX_AUDIT_LINES,
    Audit,
    Counters,
    RateLimitedLog,
    origin_of,
)


def in_threads(count, function):
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


# ---------------------------------------------------------------- counters


def test_counts_are_added_up_and_sorted():
    counters = Counters()
    counters.add("out.timeout")
    counters.add("out.ok", 5)
    counters.add("out.ok")
    assert list(counters.snapshot().items()) == [("out.ok", 6), ("out.timeout", 1)]


def test_fresh_counters_are_empty():
    assert Counters().snapshot() == {}


def test_snapshot_is_a_copy():
    counters = Counters()
    counters.add("a")
    counters.snapshot()["a"] = 100
    assert counters.snapshot() == {"a": 1}


def test_no_count_of_many_threads_is_lost():
    counters = Counters()
    counters.add("main")

    def count():
        for _ in range(5000):
            counters.add("calls")

    in_threads(8, count)
    assert counters.snapshot() == {"calls": 40_000, "main": 1}


def test_count_of_a_live_thread_is_seen():
    counters, counted, end = Counters(), threading.Event(), threading.Event()

    def count():
        counters.add("calls")
        counted.set()
        end.wait(30)

    thread = threading.Thread(target=count)
    thread.start()
    assert counted.wait(30)
    seen = counters.snapshot()
    end.set()
    thread.join(30)
    assert seen == counters.snapshot() == {"calls": 1}


def test_threads_that_come_and_go_leave_nothing_behind():
    counters = Counters()
    for _ in range(20):
        in_threads(1, lambda: counters.add("calls"))
    assert counters.snapshot() == {"calls": 20}
    assert counters._per_thread == []


def test_counters_of_two_nodes_are_apart():
    one, other = Counters(), Counters()
    one.add("calls")
    assert other.snapshot() == {}


# ---------------------------------------------------------------- the log


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("genrpc.tests")


def test_lines_of_one_key_are_held_back(caplog, clock, logger):
    limited = RateLimitedLog(logger, clock=clock)
    for i in range(5):
        limited.warning("k", "line %d", i)
    assert caplog.messages == ["line 0"]


def test_next_line_tells_how_many_were_left_out(caplog, clock, logger):
    limited = RateLimitedLog(logger, clock=clock)
    for i in range(5):
        limited.warning("k", "line %d", i)
    clock.now += 1.0
    limited.warning("k", "later")
    clock.now += 1.0
    limited.warning("k", "last")
    assert caplog.messages == ["line 0", "later (4 more like it left out)", "last"]


def test_keys_do_not_disturb_each_other(caplog, clock, logger):
    limited = RateLimitedLog(logger, clock=clock)
    limited.warning("a", "of a")
    limited.warning("b", "of b")
    assert caplog.messages == ["of a", "of b"]


def test_rate_is_kept(caplog, clock, logger):
    limited = RateLimitedLog(logger, per_second=4.0, clock=clock)
    for _ in range(16):
        limited.warning("k", "line")
        clock.now += 0.125
    assert len(caplog.messages) == 8


def test_flush_tells_what_was_never_told(caplog, clock, logger):
    limited = RateLimitedLog(logger, clock=clock)
    for key in ("a", "a", "a", "b"):
        limited.warning(key, "line")
    caplog.clear()
    limited.flush()
    limited.flush()
    assert caplog.messages == ["2 more warnings left out of a"]


def test_only_so_many_keys_are_remembered(caplog, clock, logger):
    limited = RateLimitedLog(logger, clock=clock, max_keys=2)
    for key in ("a", "b", "c", "a", "c"):
        limited.warning(key, "%s", key)
    assert caplog.messages == ["a", "b", "c", "a"]


def test_line_names_the_place_that_logged(caplog, clock, logger):
    RateLimitedLog(logger, clock=clock).warning("k", "line")
    assert caplog.records[0].filename == "test_telemetry.py"


# ---------------------------------------------------------------- the audit log

PEER = "ipv4:10.0.0.8:4711"


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def audit(counters, clock) -> Audit:
    return Audit("b@127.0.0.1", counters, clock)


def fields(line: str) -> dict[str, str]:
    """The values of a line, as whoever reads the log takes them."""
    found = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    return {name: json.loads(text) if text[0] == '"' else text for name, text in found}


def test_audit_line_tells_all_that_is_known(audit, caplog):
    audit.refused_target(PEER, "unauthorized", "os:system", identity="a@10.0.0.8", session="5e55")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("genrpc.audit", "WARNING")
    found = fields(record.getMessage())
    stamp = found.pop("time")
    assert abs(time.time() - datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()) < 60
    assert found == {
        "event": "refused_target",
        "node": "b@127.0.0.1",
        "peer": PEER,
        "identity": "a@10.0.0.8",
        "session": "5e55",
        "target": "os:system",
        "reason": "unauthorized",
    }


def test_each_event_has_its_line_and_its_count(audit, caplog, counters):
    audit.refused_authentication(PEER, "expired", detail="Too late.")
    audit.refused_target(PEER, "unauthorized", "os:system")
    audit.limit_hit(PEER, "max_calls")
    audit.insecure_override("insecure_listen", "0.0.0.0 without TLS")
    assert [fields(line)["event"] for line in caplog.messages] == [
        "refused_authentication",
        "refused_target",
        "limit_hit",
        "insecure_override",
    ]
    assert counters.snapshot() == {
        "audit_insecure_override": 1,
        "audit_limit_hit": 1,
        "audit_refused_authentication": 1,
        "audit_refused_target": 1,
        "limit_max_calls": 1,
    }


@given(st.text(max_size=50))
def test_no_text_of_a_stranger_leaves_its_place(text):
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    lines: list[str] = []
    logger, handler = logging.getLogger("genrpc.audit"), Lines()
    logger.addHandler(handler)
    try:
        Audit("b@h", Counters()).refused_authentication("this process", "badnode", identity=text)
    finally:
        logger.removeHandler(handler)
    (line,) = lines
    assert line.isprintable()
    assert fields(line).get("identity", "") == text
    assert fields(line)["reason"] == "badnode"


def test_long_text_is_cut(audit, caplog):
    audit.refused_authentication(PEER, "badnode", identity="x" * 10_000)
    assert len(caplog.messages[0]) < 500


def test_equal_lines_are_held_back_and_counted_whoever_they_say_they_are(
    audit, caplog, clock, counters
):
    for number in range(5):
        peer = f"ipv4:10.0.0.8:{number}"
        audit.refused_authentication(peer, "invalid_cookie", identity=f"x{number}@h")
    clock.now += 1.0
    audit.refused_authentication(PEER, "invalid_cookie")
    assert [fields(line).get("left_out") for line in caplog.messages] == [None, "4"]
    assert counters.snapshot() == {"audit_left_out": 4, "audit_refused_authentication": 6}


def test_lines_of_all_are_bounded_together(audit, caplog, clock):
    for number in range(300):
        audit.refused_authentication(f"ipv4:10.1.{number // 250}.{number % 250}:1", "missing")
    assert len(caplog.messages) == MAX_AUDIT_LINES
    clock.now += 1.0
    audit.refused_authentication("ipv4:10.2.0.1:1", "missing")
    assert len(caplog.messages) == MAX_AUDIT_LINES + 1


@pytest.mark.parametrize(
    ("peer", "origin"),
    [
        ("ipv4:10.0.0.8:4711", "10.0.0.8"),
        ("ipv4:127.0.0.1:4711", "loopback"),
        ("ipv4:127.9.9.9:4711", "loopback"),
        ("ipv6:%5B::1%5D:4711", "loopback"),
        ("ipv6:[::ffff:127.0.0.1]:4711", "loopback"),
        ("ipv6:[::ffff:10.0.0.8]:4711", "10.0.0.8"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "fe80::/64"),
        ("ipv4:nonsense:1", "ipv4:nonsense:1"),
        ("unix:/run/x", "unix:/run/x"),
        ("this process", "this process"),
        ("", ""),
    ],
)
def test_origin_is_what_one_stranger_has_one_of(peer, origin):
    assert origin_of(peer) == origin
