import asyncio

import pytest

from genrpc.transport.loopback import LoopbackStream

pytestmark = pytest.mark.asyncio


class Owner:
    def __init__(self):
        self.told = []

    def received(self, frame):
        self.told.append(frame)

    def ended(self, failure):
        self.told.append(("ended", failure))


async def rounds(number=5):
    for _ in range(number):
        await asyncio.sleep(0)


def pair():
    one, two = LoopbackStream.pair(asyncio.get_running_loop())
    mine, other = Owner(), Owner()
    one.start(mine)
    two.start(other)
    return one, mine, two, other


async def test_frames_arrive_in_order_and_in_a_later_round():
    one, _, _, other = pair()
    done = []
    one.write(b"1", done.append)
    one.write(b"2", done.append)
    assert other.told == []
    await rounds()
    assert (other.told, done) == ([b"1", b"2"], [None, None])


async def test_half_close_ends_the_other_side_after_what_was_written():
    one, mine, _, other = pair()
    one.write(b"1", lambda error: None)
    one.half_close()
    await rounds()
    assert other.told == [b"1", ("ended", None)]
    assert mine.told == [("ended", None)]  # as the other side is over


async def test_abort_ends_both_sides_once():
    one, mine, two, other = pair()
    one.abort()
    two.abort()
    await rounds()
    assert mine.told == other.told == [("ended", None)]


async def test_frame_for_a_side_that_is_over_reaches_nobody():
    one, _, two, other = pair()
    two.abort()
    await rounds()
    done = []
    one.write(b"late", done.append)
    await rounds()
    assert (other.told, done) == ([("ended", None)], [None])


async def test_side_that_never_began_to_read_ends_in_silence():
    one, two = LoopbackStream.pair(asyncio.get_running_loop())
    one.write(b"1", lambda error: None)
    two.abort()
    await rounds()
    assert one._ended
