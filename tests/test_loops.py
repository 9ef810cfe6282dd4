import asyncio
import concurrent.futures
import logging
import threading

import pytest
from waiting import SECONDS

from genrpc.loops import LoopThread, Mailbox


@pytest.fixture
def thread():
    thread = LoopThread("a-test-loop")
    yield thread
    if not thread.loop.is_closed():
        thread.stop(SECONDS)


# ---------------------------------------------------------------- LoopThread


def test_coroutine_runs_on_the_thread_and_its_result_comes_back(thread):
    async def name():
        return threading.current_thread().name

    assert thread.run(name(), SECONDS) == "a-test-loop"


def test_call_runs_a_function_on_the_thread(thread):
    ran = concurrent.futures.Future()
    thread.call(lambda value: ran.set_result((value, threading.get_ident())), 5)
    assert ran.result(SECONDS) == (5, thread.ident)


def test_exception_of_a_coroutine_is_raised_where_it_is_waited_for(thread):
    async def fail():
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        thread.run(fail(), SECONDS)


def test_coroutine_that_takes_too_long_is_cancelled(thread):
    cancelled = threading.Event()

    async def wait():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(concurrent.futures.TimeoutError):
        thread.run(wait(), 0.01)
    assert cancelled.wait(SECONDS)


def test_waiting_on_the_thread_itself_is_refused(thread):
    async def nothing():
        pass

    async def wait_for_itself():
        thread.run(nothing(), SECONDS)

    with pytest.raises(RuntimeError, match="would wait for itself"):
        thread.run(wait_for_itself(), SECONDS)


def test_spawned_task_is_kept_until_it_has_ended(thread):
    async def value():
        return 5

    async def spawn():
        task = thread.spawn(value())
        return await task, task in thread._tasks

    result, _ = thread.run(spawn(), SECONDS)

    async def left():
        return len(thread._tasks)

    assert (result, thread.run(left(), SECONDS)) == (5, 0)


def test_stop_ends_the_thread_and_closes_the_loop(thread):
    thread.stop(SECONDS)
    assert thread.loop.is_closed()
    assert "a-test-loop" not in [other.name for other in threading.enumerate()]


def test_stop_cancels_what_still_runs(thread):
    begun, cancelled = threading.Event(), threading.Event()

    async def wait():
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    thread.call(lambda: thread.spawn(wait()))
    assert begun.wait(SECONDS)
    thread.stop(SECONDS)
    assert cancelled.is_set()


def test_task_that_will_not_be_cancelled_does_not_keep_the_thread(thread, monkeypatch):
    monkeypatch.setattr("genrpc.loops._CANCEL_SECONDS", 0.01)
    begun = threading.Event()
    released = []

    async def stay():
        begun.set()
        loop = asyncio.get_running_loop()
        while not released:
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                continue

    thread.call(lambda: thread.spawn(stay()))
    assert begun.wait(SECONDS)
    thread.stop(SECONDS)
    assert thread.loop.is_closed()
    released.append(True)


@pytest.mark.parametrize("interrupt", [SystemExit, KeyboardInterrupt])
def test_interrupt_raised_by_a_task_does_not_end_the_loop_of_all_others(thread, interrupt, caplog):
    async def fail():
        raise interrupt

    async def value():
        return 5

    with caplog.at_level(logging.ERROR, "genrpc"):
        with pytest.raises(interrupt):
            thread.run(fail(), SECONDS)
        assert thread.run(value(), SECONDS) == 5
    assert "A task of the loop a-test-loop raised" in caplog.text


def test_loop_that_somebody_stops_goes_on(thread):
    async def value():
        return 5

    thread.call(thread.loop.stop)
    assert thread.run(value(), SECONDS) == 5


def test_all_that_is_to_be_woken_is_even_if_one_raises(thread):
    woken, problems, done = [], [], threading.Event()
    thread.loop.set_exception_handler(lambda loop, context: problems.append(context["exception"]))

    def fail():
        raise LookupError("no")

    thread.call(lambda: [thread.wake(each) for each in (fail, lambda: woken.append(1), done.set)])
    assert done.wait(SECONDS)
    assert (woken, [str(problem) for problem in problems]) == ([1], ["no"])


@pytest.mark.parametrize("bells", ["with", "without"])
def test_loop_with_a_bell_is_woken_where_the_system_has_none_too(monkeypatch, bells):
    if bells == "without":
        monkeypatch.delattr("os.eventfd", raising=False)
    thread = LoopThread("test-bell", has_bell=True)
    try:
        for _ in range(3):
            woken = threading.Event()
            thread.wake(woken.set)
            assert woken.wait(SECONDS)
    finally:
        thread.stop(SECONDS)


def test_wake_up_that_was_lost_is_made_up_for(thread):
    """As when Ctrl-C comes between the two steps of Mailbox.post."""
    woken = threading.Event()
    thread._due.awake = True
    thread.wake(woken.set)
    assert not woken.wait(0.02)
    thread.call(thread.heal)
    assert woken.wait(SECONDS)
    thread.call(thread.heal)  # there is nothing to do
    again = threading.Event()
    thread.wake(again.set)
    assert again.wait(SECONDS)


# ---------------------------------------------------------------- Mailbox


class Loop:
    """Counts wake-ups, and never comes: what a loop does at rest is up to the test."""

    def __init__(self):
        self.wakes = 0

    def call_soon_threadsafe(self, wake):
        self.wakes += 1


def test_first_item_wakes_and_the_next_does_not():
    loop = Loop()
    mailbox = Mailbox(loop, lambda: None)
    mailbox.post(1)
    mailbox.post(2)
    assert (loop.wakes, len(mailbox)) == (1, 2)


def test_items_are_taken_in_the_order_in_which_they_were_posted():
    mailbox = Mailbox(Loop(), lambda: None)
    for number in range(5):
        mailbox.post(number)
    assert (mailbox.take(), mailbox.take()) == ([0, 1, 2, 3, 4], [])


def test_item_that_comes_before_rest_is_noticed():
    loop = Loop()
    mailbox = Mailbox(loop, lambda: None)
    mailbox.post(1)
    mailbox.take()
    mailbox.post(2)
    assert not mailbox.rest()
    assert (mailbox.take(), mailbox.rest(), loop.wakes) == ([2], True, 1)


def test_item_that_comes_at_rest_wakes_again():
    loop = Loop()
    mailbox = Mailbox(loop, lambda: None)
    mailbox.post(1)
    mailbox.take()
    assert mailbox.rest()
    mailbox.post(2)
    assert loop.wakes == 2


def test_nothing_is_lost_or_disordered_between_many_threads(thread):
    taken, done = [], threading.Event()
    threads, each = 8, 2_000

    def wake():
        while True:
            taken.extend(mailbox.take())
            if mailbox.rest():
                break
        if len(taken) == threads * each:
            done.set()

    mailbox = Mailbox(thread.loop, wake)

    def post(sender):
        for number in range(each):
            mailbox.post((sender, number))

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(post, range(threads)))
    assert done.wait(SECONDS)
    assert all(
        [number for sender, number in taken if sender == one] == list(range(each))
        for one in range(threads)
    )
