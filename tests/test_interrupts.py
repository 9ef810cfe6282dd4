"""Ctrl-C in a program that waits, and programs that fork: each in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from nodes import COOKIE
from waiting import SECONDS

# Without coverage: Ctrl-C can leave coverage's own lock held.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
    "PYTHONPATH": ":".join(sys.path),
}

START = f"""
import os, signal, sys, threading, time
import genrpc
from genrpc import erpc, rpc
genrpc.start("x", tcp_server_port=0, cookie="{COOKIE}", port_discovery="manual")
other = genrpc.Node("y", genrpc.Settings(
    tcp_server_port=0, cookie="{COOKIE}", port_discovery="manual")).start()
y = f"y@127.0.0.1:{{other.port}}"
assert genrpc.call(y, "math", "factorial", [5]) == 120
"""


def run(code, seconds=SECONDS):
    """What a program prints, line by line; it must end well, and in time."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", START + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize(
    "wait",
    [
        'genrpc.call(y, "time", "sleep", [0.05])',
        'genrpc.call(y, "operator", "add", [2, 3])',
        'genrpc.async_call(y, "time", "sleep", [0.05]).result()',
        'rpc.multicall([y, y], "time", "sleep", [0.01])',
        'genrpc.cast(y, "operator", "add", [2, 3])',
    ],
)
def test_ctrl_c_while_waiting_leaves_the_stream_good(wait):
    """A timer interrupts at any point of the calls, a hundred times."""
    interrupts = run(
        f"""
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        interrupts = 0
        for number in range(100):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + number % 20 * 0.0002)
                while True:
                    {wait}
            except KeyboardInterrupt:
                interrupts += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert genrpc.call(y, "math", "factorial", [5], 10) == 120
        assert other.statistics()["streams_accepted"] == 1
        print(interrupts)
        """,
        seconds=3 * SECONDS,
    )
    assert interrupts == ["100"]


def test_call_that_is_interrupted_is_cancelled_there():
    printed = run(
        """
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        begun, told = threading.Event(), threading.Event()
        def work():
            begun.set()
            while not genrpc.cancelled():
                time.sleep(0.001)
            told.set()
        sys.modules["__main__"].work = work
        def kill():
            begun.wait()
            os.kill(os.getpid(), signal.SIGALRM)
        threading.Thread(target=kill).start()
        try:
            genrpc.call(y, "__main__", "work", [], None)
        except KeyboardInterrupt:
            print(told.wait(10))
        """
    )
    assert printed == ["True"]


def test_ctrl_c_ends_a_program_that_waits():
    program = subprocess.Popen(
        [
            sys.executable,
            "-c",
            START + 'print("waiting", flush=True)\ngenrpc.call(y, "time", "sleep", [60], None)',
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert program.stdout.readline() == "waiting\n"
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=SECONDS)
    assert "\nKeyboardInterrupt\n" in errors
    assert program.returncode == -signal.SIGINT


# ---------------------------------------------------------------- fork


def test_everything_is_refused_at_once_in_a_forked_child():
    printed = run(
        """
        import asyncio
        from genrpc import aio
        pending = genrpc.async_call(y, "time", "sleep", [0.2])
        fresh = genrpc.Node("z", genrpc.Settings(tcp_server_port=0, cookie="0123456789abcdef"))
        ways = [
            lambda: genrpc.call(y, "math", "factorial", [5]),
            lambda: genrpc.call("x", "math", "factorial", [5]),
            lambda: genrpc.cast(y, "math", "factorial", [5]),
            lambda: genrpc.async_call(y, "math", "factorial", [5]),
            lambda: erpc.multicall([y], "math", "factorial", [5]),
            lambda: asyncio.run(aio.call(y, "math", "factorial", [5])),
            lambda: pending.result(),
            lambda: genrpc.yield_(pending),
            lambda: fresh.start(),
            lambda: genrpc.start("w"),
        ]
        child = os.fork()
        if child == 0:
            begun = time.monotonic()
            for number, way in enumerate(ways):
                try:
                    way()
                except RuntimeError as exc:
                    print(number, "forked" in str(exc), flush=True)
            print(time.monotonic() - begun < 5, flush=True)
            sys.exit()  # as a program ends: with what it has registered for its end
        _, status = os.waitpid(child, 0)
        print("child", status, flush=True)
        assert pending.result(10) is None  # the parent is none the worse
        assert genrpc.call(y, "math", "factorial", [5]) == 120
        """
    )
    refused = [f"{number} True" for number in range(10)]
    assert printed == [*refused[:9], "9 True", "True", "child 0"]


def test_forked_child_that_ends_leaves_its_parents_node_alone():
    printed = run(
        """
        from genrpc import discovery
        with genrpc.Node("local", genrpc.Settings(
                tcp_server_port=0, cookie="0123456789abcdef")) as node:
            child = os.fork()
            if child == 0:
                node.stop()
                genrpc.stop()
                sys.exit()
            print(os.waitpid(child, 0)[1], discovery.local_nodes())
        """
    )
    assert printed[0].startswith("0 [")
    assert "'local@127.0.0.1'" in printed[0]


def test_child_that_was_forked_while_threads_were_calling_is_refused_too():
    printed = run(
        """
        stop = threading.Event()
        def work(number):
            while not stop.is_set():
                genrpc.call((y, number), "operator", "add", [2, 3])
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                for dest in (y, (y, 1), (y, "new"), "z@127.0.0.1"):
                    try:
                        genrpc.cast(dest, "operator", "add", [2, 3])
                    except RuntimeError:
                        continue
                    os._exit(1)
                os._exit(0)
            print(os.waitpid(child, 0)[1])
        stop.set()
        for thread in threads:
            thread.join()
        """
    )
    assert printed == ["0"] * 20


def test_forked_children_that_have_no_use_for_genrpc_live_on():
    """With gRPC's own handlers a third of them crashed."""
    printed = run(
        """
        import multiprocessing
        context = multiprocessing.get_context("fork")
        for _ in range(20):
            child = context.Process(target=time.sleep, args=(0.01,))
            child.start()
            child.join()
            print(child.exitcode)
        assert genrpc.call(y, "math", "factorial", [5]) == 120
        """
    )
    assert printed == ["0"] * 20


def test_process_that_forked_before_its_first_use_is_free_to_call():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import os, genrpc
                child = os.fork()
                with genrpc.start("x", tcp_server_port=0, cookie="{COOKIE}"):
                    print(genrpc.call("x", "math", "factorial", [5]), flush=True)
                if child:
                    os.waitpid(child, 0)
                """
            ),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stdout.split() == ["120", "120"]
