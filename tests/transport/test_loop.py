import subprocess
import sys
import threading

import pytest
from waiting import SECONDS

from genrpc.transport import loop
from genrpc.transport.loop import check_may_wait, check_not_forked, loop_thread


def test_there_is_one_loop_thread_however_many_ask_for_it_at_once():
    code = """
import threading
from genrpc.transport.loop import loop_thread
barrier, found = threading.Barrier(20), []
def ask():
    barrier.wait()
    found.append(loop_thread())
threads = [threading.Thread(target=ask) for _ in range(20)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(found), len(set(found)), sum(t.name == "genrpc-loop" for t in threading.enumerate()))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert run.stdout.split() == ["20", "1", "1"]


def test_waiting_is_refused_on_the_loop_thread_only():
    check_may_wait()

    async def wait():
        check_may_wait()

    with pytest.raises(RuntimeError, match="declared non-blocking"):
        loop_thread().run(wait(), SECONDS)


def test_all_is_refused_after_a_fork(monkeypatch):
    class Told:
        forks = 0

        def forked(self):
            self.forks += 1

    told = Told()
    loop_thread()
    loop.tell_of_forks(told)
    monkeypatch.setattr(loop, "_forked", False)  # and put back when the test ends
    monkeypatch.setattr(loop, "_told_of_forks", {told})
    loop._after_fork()
    assert told.forks == 1
    for refused in (loop_thread, check_may_wait, check_not_forked):
        with pytest.raises(RuntimeError, match="was forked from one in which genrpc"):
            refused()


def test_loop_thread_does_not_keep_the_process_alive():
    assert loop_thread()._thread.daemon
    assert threading.main_thread().is_alive()
