import asyncio
import time

from grpc_common.server.deadlines import Deadlines


class Expires:
    """Takes note of its end."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.expired = asyncio.Event()
        self.seconds = 0.0

    def expire(self) -> None:
        self.seconds = time.perf_counter() - self.start
        self.expired.set()


async def test_each_expires_in_its_own_time():
    """Calls that begin one after the other end so, none of them early."""
    deadlines = Deadlines(0.05)
    calls = []
    for _ in range(5):
        calls.append(Expires())
        deadlines.add(calls[-1])
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        for call in calls:
            await call.expired.wait()
    assert min(call.seconds for call in calls) >= 0.05


async def test_what_is_removed_does_not_expire():
    """A call that has ended is left alone, and one that follows still expires."""
    deadlines = Deadlines(0.01)
    removed, later = Expires(), Expires()
    deadlines.add(removed)
    deadlines.remove(removed)
    deadlines.remove(removed)
    deadlines.add(later)
    await asyncio.wait_for(later.expired.wait(), 10)
    assert not removed.expired.is_set()


async def test_no_limit():
    """Without a number of seconds nothing expires, and no timer runs."""
    deadlines = Deadlines(None)
    call = Expires()
    deadlines.add(call)
    assert deadlines._timer is None  # noqa: SLF001 (that nothing will happen has no other sign)
    assert not call.expired.is_set()
